"""Compatibility: golden files of version 1, docs/token-format.md, and tokenizer identity."""

import re
from dataclasses import fields, replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers import GOLDEN, ROOT
from helpers.clips import pattern, write_clip
from helpers.tokens import SAMPLE, VARYING, join_file, split_file
from vqtok.cli import app
from vqtok.errors import VqtokError
from vqtok.tokens import Tokens, check_tokenizer, read_tokens, tokens_to_bytes

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
def test_golden_files_of_version_1_are_read(name):
    expected, dtype = FILES[name]
    tokens = read_tokens(GOLDEN / name)
    assert tokens.indices.dtype == dtype
    np.testing.assert_array_equal(tokens.indices, expected.indices)
    assert list(tokens.timestamps) == list(expected.timestamps)
    for key in {f.name for f in fields(Tokens)} - {"indices", "timestamps"}:
        assert getattr(tokens, key) == getattr(expected, key), key


@golden
def test_golden_files_are_written_byte_for_byte(name):
    assert tokens_to_bytes(FILES[name][0]) == (GOLDEN / name).read_bytes()


@pytest.fixture(params=[*FILES, "encoded"])
def token_file(request, tmp_path):
    """tokens.safetensors in a folder of its own: a golden file, or one that `encode` writes."""
    path = tmp_path / "tokens.safetensors"
    if request.param in FILES:
        path.write_bytes((GOLDEN / request.param).read_bytes())
    else:
        clip = write_clip(tmp_path / "clip.mp4", pattern(6, 20, 30), fps=Fraction(24000, 1001))
        assert CliRunner().invoke(app, ["encode", str(clip), "-o", str(path)]).exit_code == 0
    return path


def test_the_documented_numpy_reader_agrees_with_vqtok(token_file, monkeypatch):
    reader, *_ = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len([line for line in reader.splitlines() if line]) <= 15
    assert re.findall(r"import (.*)", reader) == ["json", "numpy as np"]
    monkeypatch.chdir(token_file.parent)
    variables, tokens = {}, read_tokens(token_file)
    exec(reader, variables)
    assert variables["indices"].dtype == tokens.indices.dtype
    np.testing.assert_array_equal(variables["indices"], tokens.indices)
    assert variables["timestamps"].tolist() == list(tokens.timestamps)
    assert variables["fps"] == float(tokens.fps)


OPTIONAL = {"origin": 3, "zero_code": True, "rate": "psnr=32", "keyframe_interval": 8}


def test_every_metadata_key_and_tensor_is_documented():
    rows = re.findall(r"^\| (`.*?) \|", DOCUMENT, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    for timestamps in (SAMPLE.timestamps, VARYING):
        content = replace(SAMPLE, timestamps=timestamps, **OPTIONAL)
        header, _ = split_file(tokens_to_bytes(content))
        assert header.pop("__metadata__").keys() | header.keys() <= documented


@pytest.mark.parametrize("timestamps", [SAMPLE.timestamps, VARYING], ids=["regular", "varying"])
def test_unknown_keys_and_tensors_are_ignored(tmp_path, timestamps):
    path = tmp_path / "later.safetensors"
    header, body = split_file(tokens_to_bytes(replace(SAMPLE, timestamps=timestamps)))
    header["__metadata__"] |= {"color": "bt709", "history": "{}"}
    for dtype, size in (("U8", 1), ("U16", 2), ("I32", 4), ("I64", 8)):
        end = len(body) + 3 * size
        header[f"later_{dtype}"] = {
            "dtype": dtype,
            "shape": [3],
            "data_offsets": [len(body), end],
        }
        body += bytes(3 * size)
    path.write_bytes(join_file(header, body))
    tokens = read_tokens(path)
    np.testing.assert_array_equal(tokens.indices, SAMPLE.indices)
    assert list(tokens.timestamps) == list(timestamps)


OWN_TOKENIZER = {
    "kind": SAMPLE.quantizer,
    "stride": SAMPLE.stride,
    "codebook_size": SAMPLE.codebook_size,
    "fingerprint": SAMPLE.model,
    "stages": 1,
    "keyframe_interval": 8,
}


def test_tokens_belong_to_the_tokenizer_that_made_them():
    check_tokenizer(SAMPLE, SimpleNamespace(**OWN_TOKENIZER), "a.safetensors")


def test_an_interval_between_key_frames_is_at_most_that_of_the_tokenizer():
    tokenizer = SimpleNamespace(**OWN_TOKENIZER)
    for interval in (None, 1, 8):
        check_tokenizer(replace(SAMPLE, keyframe_interval=interval), tokenizer, "a.safetensors")
    tokens = replace(SAMPLE, keyframe_interval=9)
    with pytest.raises(VqtokError, match=r"a\.safetensors: .* every 9 .* tokenizer every 8; enc"):
        check_tokenizer(tokens, tokenizer, "a.safetensors")


def test_another_number_of_codebooks_is_refused():
    other = SimpleNamespace(**OWN_TOKENIZER | {"stages": 2})
    with pytest.raises(VqtokError, match=r"a\.safetensors: .* 1 codebooks, .* has 2"):
        check_tokenizer(SAMPLE, other, "a.safetensors")


@pytest.mark.parametrize(
    "difference",
    [{"kind": "lfq"}, {"stride": (4, 16, 16)}, {"codebook_size": 65}, {"fingerprint": "f" * 64}],
)
def test_any_difference_means_another_tokenizer(difference):
    other = SimpleNamespace(**OWN_TOKENIZER | difference)
    with pytest.raises(VqtokError, match=r"a\.safetensors: .* another tokenizer .* --tokenizer"):
        check_tokenizer(SAMPLE, other, "a.safetensors")
