"""`vqtok train`: the run folder, resuming, and Ctrl-C."""

import json
import signal

from helpers.command import TINY, fails, file_names, start, wait_until, works


def test_a_trained_tokenizer_can_be_used(clip, tmp_path):
    run = tmp_path / "run"
    args = "train", "--quantizer", "lfq", *TINY, "--out", run, "--steps", 10
    stderr = works(*args).stderr.decode()
    assert "no --data" in stderr
    assert "step 10: loss" in stderr
    assert file_names(run) == [
        *("config.json", "data.json", "metrics.jsonl", "resume.safetensors"),
        "tokenizer.safetensors",
    ]
    works("train", "--resume", run, "--steps", 12, "--quiet")
    tokenizer = "--tokenizer", run / "tokenizer.safetensors"
    tokens = works("encode", clip, *tokenizer, "--quiet").stdout
    works("decode", "-", "-o", tmp_path / "decoded.mkv", *tokenizer, stdin=tokens)
    assert (tmp_path / "decoded.mkv").exists()


def test_files_after_data_are_training_data(make_clip, tmp_path):
    clips = [make_clip(f"{i}.mp4", frames=8, height=40, width=48) for i in range(3)]
    works("train", "--data", *clips, *TINY, "--out", tmp_path / "run", "--steps", 2, "--quiet")
    assert len(json.loads((tmp_path / "run" / "data.json").read_text())["sources"]) == 3


def test_a_run_that_cannot_start_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(2, "does not split evenly", "train", *TINY, "--set", "train.batch_size=3")
    fails(2, "does not split evenly", "train", *TINY, "--set", "train.batch_size=3", "--out", "a")
    assert file_names(tmp_path) == []


def test_ctrl_c_saves_the_run(tmp_path):
    run = tmp_path / "run"
    metrics = run / "metrics.jsonl"
    process = start("train", *TINY, "--out", run)
    wait_until(lambda: metrics.exists() and metrics.read_text(), process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr
    assert (run / "resume.safetensors").exists()
    assert (run / "tokenizer.safetensors").exists()
