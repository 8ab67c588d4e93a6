import subprocess
import sys

import pytest

from amdim_tf import processor

KINDS = {
    "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2\n\nprocessor\t: 1\n"
    "model name\t: AMD EPYC\nflags\t\t: fpu avx avx2\n": ("AMD EPYC (AVX2)", True, True),
    "model name\t: Intel(R) Xeon(R)\nflags\t\t: avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16\n": (
        "Intel(R) Xeon(R) (AMX)",
        False,
        False,
    ),
    "model name\t: X: Y\nflags\t\t: avx2 avx512f avx512_bf16\n": (
        "X: Y (AVX-512 BF16)",
        False,
        True,
    ),
    "processor\t: 0\nFeatures\t: fp asimd asimdhp bf16\n": ("", False, False),
    "": ("", False, False),
}


@pytest.mark.parametrize("text, expected", KINDS.items(), ids=range(len(KINDS)))
def test_name_and_instructions(text, expected, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(processor, "CPUINFO", file)
    name, bfloat16, float16 = expected
    assert processor.processor().endswith(name)
    assert processor.emulates("mixed_bfloat16") is bfloat16
    assert processor.emulates("mixed_float16") is float16
    assert processor.emulates("float32") is False
    assert processor.leaves_onednn_off() is (name == "AMD EPYC (AVX2)")


def test_a_system_that_does_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "missing")
    assert " cores of " in processor.processor()
    assert not processor.emulates("mixed_bfloat16")


@pytest.mark.parametrize("first, option, warns", [(1, None, 1), (1, "0", 0), (0, None, 0)])
def test_an_import_says_what_comes_too_late(first, option, warns):
    """On this processor, taken for one that needs it."""
    code = f"""
import os, pathlib, sys, types
sys.argv = ["-m"]
if {first}:
    sys.modules["tensorflow"] = types.ModuleType("tensorflow")
pathlib.Path.read_text = lambda path: "flags: avx avx2"
os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)
if {option is not None}:
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "{option}"
import amdim_tf
assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "{option or 1}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("TensorFlow was imported before amdim_tf") == warns
