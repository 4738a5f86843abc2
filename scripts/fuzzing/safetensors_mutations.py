"""Mutations of safetensors files that stay valid safetensors files, or nearly."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from math import prod
from typing import Any

from fuzzing.byte_mutations import MAX_SIZE, on_subject
from fuzzing.case import Mutation, Random
from fuzzing.values import INTEGERS, hostile_json, hostile_text, near, pick

DTYPES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4}
DTYPES |= {"F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8}
EXTENTS = (0, 1, 2, 3, 5, 16, 17, 256, 1000, 65536)
PATTERNS = (
    b"\0",
    b"\xff",
    b"\x00\x7c",
    b"\x00\xfc",
    b"\x00\x00\x80\x7f",
    b"\xff\xff\x7f\x7f",
    b"\x7f",
)


@dataclass
class SafetensorsFile:
    """Metadata, and the dtype, shape and bytes of each tensor."""

    metadata: dict[str, str]
    tensors: dict[str, tuple[str, list[int], bytes]]


def parse(data: bytes) -> SafetensorsFile:
    """Return a file's contents; raise ValueError, KeyError or TypeError if it is damaged."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = header.pop("__metadata__", {})
    body = data[end:]
    tensors = {
        n: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])]) for n, t in header.items()
    }
    return SafetensorsFile(dict(metadata), tensors)


def serialize(file: SafetensorsFile, edit: Callable[[dict], object] = lambda header: None) -> bytes:
    """Return the bytes of a file. `edit` changes the header without the data."""
    header: dict[str, Any] = {"__metadata__": file.metadata}
    body = b""
    for name, (dtype, shape, data) in file.tensors.items():
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        body += data
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def on_file(mutate: Callable[[SafetensorsFile, Random], bytes | None]) -> Mutation:
    """Make a mutation of a parsed file, in place or to bytes, a mutation of a case's subject.

    A file that an earlier mutation has damaged stays as it is.
    """

    @on_subject
    @wraps(mutate)
    def mutation(data: bytes, random: Random) -> bytes:
        try:
            file = parse(data)
            return mutate(file, random) or serialize(file)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return data

    return mutation


@on_file
def set_metadata(file: SafetensorsFile, random: Random) -> None:
    key = pick(random, list(file.metadata))
    value = file.metadata[key]
    digits = value.isdecimal() and random.random() < 0.3
    file.metadata[key] = str(near(random, int(value))) if digits else hostile_text(random)


@on_file
def drop_metadata(file: SafetensorsFile, random: Random) -> None:
    del file.metadata[pick(random, list(file.metadata))]


@on_file
def set_setting(file: SafetensorsFile, random: Random) -> None:
    """Change a value of the JSON in the metadata, or where it has none, add an unknown key."""
    nested = [key for key, value in file.metadata.items() if value.startswith("{")]
    if not nested:
        file.metadata[hostile_text(random)] = hostile_text(random)
        return
    key = pick(random, nested)
    settings = section = json.loads(file.metadata[key])
    name = pick(random, list(section))
    while isinstance(section[name], dict) and section[name] and random.random() < 0.9:
        section = section[name]
        name = pick(random, list(section))
    value = section.pop(name)
    if isinstance(value, list) and value and random.random() < 0.6:
        section[name] = [*value[1:], hostile_json(random)]
    elif random.random() < 0.9:
        section[name] = hostile_json(random)
    file.metadata[key] = json.dumps(settings)


def fitted(data: bytes, size: int) -> bytes:
    """Return data of this size, or of `MAX_SIZE` if that is less."""
    size = min(size, MAX_SIZE)
    return (data * (size // len(data) + 1))[:size] if data else bytes(size)


@on_file
def reshape(file: SafetensorsFile, random: Random) -> None:
    """Give a tensor another shape, and the data that this takes unless it is too much."""
    name = pick(random, list(file.tensors))
    dtype, shape, data = file.tensors[name]
    rank = len(shape) if random.random() < 0.6 else int(random.integers(6))
    new = [*shape, 1, 1, 1, 1, 1][:rank]
    for i in range(rank):
        if random.random() < 0.5:
            new[i] = pick(random, EXTENTS)
    if 0 in new and random.random() < 0.5:  # takes no data at all
        new = [extent or pick(random, INTEGERS) for extent in new] + [0]
    file.tensors[name] = dtype, new, fitted(data, DTYPES.get(dtype, 1) * prod(new))


@on_file
def retype(file: SafetensorsFile, random: Random) -> None:
    name = pick(random, list(file.tensors))
    _, shape, data = file.tensors[name]
    dtype = pick(random, list(DTYPES))
    file.tensors[name] = dtype, shape, fitted(data, DTYPES[dtype] * prod(shape))


@on_file
def fill_tensor(file: SafetensorsFile, random: Random) -> None:
    """Fill a tensor, or a block of it, with zeros, NaN, infinity or large numbers."""
    name = pick(random, list(file.tensors))
    dtype, shape, data = file.tensors[name]
    start = int(len(data) * random.random()) // 8 * 8 if random.random() < 0.5 else 0
    file.tensors[name] = (
        dtype,
        shape,
        data[:start] + fitted(pick(random, PATTERNS), len(data) - start),
    )


@on_file
def drop_tensor(file: SafetensorsFile, random: Random) -> None:
    del file.tensors[pick(random, list(file.tensors))]


@on_file
def rename_tensor(file: SafetensorsFile, random: Random) -> None:
    name = pick(random, list(file.tensors))
    file.tensors[hostile_text(random)] = file.tensors.pop(name)


@on_file
def copy_tensor(file: SafetensorsFile, random: Random) -> None:
    name, other = pick(random, list(file.tensors)), pick(random, list(file.tensors))
    file.tensors[pick(random, (other, "timestamps", "x"))] = file.tensors[name]


@on_file
def forge_header(file: SafetensorsFile, random: Random) -> bytes:
    """Change the header without the data."""

    def edit(header: dict[str, Any]) -> None:
        entry = header[pick(random, list(header))]
        key = pick(random, list(entry))
        if isinstance(entry[key], list) and entry[key] and random.random() < 0.7:
            entry[key][int(random.integers(len(entry[key])))] = hostile_json(random)
        else:
            entry[key] = hostile_json(random)

    return serialize(file, edit)


SAFETENSORS: tuple[Mutation, ...] = (
    *(set_metadata, set_metadata, drop_metadata, set_setting, set_setting, set_setting, reshape),
    *(retype, fill_tensor, drop_tensor, rename_tensor, copy_tensor, forge_header),
)
