"""The token files of a corpus: read where they lie, by vqtok and by what reads tars."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers.corpus import NAMES, edit_json, sample_clips, write_corpus, write_folder
from vqtok import read_tokens
from vqtok.corpus.reader import iter_tokens, read_shard, unpublished_notes
from vqtok.corpus.settings import open_corpus
from vqtok.errors import VqtokError
from vqtok.tokens import io, tokens_to_bytes


@pytest.fixture
def clips():
    return sample_clips()


@pytest.fixture
def folder(clips, tmp_path):
    """A corpus of three shards."""
    return write_corpus(tmp_path / "tokens", clips)


def test_every_clip_gives_the_tokens_of_its_file(folder, clips):
    found = list(iter_tokens(open_corpus(folder)))
    assert [clip.key for clip in found] == list(range(5))
    assert [clip.name for clip in found] == sorted(NAMES)
    for clip in found:
        assert clip.path == folder / f"{clip.name}.safetensors"
        tokens, settings = clip.read(), clip.read_settings()
        assert tokens_to_bytes(tokens) == clips[clip.name]
        assert settings.indices.shape == tokens.indices.shape
        assert settings.timestamps == tokens.timestamps


def test_large_indices_stay_in_the_tar(folder, clips, monkeypatch):
    monkeypatch.setattr(io, "MAX_IN_MEMORY", 16)
    for clip in iter_tokens(open_corpus(folder)):
        tokens = clip.read()
        assert isinstance(tokens.indices, np.memmap)
        assert Path(tokens.indices.filename) == clip.tar
        assert tokens_to_bytes(tokens) == clips[clip.name]


def test_shards_that_are_not_published_are_noted(tmp_path, clips):
    folder = write_corpus(tmp_path / "tokens", clips, published={1})
    corpus = open_corpus(folder)
    assert [clip.key for clip in iter_tokens(corpus)] == [2, 3]
    note = f"{folder}: 2 of 3 shards, with 3 of 5 clips, not published yet"
    assert unpublished_notes(corpus) == [note]


@pytest.mark.parametrize(("size", "lost"), [(0, 2), (100, 2), (600, 2), (-1, 1), (-600, 1)])
def test_a_truncated_tar_fails_clip_by_clip(folder, clips, size, lost):
    files = read_shard(open_corpus(folder).shard(1))
    end = files[1].offset + files[1].bytes
    os.truncate(folder / "shards" / "00001.tar", size if size >= 0 else end + size)
    for clip in files[: 2 - lost]:
        assert tokens_to_bytes(clip.read()) == clips[clip.name]
    for clip in files[2 - lost :]:
        with pytest.raises(VqtokError) as error:
            clip.read()
        assert str(error.value).startswith(f"{clip.path} in 00001.tar")
        assert "truncated" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_tar_names_the_clip(folder):
    (folder / "shards" / "00000.tar").unlink()
    clip = next(iter_tokens(open_corpus(folder)))
    with pytest.raises(VqtokError, match=r"a\.b\.mp4.safetensors in 00000\.tar: no such file"):
        clip.read()


def test_a_tar_and_a_record_of_different_shards_are_refused(folder):
    shards = folder / "shards"
    (shards / "00000.tar").write_bytes((shards / "00001.tar").read_bytes())
    clip = next(iter_tokens(open_corpus(folder)))
    for read in (clip.read, clip.read_settings):
        with pytest.raises(VqtokError, match="truncated or not the one of its record"):
            read()
    (shards / "00000.json").write_bytes((shards / "00001.json").read_bytes())
    with pytest.raises(VqtokError, match=r"00000.json is the record of another shard or corpus"):
        next(iter_tokens(open_corpus(folder)))


def test_keys_outside_of_the_shard_are_refused(folder):
    edit_json(folder / "shards" / "00000.json", lambda record: record["clips"][1].update(key=9))
    with pytest.raises(VqtokError, match="is the record of another shard or corpus"):
        read_shard(open_corpus(folder).shard(0))


def test_a_record_with_another_size_of_a_token_file_is_refused(folder):
    def change(record):
        record["clips"][0]["bytes"] -= 8
        record["clips"][0].update(shape=[1, 1, 1], tokens=1)

    edit_json(folder / "shards" / "00000.json", change)
    clip = next(iter_tokens(open_corpus(folder)))
    with pytest.raises(VqtokError, match="is truncated or not a token file"):
        clip.read()


def test_tar_gives_the_token_files_back(folder, clips, tmp_path):
    for tar in sorted((folder / "shards").glob("*.tar")):
        subprocess.run(["tar", "xf", tar, "-C", tmp_path], check=True)
    for key, name in enumerate(sorted(clips)):
        assert (tmp_path / f"{key:09}.safetensors").read_bytes() == clips[name]
        assert json.loads((tmp_path / f"{key:09}.json").read_bytes())["name"] == name


def test_webdataset_reads_the_tars(folder, clips, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    loose = write_folder(tmp_path / "loose", clips)
    tars = sorted(map(str, (folder / "shards").glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{key:09}" for key in range(5)]
    for sample in samples:
        name = json.loads(sample["json"])["name"]
        assert sample["safetensors"] == (loose / f"{name}.safetensors").read_bytes()


def test_datasets_reads_the_tars(folder, clips, tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    loose = write_folder(tmp_path / "loose", clips)
    rows = datasets.load_dataset(
        "webdataset",
        data_files=str(folder / "shards" / "*.tar"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert rows["__key__"][:] == [f"{key:09}" for key in range(5)]
    for row in rows:
        expected = read_tokens(loose / f"{row['json']['name']}.safetensors")
        found = _parse(row["safetensors"], tmp_path / "row.safetensors")
        assert tokens_to_bytes(found) == tokens_to_bytes(expected)


def _parse(column, path):
    path.write_bytes(column if isinstance(column, bytes) else column["bytes"])
    return read_tokens(path)
