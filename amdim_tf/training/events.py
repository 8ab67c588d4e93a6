"""Metrics for TensorBoard: one event for each line of metrics.jsonl, kept across restarts."""

import pathlib
import shutil

import tensorflow as tf

from amdim_tf.files import replacing

SCALARS = tf.compat.v1.SummaryMetadata(
    plugin_data={"plugin_name": "scalars"}, data_class="DATA_CLASS_SCALAR"
)


class Events:
    """Writes metrics to the folder `path`, which then holds those in `lines` and the new ones.

    Args:
        path: the folder.
        lines: [{"step": int, name: float}], what was measured before. Events of later steps are
            dropped, since they will be measured again; if any is missing, all are written again.
    """

    def __init__(self, path: str | pathlib.Path, lines: list[dict]):
        path = pathlib.Path(path)
        complete = keep(path, {line["step"] for line in lines})
        if not complete:
            shutil.rmtree(path, ignore_errors=True)
        self.writer = tf.summary.create_file_writer(str(path))
        for line in () if complete else lines:
            self.write(line["step"], {name: x for name, x in line.items() if name != "step"})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes `values` {name: float} as the metrics of `step`."""
        summary = tf.compat.v1.Summary()
        for name, value in values.items():
            tensor = tf.make_tensor_proto(value, tf.float32)
            summary.value.add(tag=name, tensor=tensor, metadata=SCALARS)
        with self.writer.as_default(step):
            tf.summary.experimental.write_raw_pb(summary.SerializeToString())
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def keep(folder: pathlib.Path, steps: set[int]) -> bool:
    """Leaves only the events of `steps` in `folder`; returns whether every step has some."""
    found: set[int] = set()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        kept, dropped = [], 0
        for record in _records(path):
            event = tf.compat.v1.Event.FromString(record) if record else None
            if event and (not event.summary.value or event.step in steps):
                kept.append(record)
                found |= {event.step} if event.summary.value else set()
            else:
                dropped += 1
        if dropped:
            with replacing(path) as unfinished, tf.io.TFRecordWriter(str(unfinished)) as writer:
                for record in kept:
                    writer.write(record)
    return found == steps


def _records(path):
    """The records of an event file; if the last one is broken, an empty one in its place."""
    records = iter(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    while True:
        try:
            yield next(records)
        except StopIteration:
            return
        except tf.errors.DataLossError:  # a crash cut it off
            yield b""
            return
