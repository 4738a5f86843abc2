"""Values that break readers."""

from fractions import Fraction
from typing import Any

from fuzzing.case import Random

INTEGERS = (
    *(0, -1, 1, 2, 3, 7, 255, 256, 65535, 65536, 10**6, 10**9, 2**31 - 1, 2**31, 2**32 - 1),
    *(2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**19, 10**30, -(2**31), -(2**63)),
)
NUMBERS = (
    *"nan -nan inf -inf 1e400 1e-400 1e9999999 1e308 1e3 -0 0.0 0x10 1_000 ٣ ² 4x8x8 0x0x0".split(),
    *"1/0 0/1 -1/3 1/99999999999999999999 30000/1001".split(),
    *(" 7 ", "9" * 4301, "1" + "0" * 400, "1/" + "9" * 5000, "0." + "0" * 400 + "1"),
)
TEXTS = (
    *("", " ", "\0", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\nb", "a\rb", "\x7f", "\x9b31m"),
    *("\u202eabc", "\ud800", "\udce9", "é", "[red]bold[/red]", "[/]", "%s%n%d", "{}{0}", "${HOME}"),
    *("a" * 10_000, "[" * 20_000, '{"a":' * 20_000, "{}", "[]", "null", "true", '"', "\\", "../x"),
)


def pick(random: Random, values: Any) -> Any:
    """Return one of a sequence."""
    return values[int(random.integers(len(values)))]


def hostile_text(random: Random) -> str:
    """Return text: an integer, a number in another notation, or none at all."""
    return str(pick(random, pick(random, (INTEGERS, NUMBERS, TEXTS))))


def hostile_json(random: Random) -> Any:
    """Return a value that JSON can hold."""
    kind = int(random.integers(6))
    if kind == 0:
        return pick(random, (float("nan"), float("inf"), 1e308, 1e-308, -0.0, 0.5, True, None))
    if kind == 1:
        return pick(random, ([], {}, [[]], [0] * 1000, {"a": {}}, [1, 2], [10**9, 10**9], ["x"]))
    return hostile_text(random) if kind == 2 else pick(random, INTEGERS)


def near(random: Random, number: int) -> int:
    """Return a number that is slightly wrong."""
    factor = Fraction(pick(random, ("1/2", "2", "3", "-1")))
    return int(factor * number) + int(random.integers(-1, 2))
