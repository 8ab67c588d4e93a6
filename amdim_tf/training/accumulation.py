"""Large batches on small devices: a batch is computed in chunks, and again for its gradient.

The loss is still that of the complete batch, where each image is a negative of the others: the
embeddings of all chunks exist before the loss, and only the activations behind them are dropped.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf


def in_chunks(function: Callable, size: int, dtypes: Sequence[str]) -> Callable:
    """`function` on `size` images at a time; its gradient computes each chunk once more.

    Args:
        function: takes values [tensor, ...] and images (B,...), and returns a list of tensors
            (B,...), each image by itself; differentiable with respect to the values.
        size: number of images in a chunk, a divisor of B.
        dtypes: dtypes of the returned tensors.

    Returns:
        The same function, with the same gradient with respect to the values, and none with respect
        to the images.
    """

    def split(x):
        return tf.reshape(x, (x.shape[0] // size, size, *x.shape[1:]))

    @tf.custom_gradient
    def call(images, *values):
        chunks = split(images)
        # Chunks that are computed at the same time would each need their own memory.
        one_by_one = {"parallel_iterations": 1}
        outputs = tf.map_fn(
            lambda chunk: function(values, chunk), chunks, fn_output_signature=dtypes, **one_by_one
        )

        def gradient(*upstream):
            upstream = [split(x) for x in upstream]

            def add(number, sums):
                with tf.GradientTape() as tape:
                    tape.watch(values)
                    outputs = function(values, chunks[number])
                gradients = tape.gradient(
                    outputs, values, [x[number] for x in upstream], unconnected_gradients="zero"
                )
                return number + 1, [a + b for a, b in zip(sums, gradients, strict=True)]

            start = 0, [tf.zeros_like(value) for value in values]
            _, sums = tf.while_loop(
                lambda number, _: number < chunks.shape[0], add, start, **one_by_one
            )
            return None, *sums

        return [tf.reshape(x, (images.shape[0], *x.shape[2:])) for x in outputs], gradient

    return lambda values, images: call(images, *values)
