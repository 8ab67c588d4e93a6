"""Shows the examples of docstrings as code: a griffe extension for mkdocstrings."""

import re
import textwrap
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Docstrings end in `Example:` and code; griffe wants `Examples:` and indented code."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = obj.docstring.value
            found = re.search(r"^Example:\n(.*)\Z", text, re.DOTALL | re.MULTILINE)
            if found:
                code = textwrap.indent(textwrap.dedent(found[1]), "    ")
                obj.docstring.value = f"{text[: found.start()]}Examples:\n{code}"
