"""`python -m amdim_tf`, or `amdim`: lists the commands, or runs one of them.

amdim
amdim train --dataset=cifar10 --data_dir=DIR
"""

import ast
import difflib
import os
import pathlib
import runpy
import sys

COMMANDS = (
    "train",
    "evaluate",
    "sweep",
    "results",
    "visualize",
    "report",
    "bounds",
    "embed",
    "export",
    "convert",
    "benchmark",
)


def main() -> None:
    """Runs the command that the first argument names, as `python -m amdim_tf.<command>` does."""
    name = "".join(sys.argv[1:2])
    if name in COMMANDS:
        # As with python -m, an objective or a protocol may lie in this folder.
        sys.path.insert(0, os.getcwd())
        sys.argv[:2] = [f"amdim {name}"]
        runpy.run_module(f"amdim_tf.{name}", run_name="__main__", alter_sys=True)
    elif name in ("", "help", "-h", "--help", "-?"):
        lines = [f"  amdim {name:10} {summary(name)}" for name in COMMANDS]
        try:
            print("Commands, each with a --help of its own:\n", *lines, sep="\n", flush=True)
        except BrokenPipeError:  # whoever read the output has seen enough
            os._exit(1)
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1, cutoff=0)
        sys.exit(
            f"error: A command must be one of {', '.join(COMMANDS)}; the nearest is {near[0]}. "
            f"Received: {name}"
        )


def summary(name: str) -> str:
    """What a command does, from the first line of its file, which is not imported."""
    source = (pathlib.Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


if __name__ == "__main__":
    main()
