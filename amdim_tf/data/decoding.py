"""Image files become pixels by operations of a graph: the right ones, or the file is refused.

Transparency is dropped: what is under it counts, and black in a GIF. A JPEG is turned as its Exif
data say.
"""

import tensorflow as tf

from amdim_tf.data import bmp, headers
from amdim_tf.data.binary import of_file, peek
from amdim_tf.data.exif import orientation, upright
from amdim_tf.typing import Tensor

# The largest image: a small file may promise one that no memory holds.
MAX_PIXELS = 2**25
# Kinds of files, and the bytes at a place by which each is known. The first of them are in `READ`.
KINDS = (
    ("a JPEG", 0, b"\xff\xd8\xff"),
    ("a PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("a GIF", 0, b"GIF8"),
    ("a BMP", 0, b"BM"),
    ("a WebP", 8, b"WEBP"),
    ("a TIFF", 0, b"II*\0"),
    ("a TIFF", 0, b"MM\0*"),
    ("a TIFF", 0, b"II+\0"),
    ("a TIFF", 0, b"MM\0+"),
    ("a HEIC", 4, b"ftyphe"),
    ("a HEIC", 4, b"ftypmif1"),
    ("a HEIC", 4, b"ftypmsf1"),
    ("an AVIF", 4, b"ftypavi"),
    ("a JPEG 2000", 0, b"\0\0\0\x0cjP  "),
    ("a JPEG 2000", 0, b"\xff\x4f\xff\x51"),
    ("a JPEG XL", 0, b"\0\0\0\x0cJXL "),
    ("a JPEG XL", 0, b"\xff\x0a"),
    ("a PSD", 0, b"8BPS"),
    ("an SVG", 0, b"<svg"),
    ("an SVG or other XML", 0, b"<?xml"),
    ("a PDF", 0, b"%PDF"),
)
# A camera's or scanner's 12 bits, in 16, are all darker than this.
DARK = 2**12
DARK_PNG = "a PNG of 16 bits that uses 12 of them or fewer: convert it to 8 bits"


def decode(contents: Tensor) -> Tensor:
    """The pixels (H,W,3) uint8 of an image file, a string scalar; those of a GIF's first frame.

    Raises:
        tf.errors.InvalidArgumentError: it is not `plausible`, or broken.
    """
    contents = plausible(contents)
    image = _pixels(contents)
    # Not where they are read: a function with a check takes as long as another decoding.
    image = checked(image, tf.size(image) > 0, DARK_PNG)
    return upright(image, orientation(contents))


def plausible(contents: Tensor) -> Tensor:
    """The `contents` of a file, unless its header has a `fault`.

    Raises:
        tf.errors.InvalidArgumentError: it has one, which the message names.
    """
    found = fault(contents)
    valid = f"a complete JPEG, PNG, GIF, BMP or WebP of 1 to {MAX_PIXELS} pixels"
    return checked(contents, found == "", f"An image must be {valid}. Received", found)


@of_file
def fault(contents: Tensor) -> Tensor:
    """Why a file is not decoded, by its header: a few words, string; "" if it may be."""
    kind = _kind(contents)

    def of_other():
        unread = [f"{name}, which is not read: convert it to PNG or JPEG" for name, *_ in KINDS]
        words = tf.gather([*unread, "no image"], kind)
        return tf.zeros((), tf.int64), tf.where(contents == b"", "empty", words)

    pixels, refusal = tf.switch_case(
        kind, [lambda promised=promised: promised(contents) for promised, _ in READ], of_other
    )
    name = tf.gather([*(name for name, *_ in KINDS), ""], kind)
    excess = tf.where(pixels > MAX_PIXELS, f", more than {MAX_PIXELS}", "")
    size = tf.strings.join([name, " of ", tf.strings.as_string(pixels), " pixels", excess])
    return tf.where((refusal != "") | allowed(pixels), refusal, size)


def reason(contents: bytes) -> str:
    """Why the `contents` of a file, bytes, are not decoded, in a few words; "" if they are."""
    contents = tf.constant(contents)
    try:
        found = fault(contents).numpy().decode()
        if not found:
            decode(contents)
        return found
    except tf.errors.InvalidArgumentError as error:
        name, *_ = KINDS[_kind(contents)]
        return DARK_PNG if DARK_PNG in error.message else f"{name} that is broken or truncated"


def allowed(pixels: Tensor) -> Tensor:
    """Whether an image may have that many `pixels`."""
    return (pixels > 0) & (pixels <= MAX_PIXELS)


def checked(value: Tensor, valid: Tensor, *message: Tensor) -> Tensor:
    """The tensor `value`, if it is `valid`; what is computed from it waits for the check.

    Raises:
        tf.errors.InvalidArgumentError: it is not, as the `message` says.
    """
    with tf.control_dependencies([tf.debugging.Assert(valid, message)]):
        return tf.identity(value)


def _kind(contents):
    """The place of a file's kind in `KINDS`, int32; their number for another file."""
    _, places, magic = zip(*KINDS, strict=True)
    head = tf.strings.substr(contents, 0, 16) + 16 * b"\0"
    found = tf.strings.substr(head, places, [len(each) for each in magic]) == tf.constant(magic)
    return tf.argmax(tf.concat([found, [True]], 0), output_type=tf.int32)


@of_file
def _pixels(contents):
    """The pixels (H,W,3) uint8 of a file without `fault`; none if a PNG of 16 bits is too dark."""
    readers = [lambda read=read: read(contents) for _, read in READ]
    return tf.ensure_shape(tf.switch_case(_kind(contents), readers), (None, None, 3))


def _png(contents):
    def deep():
        pixels = tf.io.decode_png(contents, 3, tf.uint16)
        dark = tf.reduce_max(tf.cast(pixels, tf.int32)) < DARK
        return tf.cast(pixels[: tf.where(dark, 0, tf.shape(pixels)[0])] // 256, tf.uint8)

    return tf.cond(peek(contents, 24, 1)[0] == 16, deep, lambda: _any(contents))


def _webp(contents):
    return tf.io.decode_webp(contents)[0, ..., :3]


def _any(contents):
    return tf.io.decode_image(contents, 3, expand_animations=False)


# In the order of `KINDS`: what reads the header, and what reads the pixels.
READ = (
    (headers.jpeg, _any),
    (headers.png, _png),
    (headers.gif, _any),
    (bmp.promised, bmp.decode),
    (headers.webp, _webp),
)
