"""The token file: what goes in comes out, the same bytes every time, and nothing broken gets by."""

import hashlib
import io
import subprocess
from dataclasses import fields, replace

import numpy as np
import pytest
from safetensors import safe_open

from helpers.tokens import SAMPLE, VARYING, joined, parts
from vqtok.errors import VqtokError
from vqtok.tokens import format as token_file
from vqtok.tokens.format import Tokens


def edited(**changes):
    """SAMPLE as a file with other metadata; None takes an entry away."""
    header, body = parts(token_file.to_bytes(SAMPLE))
    merged = header["__metadata__"] | changes
    header["__metadata__"] = {key: value for key, value in merged.items() if value is not None}
    return joined(header, body)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"timestamps": VARYING},
        {"timestamps": [-3 + 2 * i for i in range(9)]},
        {"indices": SAMPLE.indices[:1], "frames": 1, "timestamps": [7]},
        {"indices": np.stack([SAMPLE.indices] * 2, -1)},
        {"origin": 40},
        {"origin": -3, "timestamps": [-3 + 2 * i for i in range(9)]},
        {"indices": SAMPLE.indices[:2], "frames": 2, "timestamps": [0, 5]},
    ],
)
def test_tokens_come_back_as_they_were(tmp_path, changes):
    want = replace(SAMPLE, **changes)
    token_file.write(tmp_path / "a.safetensors", want)
    found = token_file.read(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(found.indices, want.indices)
    assert list(found.timestamps) == list(want.timestamps)
    others = [f.name for f in fields(Tokens) if f.name not in ("indices", "timestamps")]
    assert [getattr(found, name) for name in others] == [getattr(want, name) for name in others]


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32"), (2**31 - 1, "int32")],
)
def test_the_smallest_type_that_holds_the_codebook(size, dtype):
    indices = SAMPLE.indices.copy()
    indices[0, 0, 0] = size - 1
    data = token_file.to_bytes(replace(SAMPLE, indices=indices, codebook_size=size))
    found = token_file.read(io.BytesIO(data))
    assert found.indices.dtype == dtype and found.indices[0, 0, 0] == size - 1


def test_even_timestamps_take_no_room():
    assert "timestamps" not in parts(token_file.to_bytes(SAMPLE))[0]
    varying = token_file.to_bytes(replace(SAMPLE, timestamps=VARYING))
    assert parts(varying)[0]["timestamps"]["shape"] == [9]


def test_an_origin_is_written_only_where_playing_begins_later():
    assert "origin" not in parts(token_file.to_bytes(SAMPLE))[0]["__metadata__"]
    moved = token_file.to_bytes(replace(SAMPLE, origin=40))
    assert parts(moved)[0]["__metadata__"]["origin"] == "40"
    assert token_file.read(io.BytesIO(edited())).origin == 0


def test_same_tokens_same_bytes_for_ever():
    digest = hashlib.sha256(token_file.to_bytes(SAMPLE)).hexdigest()
    assert digest == "c1c8e9acc0daec2d286dffa605a51987d91a54b8ea177d9eb9dd9a5eb75a8bf3"


def test_other_programs_can_read_it(tmp_path):
    token_file.write(tmp_path / "a.safetensors", replace(SAMPLE, timestamps=VARYING))
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("indices"), SAMPLE.indices)
        assert file.get_tensor("timestamps").tolist() == VARYING
        metadata = file.metadata()
    assert metadata["format"] == "vqtok-tokens" and metadata["version"] == "1"
    assert metadata["fps"] == "30000/1001" and metadata["stride"] == "4x8x8"


def test_reads_a_pipe(tmp_path):
    path = tmp_path / "a.safetensors"
    token_file.write(path, SAMPLE)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        np.testing.assert_array_equal(token_file.read(cat.stdout).indices, SAMPLE.indices)


def test_every_cut_is_noticed(tmp_path):
    data, path = token_file.to_bytes(SAMPLE), tmp_path / "cut.safetensors"
    for length in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(VqtokError, match=r"cut.safetensors is cut short"):
            token_file.read(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": None}, "is no token file"),
        ({"format": "vqtok-tokenizer"}, "is no token file"),
        ({"version": "2"}, "version 2"),
        ({"frames": None}, "lacks 'frames'"),
        ({"start": None}, "lacks 'start'"),
        ({"frames": "nine"}, "edited"),
        ({"frames": "8" * 5000}, "edited"),
        ({"frames": "13"}, "do not fit"),
        ({"frames": "-3"}, "a size"),
        ({"frames": str(2**40)}, "a size"),
        ({"height": "65"}, "do not fit"),
        ({"width": "0"}, "a size"),
        ({"fps": "30"}, "edited"),
        ({"fps": "30/0"}, "edited"),
        ({"fps": "-30/1"}, "a rate"),
        ({"time_base": "0/1"}, "a rate"),
        ({"step": "0"}, "edited"),
        ({"origin": "soon"}, "edited"),
        ({"origin": str(2**62)}, "a timestamp"),
        ({"step": "-5"}, "do not increase"),
        ({"stride": "4x8"}, "stride"),
        ({"stride": "4x8x0"}, "stride"),
        ({"stride": "99999x8x8"}, "stride"),
        ({"stride": "2x8x8"}, "do not fit"),
        ({"codebook_size": "63"}, "not in a codebook of 63"),
        ({"codebook_size": "1024"}, "uint8 indices do not belong"),
        ({"codebook_size": "0"}, "a size"),
        ({"model": "abc"}, "model"),
        ({"quantizer": ""}, "model"),
    ],
)
def test_edited_metadata_is_refused_in_one_sentence(tmp_path, changes, words):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(edited(**changes))
    with pytest.raises(VqtokError, match=words) as caught:
        token_file.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "encode" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"indices": SAMPLE.indices - 1}, "not in a codebook"),
        ({"indices": SAMPLE.indices + 1}, "not in a codebook"),
        ({"indices": SAMPLE.indices.astype(np.float32)}, "not integers"),
        ({"indices": SAMPLE.indices[0]}, "do not fit"),
        ({"indices": SAMPLE.indices[:2]}, "do not fit"),
        ({"timestamps": VARYING[:8]}, "one timestamp for each frame"),
        ({"timestamps": [*VARYING[:8], VARYING[7]]}, "do not increase"),
    ],
)
def test_tokens_that_contradict_themselves_are_not_written(tmp_path, changes, words):
    with pytest.raises(VqtokError, match=words):
        token_file.write(tmp_path / "a.safetensors", replace(SAMPLE, **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_timestamps_tensor_is_refused():
    header, body = parts(token_file.to_bytes(replace(SAMPLE, timestamps=VARYING)))
    times = np.frombuffer(body, "<i8", 9)[::-1].tobytes()
    with pytest.raises(VqtokError, match="do not increase"):
        token_file.read(io.BytesIO(joined(header, times + body[72:])))
    header["timestamps"]["shape"] = [3, 3]
    with pytest.raises(VqtokError, match="timestamp"):
        token_file.read(io.BytesIO(joined(header, body)))


@pytest.mark.parametrize("content", [None, b"", b"not tokens", ...])
def test_what_is_no_token_file_is_refused(tmp_path, content):
    path = tmp_path / "other.safetensors"
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(VqtokError, match=r"other.safetensors"):
        token_file.read(path)
