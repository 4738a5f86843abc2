"""Many clips at once: the tree is mirrored, work goes on where it stopped, failures are listed."""

import json
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from helpers.clips import pattern, write_clip
from vqtok import DEFAULT, config
from vqtok.cli import app
from vqtok.commands import batch
from vqtok.commands.encode import RunOptions
from vqtok.errors import UsageError
from vqtok.files import OUTPUT_SUFFIXES
from vqtok.model import checkpoint
from vqtok.model.tokenizer import Tokenizer
from vqtok.options import video_name
from vqtok.tokens import format as tokens
from vqtok.video.formats import CONTAINERS

SMALL = ["model.widths=[8, 16]", "model.encoder_blocks=[1, 1]", "model.decoder_blocks=[1, 1]"]


def run(*args):
    """The exit code and stderr of a command."""
    result = CliRunner().invoke(app, list(map(str, args)))
    return result.exit_code, result.stderr


def files(folder):
    """What lies in a folder and below, with its bytes."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture
def tree(tmp_path):
    """Five clips in three folders, one of which is broken."""
    folder = tmp_path / "in"
    (folder / "sub" / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.mp4", "sub/b.mkv", "sub/deep/a.mp4", "sub/c.mp4")):
        write_clip(folder / name, pattern(5 + 3 * i, 32 + 8 * i, 48))
    (folder / "sub" / "bad.mp4").write_text("no video")
    (folder / "notes.txt").write_text("left alone")
    return folder


def test_a_tree_is_mirrored_and_failures_are_listed(tree, tmp_path):
    out = tmp_path / "out"
    code, said = run("encode", tree, "-o", out)
    assert code == 1 and f"1 of 5 failed: {out}/failures.jsonl" in said
    names = {"a.mp4", "sub/b.mkv", "sub/deep/a.mp4", "sub/c.mp4"}
    assert files(out).keys() == {f"{name}.safetensors" for name in names} | {"failures.jsonl"}
    (failure,) = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    assert failure["source"] == str(tree / "sub" / "bad.mp4")
    assert "is not a video" in failure["reason"]

    back = tmp_path / "back"
    assert run("decode", out, "-o", back)[0] == 0
    assert files(back).keys() == names


def test_tokens_do_not_depend_on_jobs_or_on_what_else_is_encoded(tree, tmp_path):
    seen = []
    for jobs in (1, 3):
        run("encode", tree, "-o", tmp_path / f"{jobs}", "--jobs", jobs)
        seen.append(files(tmp_path / f"{jobs}"))
    assert seen[0] == seen[1]
    run("encode", tree / "sub" / "c.mp4", "-o", tmp_path / "alone.safetensors")
    assert (tmp_path / "alone.safetensors").read_bytes() == seen[0]["sub/c.mp4.safetensors"]


def test_what_is_done_is_skipped_unless_forced(tree, tmp_path):
    out, done = tmp_path / "out", tmp_path / "out" / "a.mp4.safetensors"
    out.mkdir()
    run(
        "encode", tree / "a.mp4", "-o", out, "--duration", 0.1
    )  # no file says how long it should be
    before = done.read_bytes()
    run("encode", tree, "-o", out)
    assert done.read_bytes() == before and len(files(out)) == 5
    run("encode", tree, "-o", out, "--force")
    assert done.read_bytes() != before


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_no_model_is_loaded_when_nothing_is_left_to_do(tree, tmp_path, command, monkeypatch):
    tokens, videos = tmp_path / "tokens", tmp_path / "videos"
    run("encode", tree, "-o", tokens)
    run("decode", tokens, "-o", videos)
    (tree / "sub" / "bad.mp4").unlink()
    monkeypatch.setattr(checkpoint, "load", None)
    source, target = {"encode": (tree, tokens), "decode": (tokens, videos)}[command]
    code, said = run(command, source, "-o", target)
    assert code == 0 and "nothing left to do" in said
    assert not (target / "failures.jsonl").exists()


def test_a_folder_never_mixes_tokenizers_sizes_or_rates(tree, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other.safetensors"
    run("encode", tree / "a.mp4", "-o", tmp_path / "a.mp4.safetensors", "--size", 24, "--fps", 5)
    out.mkdir()
    (tmp_path / "a.mp4.safetensors").rename(out / "a.mp4.safetensors")
    before = files(out)
    settings = config.load(config.folder() / "fsq.toml", SMALL)
    checkpoint.save(other, Tokenizer(settings.model, settings.quantizer), settings, 0)
    for option in (("--tokenizer", other), ("--size", 32), ("--fps", "10")):
        code, said = run("encode", tree, "-o", out, *option)
        assert code == 2 and f"{out}/a.mp4.safetensors is there" in said and "--force" in said
        assert files(out) == before
    run("encode", tree, "-o", out, "--size", 24, "--fps", "5")
    assert files(out).items() > before.items()
    (out / "a.mp4.safetensors").write_text("no tokens")
    assert run("encode", tree, "-o", out)[0] == 2
    run("encode", tree, "-o", out, "--tokenizer", other, "--force")
    assert tokens.read(out / "a.mp4.safetensors").model == checkpoint.identify(other)


def test_workers_share_weights_and_nothing_else():
    one, two = RunOptions(DEFAULT, "cpu", None, False, 2, True, False).load(2)
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert not set(one.modules()) & set(two.modules())
    assert two.fingerprint == one.fingerprint


def test_a_killed_run_goes_on(tree, tmp_path):
    write_clip(tree / "z.mp4", pattern(400, 96, 96))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vqtok", "encode", str(tree), "-o", str(out)]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (out / "sub" / "deep" / "a.mp4.safetensors").exists():
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    first = files(out)
    assert "z.mp4.safetensors" not in first
    assert run("encode", tree, "-o", out)[0] == 1  # the broken one
    assert files(out).items() >= {k: v for k, v in first.items() if k[-1] == "s"}.items()
    assert (out / "z.mp4.safetensors").exists()


def test_ctrl_c_ends_all_jobs_and_leaves_only_whole_files(tree, tmp_path):
    for i in range(3):
        write_clip(tree / f"z{i}.mp4", pattern(400, 96, 96))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vqtok", "encode", str(tree), "-o", str(out), "--jobs", "2"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not (out / "sub" / "deep" / "a.mp4.safetensors").exists():
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    assert b"interrupted" in running.communicate(timeout=30)[1]
    assert running.returncode == 130
    assert not list(out.rglob(".*"))


def test_patterns_and_names(tree, tmp_path):
    def targets(*sources):
        jobs = batch.jobs([str(s) for s in sources], tmp_path, {".mp4", ".mkv"}, str.upper)
        return [str(job.target.relative_to(tmp_path)) for job in jobs]

    assert targets(tree / "**" / "*.mp4") == ["A.MP4", "sub/BAD.MP4", "sub/C.MP4", "sub/deep/A.MP4"]
    assert targets(tree / "sub" / "b*") == ["B.MKV", "BAD.MP4"]
    assert targets(tree / "a.mp4", tree / "sub" / "b.mkv") == ["A.MP4", "B.MKV"]
    with pytest.raises(UsageError, match="would both become"):
        targets(tree / "a.mp4", tree / "sub" / "deep" / "a.mp4")
    with pytest.raises(UsageError, match="nothing to do"):
        targets(tree / "*.gif")
    with pytest.raises(UsageError, match="no such file"):
        targets(tree / "absent.mp4")


@pytest.mark.parametrize(
    "tokens, video",
    [("a.mp4.safetensors", "a.mp4"), ("a.avi.safetensors", "a.avi.mp4"), ("a", "a.mp4")],
)
def test_decoded_files_are_named_like_their_sources(tokens, video):
    assert video_name(tokens) == video
    assert set(CONTAINERS) == OUTPUT_SUFFIXES


@pytest.mark.parametrize("output", [(), ("-o", "-"), ("-o", "a_file")])
def test_many_clips_need_a_folder(tree, tmp_path, output, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    code, said = run("encode", tree, *output)
    assert code == 2 and "folder" in said
