"""`decode`, `stats` and `eval` take a corpus for the folder that it was packed from."""

import json
import os
import shutil
import tarfile
import weakref

import numpy as np
import pytest

from helpers.clips import pattern, write_clip
from helpers.command import fails, in_process, works
from helpers.corpus import edit_json, sample_clips, write_corpus, write_folder
from vqtok.corpus import reader
from vqtok.corpus.index import INDEX
from vqtok.video import open_video

LOSSLESS = "--codec", "ffv1"  # equal on every run
NAMES = ("a.b.mkv", "day 1/clip.mkv", "day 2/clip.mkv", "día/ñandú 雪.mkv")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of four clips; do not change it."""
    root = tmp_path_factory.mktemp("corpus")
    for i, name in enumerate(NAMES):
        path = root / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, pattern(5 + 4 * i, 32, 48), codec="ffv1")
    return root / "videos"


@pytest.fixture(scope="module")
def loose(videos, tiny):
    """The folder of token files of the clips; do not change it."""
    works("encode", videos, "-o", videos.parent / "loose", *tiny)
    return videos.parent / "loose"


@pytest.fixture(scope="module")
def packed(videos, tiny):
    """The corpus of the clips, in several shards; do not change it."""
    folder = videos.parent / "packed"
    works("encode", videos, "-o", folder, "--pack", 300, *tiny)
    assert len(list(folder.glob("shards/*.tar"))) > 1
    return folder


@pytest.fixture
def copy(packed, tmp_path):
    """A corpus that a test may change."""
    return shutil.copytree(packed, tmp_path / "packed")


def files_of(folder):
    """Return the content of each file below a folder, but for hidden ones such as journals."""
    paths = (path for path in folder.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def pixels(path):
    """Return the frames of a short video, uint8 (t h w c)."""
    with open_video(path) as video:
        return next(video.chunks(100))[0]


def numbers(*args):
    return json.loads(works("stats", *args, "--json", "--quiet").stdout)


def test_a_corpus_has_the_token_files_of_the_folder(packed, loose, tmp_path):
    for tar in packed.glob("shards/*.tar"):
        with tarfile.open(tar) as archive:
            archive.extractall(tmp_path, filter="data")
    found = {}
    for path in tmp_path.glob("*.json"):
        name = json.loads(path.read_text())["name"]
        found[f"{name}.safetensors"] = path.with_suffix(".safetensors").read_bytes()
    assert found == files_of(loose)


def test_decode_makes_the_tree_again(packed, loose, tiny, tmp_path):
    for source in (packed, loose):
        works("decode", source, "-o", tmp_path / source.name, *LOSSLESS, *tiny)
    assert set(files_of(tmp_path / "packed")) == set(NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(*(pixels(tmp_path / x / name) for x in ("packed", "loose")))


def test_decode_resumes(packed, tiny, tmp_path):
    out = tmp_path / "out"
    works("decode", packed, "-o", out, *tiny)
    before = files_of(out)
    lost = out / NAMES[1]
    lost.unlink()
    stderr = works("decode", packed, "-o", out, *tiny).stderr.decode()
    assert f"{out}: 1 file written" in stderr
    assert len(pixels(lost)) == 9
    assert files_of(out) == before | {NAMES[1]: lost.read_bytes()}
    assert "nothing to do" in works("decode", packed, "-o", out, *tiny).stderr.decode()


def test_a_clip_of_a_corpus_is_decoded_by_its_path(packed, loose, tiny, tmp_path):
    for folder in (packed, loose):
        path = folder / f"{NAMES[3]}.safetensors"
        works("decode", path, "-o", tmp_path / f"{folder.name}.mkv", *LOSSLESS, *tiny)
        assert numbers(path)["files"] == 1
    np.testing.assert_array_equal(*map(pixels, tmp_path.glob("*.mkv")))
    fails(2, "no such file", "decode", packed / "x.mkv.safetensors", "-o", f"{tmp_path}/", *tiny)
    fails(1, "no such file", "decode", packed / "x.safetensors", "-o", tmp_path / "x.mkv", *tiny)


def test_a_failure_names_the_clip_and_leaves_the_others(copy, tiny, tmp_path):
    os.truncate(copy / "shards" / "00000.tar", 700)
    record = json.loads((copy / "shards" / "00000.json").read_text())
    lost = [clip["name"] for clip in record["clips"]]
    out = tmp_path / "out"
    message = f"{len(lost)} of 4 files failed, see {out / 'failures.jsonl'}: {copy / lost[0]}"
    fails(1, message, "decode", copy, "-o", out, *tiny)
    assert set(files_of(out)) == {*NAMES, "failures.jsonl"} - set(lost)
    listed = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [entry["source"] for entry in listed] == [str(copy / f"{x}.safetensors") for x in lost]


def test_stats_of_a_corpus_are_those_of_the_folder(packed, loose):
    of_folder = numbers(loose)
    assert of_folder["files"] == 4
    assert numbers(packed) == of_folder | {"name": "packed"}
    assert numbers(packed, packed) == of_folder | {"name": "packed"}
    each = numbers(packed, loose, "--each")
    assert each == [of_folder | {"name": "packed"}, of_folder | {"name": "loose"}]


def test_corpora_folders_and_files_are_mixed(packed, loose, tiny, tmp_path):
    other = write_folder(
        tmp_path / "more", {"x.mkv": next(loose.rglob("*.safetensors")).read_bytes()}
    )
    sources = packed, other, other / "x.mkv.safetensors"
    assert numbers(*sources)["files"] == 5
    works("decode", *sources, "-o", tmp_path / "out", *tiny)
    assert set(files_of(tmp_path / "out")) == {*NAMES, "x.mkv"}
    message = "would both be written to"
    fails(2, message, "decode", packed, loose, "-o", tmp_path / "both", *tiny)


def test_what_is_not_published_is_noted(copy, tiny, tmp_path):
    (copy / "shards" / "00000.json").unlink()
    (copy / INDEX).unlink()
    clips = numbers(copy)["files"]
    note = f"shards, with {4 - clips} of 4 clips, not published yet"
    assert note in works("stats", copy).stderr.decode()
    assert note in works("decode", copy, "-o", tmp_path / "out", *tiny).stderr.decode()
    assert len(files_of(tmp_path / "out")) == clips
    shutil.rmtree(copy / "shards")
    fails(2, "4 of 4 clips, not published yet", "stats", copy)
    fails(2, f"no files to process in {copy}", "decode", copy, "-o", tmp_path / "none", *tiny)


def test_an_index_is_no_token_file(copy, tiny, tmp_path):
    note = f"{copy} is a corpus: name it to read its clips"
    fails(1, f"{copy / INDEX} is not a token file", "stats", copy / INDEX)
    for source in (copy / "*.safetensors", copy.parent):
        assert note in fails(2, "no token files", "stats", source)
    for source in (copy / INDEX, copy / "*.safetensors", copy.parent):
        args = "decode", source, "-o", f"{tmp_path / 'out'}/", *tiny
        assert note in fails(2, "no files to process", *args)


def test_a_damaged_record_is_one_failure_of_stats(copy, tiny, tmp_path):
    path = copy / "shards" / "00000.json"
    edit_json(path, lambda record: record.update(version=2))
    message = f"could not be counted: {path} is damaged"
    result = in_process("stats", copy, "--json")
    assert result.returncode == 1 and message in result.stderr.decode()
    assert 0 < json.loads(result.stdout)["files"] < 4
    fails(1, f"{path} is damaged", "decode", copy, "-o", tmp_path / "out", *tiny)


def test_two_clips_of_one_name_are_refused(copy, tiny, tmp_path):
    name = json.loads((copy / "shards" / "00000.json").read_text())["clips"][0]["name"]
    path = copy / "shards" / "00001.json"
    edit_json(path, lambda record: record["clips"][0].update(name=name))
    fails(1, f"{copy} has two clips named {name}", "decode", copy, "-o", tmp_path / "out", *tiny)


def test_eval_measures_the_clips_that_a_corpus_was_made_from(copy, videos, tiny):
    options = "--frames", 5, "--json", *tiny
    rows = [
        json.loads(works("eval", source, *options).stdout)["clips"] for source in (copy, videos)
    ]
    for of_corpus, of_folder in zip(*rows, strict=True):
        for key in ("clip", "frames", "psnr", "ssim", "tokens"):
            assert of_corpus[key] == of_folder[key]
    lines = (copy / "clips.jsonl").read_text().splitlines()
    missing = videos / "missing" / "x.mkv"
    lines[1] = json.dumps({"path": str(missing), "name": "missing/x.mkv", "bytes": 1})
    (copy / "clips.jsonl").write_text("\n".join(lines) + "\n")
    result = in_process("eval", copy, *options)
    assert result.returncode == 1
    message = f"1 of 4 clips could not be measured: {missing}: no such file"
    assert message in result.stderr.decode()
    assert len(json.loads(result.stdout)["clips"]) == 3


def test_stats_keeps_neither_records_nor_tokens(tmp_path, monkeypatch):
    folder = write_corpus(tmp_path / "tokens", sample_clips([f"{i}.mp4" for i in range(12)]), 2)
    alive, most = {}, {}

    def watch(name):
        read, found = getattr(reader, name), []

        def watched(*args):
            found.append(weakref.ref(result := read(*args)))
            most[name] = max(most.get(name, 0), sum(ref() is not None for ref in found))
            return result

        monkeypatch.setattr(reader, name, watched)
        alive[name] = found

    watch("read_record")
    watch("read_tokens_at")
    assert numbers(folder)["files"] == 12
    assert {name: len(found) for name, found in alive.items()} == {
        "read_record": 6,
        "read_tokens_at": 12,
    }
    assert most == {"read_record": 1, "read_tokens_at": 2}  # a clip, and the one before it
