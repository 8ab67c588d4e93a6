"""Bytes and numbers of a file, a string scalar, read by operations of a graph."""

import functools
from collections.abc import Callable

import tensorflow as tf

from amdim_tf.typing import Tensor


def of_file(function: Callable) -> Callable:
    """Traces `function` of a file once for all graphs that call it; it runs on the CPU."""

    @functools.wraps(function)
    def on_cpu(contents):
        with tf.device("CPU"):
            return function(contents)

    return tf.function(on_cpu, [tf.TensorSpec((), tf.string)], autograph=False)


def cut(contents: Tensor, place: Tensor, count: Tensor) -> Tensor:
    """At most `count` bytes (n,) uint8 of a file from `place` on; fewer at its end, or none."""
    return tf.io.decode_raw(_substring(contents, place, count), tf.uint8)


def peek(contents: Tensor, place: Tensor, count: int) -> Tensor:
    """The `count` bytes (count,) int64 of a file from `place` on; zeros beyond its end."""
    found = tf.io.decode_raw(_substring(contents, place, count) + count * b"\0", tf.uint8)
    return tf.cast(tf.ensure_shape(found[:count], [count]), tf.int64)


def _substring(contents, place, count):
    length = tf.cast(tf.strings.length(contents), tf.int64)
    place, count = (tf.cast(tf.minimum(length, x), tf.int32) for x in (place, count))
    return tf.strings.substr(contents, place, count)


def number(digits: Tensor, big_endian: Tensor = False) -> Tensor:
    """The unsigned number (...) int64 of its bytes (...,1 to 4) int64."""
    weights = tf.constant([256**i for i in range(digits.shape[-1])], tf.int64)
    weights = tf.where(big_endian, weights[::-1], weights)
    return tf.reduce_sum(digits * weights, -1)
