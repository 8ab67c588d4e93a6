"""What keeps full precision, whatever the encoder has: batch norm, embeddings, scores, losses."""

import keras


def at_least_float32(dtype: str) -> str:
    """float32 for float16 and bfloat16; float32 and float64 stay.

    Example:
    >>> at_least_float32("bfloat16"), at_least_float32("float64")
    ('float32', 'float64')
    """
    return keras.backend.result_type(dtype, "float32")
