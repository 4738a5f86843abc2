"""The rows of a run's metrics.jsonl, which a crash may have left incomplete."""

from typing import Any

from vqtok.untrusted import parse_json

Row = dict[str, Any]


def parse_row(line: str) -> Row | None:
    """Return the row of a line, with its step, or None if the line is something else."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def is_number(value: object) -> bool:
    """Return whether a value is a number that Python can format, perhaps NaN or infinity."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, float) or is_whole
