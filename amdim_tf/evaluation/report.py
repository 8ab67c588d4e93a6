"""One page about a run, with all pictures inside: no network and no script is needed to read it."""

import base64
import datetime
import pathlib
import re
from typing import Any

import jinja2
import markdown

from amdim_tf.config import fields
from amdim_tf.errors import InputError
from amdim_tf.evaluation import pictures
from amdim_tf.evaluation.results import title
from amdim_tf.evaluation.rows import COLUMNS, HEADINGS, ROWS, gain_phrase, images_of, wilson
from amdim_tf.evaluation.visualization import visualize
from amdim_tf.files import local, printable, read_json, read_json_lines, write_text
from amdim_tf.training.checkpoints import Checkpoints
from amdim_tf.training.run_directory import CHECKPOINTS
from amdim_tf.training.run_files import read_result
from amdim_tf.typing import Config

# The pictures of `visualize` in the order of the page, with what they show.
CAPTIONS = {
    "retrieval": "Test images and those nearest to them. A run has learned something if they look "
    "alike in more than their colours.",
    "views": "What in a second view matches the first, by the scores that training optimises.",
    "segmentation": "Which mixture component accounts for which location.",
    "map": "Test images at places where neighbours have similar features.",
}
HEALTH = {
    "f1_std": "deviation, of 1. Towards 0, f1 collapses: it is the same for all images",
    "f1_effective_rank": "dimensions that are used alike. A few: collapsed, or trained too little",
    "f1_uniformity": "near 0: collapsed; -2 to -4: spread over the sphere",
}
# Bad images that are named.
NAMED = 20


def report(
    workdir: str | pathlib.Path,
    config: Config,
    data_dir: str | pathlib.Path | None = None,
    output: str | pathlib.Path | None = None,
) -> pathlib.Path:
    """Writes a page about a run, finished or not: whatever the run has so far.

    Args:
        workdir: the run directory; `workdir`/pictures is written, too, see `visualize`.
        config: the config for the data, see `run_files.evaluation_config`.
        data_dir: the folder of the data, see `sources.load`. Without data the page has no pictures
            of images, and says why.
        output: the page; by default `workdir`/report.html.

    Returns:
        The path of the page.

    Raises:
        InputError: `workdir` is no run directory, or the page cannot be there.
    """
    run = local(workdir, "workdir")
    path = local(output or run / "report.html", "output")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"output must be a file in an existing folder. Received: output={output}")
    lines, why = read_json_lines(run / "metrics.jsonl"), ""
    try:
        visualize(run, config, data_dir)
        drawn = CAPTIONS
    except InputError as error:
        drawn, why = {}, str(error)
        if lines:
            (run / "pictures").mkdir(exist_ok=True)
            pictures.save(pictures.curves(lines), run / "pictures" / "curves")
    figures = {name: run / "pictures" / f"{name}.png" for name in (*drawn, "curves")}
    result = read_result(run) or {}
    card = run / "export" / "1" / "MODEL_CARD.md"
    page = _template().render(
        config=fields(config),
        result=result,
        rows=_rows(result),
        headings=HEADINGS.values(),
        gains=gain_phrase(result),
        missing={ROWS.get(name, name): x for name, x in result.get("missing", {}).items()},
        health=HEALTH,
        measured=[
            (title(read_json(each)), _embedded(each.with_suffix(".png")))
            for each in sorted((run / "evaluation").glob("*.json"))
        ],
        step=max(Checkpoints(run / CHECKPOINTS).steps(), default=0),
        captions=CAPTIONS,
        figures={name: _embedded(each) for name, each in figures.items() if each.exists()},
        why=why,
        starts=read_json_lines(run / "starts.jsonl"),
        bad=_bad_images(run / "bad_images.txt"),
        named=NAMED,
        card=_html(card.read_text().split("\n## Config")[0]) if card.exists() else "",
    )
    write_text(path, page)
    return path


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["utc"] = lambda seconds: f"{_utc(seconds):%Y-%m-%d %H:%M} UTC"
    return environment.get_template("report.html")


def _utc(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def _rows(result: dict[str, Any]) -> list[list[str]]:
    """The table of accuracies, each with its 95 % interval by Wilson's score."""
    rows = []
    for key, row in result.get("accuracy", {}).items():
        note = result.get("notes", {}).get(key)
        cells = [ROWS[key] + (f" ({note})" if note else "")]
        for name in COLUMNS:
            cells.append("")
            if name in row:
                low, high = wilson(row[name], images_of(result, key))
                cells[-1] = f"{row[name]:.3f} ({low:.3f} to {high:.3f})"
        rows.append(cells)
    return rows


def _bad_images(path: pathlib.Path) -> list[str]:
    if not path.exists():
        return []
    return [printable(line).replace("\t", ": ") for line in path.read_bytes().splitlines()]


def _embedded(path: pathlib.Path) -> str:
    """The PNG file as an address that holds all of it; empty if it is not there."""
    if not path.exists():
        return ""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _html(text: str) -> str:
    """Markdown as HTML, two levels of headings lower; tags in it are text."""
    converter = markdown.Markdown(extensions=["tables"])
    converter.preprocessors.deregister("html_block")
    converter.inlinePatterns.deregister("html")
    return converter.convert(re.sub("^#", "###", text, flags=re.MULTILINE))
