"""Exact nearest neighbours by cosine, for more features than fit into memory."""

import numpy as np
import tensorflow as tf

from amdim_tf.evaluation.features import Features
from amdim_tf.typing import Tensor

# Scores are computed for so many training features and so many queries at a time.
BLOCK = 8192
QUERIES = 4096
# Bytes of the queries, in float32, that are in memory at a time.
QUERY_BYTES = 2**29


def nearest(known: Features, queries: Features, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` features among `known` that are nearest to each of `queries`, by cosine.

    Each block of known features is read, normalised and multiplied once for all queries that fit
    into `QUERY_BYTES`. If cosines are equal, the earlier of the `known` comes first. The cosine
    with a feature of zeros is 0.

    Args:
        known, queries: `Features`, or objects with their `width`, length and `block`.
        count: k, at most the number of `known`.

    Returns:
        (places, cosines): (M,k) int64 and float32, the nearest first.
    """
    most = max(QUERY_BYTES // (4 * queries.width), 1)
    found = [
        _nearest(known, queries.block(i, i + most), count) for i in range(0, len(queries), most)
    ]
    places, cosines = map(np.concatenate, zip(*found, strict=True))
    return places, cosines


def _nearest(known, queries, count):
    chunks = [normalised(queries[i : i + QUERIES]) for i in range(0, len(queries), QUERIES)]
    none = tf.fill([QUERIES, count], -np.inf), tf.zeros([QUERIES, count], tf.int64)
    best = [tuple(column[: len(chunk)] for column in none) for chunk in chunks]
    for start in range(0, len(known), BLOCK):
        block = normalised(known.block(start, start + BLOCK))
        best = [
            _merged(chunk, block, tf.constant(start), *found)
            for chunk, found in zip(chunks, best, strict=True)
        ]
    cosines, places = (np.concatenate(column) for column in zip(*best, strict=True))
    return places, cosines


@tf.function(reduce_retracing=True)
def normalised(features: Tensor) -> Tensor:
    """`features` (N,D), scaled to length 1; zeros stay zeros."""
    return features / tf.maximum(tf.norm(features, axis=1, keepdims=True), 1e-30)


@tf.function(reduce_retracing=True)
def _merged(queries, block, start, cosines, places):
    """The best (Q,k) of those found so far and a `block` of known features from `start` on."""
    count = tf.shape(cosines)[1]
    scores = tf.matmul(queries, block, transpose_b=True)
    new, where = tf.math.top_k(scores, tf.minimum(count, tf.shape(block)[0]))
    # What was found before comes first: of equal values `top_k` takes the first.
    cosines = tf.concat([cosines, new], 1)
    places = tf.concat([places, tf.cast(where + start, tf.int64)], 1)
    cosines, kept = tf.math.top_k(cosines, count)
    return cosines, tf.gather(places, kept, axis=1, batch_dims=1)
