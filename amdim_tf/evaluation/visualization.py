"""Pictures of a run as files, and what they show in numbers (Figure 2)."""

import pathlib
from typing import Any

from amdim_tf.data import sources
from amdim_tf.data.data import Data
from amdim_tf.evaluation import maps, pictures
from amdim_tf.evaluation.predictions import interval
from amdim_tf.evaluation.projector import FOLDER, write_projector
from amdim_tf.files import local, read_json_lines, write_json
from amdim_tf.training.building import build, check_config
from amdim_tf.training.learner import Learner
from amdim_tf.training.run_directory import load_model
from amdim_tf.training.run_files import run_config
from amdim_tf.typing import Config


def visualize(
    workdir: str | pathlib.Path,
    config: Config,
    data_dir: str | pathlib.Path | None = None,
    count: int = 1000,
    projector: bool = False,
) -> dict[str, Any]:
    """Draws pictures of a run, as PNG and SVG, and measures what they show.

    Args:
        workdir: the run directory; `workdir`/pictures is written.
        config: the config for the data, see `run_files.evaluation_config`.
        data_dir: the folder of the data, see `sources.load`.
        count: number of images among which neighbours are looked for.
        projector: whether to write their features for the projector of TensorBoard, too.

    Returns:
        The content of report.json, which lies next to the pictures; see `report`.

    Raises:
        InputError: the run has no checkpoint, or there are too few images.
    """
    check_config(config)
    model, step = load_model(workdir)
    data = sources.load(config, data_dir)
    shown = pictures.choose(data, config, count)
    # A mixture is drawn next to untrained ones, with as many components and with one.
    _, components, _ = maps.offered(model, shown.images).get("mixture", (None, 0, None))
    untrained = {k: without_training(workdir, k) for k in (components, min(components, 1))}
    controls = {f"untrained, k = {k}": other for k, other in untrained.items()}
    drawn = [*pictures.draw(model, config, shown, data.class_names, controls)]
    workdir = local(workdir, "workdir")
    if lines := read_json_lines(workdir / "metrics.jsonl"):
        drawn.append(("curves", pictures.curves(lines)))
    folder = workdir / "pictures"
    folder.mkdir(exist_ok=True)
    for name, figure in drawn:
        pictures.save(figure, folder / name)
        print(f"Wrote {folder / name}.png and .svg", flush=True)
    if projector:
        f1 = maps.feature(model, shown.images, "f1")
        pixels = pictures.pixels_of(config, shown.images)
        write_projector(workdir / "tensorboard", f1, pixels, shown.labels, data.class_names)
        print(f"Wrote {workdir / 'tensorboard' / FOLDER}", flush=True)
    measured: dict[str, Any] = {"step": step, "images": len(shown.images)}
    for name, each in (("trained", model), ("untrained", untrained[components])):
        measured[name] = report(each, shown, data, config)
    write_json(folder / "report.json", measured)
    return measured


def without_training(workdir: str | pathlib.Path, components: int) -> Learner:
    """An untrained model of the same size as the run's, with so many `components`."""
    config = run_config(workdir)
    config.mixture_components = components
    return build(config, 0, 1)


def report(model: Learner, shown: pictures.Shown, data: Data, config: Config) -> dict[str, Any]:
    """What the pictures of a model show, in numbers.

    `same_class` is the fraction of the nearest images that have the query's class. The others are
    for photo_pairs: `left_right` is how well posteriors tell the two photographs apart, see
    `maps.separation`; `top_bottom` is the same for the upper and lower half, which have no border
    between them; `difference` is the first minus the second, with its 95 % `interval` by bootstrap
    over images.
    """
    found: dict[str, Any] = {}
    if data.class_names:
        f1 = maps.feature(model, shown.images, "f1")
        found["same_class"] = maps.same_class(f1, shown.labels, pictures.NEIGHBOURS)
    if config.source == "photo_pairs" and "mixture" in maps.offered(model, shown.images):
        q = maps.posteriors(model, shown.images, shown.images)
        sides, ends = maps.separation(q), maps.separation(q.swapaxes(2, 3))
        found["left_right"], found["top_bottom"] = float(sides.mean()), float(ends.mean())
        found["difference"] = float((sides - ends).mean())
        found["interval"] = interval(sides - ends)
    return found
