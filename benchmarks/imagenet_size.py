"""Runs the commands on data of ImageNet's size, and prints what each takes.

    python benchmarks/imagenet_data.py DATA
    python benchmarks/imagenet_size.py --data=DATA --runs=RUNS

A row of its table is a command: seconds to its first step, images per second from then on, the peak
of its memory, with and without mapped files, and how it ended. Commands that would take hours are
stopped by SIGTERM after `--seconds`, and started again. `--only=knn` runs some of them.
"""

import argparse
import json
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time

STEPS = 200
# What tqdm shows: how many of how many are done.
DONE = re.compile(rb"\| *([\d.]+)([kM]?)/([\d.]+)([kM]?) \[")
UNITS = {b"": 1, b"k": 10**3, b"M": 10**6}


class Watch(threading.Thread):
    """Follows the memory of a process and the progress bar on its terminal.

    Attributes:
        peak, anonymous: GiB, of all its memory and of what is not of a file.
        seen: [(seconds, done)] of the bar.
    """

    def __init__(self, process, terminal, started):
        super().__init__(daemon=True)
        self.process, self.terminal, self.started = process, terminal, started
        self.peak = self.anonymous = 0.0
        self.seen, self.text = [], b""

    def run(self):
        while self.process.poll() is None:
            self.read_memory()
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    self.read_bar(os.read(self.terminal, 2**16))
                except OSError:  # its other end is closed
                    time.sleep(0.1)

    def read_memory(self):
        try:
            status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return
        values = dict(re.findall(r"(\w+):\s+(\d+) kB", status))
        self.peak = max(self.peak, int(values.get("VmHWM", 0)) / 2**20)
        self.anonymous = max(self.anonymous, int(values.get("RssAnon", 0)) / 2**20)

    def read_bar(self, text):
        self.text += text
        for done, unit, *_ in DONE.findall(text):
            self.seen.append((time.monotonic() - self.started, float(done) * UNITS[unit]))

    def first_step(self):
        """Seconds until the bar moved."""
        moved = [seconds for seconds, done in self.seen if done > self.seen[0][1]]
        return moved[0] if moved else None

    def rate(self):
        """Of what the bar counts, per second, in the second half of the time that it moved."""
        moved = [(seconds, done) for seconds, done in self.seen if done > self.seen[0][1]]
        moved = moved[len(moved) // 2 :]
        if len(moved) < 2 or moved[-1][0] - moved[0][0] < 2:
            return None
        return (moved[-1][1] - moved[0][1]) / (moved[-1][0] - moved[0][0])


def run(name, arguments, seconds=None):
    """Runs a command, for so many `seconds` after its first step; the row of the table."""
    print(f"{name}: {' '.join(arguments)}", file=sys.stderr, flush=True)
    own, theirs = pty.openpty()
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL
    )
    os.close(theirs)
    watch = Watch(process, own, started)
    watch.start()
    stopping = None
    while process.poll() is None:
        time.sleep(0.1)
        first = seconds and watch.first_step()
        if first and not stopping and time.monotonic() - started > first + seconds:
            process.send_signal(signal.SIGTERM)
            stopping = time.monotonic()
    ended = time.monotonic()
    watch.join()
    os.close(own)
    row = {
        "command": name,
        "first step, s": watch.first_step(),
        "images/s": watch.rate(),
        "peak, GiB": watch.peak,
        "anonymous, GiB": watch.anonymous,
        "all, s": ended - started,
        "to stop, s": stopping and ended - stopping,
        "exit code": process.returncode,
    }
    if process.returncode not in (0, 75):
        row["last line"] = watch.text.decode(errors="replace").strip().splitlines()[-1:]
    return row


def commands(data, runs, seconds):
    """(name, arguments, seconds) of each command, in an order in which they can run."""
    train = ["amdim_tf.train", "--dataset=imagenet2012", "--size=tiny", f"--data_dir={data}"]
    trained, stopped = f"--workdir={runs}/trained", f"--workdir={runs}/stopped"
    evaluate = ["amdim_tf.evaluate", trained, f"--data_dir={data}"]
    embed = ["amdim_tf.embed", f"--encoder={runs}/trained", "--tfds=imagenet2012/train"]
    embed += [f"--data_dir={data}", f"--output={runs}/embedded"]
    yield "train", [*train, trained, f"--steps={STEPS}"], None
    yield "train, stopped", [*train, stopped], seconds
    yield "train, resumed", [*train, stopped], seconds
    yield "linear", [*evaluate, "--protocol=linear"], seconds
    yield "linear, resumed", [*evaluate, "--protocol=linear"], seconds
    yield "finetune", [*evaluate, "--protocol=finetune"], seconds
    yield "finetune, resumed", [*evaluate, "--protocol=finetune"], seconds
    few = [*evaluate, "--protocol=linear", "--label_fraction=0.01"]
    yield "linear, 1 % of the labels", few, seconds
    yield "embed", embed, seconds
    yield "embed, resumed", embed, seconds
    yield "knn", [*evaluate, "--protocol=knn"], None
    yield "linear, fast", [*evaluate, "--protocol=linear", "--fast"], None
    yield "mlp, fast", [*evaluate, "--protocol=mlp", "--fast"], None


def table(rows):
    """The rows in Markdown."""
    columns = list(rows[0])[:8]
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        cells = (row[name] for name in columns)
        lines.append([f"{x:.1f}" if isinstance(x, float) else str(x or "") for x in cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="what imagenet_data.py has made")
    parser.add_argument("--runs", required=True, help="a folder for the run directories")
    parser.add_argument("--seconds", type=float, default=60, help="after which long commands stop")
    parser.add_argument("--only", help="names of commands, separated by commas")
    flags = parser.parse_args()
    runs = pathlib.Path(flags.runs).resolve()
    runs.mkdir(parents=True, exist_ok=True)
    only = flags.only and flags.only.split(",")
    rows = []
    for name, arguments, seconds in commands(
        pathlib.Path(flags.data).resolve(), runs, flags.seconds
    ):
        if not only or name.split(",")[0] in only or name in only:
            rows.append(run(name, arguments, seconds))
            (runs / "rows.json").write_text(json.dumps(rows, indent=2))
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
