"""Mutations of the bytes of a file, whatever it holds."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps

from fuzzing.case import Case, Mutation, Random
from fuzzing.values import INTEGERS, TEXTS, pick

MAX_SIZE = 2**20  # bytes of a mutated file


def on_subject(mutate: Callable[[bytes, Random], bytes]) -> Mutation:
    """Make a mutation of bytes a mutation of a case's subject."""

    @wraps(mutate)
    def mutation(case: Case, random: Random) -> Case:
        data = mutate(case.files[case.subject], random)[:MAX_SIZE]
        return replace(case, files={**case.files, case.subject: data})

    return mutation


def block(data: bytes, random: Random) -> tuple[int, int]:
    """Return start and end of a block; short ones are as likely as long ones, as are headers."""
    start = int(len(data) * random.random() ** pick(random, (1, 4)))
    return start, min(len(data), start + int(2 ** (random.random() * len(data).bit_length())))


@on_subject
def flip_bits(data: bytes, random: Random) -> bytes:
    result = bytearray(data)
    for _ in range(int(2 ** (random.random() * 7)) if data else 0):
        result[min(block(data, random)[0], len(data) - 1)] ^= 1 << int(random.integers(8))
    return bytes(result)


@on_subject
def fill_block(data: bytes, random: Random) -> bytes:
    start, end = block(data, random)
    noise = random.bytes(end - start)
    return (
        data[:start]
        + pick(random, (bytes(end - start), b"\xff" * (end - start), noise))
        + data[end:]
    )


@on_subject
def truncate(data: bytes, random: Random) -> bytes:
    return data[: block(data, random)[0]]


@on_subject
def delete_block(data: bytes, random: Random) -> bytes:
    start, end = block(data, random)
    return data[:start] + data[end:]


@on_subject
def repeat_block(data: bytes, random: Random) -> bytes:
    start, end = block(data, random)
    return data[:end] + data[start:end] * int(random.integers(1, 4)) + data[end:]


@on_subject
def move_block(data: bytes, random: Random) -> bytes:
    start, end = block(data, random)
    rest = data[:start] + data[end:]
    at, _ = block(rest, random)
    return rest[:at] + data[start:end] + rest[at:]


@on_subject
def write_integer(data: bytes, random: Random) -> bytes:
    size, order = pick(random, (1, 2, 4, 8)), pick(random, ("little", "big"))
    start, _ = block(data, random)
    number = pick(random, INTEGERS) % 2 ** (8 * size)
    return data[:start] + number.to_bytes(size, order) + data[start + size :]


@on_subject
def insert_text(data: bytes, random: Random) -> bytes:
    start, _ = block(data, random)
    return data[:start] + pick(random, TEXTS).encode(errors="surrogatepass") + data[start:]


def splice(case: Case, random: Random) -> Case:
    """Continue the file with the end of its donor."""
    data = case.files[case.subject]
    data = data[: block(data, random)[0]] + case.donor[block(case.donor, random)[0] :]
    return replace(case, files={**case.files, case.subject: data[:MAX_SIZE]})


BYTES: tuple[Mutation, ...] = (
    *(flip_bits, fill_block, truncate, delete_block, repeat_block, move_block, write_integer),
    *(insert_text, splice),
)
