"""`vqtok stats`: its sources, its outputs, and how it fails."""

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import vqtok
from helpers import ROOT
from helpers.command import fails, in_process, works
from helpers.tokenizers import save_tokenizer
from helpers.tokens import make_tokens
from vqtok import config
from vqtok.model import checkpoint
from vqtok.model.checkpoint import BUNDLED
from vqtok.settings import QUANTIZERS
from vqtok.tokens import write_tokens


def save(path, seed=0, model="a" * 64, size=16, quantizer="lfq", shape=(9, 8, 8), zero_code=False):
    """Write a token file of random indices and return its path."""
    indices = np.random.default_rng(seed).integers(0, size, shape).astype(np.int32)
    write_tokens(path, make_tokens(indices, size, quantizer, model, zero_code))
    return path


@pytest.fixture
def corpus(tmp_path):
    """Three files of one tokenizer, in a folder and below."""
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("a", "b", "sub/c")):
        save(folder / f"{name}.safetensors", seed=i)
    (folder / "notes.txt").write_text("not tokens")
    return folder


def numbers(*args, **options):
    return json.loads(works("stats", *args, "--json", **options).stdout)


def test_files_folders_patterns_and_pipes_are_added_up(corpus):
    files = sorted(corpus.rglob("*.safetensors"))
    by_file = numbers(*files)
    assert (by_file["files"], by_file["tokens"]) == (3, 3 * 9 * 8 * 8)
    by_folder = numbers(corpus)
    assert by_folder == by_file | {"name": "corpus"}
    pattern = corpus / "**" / "*.safetensors"
    assert numbers(pattern) == by_file | {"name": str(pattern)}
    assert numbers(files[0], "-", stdin=files[1].read_bytes())["files"] == 2
    assert numbers(corpus / "*.safetensors")["files"] == 2


def test_each_tokenizer_has_a_column(corpus, tmp_path):
    other = save(tmp_path / "other.safetensors", model="b" * 64)
    one, two = numbers(corpus, other)
    assert (one["files"], two["files"]) == (3, 1)
    assert (one["name"], two["name"]) == ("corpus", "other")
    save(corpus / "d.safetensors", model="b" * 64)
    assert [run["name"] for run in numbers(corpus)] == [
        "corpus, lfq aaaaaaaa",
        "corpus, lfq bbbbbbbb",
    ]
    assert "marks the best value" in works("stats", corpus).stdout.decode()


def test_each_gives_every_argument_a_column(corpus):
    one, two = numbers(corpus / "a.safetensors", corpus / "sub", "--each")
    assert (one["name"], two["name"]) == ("a", "sub")
    shown = works("stats", corpus / "a.safetensors", corpus / "sub", "--each").stdout.decode()
    assert "usage / chance" in shown and "sub" in shown


def test_tokens_with_a_zero_code_are_those_that_are_not_zero(tmp_path):
    path = save(tmp_path / "a.safetensors", shape=(9, 8, 8, 2), quantizer="ema", zero_code=True)
    tokens, report = vqtok.read_tokens(path), numbers(path)
    assert report["zero_code"] and report["tokens"] == np.count_nonzero(tokens.indices)
    assert report["tokens_per_position"] == pytest.approx(tokens.tokens_per_position)
    assert report["tokens_per_position"] == pytest.approx(sum(report["kept"]))
    assert "kept over time" in works("stats", path).stdout.decode()
    dense = save(tmp_path / "b.safetensors", shape=(9, 8, 8, 2), quantizer="ema")
    assert numbers(dense)["kept"] is None and numbers(dense)["tokens_per_position"] == 2
    assert len(numbers(path, dense)) == 2
    assert "per position" in works("stats", path, dense).stdout.decode()


def test_a_file_named_twice_is_counted_once(corpus):
    file = corpus / "a.safetensors"
    assert numbers(corpus, file, corpus / "sub" / ".." / file.name) == numbers(corpus)
    assert [run["files"] for run in numbers(corpus, file, file, "--each")] == [3, 1]


def test_broken_files_are_named_after_the_report(corpus):
    before = numbers(corpus)
    for i in range(7):
        (corpus / f"bad{i}.safetensors").write_bytes(b"not tokens")
    result = in_process("stats", corpus, "--json")
    assert result.returncode == 1 and json.loads(result.stdout) == before
    stderr = result.stderr.decode()
    assert "7 of 10 files could not be counted" in stderr and "; and 2 more" in stderr
    assert "bad4" in stderr and "bad5" not in stderr


def test_report_json_and_csv_have_the_same_numbers(corpus):
    expected, report = numbers(corpus), works("stats", corpus).stdout.decode()
    assert f"{expected['tokens']:,}" in report
    assert f"{expected['usage']:.2%}" in report
    assert f"{expected['perplexity']:,.1f}" in report
    assert expected["verdict"].upper() in report
    (row,) = csv.DictReader(io.StringIO(works("stats", corpus, "--csv").stdout.decode()))
    assert row == {key: str(expected[key]) for key in row}
    assert list(row) == list(expected)[: len(row)] and "verdict" in row and "top" not in row


def test_every_key_is_documented(corpus, tmp_path):
    text = (ROOT / "docs" / "stats.md").read_text()
    alone = numbers("--tokenizer", save_tokenizer(tmp_path / "t.safetensors", "ema"))
    keys = {*numbers(corpus), *numbers(corpus)["over_time"][0], *alone, *alone["codes"]}
    assert not {key for key in keys if f"`{key}`" not in text}


def test_fsq_levels_are_shown_if_the_tokenizer_is_given(tmp_path):
    model = save_tokenizer(tmp_path / "t.safetensors", "fsq")
    own = checkpoint.load(model)
    mine = save(tmp_path / "m.safetensors", 0, own.fingerprint, own.codebook_size, "fsq")
    assert numbers(mine)["levels"] is None
    assert "name the tokenizer" in " ".join(works("stats", mine).stdout.decode().split())
    assert len(numbers(mine, "--tokenizer", model)["levels"]) == len(own.levels)
    other = save_tokenizer(tmp_path / "o.safetensors", "lfq")
    forged = save(tmp_path / "g.safetensors", 0, checkpoint.load(other).fingerprint, 60, "fsq")
    for foreign, name in ((forged, other), (forged, model), (mine, other)):
        fails(1, "another tokenizer", "stats", foreign, "--tokenizer", name)


def test_tokens_of_another_stride_are_refused(tmp_path):
    model = save_tokenizer(tmp_path / "t.safetensors", "fsq")
    own, path = checkpoint.load(model), tmp_path / "a.safetensors"
    content = make_tokens(
        np.zeros((3, 8, 8), np.int32), own.codebook_size, own.kind, own.fingerprint
    )
    write_tokens(path, content)
    assert numbers(path, "--tokenizer", model)["files"] == 1
    write_tokens(path, replace(content, stride=(2, 8, 8), frames=5, timestamps=range(5)))
    fails(1, f"{path}: these tokens were made by another", "stats", path, "--tokenizer", model)


def test_bits_are_reported_for_powers_of_two_only(tmp_path):
    assert numbers(save(tmp_path / "a.safetensors", size=15))["bit_ones"] is None


def test_a_codebook_too_large_to_count_is_refused(tmp_path):
    path = save(tmp_path / "a.safetensors", size=2**30)
    assert "a.safetensors" in fails(1, "too large to count", "stats", path)


def test_clips_are_encoded_and_counted_without_token_files(make_clip, tmp_path):
    model = save_tokenizer(tmp_path / "t.safetensors", "lfq")
    clips = [make_clip(f"{name}.mp4") for name in "ab"]
    before = set(tmp_path.iterdir())
    report = numbers(*clips, "--tokenizer", model, "--device", "cpu")
    assert set(tmp_path.iterdir()) == before
    saved = tmp_path / "tokens"
    works("encode", *clips, "-o", saved, "--tokenizer", model, "--device", "cpu")
    assert report == numbers(saved) | {"name": report["name"]}
    (tmp_path / "in").mkdir()
    clips[0].rename(tmp_path / "in" / "a.mp4")
    assert numbers(tmp_path / "in", "--tokenizer", model)["files"] == 1


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_tokenizer_alone_reports_its_codebook(kind, tmp_path):
    model = save_tokenizer(tmp_path / "t.safetensors", kind)
    codebook = numbers("--tokenizer", model)
    report = works("stats", "--tokenizer", model).stdout.decode()
    assert f"codebook: {kind}, {codebook['codebook_size']:,} codes" in report
    assert ("by construction" in report) == (codebook["codes"] is None) == (kind in ("lfq", "fsq"))


@pytest.mark.parametrize("suffix, start", [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_plots_are_written_and_not_overwritten(suffix, start, corpus, tmp_path):
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


def test_names_of_plotted_columns_are_not_formulas(corpus, tmp_path):
    pytest.importorskip("matplotlib")
    odd, path = corpus / "a$x^$ [b].safetensors", tmp_path / "plot.svg"
    (corpus / "a.safetensors").rename(odd)
    works("stats", odd, corpus / "b.safetensors", "--each", "--plot", path)
    assert "a$x^$ [b]: " in path.read_text()
    assert numbers(odd)["name"] == "a$x^$ [b]"


def test_a_plot_without_matplotlib_fails_in_one_sentence(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fails(2, "pip install matplotlib", "stats", corpus, "--plot", tmp_path / "a.png")


def test_watch_ends_with_the_run(tiny_run):
    assert "step 2: loss" in works("stats", "--watch", tiny_run).stdout.decode()


@pytest.mark.parametrize(
    "code, message, args",
    [
        (2, "nothing to report on: name token files", []),
        (2, "no such file or folder", ["none.safetensors"]),
        (2, "no token files in it", ["EMPTY"]),
        (2, "is a clip: choose a --tokenizer", ["CLIP"]),
        (2, "clip.mp4 is a clip: choose a --tokenizer", ["CLIPS"]),
        (2, "exclude each other", ["CORPUS", "--json", "--csv"]),
        (2, "--json only", ["--tokenizer", "x", "--csv"]),
        (2, "--json only", ["--tokenizer", "x", "--each"]),
        (2, "--json only", ["--tokenizer", "x", "--device", "cpu"]),
        (2, "it takes no other options", ["CORPUS", "--watch", "EMPTY"]),
        (2, "it takes no other options", ["--watch", "EMPTY", "--each"]),
        (2, "it takes no other options", ["--watch", "EMPTY", "--device", "cpu"]),
        (2, "not a training run", ["--watch", "EMPTY"]),
        (2, "must end in .png or .svg", ["CORPUS", "--plot", "a.pdf"]),
        (2, "no such folder", ["CORPUS", "--plot", "none/a.png"]),
        (1, "no such tokenizer", ["--tokenizer", "none"]),
        (1, "is not a token file", ["MODEL"]),
    ],
)
def test_wrong_usage_and_bad_data_fail_in_one_sentence(code, message, args, corpus, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "clips").mkdir()
    clip = tmp_path / "clips" / "clip.mp4"
    clip.write_bytes(b"")
    names = {"CORPUS": corpus, "EMPTY": tmp_path / "empty", "CLIP": clip, "CLIPS": clip.parent}
    names["MODEL"] = BUNDLED / f"{vqtok.DEFAULT}.safetensors"
    assert fails(code, message, "stats", *(names.get(a, a) for a in args)).count("\n") == 1


@pytest.mark.parametrize("heavy", ["torch", "av", "matplotlib"])
def test_counting_token_files_imports_nothing_slow(heavy, corpus):
    code = f"import sys; sys.argv[1:] = ['stats', {str(corpus)!r}]\n"
    code += "from vqtok.cli import app\n"
    code += f"try: app()\nexcept SystemExit: sys.exit({heavy!r} in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert result.returncode == 0 and b"codebook report" in result.stdout


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_piped_output_is_plain_text(encoding, corpus):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "vqtok", "stats", str(corpus)]
    result = subprocess.run(command, capture_output=True, env=environment)
    assert result.returncode == 0, result.stderr
    text = result.stdout.decode(encoding)
    assert "codebook report" in text and "\x1b" not in text
    assert encoding == "utf-8" or text.isascii()


def test_watch_follows_a_run_while_it_is_written(tmp_path, monkeypatch):
    """Rows are added, one of them in two halves, whenever the command waits for more."""
    settings = config.load(config.folder() / "fsq.toml", ["train.steps=30"])
    (tmp_path / "config.json").write_text(settings.to_json())
    log = tmp_path / "metrics.jsonl"
    row = {"loss": 0.5, "psnr": 20, "usage": 0.25, "usage_by_chance": 0.5, "perplexity": 12.0}
    lines = [json.dumps({"step": s, **row, "seconds_per_step": 0.5}) + "\n" for s in (10, 20, 30)]
    states = iter([lines[0] + lines[1][:20], "".join(lines[:2]), "".join(lines)])
    monkeypatch.setattr("time.sleep", lambda seconds: log.write_text(next(states)))
    output = works("stats", "--watch", tmp_path).stdout.decode()
    assert [line.split(":")[0] for line in output.splitlines()] == ["step 10", "step 30"]
