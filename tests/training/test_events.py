"""TensorBoard's events: one for each line of metrics.jsonl, however often a run is started."""

import tensorflow as tf

from amdim_tf.training.events import Events


def of(folder):
    """[(step, tag, value)] by steps; names of files of one second are in no order."""
    found = []
    for path in folder.glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.append((event.step, value.tag, float(tf.make_ndarray(value.tensor))))
    return sorted(found)


def lines(*steps):
    return [{"step": step, "loss": float(step)} for step in steps]


def start(folder, before, new=()):
    """A start of a run: what was measured `before`, and then what is `new`."""
    events = Events(folder, lines(*before))
    for line in lines(*new):
        events.write(line["step"], {"loss": line["loss"]})
    events.close()


def test_a_start_adds_a_file_and_leaves_the_others(tmp_path):
    start(tmp_path, (), (1, 2, 3))
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    start(tmp_path, (1, 2, 3), (4,))
    assert all(path.read_bytes() == contents for path, contents in first.items())
    assert of(tmp_path) == [(i, "loss", float(i)) for i in (1, 2, 3, 4)]


def test_what_will_be_measured_again_is_dropped(tmp_path):
    """A checkpoint is older than the last lines, or a crash cut the file off."""
    start(tmp_path, (), (1, 2, 3, 4))
    start(tmp_path, (1, 2), (3,))
    assert [step for step, *_ in of(tmp_path)] == [1, 2, 3]
    last = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    last.write_bytes(last.read_bytes()[:-3])
    start(tmp_path, (1, 2), (3, 4))
    assert [step for step, *_ in of(tmp_path)] == [1, 2, 3, 4]


def test_events_that_are_lost_are_written_again(tmp_path):
    start(tmp_path / "tensorboard", (1, 2, 3), (4,))
    assert [step for step, *_ in of(tmp_path / "tensorboard")] == [1, 2, 3, 4]
