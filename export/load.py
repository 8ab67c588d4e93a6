"""Load on a model server: how much it answers, and how soon.

    python export/load.py --grpc=localhost:8500 --concurrency=8 --seconds=10 --batch=1 IMAGE...
    python export/load.py --rest=http://localhost:8501 --label=canary --json=FILE IMAGE...

Each of `concurrency` threads sends its next request when its last is answered. None is sent again:
what a busy server refuses counts as an error.
"""

import functools
import itertools
import json
import pathlib
import sys
import time
from concurrent import futures

import client
import numpy as np

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


def measure(embed, files, concurrency, seconds, batch):
    """Throughput and latency over `seconds`, after a tenth of them to warm up.

    Args:
        embed: sends a list of bytes as one request, see `client.embedder`.
        files: the image files, bytes, which are sent in turn; at least one.
        concurrency: requests under way at any time.
        seconds: a number.
        batch: images per request, at least one.

    Returns:
        A dictionary for JSON: `requests_per_second`, `images_per_second`, `latency_ms` with
        percentiles of the requests that were answered in time, `errors`, a count of those that
        failed, be it later, and `first_error`.

    Raises:
        ServingError: no images, the very first request is refused, or none is answered in time.
    """
    if not files or batch < 1:
        received = f"{len(files)} files, batch={batch}"
        raise client.ServingError(f"A request must hold at least one image. Received: {received}")
    embed(list(itertools.islice(itertools.cycle(files), batch)))
    start = time.perf_counter() + seconds / 10
    end = start + seconds
    latencies, errors = [], []

    def work(offset):
        mine = itertools.islice(itertools.cycle(files), offset, None)
        while (sent := time.perf_counter()) < end:
            try:
                embed(list(itertools.islice(mine, batch)))
                failure = None
            except client.ServingError as error:
                failure = str(error)
            answered = time.perf_counter()
            # A server that hangs fails the requests after the end.
            if failure and start <= answered:
                errors.append(failure)
            elif not failure and start <= answered < end:
                latencies.append(answered - sent)

    with futures.ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(work, range(concurrency)))
    if not latencies:
        failed = f"; {len(errors)} failed, the first: {errors[0]}" if errors else ""
        raise client.ServingError(f"No request was answered in {seconds} s{failed}")
    rate = len(latencies) / seconds
    return {
        "requests_per_second": rate,
        "images_per_second": rate * batch,
        "latency_ms": {
            name: 1000 * np.percentile(latencies, percent) for name, percent in PERCENTILES.items()
        },
        "errors": len(errors),
        "first_error": errors[0] if errors else None,
    }


def main():
    parser = client.argument_parser("Throughput and latency of a model server.")
    parser.add_argument("--concurrency", type=int, default=8, help="requests under way at a time")
    parser.add_argument("--seconds", type=float, default=10, help="after a tenth to warm up")
    parser.add_argument("--batch", type=int, default=1, help="images per request")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="the same in a file")
    arguments = parser.parse_args()
    load = {name: getattr(arguments, name) for name in ("concurrency", "seconds", "batch")}
    if min(load.values()) <= 0:
        parser.error("concurrency, seconds and batch must be positive")
    try:
        files = [pathlib.Path(path).read_bytes() for path in arguments.images]
        embed = functools.partial(client.embedder(arguments), retry=False)
        result = load | measure(embed, files, **load)
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    except (OSError, client.ServingError) as error:
        sys.exit(str(error))
    latency = "  ".join(f"{name} {ms:.1f}" for name, ms in result["latency_ms"].items())
    print(f"requests/s  {result['requests_per_second']:.1f}")
    print(f"images/s    {result['images_per_second']:.1f}")
    print(f"latency ms  {latency}")
    print(f"errors      {result['errors']}")
    if result["errors"]:
        print(f"the first   {result['first_error']}")


if __name__ == "__main__":
    main()
