"""Files that are damaged, that change, or that do not tell their key-frame interval."""

import os

import numpy as np
import pytest

import vqtok
from helpers.tokenizers import save_tokenizer
from helpers.windows import CODES, as_corpus, as_folder, numbered, sample_tokens
from vqtok import TokenWindows
from vqtok.corpus.index import INDEX, read_index
from vqtok.errors import UsageError, VqtokError
from vqtok.model.checkpoint import read_fingerprint


def refused(reason, *arguments, **options):
    with pytest.raises(VqtokError, match=reason) as error:
        TokenWindows(*arguments, **options)
    return str(error.value)


def test_a_damaged_token_file_is_named(tmp_path):
    folder = as_folder(tmp_path / "tokens", sample_tokens())
    os.truncate(folder / "day 1/clip.mp4.safetensors", 500)
    message = refused("truncated", folder, 4)
    assert message.startswith(str(folder / "day 1/clip.mp4.safetensors"))


@pytest.mark.parametrize("index", [True, False])
def test_a_truncated_tar_is_named(tmp_path, index):
    folder = as_corpus(tmp_path / "tokens", sample_tokens(), index=index)
    columns = read_index(folder)
    os.truncate(folder / "shards/00001.tar", int(columns["offset"][-1] + columns["bytes"][-1]) - 1)
    assert "00001.tar" in refused("truncated", folder, 4)


def test_a_file_that_changes_or_goes_is_not_misread(tmp_path):
    folder = as_corpus(tmp_path / "tokens", sample_tokens())
    windows = TokenWindows(folder, 4)
    tar = folder / "shards/00000.tar"
    size = tar.stat().st_size
    for other in (size - 1024, size + 1024):
        os.truncate(tar, other)
        with pytest.raises(VqtokError, match="has changed since it was opened"):
            windows[0]
    tar.unlink()
    with pytest.raises(VqtokError, match=f"{tar}: no such file"):
        windows[0]


def test_indices_outside_of_the_codebook_are_refused(tmp_path):
    tokens = numbered(6)
    folder = as_folder(tmp_path / "tokens", {"a": tokens})
    path = folder / "a.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-2] + CODES.to_bytes(2, "little"))
    windows = TokenWindows(folder, 3)
    np.testing.assert_array_equal(windows[0]["indices"], tokens.indices[:3])
    with pytest.raises(VqtokError, match="an index is not in the codebook"):
        windows[1]


def test_stages_other_than_those_of_the_tokenizer_are_refused(tmp_path):
    folder = as_corpus(tmp_path / "tokens", {"a": numbered(6)}, stages=2)
    refused("other stages than its tokenizer", folder, 4)


def test_sources_without_token_files_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "missing", []):
        with pytest.raises(UsageError):
            TokenWindows(source, 4)


def test_what_is_not_published_is_a_warning(tmp_path):
    folder = as_corpus(tmp_path / "tokens", sample_tokens())
    (folder / INDEX).unlink()
    (folder / "shards/00000.json").unlink()
    with pytest.warns(UserWarning, match="1 of 2 shards, with 2 of 4 clips, not published yet"):
        windows = TokenWindows(folder, 4)
    assert {item["clip"] for item in windows} == {list(sample_tokens())[3]}


def test_files_that_do_not_tell_their_interval_are_those_of_their_tokenizer(tmp_path):
    path = save_tokenizer(tmp_path / "mine.safetensors")
    bundled, mine = read_fingerprint(vqtok.DEFAULT), read_fingerprint(path)
    for model, tokenizer, interval in (
        (bundled, None, 32),
        (mine, path, vqtok.load(path).keyframe_interval),
        (mine, vqtok.load(path), vqtok.load(path).keyframe_interval),
    ):
        tokens = numbered(70, interval=None, model=model)
        folder = as_folder(tmp_path / f"tokens-{model[:4]}", {"a": tokens})
        windows = TokenWindows(folder, 5, tokenizer=tokenizer)
        assert windows.keyframe_interval == interval
    refused(f"give its tokenizer with tokenizer=, the one with weights {mine[:12]}", folder, 5)
    refused("made by another tokenizer", folder, 5, tokenizer=vqtok.DEFAULT)


def test_files_that_tell_their_interval_need_no_tokenizer(tmp_path):
    path = save_tokenizer(tmp_path / "mine.safetensors")
    tokens = numbered(9, interval=3, model=read_fingerprint(path))
    folder = as_folder(tmp_path / "tokens", {"a": tokens})
    assert TokenWindows(folder, 3, tokenizer=path).keyframe_interval == 3
    assert TokenWindows(folder, 3).keyframe_interval == 3
