"""`vqtok stats` as people run it: where tokens come from, where figures go, and how it fails."""

import csv
import io
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import vqtok
from helpers import ROOT
from helpers.command import TINY, fails, inside, works
from helpers.tokens import tokens
from vqtok import config
from vqtok.model import checkpoint
from vqtok.model.checkpoint import BUNDLED
from vqtok.model.tokenizer import Tokenizer
from vqtok.tokens import write_tokens


def save(path, seed=0, model="a" * 64, size=16, quantizer="lfq", shape=(9, 8, 8)):
    """A token file of random indices."""
    indices = np.random.default_rng(seed).integers(0, size, shape).astype(np.int32)
    write_tokens(path, tokens(indices, size, quantizer, model))
    return path


@pytest.fixture
def corpus(tmp_path):
    """Three files of one tokenizer, in a folder and one below."""
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("a", "b", "sub/c")):
        save(folder / f"{name}.safetensors", seed=i)
    (folder / "notes.txt").write_text("left alone")
    return folder


def tiny(path, kind):
    """A tokenizer that was never trained."""
    settings = config.load(
        config.folder() / f"{kind}.toml",
        ["model.widths=[8,16]", "model.encoder_blocks=[1,1]", "model.decoder_blocks=[1,1]"],
    )
    checkpoint.save(path, Tokenizer(settings.model, settings.quantizer), settings, 1)
    return path


def numbers(*args, **options):
    return json.loads(works("stats", *args, "--json", **options).stdout)


def test_files_folders_patterns_and_pipes_add_up(corpus):
    files = sorted(corpus.rglob("*.safetensors"))
    by_file = numbers(*files)
    assert (by_file["files"], by_file["tokens"]) == (3, 3 * 9 * 8 * 8)
    by_folder = numbers(corpus)
    assert by_folder == by_file | {"name": "corpus"}
    pattern = corpus / "**" / "*.safetensors"
    assert numbers(pattern) == by_file | {"name": str(pattern)}
    assert numbers(files[0], "-", stdin=files[1].read_bytes())["files"] == 2
    assert numbers(corpus / "*.safetensors")["files"] == 2


def test_tokens_of_different_tokenizers_stand_side_by_side(corpus, tmp_path):
    other = save(tmp_path / "other.safetensors", model="b" * 64)
    one, two = numbers(corpus, other)
    assert (one["files"], two["files"]) == (3, 1)
    assert (one["name"], two["name"]) == ("corpus", "other")
    save(corpus / "d.safetensors", model="b" * 64)
    assert [run["name"] for run in numbers(corpus)] == [
        "corpus, lfq aaaaaaaa",
        "corpus, lfq bbbbbbbb",
    ]
    assert "marks the better" in works("stats", corpus).stdout.decode()


def test_each_argument_can_have_its_own_column(corpus):
    one, two = numbers(corpus / "a.safetensors", corpus / "sub", "--each")
    assert (one["name"], two["name"]) == ("a", "sub")
    shown = works("stats", corpus / "a.safetensors", corpus / "sub", "--each").stdout.decode()
    assert "usage / chance" in shown and "sub" in shown


def test_a_file_named_twice_counts_once(corpus):
    file = corpus / "a.safetensors"
    assert numbers(corpus, file, corpus / "sub" / ".." / file.name) == numbers(corpus)
    assert [run["files"] for run in numbers(corpus, file, file, "--each")] == [3, 1]


def test_what_cannot_be_counted_is_told_after_the_rest(corpus):
    before = numbers(corpus)
    for i in range(7):
        (corpus / f"bad{i}.safetensors").write_bytes(b"no tokens")
    result = inside("stats", corpus, "--json")
    assert result.returncode == 1 and json.loads(result.stdout) == before
    said = result.stderr.decode()
    assert "7 of 10 cannot be counted" in said and "bad0" in said and "bad6" not in said


def test_people_and_machines_are_told_the_same(corpus):
    found, shown = numbers(corpus), works("stats", corpus).stdout.decode()
    for figure in (f"{found['tokens']:,}", f"{found['usage']:.2%}", f"{found['perplexity']:,.1f}"):
        assert figure in shown
    assert found["verdict"].upper() in shown
    (row,) = csv.DictReader(io.StringIO(works("stats", corpus, "--csv").stdout.decode()))
    assert row == {key: str(found[key]) for key in row}
    assert list(row) == list(found)[: len(row)] and "verdict" in row and "top" not in row


def test_every_key_is_documented(corpus, tmp_path):
    text = (ROOT / "docs" / "stats.md").read_text()
    alone = numbers("--tokenizer", tiny(tmp_path / "t.safetensors", "ema"))
    keys = {*numbers(corpus), *numbers(corpus)["over_time"][0], *alone, *alone["codes"]}
    assert not {key for key in keys if f"`{key}`" not in text}


def test_levels_are_known_of_a_tokenizer_that_is_named(tmp_path):
    model = tiny(tmp_path / "t.safetensors", "fsq")
    own = checkpoint.load(model)
    mine = save(tmp_path / "m.safetensors", 0, own.fingerprint, own.codebook_size, "fsq")
    assert numbers(mine)["levels"] is None
    assert "name the tokenizer" in " ".join(works("stats", mine).stdout.decode().split())
    assert len(numbers(mine, "--tokenizer", model)["levels"]) == len(own.quantizer.levels)
    other = tiny(tmp_path / "o.safetensors", "lfq")
    forged = save(tmp_path / "g.safetensors", 0, checkpoint.load(other).fingerprint, 60, "fsq")
    for foreign, name in ((forged, other), (forged, model), (mine, other)):
        fails(1, "another tokenizer", "stats", foreign, "--tokenizer", name)


def test_a_codebook_of_no_power_of_two_has_no_bits(tmp_path):
    assert numbers(save(tmp_path / "a.safetensors", size=15))["bit_ones"] is None


def test_a_codebook_too_large_to_count_is_told(tmp_path):
    path = save(tmp_path / "a.safetensors", size=2**30)
    assert "a.safetensors" in fails(1, "too large to count", "stats", path)


def test_clips_are_encoded_and_reported_in_one_pass(make_clip, tmp_path):
    model = tiny(tmp_path / "t.safetensors", "lfq")
    clips = [make_clip(f"{name}.mp4") for name in "ab"]
    before = set(tmp_path.iterdir())
    found = numbers(*clips, "--tokenizer", model, "--device", "cpu")
    assert set(tmp_path.iterdir()) == before
    saved = tmp_path / "tokens"
    works("encode", *clips, "-o", saved, "--tokenizer", model, "--device", "cpu")
    assert found == numbers(saved) | {"name": found["name"]}
    (tmp_path / "in").mkdir()
    clips[0].rename(tmp_path / "in" / "a.mp4")
    assert numbers(tmp_path / "in", "--tokenizer", model)["files"] == 1


@pytest.mark.parametrize("kind", config.QUANTIZERS)
def test_a_tokenizer_alone_shows_its_codes(kind, tmp_path):
    model = tiny(tmp_path / "t.safetensors", kind)
    found = numbers("--tokenizer", model)
    shown = works("stats", "--tokenizer", model).stdout.decode()
    assert f"codebook: {kind}, {found['codebook_size']:,} codes" in shown
    assert ("by construction" in shown) == (found["codes"] is None) == (kind in ("lfq", "fsq"))


@pytest.mark.parametrize("suffix, start", [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_pictures(suffix, start, corpus, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot.{suffix}"
    works("stats", corpus, "--plot", path)
    first = path.read_bytes()
    assert first.startswith(start)
    again = ("stats", corpus, corpus / "sub", "--each", "--plot", path)
    fails(2, "--force overwrites it", *again)
    assert path.read_bytes() == first
    works(*again, "--force")
    assert path.read_bytes() != first


def test_without_matplotlib_a_sentence_says_so(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fails(2, "pip install matplotlib", "stats", corpus, "--plot", tmp_path / "a.png")


def test_a_run_is_watched_to_its_end(tmp_path):
    run = tmp_path / "run"
    works("train", *TINY, "--set", "train.steps=2", "--out", run, "--quiet")
    assert "step 2: loss" in works("stats", "--watch", run).stdout.decode()


@pytest.mark.parametrize(
    "code, sentence, args",
    [
        (2, "name token files", []),
        (2, "no such file or folder", ["none.safetensors"]),
        (2, "no token files in it", ["EMPTY"]),
        (2, "is a clip: say with --tokenizer", ["CLIP"]),
        (2, "clip.mp4 is a clip: say with --tokenizer", ["CLIPS"]),
        (2, "exclude each other", ["CORPUS", "--json", "--csv"]),
        (2, "--json only", ["--tokenizer", "x", "--csv"]),
        (2, "--json only", ["--tokenizer", "x", "--each"]),
        (2, "--json only", ["--tokenizer", "x", "--device", "cpu"]),
        (2, "leave the others out", ["CORPUS", "--watch", "EMPTY"]),
        (2, "leave the others out", ["--watch", "EMPTY", "--each"]),
        (2, "leave the others out", ["--watch", "EMPTY", "--device", "cpu"]),
        (2, "holds no run", ["--watch", "EMPTY"]),
        (2, "must end in .png or .svg", ["CORPUS", "--plot", "a.pdf"]),
        (2, "no such folder", ["CORPUS", "--plot", "none/a.png"]),
        (1, "no such tokenizer", ["--tokenizer", "none"]),
        (1, "is not a token file", ["MODEL"]),
    ],
)
def test_what_cannot_be_reported_is_told_in_a_sentence(code, sentence, args, corpus, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "clips").mkdir()
    clip = tmp_path / "clips" / "clip.mp4"
    clip.write_bytes(b"")
    names = {"CORPUS": corpus, "EMPTY": tmp_path / "empty", "CLIP": clip, "CLIPS": clip.parent}
    names["MODEL"] = BUNDLED / f"{vqtok.DEFAULT}.safetensors"
    assert fails(code, sentence, "stats", *(names.get(a, a) for a in args)).count("\n") == 1


@pytest.mark.parametrize("heavy", ["torch", "av", "matplotlib"])
def test_token_files_need_nothing_slow(heavy, corpus):
    code = f"import sys; sys.argv[1:] = ['stats', {str(corpus)!r}]\n"
    code += "from vqtok.cli import app\n"
    code += f"try: app()\nexcept SystemExit: sys.exit({heavy!r} in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert result.returncode == 0 and b"codebook report" in result.stdout


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_what_is_piped_is_plain(encoding, corpus):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "vqtok", "stats", str(corpus)]
    result = subprocess.run(command, capture_output=True, env=environment)
    assert result.returncode == 0, result.stderr
    text = result.stdout.decode(encoding)
    assert "codebook report" in text and "\x1b" not in text
    assert encoding == "utf-8" or text.isascii()


def test_watching_goes_on_while_a_run_is_written(tmp_path):
    """Lines that come later, a line in two halves, and a run that is resumed from an older save."""
    settings = config.load(config.folder() / "fsq.toml", ["train.steps=30"])
    (tmp_path / "config.json").write_text(settings.to_json())
    log = tmp_path / "metrics.jsonl"
    row = {"loss": 0.5, "psnr": 20, "usage": 0.25, "usage_by_chance": 0.5, "perplexity": 12.0}
    lines = [json.dumps({"step": s, **row, "seconds_per_step": 0.5}) + "\n" for s in (10, 20, 30)]
    log.write_text(lines[0] + lines[1][:20])
    command = [sys.executable, "-m", "vqtok", "stats", "--watch", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline().startswith(b"step 10")
    log.write_text("".join(lines[:2]))
    time.sleep(1)
    log.write_text("".join(lines))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and said.startswith(b"step 30")


def test_stats_has_help():
    said = inside("stats", "--help").stdout.decode()
    assert all(option in said for option in ("--each", "--csv", "--plot", "--watch"))
