"""Mutations of token files that keep to the format and lie about what they hold."""

from math import prod

from fuzzing.byte_mutations import MAX_SIZE
from fuzzing.case import Random
from fuzzing.safetensors_mutations import DTYPES, SafetensorsFile, on_file
from fuzzing.values import pick

LENGTHS = (1, 100, 10_000, 100_000)
INDEX_DTYPES = ("U8", "U16", "I32", "I64")
STRIDES = (
    "4x8x8",
    "1x8x8",
    "8x16x16",
    "256x8x8",
    "1000x8x8",
    "1000000x8x8",
    "4x65536x65536",
    "1x1x1",
)


@on_file
def forge_clip(file: SafetensorsFile, random: Random) -> None:
    """Make it a clip of another size, with indices of that size and metadata that fits."""
    shape = [int(extent) for extent in random.integers(1, 4, 3)]
    shape[int(random.integers(3))] = pick(random, LENGTHS)
    stride = pick(random, STRIDES)
    if random.random() < 0.4:
        shape.append(pick(random, (1, 2, 3, 16)))
    t, h, w = map(int, stride.split("x"))
    size = {"frames": 1 + t * (shape[0] - 1), "height": h * shape[1], "width": w * shape[2]}
    size["codebook_size"] = pick(random, (1, 2, 256, 2**26, 2**31, 2**63 - 1))
    file.metadata |= {name: str(number) for name, number in size.items()} | {"stride": stride}
    dtype = pick(random, INDEX_DTYPES)
    if prod(shape) * DTYPES[dtype] > MAX_SIZE:
        dtype = "U8"
    file.tensors["indices"] = dtype, shape, bytes(prod(shape) * DTYPES[dtype])
    file.tensors.pop("timestamps", None)
