"""The processor: its name, and what it has instructions for."""

import os
import pathlib
import platform

CPUINFO = pathlib.Path("/proc/cpuinfo")
# As Linux names them. The widest of a processor are part of its name.
WIDEST = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
# Those for products in half precision, on x86 and on ARM.
PRODUCTS = {
    "mixed_bfloat16": {"amx_bf16", "avx512_bf16", "bf16"},
    "mixed_float16": {"amx_fp16", "avx512_fp16", "asimdhp"},
}
# Those that make TensorFlow turn oneDNN on by itself, on x86 (its port.cc).
ONEDNN = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}


def processor() -> str:
    """The number of cores, the name and the widest instructions, such as 8 cores of X (AVX2)."""
    fields = _fields()
    flags = _flags(fields)
    name = fields.get("model name") or platform.processor() or platform.machine()
    widest = next((f" ({WIDEST[flag]})" for flag in WIDEST if flag in flags), "")
    return f"{os.cpu_count()} cores of {name}{widest}"


def emulates(precision: str) -> bool:
    """Whether the processor has no instructions for products in `precision`, if it says so.

    Such products take several times as long as in float32.

    Example:
    >>> emulates("float32")
    False
    """
    flags = _flags(_fields())
    return bool(flags) and precision in PRODUCTS and not flags & PRODUCTS[precision]


def leaves_onednn_off() -> bool:
    """Whether TensorFlow needs to be asked for oneDNN, without which it is slower."""
    flags = _flags(_fields())
    return "avx2" in flags and not flags & ONEDNN


def _flags(fields):
    return set((fields.get("flags") or fields.get("Features") or "").split())


def _fields():
    """What Linux says of the first core: {name: value}."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in reversed(lines))  # the first one counts
    return {name.strip(): value.strip() for name, _, value in pairs}
