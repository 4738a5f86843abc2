"""docs/token-format.md and the files of version 1 that every later version must read."""

import re
from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers import GOLDEN, ROOT
from helpers.clips import pattern, write_clip
from helpers.tokens import SAMPLE, VARYING, joined, parts
from vqtok.cli import app
from vqtok.tokens import format as token_file
from vqtok.tokens.format import Tokens

DOCUMENT = (ROOT / "docs" / "token-format.md").read_text()

REGULAR = Tokens(
    indices=np.array(
        [
            [[63999, 0, 255], [256, 257, 1]],
            [[2, 3, 40000], [511, 512, 64]],
        ]
    ),
    frames=5,
    height=15,
    width=24,
    fps=Fraction(30000, 1001),
    time_base=Fraction(1, 30000),
    timestamps=[1001, 2002, 3003, 4004, 5005],
    pixel_aspect=Fraction(1),
    codebook_size=64000,
    quantizer="fsq",
    stride=(4, 8, 8),
    model="0123456789abcdef" * 4,
)
IRREGULAR = Tokens(
    indices=np.array(
        [
            [[[0, 255], [1, 254]], [[2, 253], [3, 252]]],
            [[[4, 251], [5, 250]], [[6, 249], [7, 248]]],
            [[[8, 247], [9, 246]], [[10, 245], [11, 244]]],
            [[[12, 243], [13, 242]], [[14, 241], [15, 240]]],
        ]
    ),
    frames=6,
    height=16,
    width=8,
    fps=Fraction(25, 2),
    time_base=Fraction(1, 1000),
    timestamps=[-20, 0, 33, 67, 100, 5_000_000_000],
    pixel_aspect=Fraction(4, 3),
    codebook_size=256,
    quantizer="lfq",
    stride=(2, 8, 4),
    model="fedcba9876543210" * 4,
)
STILL = Tokens(
    indices=np.array([[[262143]]]),
    frames=1,
    height=7,
    width=5,
    fps=Fraction(25),
    time_base=Fraction(1, 25),
    timestamps=[0],
    pixel_aspect=Fraction(10, 11),
    codebook_size=262144,
    quantizer="vq2",
    stride=(1, 16, 16),
    model="00112233445566778899aabbccddeeff" * 2,
)
FILES = {
    "tokens-v1.safetensors": (REGULAR, "uint16"),
    "tokens-v1-irregular.safetensors": (IRREGULAR, "uint8"),
    "tokens-v1-still.safetensors": (STILL, "int32"),
}
golden = pytest.mark.parametrize("name", FILES)


@golden
def test_files_of_version_1_are_read_for_ever(name):
    want, dtype = FILES[name]
    found = token_file.read(GOLDEN / name)
    assert found.indices.dtype == dtype
    np.testing.assert_array_equal(found.indices, want.indices)
    assert list(found.timestamps) == list(want.timestamps)
    for key in {f.name for f in fields(want)} - {"indices", "timestamps"}:
        assert getattr(found, key) == getattr(want, key), key


@golden
def test_they_would_be_written_the_same_today(name):
    assert token_file.to_bytes(FILES[name][0]) == (GOLDEN / name).read_bytes()


@pytest.fixture(params=[*FILES, "written now"])
def a_file(request, tmp_path):
    """tokens.safetensors in a folder: a golden file, or one that vqtok writes."""
    path = tmp_path / "tokens.safetensors"
    if request.param in FILES:
        path.write_bytes((GOLDEN / request.param).read_bytes())
    else:
        clip = write_clip(tmp_path / "clip.mp4", pattern(6, 20, 30), fps=Fraction(24000, 1001))
        assert CliRunner().invoke(app, ["encode", str(clip), "-o", str(path)]).exit_code == 0
    return path


def test_the_reader_in_the_document_finds_what_vqtok_finds(a_file, monkeypatch):
    (reader,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len([line for line in reader.splitlines() if line]) <= 15
    assert re.findall(r"import (.*)", reader) == ["json", "numpy as np"]
    monkeypatch.chdir(a_file.parent)
    found, want = {}, token_file.read(a_file)
    exec(reader, found)
    assert found["indices"].dtype == want.indices.dtype
    np.testing.assert_array_equal(found["indices"], want.indices)
    assert found["timestamps"].tolist() == list(want.timestamps)
    assert found["fps"] == float(want.fps)


def test_every_key_and_tensor_that_is_written_is_documented():
    rows = re.findall(r"^\| (`.*?) \|", DOCUMENT, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    for times in (SAMPLE.timestamps, VARYING):
        header, _ = parts(token_file.to_bytes(replace(SAMPLE, timestamps=times)))
        assert header.pop("__metadata__").keys() | header.keys() <= documented


@pytest.mark.parametrize("times", [SAMPLE.timestamps, VARYING], ids=["regular", "varying"])
def test_what_a_later_vqtok_adds_is_skipped(tmp_path, times):
    path = tmp_path / "later.safetensors"
    header, body = parts(token_file.to_bytes(replace(SAMPLE, timestamps=times)))
    header["__metadata__"] |= {"colour": "bt709", "history": "{}"}
    for dtype, size in (("U8", 1), ("U16", 2), ("I32", 4), ("I64", 8)):
        end = len(body) + 3 * size
        header[f"later_{dtype}"] = {
            "dtype": dtype,
            "shape": [3],
            "data_offsets": [len(body), end],
        }
        body += bytes(3 * size)
    path.write_bytes(joined(header, body))
    found = token_file.read(path)
    np.testing.assert_array_equal(found.indices, SAMPLE.indices)
    assert list(found.timestamps) == list(times)
