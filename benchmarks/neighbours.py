"""Compares our nearest neighbours with scikit-learn's: CPU seconds, peak memory and the result.

    python benchmarks/neighbours.py KNOWN QUERIES WIDTH ours|sklearn|product

The features are random (seed 0) and lie in a temporary file, that of ours being mapped to memory.
CPU seconds are those of all cores, without making the features; peaks are of what is no file.
`product` is the matrix product alone, by which all scores are computed.
"""

import argparse
import pathlib
import re
import tempfile
import threading
import time

import numpy as np

COUNT = 10


def made(path, count, width, seed):
    """The features (count,width) float32, in a file that is mapped to memory."""
    features = np.lib.format.open_memmap(path, "w+", np.float32, (count, width))
    generator = np.random.default_rng(seed)
    for i in range(0, count, 4096):
        block = features[i : i + 4096]
        block[:] = generator.standard_normal(block.shape, "float32")
    features.flush()
    return np.load(path, mmap_mode="r")


def ours(known, queries):
    from amdim_tf.evaluation.features import Features
    from amdim_tf.evaluation.neighbours import nearest

    parts = (Features(part, np.zeros(len(part), int)) for part in (known, queries))
    return nearest(*parts, COUNT)[0]


def sklearn(known, queries):
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=COUNT, metric="cosine").fit(np.array(known))
    return index.kneighbors(np.array(queries), return_distance=False)


def product(known, queries):
    import amdim_tf  # noqa: F401  first, since it has oneDNN on, as ours runs
    import tensorflow as tf  # isort: skip

    queries = tf.constant(queries)
    totals = [
        tf.reduce_sum(tf.matmul(queries, known[i : i + 8192], transpose_b=True))
        for i in range(0, len(known), 8192)
    ]
    return np.array(totals)


def main():
    searches = {"ours": ours, "sklearn": sklearn, "product": product}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("known", "queries", "width"):
        parser.add_argument(name, type=int)
    parser.add_argument("search", choices=searches)
    known, queries, width, name = vars(parser.parse_args()).values()
    search = searches[name]
    peak, ended = [0], threading.Event()

    def watch():
        while not ended.wait(0.05):
            status = pathlib.Path("/proc/self/status").read_text()
            peak.append(int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 2**20)

    with tempfile.TemporaryDirectory() as folder:
        known = made(f"{folder}/known.npy", known, width, 0)
        queries = made(f"{folder}/queries.npy", queries, width, 1)
        search(known[:100], queries[:100])  # what is imported and traced once
        watching = threading.Thread(target=watch)
        watching.start()
        before, started = time.process_time(), time.perf_counter()
        places = search(known, queries)
        spent, seconds = time.process_time() - before, time.perf_counter() - started
        ended.set()
        watching.join()
    print(
        f"{name}: {spent:.1f} CPU s, {seconds:.1f} s, peak {max(peak):.2f} GiB, "
        f"sum of the result {places.sum()}"
    )


if __name__ == "__main__":
    main()
