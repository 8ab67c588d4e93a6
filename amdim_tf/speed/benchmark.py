"""Measures how fast each stage runs, next to a matrix product that shows the machine's limit."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

import tensorflow as tf

from amdim_tf import command
from amdim_tf.distribution import check_batch, choose_strategy
from amdim_tf.errors import InputError
from amdim_tf.files import local, write_json
from amdim_tf.speed.images import inference, make_views
from amdim_tf.speed.loss import draw_nce, nce_name, nce_step
from amdim_tf.speed.step import step_name, step_speed, steps
from amdim_tf.speed.timing import MEMORY, Table, peak_bytes
from amdim_tf.training.building import check_config
from amdim_tf.training.run_directory import environment
from amdim_tf.typing import Config


def benchmark(
    config: Config,
    output: pathlib.Path,
    earlier: Mapping[str, Mapping],
    strategy: str,
    measured: Sequence[tuple[str, bool]],
    batches: Sequence[int],
    inference_batch: int = 64,
    runs: int = 10,
    memory_only: bool = False,
) -> None:
    """Measures steps, loss, views and inference; writes `output`, and prints a table.

    Args:
        config: the config of the model that is trained.
        output: a path of JSON; a picture of the loss by batch is drawn next to it.
        earlier: rows of an earlier benchmark, for ratios to them.
        strategy: see `distribution.choose_strategy`.
        measured: [(precision, compiled)], the training steps to measure.
        batches: batches for which the loss is measured by itself.
        inference_batch: images in a request.
        runs: number of times that each measurement is repeated.
        memory_only: whether to measure memory, but no times.

    Raises:
        InputError: the config cannot be trained.
    """
    devices, table = choose_strategy(strategy), Table()
    check_config(config)
    if config.channels != 3:
        raise InputError(
            f"The benchmark's photographs have 3 channels. Received: channels={config.channels}"
        )
    check_batch(config.batch_size, config.micro_batch, devices)
    if not memory_only:
        for precision, compiled in measured:
            config.precision = precision
            step_speed(table, config, compiled, devices, runs)
        config.precision = "float32"
        for batch in batches:
            for kept in (True, False):
                step, _ = nce_step(batch, config.nrkhs, kept)
                table.time({nce_name(batch, kept): step}, runs)
        make_views(table, runs)
        inference(table, config, inference_batch, runs)
    if memory_only or tf.config.list_physical_devices("GPU"):
        memory(table, config, devices, measured, batches)
    else:
        memory_in_another_process(table)
    write_json(output, {"rows": table.rows, **environment()})
    if memory_only:
        return
    if batches:
        draw_nce(table.rows, batches, output.with_suffix(".png"))
    print(f"\n{markdown(table.rows, earlier)}\n\nWrote {output}.")


def memory(
    table: Table,
    config: Config,
    strategy: tf.distribute.Strategy,
    measured: Sequence[tuple[str, bool]],
    batches: Sequence[int],
) -> None:
    """Measures the peak memory of the `measured` steps, (precision, compiled), and of the loss."""
    for precision, compiled in measured:
        config.precision = precision
        _, step, _ = steps(config, compiled, strategy)
        peak = peak_bytes(step)
        table.add(f"{step_name(config, compiled)}{MEMORY}", peak / 2**20, "MiB")
    for batch in batches:
        for kept in (True, False):
            step, gradients = nce_step(batch, config.nrkhs, kept)
            peak = peak_bytes(step) - gradients
            table.add(f"{nce_name(batch, kept)}{MEMORY}", peak / 2**20, "MiB")


def memory_in_another_process(table: Table) -> None:
    """Runs `memory` in a process with an allocator that returns what is free."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "memory.json"
        arguments = [*sys.argv[1:], "--memory_only", f"--output={output}"]
        subprocess.run(
            [sys.executable, "-m", "amdim_tf.benchmark", *arguments],
            env=os.environ | {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1"},
            stderr=subprocess.DEVNULL,
            check=True,
        )
        table.rows |= json.loads(output.read_text())["rows"]


def markdown(rows: Mapping[str, Mapping], earlier: Mapping[str, Mapping]) -> str:
    """The rows as a table, with ratios to the rows of an `earlier` benchmark, if there is one."""
    lines = [["", "", "quartiles", *["to the earlier one"] * bool(earlier)]]
    for name, row in rows.items():
        spread = "" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}"
        lines.append([name, f"{row['value']:.4g} {row['unit']}", spread])
        if earlier:
            before = earlier.get(name, {}).get("value")
            lines[-1].append(f"x {row['value'] / before:.2f}" if before else "")
    return command.markdown(lines)


def read_earlier(path: str | pathlib.Path) -> dict[str, dict]:
    """The rows of an earlier benchmark.

    Raises:
        InputError: `path` is not the JSON of a benchmark.
    """
    try:
        return json.loads(local(path, "compare").read_text())["rows"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"compare must name the JSON of an earlier benchmark. Received: compare={path}"
        ) from error
