"""safetensors files: equal bytes of equal tensors, and headers that must be refused."""

import io

import numpy as np
import pytest
from safetensors.numpy import load, save

from helpers.tokens import join_file
from vqtok.safetensors_io import MAX_HEADER, read_file, read_header, serialize

TENSORS = {
    "z": np.arange(300, dtype=np.float32).reshape(100, 3),
    "half": np.ones((2, 0, 3), np.float16),
    "a": np.arange(6, dtype=np.int64).reshape(2, 3).T,
    "flag": np.array(True),
}
METADATA = {name: name * 3 for name in "qwertyuiop"}


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_files_are_those_of_safetensors_but_always_the_same(tmp_path):
    data = b"".join(serialize(METADATA, TENSORS))
    backwards = dict(reversed(TENSORS.items()))
    assert data == b"".join(serialize(dict(reversed(METADATA.items())), backwards))
    theirs = load(data)
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(save({n: np.ascontiguousarray(t) for n, t in TENSORS.items()}))
    for name in "ab":
        metadata, ours = read_file(tmp_path / name, "a file")
        assert ours.keys() == theirs.keys() == TENSORS.keys()
        assert metadata == (METADATA if name == "a" else {})
        for key, tensor in TENSORS.items():
            assert ours[key].dtype == theirs[key].dtype == tensor.dtype
            np.testing.assert_array_equal(ours[key], tensor)
            np.testing.assert_array_equal(theirs[key], tensor)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 3},
        {"a": entry() | {"more": 1}},
        {"a": entry(dtype="I3")},
        {"a": entry(dtype=["U8"])},
        {"a": entry(shape=[-4])},
        {"a": entry(shape=[4.0])},
        {"a": entry(shape=[True] * 4, offsets=(0, 1))},
        {"a": entry(shape=[2**63])},
        {"a": entry(shape=[1] * 1000, offsets=(0, 1))},
        {"a": entry(shape=[10**18] * 16)},
        {"a": entry(offsets=(0, 5))},
        {"a": entry(offsets=(4, 0))},
        {"a": entry(offsets=(0,))},
        {"a": entry(offsets=())},
        {"a": entry(offsets=(1, 5))},
        {"a": entry(), "b": entry()},
        {"a": entry(), "b": entry(offsets=(8, 12))},
        {"__metadata__": {"a": 1}},
        {"__metadata__": []},
    ],
    ids=str,
)
def test_an_inconsistent_header_is_refused(header):
    with pytest.raises(ValueError) as caught:
        read_header(io.BytesIO(join_file(header, bytes(12))))
    assert len(str(caught.value)) < 200


def test_no_more_than_the_header_is_read():
    data = join_file({"a": entry(shape=[2**60], offsets=(0, 2**60))}, b"data")
    file = io.BytesIO(data)
    assert read_header(file).data_size == 2**60
    assert file.read() == b"data"


@pytest.mark.parametrize("size", [0, 1, MAX_HEADER + 1, 2**63])
def test_what_does_not_begin_as_a_file_is_refused_at_once(size):
    file = io.BytesIO(size.to_bytes(8, "little") + bytes(100))
    with pytest.raises(ValueError, match="does not begin"):
        read_header(file)
    assert file.tell() == 8


def test_bytes_that_are_missing_or_too_many_are_refused(tmp_path):
    data = b"".join(serialize({}, TENSORS))
    for damaged in (data[:-1], data + b"x", data[:20], data[:4]):
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(ValueError, match="truncated"):
            read_file(tmp_path / "a", "a file")
