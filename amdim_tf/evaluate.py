"""The command `python -m amdim_tf.evaluate`: what the encoder of a run has learned (4)."""

import dataclasses
import pathlib
import time

import matplotlib.pyplot as plt
from absl import flags
from sklearn.metrics import ConfusionMatrixDisplay

from amdim_tf import command, datasets, pipeline, protocols
from amdim_tf.config import check_config, fields, load_config
from amdim_tf.errors import InputError
from amdim_tf.files import write_json
from amdim_tf.mixture import BagOfFeatures
from amdim_tf.run_directory import (
    environment,
    load_model,
    read_config,
    read_result,
    run_config,
)

FLAGS = flags.FLAGS
PROTOCOLS = ("knn", "linear", "mlp", "finetune")
FEATURES = ("f1", "mixture")
# More class names than this cannot be read beside a picture.
NAMED_CLASSES = 20


def evaluate(
    workdir,
    config,
    chosen=PROTOCOLS,
    data_dir=None,
    fast=False,
    label_fraction=1.0,
    features="f1",
):
    """Measures the encoder of a run; writes a result and a picture for each protocol.

    Args:
        workdir: the run directory.
        config: of the data and of the classifiers' schedule, see `evaluation_config`.
        chosen: of `PROTOCOLS`.
        data_dir: where the data is, see `datasets.load`.
        fast: linear and MLP classifiers learn from features computed once, without augmentation,
            instead of by the reference's schedule on augmented images.
        label_fraction: the part of the training images that classifiers and neighbours come from.
        features: what they see of an image: "f1", or "mixture", all of its mixture features.

    Returns:
        {protocol: result}, as in `workdir`/evaluation.

    Raises:
        InputError: a run without checkpoint or without the features, data without classes, or too
            many bad images.
    """
    check_config(config)
    if not 0 < label_fraction <= 1:
        raise InputError(f"label_fraction must lie in 0..1. Received: {label_fraction:g}")
    model, steps = load_model(workdir)
    encoder = model.encoder
    if features == "mixture":
        if not getattr(model, "mixture", None):
            raise InputError(
                "features=mixture is for runs with mixture_components. "
                f"Received: workdir={workdir}, which has none"
            )
        encoder = BagOfFeatures(encoder, model.mixture)
    data = datasets.load(config, data_dir)
    classes = len(data.class_names)
    if classes < 2:
        raise InputError(
            "Classifiers need a data set with two or more classes. "
            f"Received: {config.dataset} with {classes}"
        )
    if label_fraction < 1:
        subset = protocols.balanced_subset(data.probe, label_fraction, classes)
        data = dataclasses.replace(data, probe=subset)
    print(
        f"encoder   {workdir}, after {steps} steps\n"
        f"data      {config.dataset}: {data.probe.size} labelled and {data.test.size} test images, "
        f"{classes} classes",
        flush=True,
    )

    results, started = {}, time.time()
    trained = {
        "steps": steps,
        "train_images": (read_result(workdir) or {}).get("train_images"),
        "config": read_config(workdir),
    }

    # Bad images have no scores, so labels come from where the scores do.
    def write(name, scores, labels, fast):
        data.failures.check()
        report, confusion = protocols.report(scores, labels, data.class_names)
        results[name] = {
            "protocol": name,
            "fast": fast,
            "label_fraction": label_fraction,
            "features": features,
            "labelled_images": data.probe.size,
            "test_images": len(labels),
            "accuracy": report,
            "seconds": round(time.time() - started, 1),
            "config": fields(config),
            "encoder": trained,
            **environment(),
        }
        folder = pathlib.Path(workdir) / "evaluation"
        folder.mkdir(exist_ok=True)
        parts = [config.dataset.replace("/", "_"), name]
        parts += ["fast"] * fast + [f"{label_fraction:g}"] * (label_fraction < 1)
        parts += ["mixture"] * (features == "mixture")
        path = folder / ("-".join(parts) + ".json")
        draw_confusion(confusion, data.class_names, title(results[name]), path.with_suffix(".png"))
        write_json(path, results[name])
        print(title(results[name]), flush=True)

    probes = [name for name in ("linear", "mlp") if name in chosen]
    if "knn" in chosen or (fast and probes):
        encoded = [
            protocols.encode(encoder, pipeline.test_batches(data, split, config))
            for split in (data.probe, data.test)
        ]
    if "knn" in chosen:
        write("knn", protocols.knn(*encoded, classes), encoded[1][1], False)
    if probes:
        if fast:
            scores, labels = protocols.fit_probes(*encoded, classes, config.seed), encoded[1][1]
        else:
            scores, labels = protocols.fit_on_views(encoder, data, config, frozen=True)
        for name in probes:
            write(name, scores[name], labels, fast)
    if "finetune" in chosen:  # last, since it changes the encoder
        scores, labels = protocols.fit_on_views(encoder, data, config, frozen=False)
        write("finetune", scores["linear"], labels, False)
    return results


def title(result):
    """A result in one line."""
    accuracy = result["accuracy"]
    low, high = accuracy["interval"]
    return (
        f"{result['config']['dataset']}, {result['protocol']}{' (fast)' * result['fast']}: top-1 "
        f"{accuracy['top1']:.3f} ({low:.3f} to {high:.3f}), top-5 {accuracy['top5']:.3f}"
    )


def draw_confusion(confusion, class_names, heading, path):
    """Draws counts (classes,classes) by true and predicted class, as parts of the true class."""
    parts = confusion / confusion.sum(1, keepdims=True).clip(1)
    named = len(class_names) <= NAMED_CLASSES
    figure, axes = plt.subplots(figsize=(8, 7), layout="constrained")
    display = ConfusionMatrixDisplay(parts, display_labels=class_names if named else None)
    display.plot(
        ax=axes,
        include_values=named,
        values_format=".2f",
        cmap="Blues",
        xticks_rotation="vertical",
        text_kw={"fontsize": 7},
    )
    if not named:
        axes.xaxis.set_major_locator(plt.MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(plt.MaxNLocator(10, integer=True))
    display.im_.colorbar.set_label("part of the images of the true class")
    axes.set_title(heading, fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def evaluation_config(workdir, dataset=None):
    """The config for measuring a run: its own, on another `dataset` that one's.

    Images are always of the size and normalisation that the encoder was trained with.
    """
    config = run_config(workdir)
    if dataset in (None, config.dataset):
        return config
    other = load_config(dataset)
    for name in ("image_size", "mean", "std", "views", "batch_size", "seed", "l2"):
        other[name] = config[name]
    return other


def main():
    # Fine-tuning cannot be had from features computed once.
    everything = PROTOCOLS[:-1] if FLAGS.fast else PROTOCOLS
    chosen = everything if FLAGS.protocol == "all" else (FLAGS.protocol,)
    evaluate(
        FLAGS.workdir,
        FLAGS.config,
        chosen,
        FLAGS.data_dir,
        FLAGS.fast,
        FLAGS.label_fraction,
        FLAGS.features,
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "run directory of the encoder", required=True)
    flags.DEFINE_string("dataset", None, "the data to measure it on; its own if none")
    flags.DEFINE_string("data_dir", None, "where TFDS keeps prepared data; or a folder of images")
    flags.DEFINE_enum("protocol", "all", (*PROTOCOLS, "all"), "how to measure it")
    flags.DEFINE_bool("fast", False, "classifiers learn from features that are computed once")
    flags.DEFINE_float("label_fraction", 1.0, "part of the labelled images, the same of each class")
    flags.DEFINE_enum("features", "f1", FEATURES, "what classifiers and neighbours see of an image")
    command.run(main, evaluation_config)
