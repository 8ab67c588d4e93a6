"""The command `python -m amdim_tf.visualize`: pictures of what a run has learned (Figure 2)."""

import json
import pathlib

from absl import flags

from amdim_tf import command, datasets, maps, pictures
from amdim_tf.config import check_config
from amdim_tf.errors import InputError
from amdim_tf.evaluate import evaluation_config
from amdim_tf.files import write_json
from amdim_tf.protocols import interval
from amdim_tf.run_directory import load_model
from amdim_tf.train import build

FLAGS = flags.FLAGS


def report(model, untrained, shown, config):
    """Of the trained and the untrained model, {name: {"trained": ..., "untrained": ...}}.

    `same_class` is the part of the nearest images that are of the query's class. `separation`, of
    photo_pairs, is how much better posteriors tell left from right, where the photographs differ,
    than top from bottom; with its 95 % interval by bootstrap over images.
    """
    both, found = {"trained": model, "untrained": untrained}, {}
    if config.source != "photo_pairs" or not model.mixture:
        found["same_class"] = {
            name: maps.same_class(
                maps.features(each, shown.images)["f1"], shown.labels, pictures.NEIGHBOURS
            )
            for name, each in both.items()
        }
        return found
    for name, each in both.items():
        q = maps.posteriors(each, shown.images, shown.images)
        sides, ends = maps.separation(q), maps.separation(q.swapaxes(2, 3))
        found[name] = {
            "left_right": float(sides.mean()),
            "top_bottom": float(ends.mean()),
            "difference": float((sides - ends).mean()),
            "interval": interval(sides - ends),
        }
    return {"separation": found}


def visualize(workdir, config, data_dir=None, count=1000):
    """Draws pictures of a run, as PNG and SVG, and measures what they show.

    Args:
        workdir: the run directory, of the amdim objective; `workdir`/pictures is written.
        config: of the data, see `evaluate.evaluation_config`.
        data_dir: where the data is, see `datasets.load`.
        count: images among which neighbours are looked for.

    Returns:
        What report.json beside the pictures holds, see `report`.

    Raises:
        InputError: a run without checkpoint or of another objective, or too few images.
    """
    check_config(config)
    model, step = load_model(workdir)
    if not hasattr(model, "phi7"):
        raise InputError(f"workdir must be a run of the amdim objective. Received: {workdir}")
    data = datasets.load(config, data_dir)
    shown = pictures.choose(data, config, count)
    if len(shown.images) < 2 * (pictures.NEIGHBOURS + 1):
        raise InputError(
            f"images must be at least {2 * (pictures.NEIGHBOURS + 1)}. Received: {count}"
        )
    folder = pathlib.Path(workdir) / "pictures"
    folder.mkdir(exist_ok=True)
    untrained = build(config, len(data.class_names), 1)
    controls = {}
    if model.mixture:
        controls[f"untrained, k = {model.mixture.components}"] = untrained
        single = config.copy_and_resolve_references()
        single.mixture_components = 1
        controls["untrained, k = 1"] = build(single, len(data.class_names), 1)
    drawn = pictures.draw(model, config, shown, data.class_names, controls)
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    drawn = [*drawn, ("curves", pictures.curves([json.loads(line) for line in lines]))]
    for name, figure in drawn:
        pictures.save(figure, folder / name)
        print(f"Wrote {folder / name}.png and .svg", flush=True)
    measured = {"step": step, "images": len(shown.images)}
    measured |= report(model, untrained, shown, config)
    write_json(folder / "report.json", measured)
    return measured


def main():
    measured = visualize(FLAGS.workdir, FLAGS.config, FLAGS.data_dir, FLAGS.images)
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "run directory", required=True)
    flags.DEFINE_string("dataset", None, "the data to look at; its own if none")
    flags.DEFINE_string("data_dir", None, "where TFDS keeps prepared data; or a folder of images")
    flags.DEFINE_integer("images", 1000, "among how many test images neighbours are looked for")
    command.run(main, evaluation_config)
