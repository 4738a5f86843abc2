"""Fields of JSON objects that anyone may have written.

Each function raises ValueError, with a short reason, for a field that is missing or is anything
else than it must be.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

from vqtok.untrusted import quote

Object = dict[str, Any]


def get(entry: Object, key: str) -> Any:
    """Return a field of any type."""
    if key not in entry:
        raise ValueError(f"it has no {key}")
    return entry[key]


def get_count(entry: Object, key: str, least: int = 0, end: int = 2**63) -> int:
    """Return a whole number with least <= number < end."""
    return check_count(get(entry, key), key, least, end)


def check_count(value: Any, key: str, least: int = 0, end: int = 2**63) -> int:
    """Return a value that is such a number; `key` is for messages."""
    if type(value) is not int or not least <= value < end:
        raise ValueError(f"{key} {quote(value)} is not a whole number that is possible there")
    return value


def get_text(entry: Object, key: str) -> str:
    """Return a text."""
    value = get(entry, key)
    if not isinstance(value, str):
        raise ValueError(f"{key} {quote(value)} is not text")
    return value


def get_texts(entry: Object, key: str) -> list[str]:
    """Return a list of texts."""
    values = get(entry, key)
    if not _is_list(values, str):
        raise ValueError(f"{key} {quote(values)} are not a list of text")
    return values


def get_object(entry: Object, key: str, keys: Sequence[str]) -> Object:
    """Return an object with these keys, and no others."""
    value = get(entry, key)
    if not isinstance(value, dict) or value.keys() != set(keys):
        raise ValueError(f"{key} {quote(value)} is not an object of {', '.join(keys)}")
    return value


def get_objects(entry: Object, key: str) -> list[Object]:
    """Return a list of objects."""
    values = get(entry, key)
    if not _is_list(values, dict):
        raise ValueError(f"its {key} are not a list of objects")
    return values


def _is_list(values: Any, kind: type) -> TypeGuard[list[Any]]:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
