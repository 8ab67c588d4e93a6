"""Large batches on small devices: a batch that is computed in parts, and again for its gradient.

The loss is still that of the whole batch, each of whose images is a negative of all others: the
embeddings of all parts exist before it is taken, and only the activations behind them are dropped.
"""

import tensorflow as tf


def in_parts(function, size, dtypes):
    """`function` on `size` images at a time; its gradient computes each part once more.

    Args:
        function: of values [tensor, ...] and images (B,...), to a list of tensors (B,...), each
            image by itself; differentiable with respect to the values.
        size: a divisor of B.
        dtypes: of the tensors of its result.

    Returns:
        The same function, with the same gradient with respect to the values, and none with respect
        to the images.
    """

    def split(x):
        return tf.reshape(x, (x.shape[0] // size, size, *x.shape[1:]))

    @tf.custom_gradient
    def call(images, *values):
        parts = split(images)
        # Parts that are computed at the same time would each need their memory.
        one_by_one = {"parallel_iterations": 1}
        outputs = tf.map_fn(
            lambda part: function(values, part), parts, fn_output_signature=dtypes, **one_by_one
        )

        def gradient(*upstream):
            upstream = [split(x) for x in upstream]

            def add(number, sums):
                with tf.GradientTape() as tape:
                    tape.watch(values)
                    outputs = function(values, parts[number])
                gradients = tape.gradient(
                    outputs, values, [x[number] for x in upstream], unconnected_gradients="zero"
                )
                return number + 1, [a + b for a, b in zip(sums, gradients, strict=True)]

            start = 0, [tf.zeros_like(value) for value in values]
            _, sums = tf.while_loop(
                lambda number, _: number < parts.shape[0], add, start, **one_by_one
            )
            return None, *sums

        return [tf.reshape(x, (images.shape[0], *x.shape[2:])) for x in outputs], gradient

    return lambda values, images: call(images, *values)
