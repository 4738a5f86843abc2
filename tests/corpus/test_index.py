"""The index of a corpus: its columns, where they come from, and indices that are hostile."""

import os
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from helpers.corpus import sample_clips, write_corpus
from helpers.tokens import SAMPLE, VARYING
from vqtok.corpus.index import COLUMNS, INDEX, NAMES, clip_names, read_index, write_index
from vqtok.corpus.reader import iter_tokens, published_shards, shard_record
from vqtok.corpus.settings import open_corpus
from vqtok.errors import VqtokError
from vqtok.safetensors_io import read_file, write_file
from vqtok.tokens import tokens_to_bytes


@pytest.fixture
def folder(tmp_path):
    """A corpus of three shards, with an index; one clip has a variable frame rate."""
    varying = {"day 2/clip.mp4": tokens_to_bytes(replace(SAMPLE, timestamps=VARYING))}
    folder = write_corpus(tmp_path / "tokens", sample_clips() | varying)
    _write(folder)
    return folder


def _write(folder):
    write_index(folder, map(shard_record, published_shards(open_corpus(folder))))


def test_each_row_leads_to_the_indices_of_its_clip(folder):
    index = read_index(folder)
    assert tuple(index) == (*COLUMNS, NAMES)
    clips = list(iter_tokens(open_corpus(folder)))
    assert index["key"].tolist() == [0, 1, 2, 3, 4]
    assert index["shard"].tolist() == [0, 0, 1, 1, 2]
    for i, clip in enumerate(clips):
        row = {name: int(column[i]) for name, column in index.items()}
        tokens = clip.read()
        dtype = {1: "u1", 2: "<u2", 4: "<i4"}[row["itemsize"]]
        shape = row["t"], row["h"], row["w"]
        found = np.memmap(clip.tar, dtype, "r", row["indices"], shape)
        np.testing.assert_array_equal(found, tokens.indices)
        assert (row["offset"], row["bytes"], row["stages"]) == (clip.offset, clip.bytes, 1)
        assert (row["frames"], row["tokens"]) == (tokens.frames, tokens.indices.size)


def test_columns_are_mapped_and_equal_those_made_from_the_records(folder):
    mapped = read_index(folder)
    data = (folder / INDEX).read_bytes()
    for path in (folder / INDEX, *folder.glob("shards/*.tar")):
        path.unlink()
    made = read_index(folder)
    for name in (*COLUMNS, NAMES):
        assert mapped[name].dtype == made[name].dtype == (np.uint8 if name == NAMES else np.int64)
        assert isinstance(mapped[name].base, np.memmap) or isinstance(mapped[name], np.memmap)
        np.testing.assert_array_equal(mapped[name], made[name])
    _write(folder)
    assert (folder / INDEX).read_bytes() == data


def test_timing_is_that_of_the_token_files_and_names_are_those_of_the_clips(tmp_path):
    varying = replace(SAMPLE, timestamps=VARYING, origin=33)
    clips = {"a b.mp4": SAMPLE, "día/雪.mp4": varying, "x\udce9.mp4": SAMPLE}
    folder = write_corpus(tmp_path / "tokens", {n: tokens_to_bytes(t) for n, t in clips.items()})
    _write(folder)
    index = read_index(folder)
    assert list(clip_names(index)) == list(clips)
    files = zip(clips.values(), iter_tokens(open_corpus(folder)), strict=True)
    for row, (tokens, packed) in enumerate(files):
        at = {name: int(index[name][row]) for name in COLUMNS}
        assert Fraction(at["fps_num"], at["fps_den"]) == tokens.fps
        assert Fraction(at["time_base_num"], at["time_base_den"]) == tokens.time_base
        assert at["origin"] == tokens.origin
        times = [at["start"] + i * at["step"] for i in range(tokens.frames)]
        if at["timestamps"]:
            assert (at["start"], at["step"]) == (0, 0)
            times = np.memmap(packed.tar, "<i8", "r", at["timestamps"], tokens.frames).tolist()
        assert times == list(tokens.timestamps)


def test_timestamps_outside_of_their_token_file_are_refused(tmp_path):
    data = tokens_to_bytes(replace(SAMPLE, timestamps=VARYING))
    folder = write_corpus(tmp_path / "tokens", {"a.mp4": data, "b.mp4": data})
    _write(folder)
    metadata, columns = read_file(folder / INDEX, "an index")
    for value in (columns["offset"][0], columns["offset"][0] + columns["bytes"][0] - 64):
        columns["timestamps"] = columns["timestamps"].copy()
        columns["timestamps"][0] = value
        write_file(folder / INDEX, metadata, columns)
        with pytest.raises(VqtokError, match="timestamps of a clip do not lie"):
            read_index(folder)


def test_without_an_index_what_is_published_is_there(tmp_path):
    clips = sample_clips()
    assert len(read_index(write_corpus(tmp_path / "none", clips, published=()))["key"]) == 0
    folder = write_corpus(tmp_path / "some", clips, published={0, 2})
    assert read_index(folder)["key"].tolist() == [0, 1, 4]


def test_stages_are_a_column(tmp_path):
    folder = write_corpus(tmp_path / "tokens", sample_clips(["a.mp4"], shape=(3, 4, 5, 2)))
    index = read_index(folder)
    assert [int(index[name][0]) for name in ("t", "h", "w", "stages", "tokens")] == [
        3,
        4,
        5,
        2,
        120,
    ]


def test_an_empty_index_can_be_read(tmp_path):
    folder = write_corpus(tmp_path / "tokens", sample_clips(), published=())
    _write(folder)
    assert {len(column) for column in read_index(folder).values()} == {0}


HOSTILE = [
    ("key", 1, "order of keys"),
    ("shard", 3, "out of range"),
    ("shard", -1, "out of range"),
    ("offset", 513, "not aligned"),
    ("offset", 2**62, "do not lie in its token file"),
    ("indices", 0, "do not lie in its token file"),
    ("indices", 2**63 - 1, "do not lie in its token file"),
    ("itemsize", 3, "another size"),
    ("t", 2**62, "do not lie in its token file"),
    ("h", 0, "empty"),
    ("stages", 0, "empty"),
    ("tokens", 10**6, "more tokens"),
    ("frames", 0, "empty"),
    ("fps_den", 0, "not a positive fraction"),
    ("time_base_num", 0, "not a positive fraction"),
    ("step", 0, "no timestamps"),
    ("timestamps", 10**6, "no timestamps"),
    ("name_end", 10**6, "names do not end"),
]


@pytest.mark.parametrize(("column", "value", "reason"), HOSTILE)
def test_hostile_numbers_are_refused_in_one_sentence(folder, column, value, reason):
    metadata, columns = read_file(folder / INDEX, "an index")
    columns[column] = columns[column].copy()
    columns[column][0] = value
    write_file(folder / INDEX, metadata, columns)
    with pytest.raises(VqtokError, match=reason) as error:
        read_index(folder)
    assert str(error.value).startswith(
        f"{folder / INDEX} is damaged or not the index of a corpus: "
    )


def test_damaged_indices_are_refused(folder):
    metadata, columns = read_file(folder / INDEX, "an index")
    fewer = {name: column for name, column in columns.items() if name != "t"}
    floats = columns | {"t": columns["t"].astype(float)}
    uneven = columns | {"t": columns["t"][1:]}
    square = {name: column[:4].reshape(2, 2) for name, column in columns.items()}
    for tensors in (fewer, floats, uneven, square):
        write_file(folder / INDEX, metadata, tensors)
        with pytest.raises(VqtokError, match="its columns are"):
            read_index(folder)
    write_file(folder / INDEX, {"format": "vqtok-tokens", "version": "1"}, columns)
    with pytest.raises(VqtokError, match="format or version"):
        read_index(folder)
    write_file(folder / INDEX, metadata | {"version": "2"}, columns)
    with pytest.raises(VqtokError, match="format or version"):
        read_index(folder)
    os.truncate(folder / INDEX, 900)
    with pytest.raises(VqtokError, match="damaged"):
        read_index(folder)
