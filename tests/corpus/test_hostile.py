"""`corpus.json` and `clips.jsonl` that are damaged, or that somebody has written to do harm."""

import json
import shutil

import pytest

from helpers.clips import pattern, write_clip
from helpers.command import fails
from helpers.corpus import edit_json, sample_clips, write_corpus
from vqtok.bulk import plan

PACK = "--pack", "1M"


@pytest.fixture(scope="module")
def begun(tiny, tmp_path_factory):
    """A corpus of two clips of which nothing is encoded yet."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "videos").mkdir()
    for name in "ab":
        write_clip(folder / "videos" / f"{name}.mp4", pattern(5, 32, 48))
    plan(str(folder / "videos"), folder / "tokens", pack=PACK[1], tokenizer=str(tiny[1]))
    return folder / "tokens"


HOSTILE_CORPUS = [
    ("", "Expecting value"),
    ("{", ""),
    ("[]", "it does not describe a corpus"),
    ("null", "it does not describe a corpus"),
    ("[" * 100_000, "nested too deeply"),
    ("\udcff", "not UTF-8 text"),
    ('{"format": "vqtok-shard"}', "it does not describe a corpus"),
    (("version", 2), "it has version 2, and this vqtok reads version 1"),
    (("version", None), "it has version None"),
    (("version", "x" * 10**6), "it has version 'xxx"),
    (("settings", None), "settings"),
    (("settings", []), "settings"),
    (("settings", {}), "tokenizer: Field required"),
    (("settings.stride", [4, 8]), "stride"),
    (("settings.stride", "4x8x8"), "stride"),
    (("settings.stride", [4, 0, 8]), "stride.1: Input should be greater than 0"),
    (("settings.codebook_size", "many"), "codebook_size"),
    (("settings.codebook_size", -5), "codebook_size: Input should be greater than 0"),
    (("settings.stages", 0), "stages: Input should be greater than 0"),
    (("settings.keyframe_interval", 0), "keyframe_interval: Input should be greater than 0"),
    (("settings.keyframe_interval", 10**30), "keyframe_interval: Input should be less than"),
    (("settings.start", "x"), "start"),
    (("settings.rate", 7), "rate"),
    (("settings.sources", 7), "sources"),
    (("shards", None), "shards"),
    (("shards", []), "its shards are not valid"),
    (("shards", [0]), "its shards are not valid"),
    (("shards", [1, 2]), "its shards are not valid"),
    (("shards", [0, 2, 2]), "its shards are not valid"),
    (("shards", [0, 3, 2]), "its shards are not valid"),
    (("shards", [0, 1001]), "its shards are not valid"),
    (("shards", [0, 10**18]), "its shards are not valid"),
    (("shards", [0, float("nan")]), "1: Input should be a valid integer"),
    (("shards", [0, "5"]), "1: Input should be a valid integer"),
    (("shards", [0, True]), "1: Input should be a valid integer"),
    (("shards", {"0": 1}), "shards"),
]


@pytest.mark.parametrize(("change", "reason"), HOSTILE_CORPUS, ids=lambda value: str(value)[:40])
def test_a_hostile_corpus_is_refused_in_one_sentence(change, reason, tmp_path):
    folder = write_corpus(tmp_path / "tokens", sample_clips())
    path = folder / "corpus.json"
    if isinstance(change, str):
        path.write_bytes(change.encode(errors="surrogateescape"))
    else:
        *parents, key = change[0].split(".")

        def edit(value):
            for parent in parents:
                value = value[parent]
            value[key] = change[1]

        edit_json(path, edit)
    stderr = fails(1, reason, "encode", "-o", folder, "--status")
    assert stderr.startswith(f"vqtok: {path} is damaged: ")
    assert stderr.count("\n") == 1 and len(stderr) < len(str(path)) + 200


LINE = {"path": "/videos/a.mp4", "name": "a.mp4", "bytes": 9}
HOSTILE_CLIPS = [
    *(
        json.dumps(LINE | {"name": name}) + "\n"
        for name in ("../a", "/a", "a/../b", "", "a//b", ".", "a\0b")
    ),
    *(json.dumps(LINE | {"bytes": size}) + "\n" for size in (-1, 1.5, "9", None, float("nan"))),
    *(json.dumps(LINE | {"pieces": count}) + "\n" for count in (0, -1, 10**9, 1.5, "2", True)),
    *(json.dumps(LINE | {"path": path}) + "\n" for path in (None, 7, ["a"])),
    *("\n", "{}\n", "[]\n", "7\n", "x\n", '"/videos/a.mp4"\n', "[" * 10**5 + "\n", "\udcff\n"),
    json.dumps(LINE),  # truncated
    json.dumps(LINE | {"path": "x" * 2**17}) + "\n",
    '{"path": "/a", "path": "/b", "name": "a", "bytes": 1}\n',
]


@pytest.mark.parametrize("line", HOSTILE_CLIPS, ids=lambda value: value[-40:])
def test_a_hostile_list_of_clips_is_refused_in_one_sentence(line, begun, tiny, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "tokens")
    path = folder / "clips.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + line.encode(errors="surrogateescape"))
    stderr = fails(1, "", "encode", begun.parent / "videos", "-o", folder, *PACK, *tiny)
    assert stderr.startswith(f"vqtok: {path} is damaged: ")
    assert stderr.count("\n") == 1 and len(stderr) < len(str(path)) + 200


def test_a_list_of_clips_that_lacks_some_is_refused(begun, tiny, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "tokens")
    words = "encode", begun.parent / "videos", "-o", folder, *PACK, *tiny
    (folder / "clips.jsonl").write_bytes(b"")
    fails(1, "clips.jsonl lacks clips that corpus.json counts", *words)
    (folder / "clips.jsonl").unlink()
    fails(1, "clips.jsonl: no such file", *words)
