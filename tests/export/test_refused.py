"""`vqtok export`: what is refused, in one sentence, and leaves nothing behind."""

import json
from dataclasses import replace

import pytest

from helpers.command import fails, works
from helpers.corpus import write_corpus, write_folder
from helpers.exports import LAYOUTS, NAMES, contents, make_clips, write_tokens
from vqtok.tokens import tokens_to_bytes

OTHERS = {
    "tokenizer": {"model": "b" * 64},
    "quantizer": {"quantizer": "fsq"},
    "codebook_size": {"codebook_size": 17},
    "zero_code": {"zero_code": True},
    "keyframe_interval": {"keyframe_interval": 2},
}


@pytest.mark.parametrize("key", OTHERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_clips_of_several_tokenizers_are_refused(layout, key, tmp_path):
    tokens = make_clips()
    for name in NAMES[2:]:
        tokens[name] = replace(tokens[name], **OTHERS[key])
    write_tokens(tmp_path / "tokens", tokens)
    message = f"tokens/{NAMES[2]}.safetensors: its {key} is "
    assert fails(1, message, "export", "tokens", "--to", layout, "-o", "out").count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_1x_has_one_grid(tmp_path):
    tokens = make_clips("square", NAMES[:2]) | make_clips("large codebook", NAMES[2:])
    tokens = {name: replace(t, codebook_size=65536) for name, t in tokens.items()}
    write_tokens(tmp_path / "tokens", tokens)
    message = (
        f"tokens/{NAMES[2]}.safetensors: its latent frames are 2x2, and those of "
        f"tokens/{NAMES[0]}.safetensors 4x4"
    )
    assert fails(1, message, "export", "tokens", "--to", "1x", "-o", "out").count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_file_leaves_the_old_export(layout, tmp_path):
    folder = write_tokens(tmp_path / "tokens", make_clips())
    args = "export", "tokens", "--to", layout, "-o", "out"
    works(*args)
    before = contents(tmp_path / "out")
    fails(2, "exists: --force overwrites it", *args)
    path = folder / f"{NAMES[2]}.safetensors"
    data = path.read_bytes()
    for damaged in (b"", data[:-1], data.replace(b'"16"', b'"15"'), b"x" * 100):
        path.write_bytes(damaged)
        assert fails(1, f"tokens/{NAMES[2]}", *args, "--force").count("\n") == 1
        assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "args, message",
    [
        ("tokens --to hdf5 -o out", "'hdf5' is not one of"),
        ("tokens --to 1x -o tokens", "choose another output folder"),
        ("tokens --to 1x -o -", "several files need an output folder"),
        ("tokens --to 1x -o a_file", "is a file: choose a folder"),
        ("tokens --to 1x -o linked", "is the same file as the input"),
        ("corpus --to 1x -o linked_tar", "is the same file as the input"),
        ("clips --to 1x -o out", "clip.mp4 is a clip: encode it with `vqtok encode`"),
        ("empty --to 1x -o out", "no token files in it"),
        ("none --to 1x -o out", "no such file or folder"),
        ("@none --to 1x -o out", "cannot be read"),
    ],
)
def test_wrong_usage(args, message, tmp_path):
    data = {name: tokens_to_bytes(t) for name, t in make_clips().items()}
    write_folder(tmp_path / "tokens", data)
    write_corpus(tmp_path / "corpus", data)
    for name in ("linked", "linked_tar", "clips", "empty"):
        (tmp_path / name).mkdir()
    for name in ("a_file", "clips/clip.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "linked/video.bin").symlink_to("../tokens/a.b.mp4.safetensors")
    (tmp_path / "linked_tar/video.bin").symlink_to("../corpus/shards/00000.tar")
    force = ["--force"] if "linked" in args else []
    fails(2, message, "export", *args.split(), *force)
    assert not (tmp_path / "out").exists()


def test_a_corpus_whose_clips_all_failed_has_nothing_to_export(tmp_path):
    write_corpus(tmp_path / "corpus", {n: tokens_to_bytes(t) for n, t in make_clips().items()})
    for path in (tmp_path / "corpus" / "shards").glob("*.json"):
        record = json.loads(path.read_text())
        failed = [
            {"key": c["key"], "source": "x", "kind": "x", "reason": "x", "attempts": 1}
            for c in record["clips"]
        ]
        path.write_text(json.dumps(record | {"clips": [], "failures": failed}))
    for layout in LAYOUTS:
        fails(2, "there are no clips to export", "export", "corpus", "--to", layout, "-o", "out")


def test_parquet_says_what_to_install(tmp_path, monkeypatch):
    write_tokens(tmp_path / "tokens", make_clips())
    monkeypatch.setattr("vqtok.options.find_spec", lambda name: None)
    message = "--to parquet needs pyarrow: pip install pyarrow"
    fails(2, message, "export", "tokens", "--to", "parquet", "-o", "out")
    assert works("export", "tokens", "--to", "1x", "-o", "out")
