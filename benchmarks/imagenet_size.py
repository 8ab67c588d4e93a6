"""Runs the commands on data of ImageNet's size, and prints what each takes.

    python benchmarks/imagenet_data.py DATA
    python benchmarks/imagenet_size.py --data=DATA --runs=RUNS

A row of its table is a command: seconds to its first step, images per second from then on (of embed
parts of 1024 images), the peak of its memory, with and without mapped files, and how it ended.
Commands that would take hours are stopped by SIGTERM after `--seconds`, and started again.
RUNS/rows.json keeps the rows, so that they are not measured again; `--only=train,embed` measures
some of them.
"""

import argparse
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
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
        """What the first bar counts, per second, in the second half of the time that it moved."""
        first = self.seen[: self.first_bar()]
        moved = [(seconds, done) for seconds, done in first if done > first[0][1]]
        moved = moved[len(moved) // 2 :]
        if len(moved) < 2 or moved[-1][0] - moved[0][0] < 2:
            return None
        return (moved[-1][1] - moved[0][1]) / (moved[-1][0] - moved[0][0])

    def first_bar(self):
        """How many of `seen` belong to the first bar: the next one begins with less."""
        pairs = zip(self.seen[:-1], self.seen[1:], strict=True)
        smaller = (i for i, (a, b) in enumerate(pairs, 1) if b[1] < a[1])
        return next(smaller, len(self.seen))


def run(name, arguments, seconds=None):
    """Runs a command, for so many `seconds` after its first step; the row of the table."""
    print(f"{name}: {' '.join(arguments)}", file=sys.stderr, flush=True)
    own, theirs = pty.openpty()
    # Bars show themselves on terminals that have a size.
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
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
        # Without a first step it has four times as long.
        limit = seconds and (watch.first_step() or 3 * seconds) + seconds
        if limit and not stopping and time.monotonic() - started > limit:
            process.send_signal(signal.SIGTERM)
            stopping = time.monotonic()
    ended = time.monotonic()
    watch.join()
    os.close(own)
    row = {
        "command": name,
        "first step, s": watch.first_step(),
        "per s": watch.rate(),
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
    yield "train stopped", [*train, stopped], seconds
    yield "train resumed", [*train, stopped], seconds
    yield "linear", [*evaluate, "--protocol=linear"], seconds
    yield "linear resumed", [*evaluate, "--protocol=linear"], seconds
    yield "finetune", [*evaluate, "--protocol=finetune"], seconds
    yield "finetune resumed", [*evaluate, "--protocol=finetune"], seconds
    few = [*evaluate, "--protocol=linear", "--label_fraction=0.01"]
    yield "linear on 1 % of the labels", few, seconds
    yield "embed", embed, seconds
    yield "embed resumed", embed, seconds
    # Features of all images take half an hour at 128 pixels.
    small = f"--workdir={runs}/small"
    fewer = [*train, small, "--config.image_size=32", f"--steps={STEPS}", "--baselines=off"]
    yield "train at 32 pixels", fewer, None
    evaluate[1] = small
    yield "knn at 32 pixels", [*evaluate, "--protocol=knn"], None
    yield "linear and mlp fast at 32 pixels", [*evaluate, "--protocol=all", "--fast"], None


def table(rows):
    """The rows in Markdown."""
    columns = list(rows[0])[:8]
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        cells = ("" if row[name] is None else row[name] for name in columns)
        lines.append([f"{x:.1f}" if isinstance(x, float) else str(x) for x in cells])
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
    kept = runs / "rows.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    data = pathlib.Path(flags.data).resolve()
    for name, arguments, seconds in commands(data, runs, flags.seconds):
        if name not in rows and (not flags.only or name in flags.only.split(",")):
            rows[name] = run(name, arguments, seconds)
            kept.write_text(json.dumps(rows, indent=2))
            print(json.dumps(rows[name]), flush=True)
    print(table(list(rows.values())))


if __name__ == "__main__":
    main()
