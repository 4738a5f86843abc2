"""What is tried: a command line with the files it reads, and how targets make and mutate it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

import numpy as np

Random = np.random.Generator


@dataclass(frozen=True)
class Case:
    """A command line and the folder in which it runs.

    args: arguments of vqtok; paths are relative to the folder.
    files: the contents of each file; those of the subject are mutated.
    outputs: files and folders that the command may write.
    donor: another file of the subject's kind, to splice with.
    stdin: whether the command reads the subject from stdin.
    must_fail: whether success would mean that a file was read that was not named.
    odd_paths: whether the folder also holds the links and odd names of `odd_paths.py`.
    may_run_out: whether the command line itself may ask for more memory than there is.
    """

    args: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    subject: str = ""
    outputs: tuple[str, ...] = ()
    donor: bytes = b""
    stdin: bool = False
    must_fail: bool = False
    odd_paths: bool = False
    may_run_out: bool = False


class Result(NamedTuple):
    """What a command did. `error` is an exception that it did not turn into a sentence."""

    code: int
    stdout: bytes = b""
    stderr: bytes = b""
    error: BaseException | None = None


Mutation = Callable[[Case, Random], Case]


@dataclass(frozen=True)
class Target:
    """A kind of input.

    start: returns a case that works, or nearly.
    mutations: what may happen to it, up to `most` times.
    weight: cases per round, more for fast targets.
    run: runs a case in the current folder.
    """

    start: Callable[[Random], Case]
    mutations: tuple[Mutation, ...]
    run: Callable[[Case], Result]
    most: int = 4
    weight: int = 1


def draw(target: Target, random: Random) -> list[tuple[Mutation, int]]:
    """Return mutations, each with a seed of its own: any of them can be left out."""
    choices = random.integers(len(target.mutations), size=1 + random.integers(target.most))
    return [(target.mutations[i], int(random.integers(2**32))) for i in choices]


def build(
    target: Target, name: str, number: int, seed: int, kept: Collection[int] | None = None
) -> tuple[Case, list[str]]:
    """Return a case, which depends on the arguments alone, and the names of its mutations.

    kept: the indices of the mutations to apply; None for all.
    """
    random = np.random.default_rng([seed, crc32(name.encode()), number])
    case = target.start(random)
    names = []
    for i, (mutate, own_seed) in enumerate(draw(target, random)):
        if kept is None or i in kept:
            case = mutate(case, np.random.default_rng(own_seed))
            names.append(mutate.__name__)
    return case, names
