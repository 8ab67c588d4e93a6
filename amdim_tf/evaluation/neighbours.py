"""Nearest neighbours by cosine, exact, for features that memory holds only in part."""

import numpy as np
import tensorflow as tf

# Training features whose scores are computed at a time, and of how many queries.
BLOCK = 8192
QUERIES = 4096
# Queries that are held at a time, in float32.
QUERY_BYTES = 2**29


def nearest(known, queries, count):
    """The `count` nearest of the features `known` to each of `queries`, by cosine.

    Each block of known features is read, normalised and multiplied once for all queries that fit
    into `QUERY_BYTES`. Of equal cosines the one that is earlier among `known` comes first; the
    cosine with a feature of zeros is 0.

    Args:
        known, queries: `Features`, or what has their `width`, length and `block`.
        count: k, at most the number of `known`.

    Returns:
        (places, cosines): (M,k) int64 and float32, the nearest first.
    """
    most = max(QUERY_BYTES // (4 * queries.width), 1)
    parts = [
        _nearest(known, queries.block(i, i + most), count) for i in range(0, len(queries), most)
    ]
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


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
def normalised(features):
    """`features` (N,D) of length 1; zeros stay zeros."""
    return features / tf.maximum(tf.norm(features, axis=1, keepdims=True), 1e-30)


@tf.function(reduce_retracing=True)
def _merged(queries, block, start, cosines, places):
    """The best so far (Q,k), with those of a `block` of known features from `start` on."""
    count = tf.shape(cosines)[1]
    scores = tf.matmul(queries, block, transpose_b=True)
    new, where = tf.math.top_k(scores, tf.minimum(count, tf.shape(block)[0]))
    # What was found before comes first: of equal values `top_k` takes the first.
    cosines = tf.concat([cosines, new], 1)
    places = tf.concat([places, tf.cast(where + start, tf.int64)], 1)
    cosines, kept = tf.math.top_k(cosines, count)
    return cosines, tf.gather(places, kept, axis=1, batch_dims=1)
