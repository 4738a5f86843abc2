"""Reading and writing token files: round trips, stable bytes, and files that must be refused."""

import hashlib
import io
import subprocess
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from helpers.tokens import SAMPLE, VARYING, join_file, split_file
from vqtok.errors import VqtokError
from vqtok.tokens import (
    IndexBuffer,
    Tokens,
    count_tokens,
    read_header_at,
    read_settings,
    read_tokens,
    read_tokens_at,
    tokens_to_bytes,
    write_tokens,
)
from vqtok.tokens.io import MAX_IN_MEMORY


def sample_file(**changes):
    """Return SAMPLE as a file with changed metadata; None removes an entry."""
    header, body = split_file(tokens_to_bytes(SAMPLE))
    merged = header["__metadata__"] | changes
    header["__metadata__"] = {key: value for key, value in merged.items() if value is not None}
    return join_file(header, body)


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
        {"zero_code": True, "rate": "tokens=0.6"},
        {"keyframe_interval": 1},
        {"keyframe_interval": 2**31 - 1},
    ],
)
def test_tokens_survive_a_round_trip(tmp_path, changes):
    expected = replace(SAMPLE, **changes)
    write_tokens(tmp_path / "a.safetensors", expected)
    tokens = read_tokens(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(tokens.indices, expected.indices)
    assert list(tokens.timestamps) == list(expected.timestamps)
    keys = [f.name for f in fields(Tokens) if f.name not in ("indices", "timestamps")]
    assert [getattr(tokens, name) for name in keys] == [getattr(expected, name) for name in keys]


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32"), (2**31 - 1, "int32")],
)
def test_indices_have_the_smallest_dtype_for_the_codebook(size, dtype):
    indices = SAMPLE.indices.copy()
    indices[0, 0, 0] = size - 1
    data = tokens_to_bytes(replace(SAMPLE, indices=indices, codebook_size=size))
    tokens = read_tokens(io.BytesIO(data))
    assert tokens.indices.dtype == dtype and tokens.indices[0, 0, 0] == size - 1


def indices_file(path, indices):
    """Write SAMPLE with other indices as programs do that only know safetensors."""
    save_file({"indices": indices}, path, split_file(tokens_to_bytes(SAMPLE))[0]["__metadata__"])


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_indices_are_read_and_written_from_any_integer_dtype(tmp_path, dtype):
    indices = SAMPLE.indices.astype(dtype)
    assert tokens_to_bytes(replace(SAMPLE, indices=indices)) == tokens_to_bytes(SAMPLE)
    swapped = indices.astype(indices.dtype.newbyteorder())
    assert tokens_to_bytes(replace(SAMPLE, indices=swapped)) == tokens_to_bytes(SAMPLE)
    indices_file(tmp_path / "a.safetensors", indices)
    tokens = read_tokens(tmp_path / "a.safetensors")
    assert tokens.indices.dtype == dtype
    assert tokens_to_bytes(tokens) == tokens_to_bytes(SAMPLE)


@pytest.mark.parametrize(
    ("dtype", "index", "message"),
    [
        ("int8", -1, "the indices are -1 to 63, not in a codebook of 64"),
        ("uint8", 255, "the indices are 0 to 255, not"),
        ("int32", 64, "the indices are 0 to 64, not"),
        ("int64", 2**62, "not in a codebook of 64"),
        ("uint64", 2**64 - 1, "not in a codebook of 64"),
        ("float32", 0, "the indices are float32, not integers"),
        ("bool", 0, "the indices are bool, not integers"),
    ],
)
def test_a_file_with_other_values_or_dtypes_is_refused(tmp_path, dtype, index, message):
    path, indices = tmp_path / "generated.safetensors", SAMPLE.indices.astype(dtype)
    indices[1, 2, 3] = index
    indices_file(path, indices)
    with pytest.raises(VqtokError, match=f"{path}: .*{message}"):
        read_tokens(path)


def test_only_irregular_timestamps_are_stored_as_a_tensor():
    assert "timestamps" not in split_file(tokens_to_bytes(SAMPLE))[0]
    varying = tokens_to_bytes(replace(SAMPLE, timestamps=VARYING))
    assert split_file(varying)[0]["timestamps"]["shape"] == [9]


def test_origin_is_written_only_if_it_is_not_zero():
    assert "origin" not in split_file(tokens_to_bytes(SAMPLE))[0]["__metadata__"]
    moved = tokens_to_bytes(replace(SAMPLE, origin=40))
    assert split_file(moved)[0]["__metadata__"]["origin"] == "40"
    assert read_tokens(io.BytesIO(sample_file())).origin == 0


def test_what_is_optional_is_written_only_if_it_is_set():
    metadata = split_file(tokens_to_bytes(SAMPLE))[0]["__metadata__"]
    expected = {"zero_code": "true", "rate": "psnr=32", "keyframe_interval": "8"}
    assert not expected.keys() & metadata.keys()
    given = replace(SAMPLE, zero_code=True, rate="psnr=32", keyframe_interval=8)
    metadata = split_file(tokens_to_bytes(given))[0]["__metadata__"]
    assert expected.items() <= metadata.items()
    assert not read_tokens(io.BytesIO(sample_file(zero_code="false"))).zero_code


def test_tokens_are_counted_per_position():
    stages = np.stack([SAMPLE.indices, SAMPLE.indices // 32], -1)
    zeros = np.count_nonzero(stages == 0)
    for indices, zero_code, expected in (
        (SAMPLE.indices, False, 1),
        (stages, False, 2),
        (stages, True, 2 - zeros / SAMPLE.indices.size),
        (np.zeros_like(stages), True, 0),
        (np.repeat(stages, 99, 0), True, 2 - zeros / SAMPLE.indices.size),
    ):
        tokens = replace(SAMPLE, indices=indices, zero_code=zero_code)
        assert tokens.tokens_per_position == pytest.approx(expected)
        assert count_tokens(tokens) == round(expected * np.prod(indices.shape[:3]))


def test_the_same_tokens_give_the_same_bytes():
    digest = hashlib.sha256(tokens_to_bytes(SAMPLE)).hexdigest()
    assert digest == "c1c8e9acc0daec2d286dffa605a51987d91a54b8ea177d9eb9dd9a5eb75a8bf3"


def test_safetensors_reads_the_file(tmp_path):
    write_tokens(tmp_path / "a.safetensors", replace(SAMPLE, timestamps=VARYING))
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("indices"), SAMPLE.indices)
        assert file.get_tensor("timestamps").tolist() == VARYING
        metadata = file.metadata()
    assert metadata["format"] == "vqtok-tokens" and metadata["version"] == "1"
    assert metadata["fps"] == "30000/1001" and metadata["stride"] == "4x8x8"


def test_memory_does_not_grow_with_the_frames_that_a_file_claims():
    n = 200_000
    changes = {"frames": str(256 * (n - 1) + 1), "stride": "256x8x8", "height": "1", "width": "1"}
    header, _ = split_file(sample_file(**changes))
    header["indices"] = {"dtype": "U8", "shape": [n, 1, 1], "data_offsets": [0, n]}
    data = join_file(header, bytes(n))
    tracemalloc.start()
    tokens = read_tokens(io.BytesIO(data))
    assert tokens.max_gap == 1001
    assert read_tokens(io.BytesIO(tokens_to_bytes(tokens))).frames == tokens.frames > 5 * 10**7
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_forged_settings_are_refused_before_the_tensors_are_read():
    for changes in ({"quantizer": "\x1b[31mfsq"}, {"model": "A" * 64}, {"version": "\x1b[31m2"}):
        stream = io.BytesIO(sample_file(**changes))
        with pytest.raises(VqtokError) as caught:
            read_tokens(stream)
        assert str(caught.value).isprintable()
        assert stream.read() == split_file(tokens_to_bytes(SAMPLE))[1]


def test_a_stream_ends_where_its_header_says():
    data = tokens_to_bytes(SAMPLE)
    for damaged in (data[:-1], data + b"x"):
        with pytest.raises(VqtokError, match="the input stream is truncated or not a token file"):
            read_tokens(io.BytesIO(damaged))


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/null"])
def test_a_device_is_refused_at_once(device):
    with pytest.raises(VqtokError, match=f"{device} is truncated or not a token file"):
        read_tokens(device)


def test_settings_are_read_without_the_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    for tokens in (SAMPLE, replace(SAMPLE, timestamps=VARYING, rate="psnr=32")):
        write_tokens(path, tokens)
        found = read_settings(path)
        keys = [f.name for f in fields(Tokens) if f.name not in ("indices", "timestamps")]
        assert [getattr(found, name) for name in keys] == [getattr(tokens, name) for name in keys]
        assert found.indices.shape == tokens.indices.shape
    damaged = {"height": "x"}, {"fps": None}, {"fps": "1e99999999"}, {"fps": "abc"}
    for changes in damaged:
        path.write_bytes(sample_file(**changes))
        with pytest.raises(VqtokError, match=r"a\.safetensors has"):
            read_settings(path)
    path.write_bytes(sample_file()[:-1])
    with pytest.raises(VqtokError, match=r"a\.safetensors is truncated"):
        read_settings(path)


def test_a_token_file_is_read_inside_of_another_file(tmp_path, monkeypatch):
    data, path = tokens_to_bytes(SAMPLE), tmp_path / "archive"
    path.write_bytes(b"before" * 100 + data + b"after")
    for limit in (MAX_IN_MEMORY, 16):
        monkeypatch.setattr("vqtok.tokens.io.MAX_IN_MEMORY", limit)
        with path.open("rb") as file:
            tokens = read_tokens_at(file, 600, len(data), "a.mp4")
            settings = read_header_at(file, 600, len(data), "a.mp4")[1]
        assert tokens_to_bytes(tokens) == data
        assert isinstance(tokens.indices, np.memmap) == (limit == 16)
        assert settings.indices.shape == tokens.indices.shape


@pytest.mark.parametrize("read", [read_tokens_at, read_header_at])
def test_a_wrong_place_in_another_file_is_refused(tmp_path, read):
    data, path = sample_file(), tmp_path / "archive"
    path.write_bytes(b"before" * 100 + data)
    places = (599, len(data)), (600, len(data) - 1), (600, len(data) + 1), (9999, len(data))
    for offset, size in places:
        with path.open("rb") as file, pytest.raises(VqtokError, match=r"^a\.mp4 is truncated or"):
            read(file, offset, size, "a.mp4")
    path.write_bytes(path.read_bytes()[:-1])
    with path.open("rb") as file, pytest.raises(VqtokError, match=r"^a\.mp4 is truncated or"):
        read(file, 600, len(data), "a.mp4")


def test_the_number_of_codebooks_is_limited(tmp_path):
    indices = np.zeros((1, 1, 1, 65), np.uint8)
    tokens = replace(SAMPLE, indices=indices, frames=1, height=1, width=1, timestamps=[0])
    with pytest.raises(VqtokError, match="there are 65 codebooks; the limit is 64"):
        write_tokens(tmp_path / "a.safetensors", tokens)


def test_tokens_are_read_from_a_pipe(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tokens(path, SAMPLE)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        np.testing.assert_array_equal(read_tokens(cat.stdout).indices, SAMPLE.indices)


def test_timestamps_out_of_range_are_refused(tmp_path):
    header, body = split_file(tokens_to_bytes(replace(SAMPLE, timestamps=VARYING)))
    begin, end = header["timestamps"]["data_offsets"]
    times = np.arange(2**62 - 4, 2**62 + 5).astype("<i8").tobytes()
    assert end - begin == len(times)
    path = tmp_path / "late.safetensors"
    path.write_bytes(join_file(header, body[:begin] + times + body[end:]))
    with pytest.raises(VqtokError, match=r"late.safetensors: a timestamp is out of range"):
        read_tokens(path)


def test_truncated_files_are_refused(tmp_path):
    data, path = tokens_to_bytes(SAMPLE), tmp_path / "cut.safetensors"
    for length in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(VqtokError, match=r"cut.safetensors is truncated"):
            read_tokens(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": None}, "is not a token file"),
        ({"format": "vqtok-tokenizer"}, "is not a token file"),
        ({"version": "2"}, "version '2' of"),
        ({"frames": None}, "has no 'frames'"),
        ({"start": None}, "has no 'start'"),
        ({"frames": "nine"}, "invalid metadata"),
        ({"frames": "8" * 5000}, "invalid metadata"),
        ({"frames": "13"}, "do not fit"),
        ({"frames": "-3"}, "a size"),
        ({"frames": str(2**40)}, "a size"),
        ({"height": "65"}, "do not fit"),
        ({"width": "0"}, "a size"),
        ({"fps": "30"}, "invalid metadata"),
        ({"fps": "30/0"}, "invalid metadata"),
        ({"fps": "-30/1"}, "a rate"),
        ({"time_base": "0/1"}, "a rate"),
        ({"step": "0"}, "invalid metadata"),
        ({"origin": "soon"}, "invalid metadata"),
        ({"origin": str(2**62)}, "a timestamp"),
        ({"step": "-5"}, "do not increase"),
        ({"stride": "4x8"}, "stride"),
        ({"stride": "4x8x0"}, "stride"),
        ({"stride": "99999x8x8"}, "stride"),
        ({"stride": "2x8x8"}, "do not fit"),
        ({"codebook_size": "63"}, "not in a codebook of 63"),
        ({"codebook_size": "0"}, "a size"),
        ({"zero_code": "yes"}, "zero_code is 'yes', not true or false"),
        ({"zero_code": ""}, "not true or false"),
        ({"rate": "fast"}, "the rate is 'fast', not a name and a value such as tokens=0.6"),
        ({"rate": "tokens=0.6\n"}, "the rate is"),
        ({"rate": "x" * 10**6}, "the rate is"),
        ({"keyframe_interval": "0"}, "the key-frame interval is 0, not a number of latent frames"),
        ({"keyframe_interval": "-8"}, "the key-frame interval is -8"),
        ({"keyframe_interval": str(2**31)}, "the key-frame interval is 2147483648"),
        ({"keyframe_interval": "9" * 10**6}, "is no number of this size"),
        ({"keyframe_interval": "1.5"}, "invalid metadata"),
        ({"keyframe_interval": ""}, "invalid metadata"),
        ({"model": "abc"}, "the model is not named"),
        ({"quantizer": ""}, "the quantizer or the model"),
    ],
)
def test_invalid_metadata_is_refused_in_one_sentence(tmp_path, changes, message):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(sample_file(**changes))
    with pytest.raises(VqtokError, match=message) as caught:
        read_tokens(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "encode" in str(caught.value) and len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": SAMPLE.indices - 1}, "not in a codebook"),
        ({"indices": SAMPLE.indices + 1}, "not in a codebook"),
        ({"indices": SAMPLE.indices.astype(np.float32)}, "are float32, not integers"),
        ({"indices": SAMPLE.indices > 0}, "are bool, not integers"),
        ({"indices": SAMPLE.indices.tolist()}, "are list, not a NumPy array"),
        ({"model": ""}, "their tokenizer was not loaded from a file"),
        ({"zero_code": 1}, "zero_code is 1, not True or False"),
        ({"zero_code": True, "codebook_size": 1}, "has 2 codes or more"),
        ({"rate": 0.6}, "the rate is 0.6, not a name and a value"),
        ({"rate": "tokens 0.6"}, "not a name and a value"),
        ({"keyframe_interval": 0}, "the key-frame interval is 0"),
        ({"keyframe_interval": True}, "the key-frame interval is True"),
        ({"keyframe_interval": 2.0}, r"the key-frame interval is 2\.0"),
        ({"indices": SAMPLE.indices[0]}, "do not fit"),
        ({"indices": SAMPLE.indices[:2]}, "do not fit"),
        ({"timestamps": VARYING[:8]}, "number of timestamps"),
        ({"timestamps": [*VARYING[:8], VARYING[7]]}, "do not increase"),
        ({"timestamps": [*VARYING[:7], 2**80, VARYING[8]]}, "a timestamp is out of range"),
    ],
)
def test_inconsistent_tokens_are_not_written(tmp_path, changes, message):
    with pytest.raises(VqtokError, match=message):
        write_tokens(tmp_path / "a.safetensors", replace(SAMPLE, **changes))
    assert list(tmp_path.iterdir()) == []


def buffered(indices):
    """Return indices that went through a buffer, a latent frame at a time."""
    buffer = IndexBuffer(SAMPLE.codebook_size)
    for frame in indices:
        buffer.append(frame[None])
    return buffer.finish()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_small_indices_keep_no_file_open(tmp_path):
    write_tokens(tmp_path / "a.safetensors", SAMPLE)
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [read_tokens(tmp_path / "a.safetensors").indices, buffered(SAMPLE.indices)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert all(np.array_equal(indices, SAMPLE.indices) for indices in kept)


@pytest.mark.parametrize("excess", [0, 1])
def test_large_indices_stay_on_disk(tmp_path, monkeypatch, excess):
    monkeypatch.setattr("vqtok.tokens.io.MAX_IN_MEMORY", SAMPLE.indices.size - excess)  # uint8
    write_tokens(tmp_path / "a.safetensors", SAMPLE)
    for indices in (read_tokens(tmp_path / "a.safetensors").indices, buffered(SAMPLE.indices)):
        assert isinstance(indices, np.memmap) == bool(excess)
        assert not indices.flags.writeable
        np.testing.assert_array_equal(indices, SAMPLE.indices)


def test_an_invalid_timestamps_tensor_is_refused():
    header, body = split_file(tokens_to_bytes(replace(SAMPLE, timestamps=VARYING)))
    times = np.frombuffer(body, "<i8", 9)[::-1].tobytes()
    with pytest.raises(VqtokError, match="do not increase"):
        read_tokens(io.BytesIO(join_file(header, times + body[72:])))
    header["timestamps"]["shape"] = [3, 3]
    with pytest.raises(VqtokError, match="timestamp"):
        read_tokens(io.BytesIO(join_file(header, body)))


@pytest.mark.parametrize("content", [None, b"", b"not tokens", ...])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.safetensors"
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(VqtokError, match=r"other.safetensors"):
        read_tokens(path)
