"""How views are drawn: the reference's augmentation, and what may be added to it (3.4)."""

import dataclasses

from amdim_tf.data.autoaugment import POLICIES
from amdim_tf.errors import InputError

GEOMETRIES = ("translate", "crop", "none")


@dataclasses.dataclass(frozen=True)
class Policy:
    """How views are drawn. The defaults are the reference's for images of 32 pixels.

    Args:
        geometry: "translate" by up to 4 pixels with reflection, random resized "crop", or "none".
        flip_probability: that of a horizontal flip, shared by all views.
        translate_probability: that of the translation, for each view.
        jitter_probability: that of the colour jitter, for each view.
        jitter: brightness, contrast and saturation factors are uniform in 1 +- `jitter`.
        hue: hue shifts are uniform in +- `hue` of the colour circle.
        gray_probability: that of dropping all colour, for each view.
        autoaugment: the Fast AutoAugment policy, "cifar10" or "imagenet"; empty for none.
        crop_area: the least and the largest area of a crop, as fractions of the image's.
        crop_ratio: the least and the largest width of a crop, over its height.
        blur_probability: that of a Gaussian blur, for each view.
        blur_sigma: the least and the largest deviation of the blur, in hundredths of the side.
        solarize_probability: that of inverting the bright half of all values, for each view.
        number: number of views of an image, without small crops.
        small_crops: number of further views, which are crops of `small_area`.
        small_area: as `crop_area`, for these.
        layer: MODULE:NAME of a Keras layer that changes views (N,S,S,C) in [0, 255], or of what
            makes one; empty for none.

    Raises:
        InputError: a value that is not valid.

    Example:
    >>> Policy(geometry="crop").flip_probability
    0.5
    """

    geometry: str = "translate"
    flip_probability: float = 0.5
    translate_probability: float = 0.8
    jitter_probability: float = 0.8
    jitter: float = 0.4
    hue: float = 0.2
    gray_probability: float = 0.25
    autoaugment: str = ""
    crop_area: tuple[float, float] = (0.3, 1.0)
    crop_ratio: tuple[float, float] = (0.7, 1.4)
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.3, 1.5)
    solarize_probability: float = 0.0
    small_crops: int = 0
    small_area: tuple[float, float] = (0.05, 0.3)
    layer: str = ""
    number: int = 2

    def __post_init__(self):
        for name, valid in (("geometry", GEOMETRIES), ("autoaugment", ("", *POLICIES))):
            if getattr(self, name) not in valid:
                raise InputError(
                    f"{name} must be one of {', '.join(map(repr, valid))}. "
                    f"Received: {getattr(self, name)!r}"
                )
        floats = [field.name for field in dataclasses.fields(self) if field.type is float]
        for name in floats:
            limit = 0.5 if name == "hue" else 1
            if not 0 <= getattr(self, name) <= limit:
                raise InputError(
                    f"{name} must lie in 0..{limit:g}. Received: {name}={getattr(self, name)}"
                )
        for name in ("crop_area", "crop_ratio", "blur_sigma", "small_area"):
            largest, value = 1 if "area" in name else 100, getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= largest:
                raise InputError(
                    f"{name} must be the least and the largest of positive numbers up to "
                    f"{largest}. Received: {name}={tuple(value)}"
                )
        for name, least in (("number", 1), ("small_crops", 0)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"{name} must be at least {least}. Received: {name}={value}")

    @property
    def views(self) -> int:
        """Number of views of an image, small crops included."""
        return self.number + self.small_crops
