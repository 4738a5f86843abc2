"""`vqtok export`: other projects read the tokens back that the token files have."""

import json
import pickle
import weakref
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from helpers.command import fails, in_subprocess, works
from helpers.corpus import write_corpus, write_folder
from helpers.exports import GRIDS, LAYOUTS, NAMES, contents, make_clips, write_tokens
from vqtok.export import clips, parquet
from vqtok.export.clips import Clip
from vqtok.export.nanogpt import write_nanogpt
from vqtok.export.one_x import write_1x
from vqtok.export.parquet import write_parquet
from vqtok.tokens import tokens_to_bytes


def read_1x(folder):
    """Return the clips as the reader of 1xgpt sees them, which knows only square latent frames."""
    metadata = json.loads((folder / "metadata.json").read_text())
    n, stages = metadata["num_images"], metadata["stages"]
    sides = (metadata["s"],) * 2 if "s" in metadata else (metadata["h"], metadata["w"])
    shape = (n, *sides, stages) if stages > 1 else (n, *sides)
    dtype = np.dtype(metadata["token_dtype"])
    video = np.memmap(folder / "video.bin", dtype, "r", shape=shape)
    segments = np.memmap(folder / "segment_ids.bin", np.int32, "r", shape=(n,))
    assert video.nbytes == (folder / "video.bin").stat().st_size
    assert (np.diff(segments) >= 0).all()
    return {line["name"]: video[segments == i] for i, line in enumerate(read_lines(folder))}


def read_nanogpt(folder):
    """Return the clips of a sequence, split at the separator."""
    meta = json.loads((folder / "meta.json").read_text())
    sequence = np.memmap(folder / "train.bin", np.uint16, "r")
    assert len(sequence) == meta["length"]
    assert sequence.max() == meta["separator"] == meta["vocab_size"] - 1
    assert pickle.loads((folder / "meta.pkl").read_bytes()) == {"vocab_size": meta["vocab_size"]}
    starts = np.flatnonzero(sequence == meta["separator"])
    assert starts[0] == 0
    found = {}
    for line, ids in zip(read_lines(folder), np.split(sequence, starts[1:]), strict=True):
        rows = ids[1:].reshape(line["t"], line["h"], line["w"], meta["stages"])
        stage, indices = np.divmod(rows, meta["codebook_size"])
        assert (stage == np.arange(meta["stages"])).all()
        found[line["name"]] = indices if meta["stages"] > 1 else indices[..., 0]
    return found


def read_parquet(folder):
    """Return the clips that `datasets` reads."""
    datasets = pytest.importorskip("datasets")
    cache = str(folder / "cache")
    rows = datasets.load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=cache)
    rows = rows.with_format("numpy")
    return {str(row["name"]): row["indices"].reshape(row["shape"]) for row in rows}


READERS = {"1x": read_1x, "nanogpt": read_nanogpt, "parquet": read_parquet}


def read_lines(folder):
    return [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]


def check_equal(found, tokens):
    assert list(found) == list(tokens)
    for name, indices in found.items():
        np.testing.assert_array_equal(indices, tokens[name].indices)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_indices_are_read_back(layout, grid, tmp_path, monkeypatch):
    tokens = make_clips(grid)
    folder = write_tokens(tmp_path / "tokens", tokens)
    args = "export", folder, "--to", layout, "-o", tmp_path / "new" / "out"
    if layout == "nanogpt" and grid in ("large codebook", "huge codebook"):
        assert fails(1, "export to 1x or parquet", *args).count("\n") == 1
        assert not (tmp_path / "new" / "out").exists()
        return
    works(*args)
    check_equal(READERS[layout](tmp_path / "new" / "out"), tokens)

    before = contents(tmp_path / "new" / "out")
    monkeypatch.setattr(clips, "_INDICES_AT_A_TIME", 20)
    works(*args, "--force")
    assert contents(tmp_path / "new" / "out") == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_corpus_and_lists_give_the_same_as_a_folder(layout, tmp_path):
    tokens = make_clips()
    data = {name: tokens_to_bytes(t) for name, t in tokens.items()}
    write_folder(tmp_path / "tokens", data)
    write_corpus(tmp_path / "corpus", data)
    paths = [f"tokens/{name}.safetensors" for name in NAMES]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, paths)))
    works("export", "tokens", "--to", layout, "-o", "expected")
    sources = (
        ["corpus"],
        ["@list.jsonl"],
        ["tokens/**/*.safetensors"],
    )
    for source in sources:
        works("export", *source, "--to", layout, "-o", "out", "--force")
        assert contents(tmp_path / "out") == contents(tmp_path / "expected"), source
    works("export", "corpus/day 2/clip.mp4.safetensors", "--to", layout, "-o", "one")
    check_equal(READERS[layout](tmp_path / "one"), {"day 2/clip.mp4": tokens["day 2/clip.mp4"]})


def test_sources_follow_each_other_and_repeated_ones_count_once(tmp_path):
    tokens = make_clips()
    write_tokens(tmp_path / "tokens", tokens)
    works("export", "tokens/day 2", "tokens/day 1", "tokens/day 2", "--to", "1x", "-o", "out")
    assert [line["t"] for line in read_lines(tmp_path / "out")] == [4, 3]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stdin_is_a_source(layout, tmp_path):
    tokens = make_clips()["a.b.mp4"]
    args = "export", "-", "--to", layout, "-o", "out"
    works(*args, run=in_subprocess, stdin=tokens_to_bytes(tokens))
    check_equal(READERS[layout](tmp_path / "out"), {"-": tokens})


def test_what_1x_metadata_says(tmp_path):
    write_tokens(tmp_path / "tokens", make_clips(keyframe_interval=8, fps=Fraction(30000, 1001)))
    works("export", "tokens", "--to", "1x", "-o", "out")
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata == {
        "token_dtype": "uint8",
        "num_images": 2 + 3 + 4 + 5,
        "s": 4,
        "h": 4,
        "w": 4,
        "vocab_size": 16,
        "hz": 30000 / 1001 / 4,
        "tokenizer": "a" * 64,
        "quantizer": "lfq",
        "stride": [4, 8, 8],
        "codebook_size": 16,
        "stages": 1,
        "zero_code": False,
        "keyframe_interval": 8,
    }
    size = {"frames": 5, "height": 32, "width": 32, "fps": 30000 / 1001}
    assert read_lines(tmp_path / "out")[0] == {"name": "a.b.mp4", "t": 2, "h": 4, "w": 4, **size}


@pytest.mark.parametrize("grid", ["wide", "square stages"])
def test_a_reader_of_squares_fails_rather_than_read_other_tokens(grid, tmp_path):
    write_tokens(tmp_path / "tokens", make_clips(grid))
    result = works("export", "tokens", "--to", "1x", "-o", "out")
    assert b"metadata.json has no s" in result.stderr
    assert "s" not in json.loads((tmp_path / "out" / "metadata.json").read_text())


def test_clips_of_several_frame_rates(tmp_path):
    tokens = make_clips()
    tokens["a.b.mp4"] = replace(tokens["a.b.mp4"], fps=Fraction(12))
    write_tokens(tmp_path / "tokens", tokens)
    result = works("export", "tokens", "--to", "1x", "-o", "out")
    assert b"the clips have 12 to 25 frames/s, and hz is of the slowest" in result.stderr
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["hz"] == 3


def test_what_a_row_says(tmp_path):
    datasets = pytest.importorskip("datasets")
    changes = {"keyframe_interval": None, "zero_code": True, "height": 15, "fps": Fraction(12)}
    tokens = make_clips("stages", **changes)
    write_tokens(tmp_path / "tokens", tokens)
    works("export", "tokens", "--to", "parquet", "-o", "out")
    path = str(tmp_path / "out" / "train.parquet")
    rows = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir="cache")
    row = rows[1]
    assert row.pop("indices") == tokens["day 1/clip.mp4"].indices.ravel().tolist()
    assert row == {
        "name": "day 1/clip.mp4",
        "shape": [3, 2, 3, 2],
        "frames": 9,
        "height": 15,
        "width": 24,
        "fps": 12.0,
        "tokenizer": "a" * 64,
        "quantizer": "lfq",
        "stride": [4, 8, 8],
        "codebook_size": 300,
        "stages": 2,
        "zero_code": True,
        "keyframe_interval": None,
    }
    assert str(rows.features["indices"].feature.dtype) == "uint16"


@pytest.mark.parametrize("layout", ["nanogpt", "parquet"])
def test_clips_of_several_grids(layout, tmp_path):
    tokens = make_clips("square", NAMES[:2])
    tokens |= {NAMES[2]: replace(make_clips("large codebook")[NAMES[2]], codebook_size=16)}
    tokens[NAMES[2]].indices[:] %= 16
    write_tokens(tmp_path / "tokens", tokens)
    works("export", "tokens", "--to", layout, "-o", "out")
    check_equal(READERS[layout](tmp_path / "out"), tokens)


@pytest.mark.parametrize(
    "interval, note",
    [(1, None), (8, "a key frame is every 8 latent frames"), (None, "do not tell where")],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_predictive_tokens_are_exported_with_a_note(layout, interval, note, tmp_path):
    write_tokens(tmp_path / "tokens", make_clips(keyframe_interval=interval))
    args = "export", "tokens", "--to", layout, "-o"
    notes = works(*args, "out").stderr.decode().splitlines()
    assert notes.pop() == "out: 14 latent frames, clips: 4"
    expected = note if layout != "parquet" else None
    assert len(notes) == (expected is not None)
    assert all(expected in line for line in notes)
    assert not works(*args, "quiet", "--quiet").stderr


@pytest.mark.parametrize("write", [write_1x, write_nanogpt, write_parquet])
def test_few_clips_are_in_memory_at_a_time(write, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 1)
    alive = weakref.WeakSet()
    most = number = 0

    def read():
        nonlocal most, number
        for number in range(1, 21):
            tokens = make_clips(names=["a"])["a"]
            alive.add(tokens)
            most = max(most, len(alive))
            yield Clip(f"{number}", "a", tokens)
            del tokens

    write(read(), tmp_path / "out")
    assert number == 20
    assert most <= 4
