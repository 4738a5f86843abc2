"""The reference of commands, settings and the Python API, made from the code."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter
from typer.main import get_command
from typer.models import ArgumentInfo

from vqtok import settings
from vqtok.cli import app

ROOT = Path(__file__).parents[2]
QUANTIZERS = get_args(get_args(settings.QuantizerSettings)[0])
API = {  # the module whose public names are listed, and what leads to them
    "vqtok": "Files, tensors and windows of tokens: `import vqtok`.",
    "vqtok.quantizers": "Quantizers for your own networks ([compared](../quantizers.md)).",
    "vqtok.bulk": "[Corpora](../corpus.md) with a scheduler of your own.",
    "vqtok.errors": "What is raised for bad data and wrong usage.",
}
PUBLIC = {"vqtok.errors": ["VqtokError", "UsageError"]}  # of modules without `__all__`
TYPES = {bool: "flag", int: "integer", float: "number", str: "text", Path: "path"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def commands_page() -> str:
    """Return a page with every argument and option of every command."""
    group = get_command(app)
    parts = ["# Commands and options", "What these do together: [commands](../usage.md)."]
    for name, command in [("", group), *group.commands.items()]:
        parts += [f"## vqtok {name}".rstrip(), command.help]
        if command.epilog:
            parts += [command.epilog.replace(": ", ":\n\n    ", 1)]
        hints = get_type_hints(inspect.unwrap(command.callback), include_extras=True)
        known = [parameter for parameter in command.params if parameter.name in hints]
        rows = [parameter_row(parameter, *get_args(hints[parameter.name])) for parameter in known]
        parts += [table(("", "values", "default", ""), rows)]
    return "\n\n".join(parts)


def parameter_row(parameter: Any, kind: Any, info: Any) -> tuple[str, ...]:
    """Return the names, values, default and help of an argument or option."""
    is_argument = isinstance(info, ArgumentInfo)
    names = [parameter.name.upper()] if is_argument else parameter.opts
    default = parameter.default
    shown = "" if default is None or default is False else f"`{default}`"
    label = ", ".join(f"`{name}`" for name in names)
    values = parameter_values(kind, info)
    return label, values, "required" if parameter.required else shown, info.help


def parameter_values(kind: Any, info: Any) -> str:
    """Return what a parameter takes: its choices, or its type and its range."""
    kinds = [k for k in get_args(kind) if k is not NoneType] if isinstance(kind, UnionType) else []
    kind = kinds[0] if kinds else kind
    if get_origin(kind) is list:
        return parameter_values(get_args(kind)[0], info) + ", several"
    if issubclass(kind, Enum):
        return ", ".join(f"`{choice.value}`" for choice in kind)
    limits = "" if info.min is None else f", {number(info.min)} or more"
    if info.max is not None:
        limits = f", {number(info.min)} to {number(info.max)}"
    return (info.metavar or TYPES[kind]) + limits


def settings_page() -> str:
    """Return a page with every setting."""
    parts = [
        "# Settings",
        "Set in a file for `vqtok train --config` or with `--set section.key=value`. "
        "[Training](../training.md) explains them.",
    ]
    sections = [("train", settings.TrainSettings), ("model", settings.ModelSettings)]
    sections += [("quantizer", kind) for kind in QUANTIZERS]
    for section, kind in sections:
        title = f"{section}, {kind.kind}" if section == "quantizer" else section
        rows = settings_rows(section, kind)
        parts += [f"## {title}", inspect.getdoc(kind) or ""]
        parts += [table(("setting", "values", "default", ""), rows)]
    return "\n\n".join(parts)


def settings_rows(section: str, kind: type) -> Iterator[tuple[str, ...]]:
    """Yield the name, values, default and comment of each setting of a dataclass."""
    schema = TypeAdapter(kind).json_schema()
    notes = comments(settings)
    for field in fields(kind):
        default = toml(field.default)
        owner = next(c for c in kind.__mro__ if field.name in inspect.get_annotations(c))
        note = notes.get((owner.__name__, field.name), "")
        values = schema_values(schema["properties"][field.name])
        yield f"`{section}.{field.name}`", values, f"`{default}`" if default else "", note


def schema_values(schema: dict[str, Any]) -> str:
    """Return the values that a JSON schema allows, in words."""
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(map(schema_values, [s for s in schema["anyOf"] if s["type"] != "null"]))
    if "prefixItems" in schema:
        return f"{len(schema['prefixItems'])} times: {schema_values(schema['prefixItems'][0])}"
    if schema["type"] == "array":
        count = f"{schema['minItems']} to {schema['maxItems']}"
        return f"{count} times: {schema_values(schema['items'])}"
    if schema["type"] == "integer":
        least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
        most = schema.get("maximum", schema.get("exclusiveMaximum", 0) - 1)
        return f"integer, {least:,} to {most:,}"
    limits = [f"{sign} {number(schema[key])}" for key, sign in BOUNDS.items() if key in schema]
    return ", ".join([schema["type"], *limits])


def number(value: float) -> str:
    """Return a limit with commas, and without the fraction of a whole number."""
    return f"{int(value) if value == int(value) else value:,}"


def toml(value: Any) -> str:
    """Return a default as it is written in a file of settings; "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def comments(module: Any) -> dict[tuple[str, str], str]:
    """Return the comment beside each field of the classes of a module, by class and field."""
    source = inspect.getsource(module)
    lines = source.splitlines()
    found = {}
    for kind in (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)):
        for node in (node for node in kind.body if isinstance(node, ast.AnnAssign)):
            _, _, comment = lines[(node.end_lineno or 1) - 1].partition("  # ")
            found[kind.name, ast.unparse(node.target)] = comment
    return found


def api_page() -> str:
    """Return a page with the public names of the package, for mkdocstrings to fill in."""
    parts = ["# Python API"]
    for module, text in API.items():
        names = PUBLIC.get(module) or exported(module)
        parts += [f"## {module}", text, *(f"::: {module}.{name}" for name in names)]
    return "\n\n".join(parts)


def exported(module: str) -> list[str]:
    """Return `__all__` of a package, which is not imported: that needs PyTorch."""
    source = (ROOT / module.replace(".", "/") / "__init__.py").read_text()
    nodes = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return next(ast.literal_eval(n.value) for n in nodes if ast.unparse(n.targets[0]) == "__all__")


def table(head: tuple[str, ...], rows: Any) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in lines)
