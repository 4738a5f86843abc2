"""Docstrings of the package as Markdown, for mkdocstrings: `name: what it is` becomes a list."""

import re
from typing import Any

from griffe import Extension

FIELD = re.compile(r"^((?:\w+, )*\w+): (?=\S)")


class PlainDocstrings(Extension):
    """Turn the docstrings of this project into Markdown."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(docstring: str) -> str:
    """Return a docstring with its fields as a list; what it raises is a paragraph of its own."""
    lines: list[str] = []
    in_field = False
    for line in docstring.splitlines():
        field = FIELD.match(line)
        starts_sentence = line.startswith(("Raises ", "Returns "))
        if (field and not in_field) or (
            starts_sentence or (in_field and line[:1].strip() and not field)
        ):
            lines.append("")
        in_field = bool(field) or (in_field and not line[:1].strip())
        lines.append(FIELD.sub(r"- **\1**: ", line))
    return "\n".join(lines)
