"""`vqtok push`: what is uploaded, the model card, and what may go wrong."""

import json
import os
import pty
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from helpers.command import fails, file_names, works
from helpers.hub import TOKEN, asking, environment, stand_in
from vqtok.commands import model_card
from vqtok.model import checkpoint

FILES = ["README.md", "config.json", "tokenizer.safetensors"]
LICENSE = "--license", "apache-2.0"


@pytest.fixture(scope="module")
def server():
    with stand_in() as server:
        yield server


@pytest.fixture
def owner(server, tmp_path):
    """How the owner of the repositories runs a command, with an empty cache."""
    return asking(server.url, tmp_path / "cache", HF_TOKEN=TOKEN)


def card(folder):
    """The YAML of a model card, and the text after it."""
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text


def commits(server, name):
    """What was committed to a repository, without the commit that created it."""
    return list(server.repositories[name].commits.values())[1:]


def test_a_run_is_pushed_and_its_tokens_are_those_of_its_file(
    server, owner, tiny_run, tiny, clip, tmp_path
):
    name = "hf:org/pushed"
    result = works("push", tiny_run, name, *LICENSE, run=owner)
    commit = server.repositories["org/pushed"].branches["main"]
    assert result.stdout.decode() == f"{server.url}/org/pushed/commit/{commit}\n"
    assert result.stderr.decode() == f"use it with --tokenizer {name}@{commit}\n"
    (files,) = commits(server, "org/pushed")
    assert sorted(files.keys() - {".gitattributes"}) == FILES
    assert files["tokenizer.safetensors"] == (tiny_run / "tokenizer.safetensors").read_bytes()
    fresh = asking(server.url, tmp_path / "empty")
    tokens = works("encode", clip, "--tokenizer", name, run=fresh).stdout
    assert tokens == works("encode", clip, *tiny).stdout


def test_a_file_is_pushed_to_a_branch_of_a_private_repository(server, owner, tiny, tmp_path):
    args = tiny[1], "hf:org/drafts@next", *LICENSE, "--private", "--quiet"
    result = works("push", *args, run=owner)
    assert result.stderr == b""
    repository = server.repositories["org/drafts"]
    assert repository.private
    assert set(repository.commits[repository.branches["next"]]) >= set(FILES)
    assert FILES[0] not in repository.commits[repository.branches["main"]]
    works("stats", "--tokenizer", "hf:org/drafts@next", run=owner)


def test_the_files_can_be_looked_at_before(tiny_run, tmp_path):
    folder = tmp_path / "review"
    result = works("push", tiny_run, "hf:org/name", *LICENSE, "-o", folder)
    assert result.stdout == b"" and b"nothing uploaded" in result.stderr
    assert file_names(folder) == FILES
    config = json.loads((folder / "config.json").read_text())
    tokenizer = tiny_run / "tokenizer.safetensors"
    assert config["fingerprint"] == checkpoint.read_fingerprint(tokenizer)
    assert (config["format_version"], config["step"]) == ("2", 2)
    settings = json.loads((tiny_run / "config.json").read_text())
    assert (config["model"], config["quantizer"]) == (settings["model"], settings["quantizer"])
    fails(2, "exists: choose another folder", "push", tiny_run, "hf:org/name", "-o", folder)


def test_the_card_tells_data_recipe_steps_and_figures(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(tiny_run, tmp_path / "run")
    data = {"sources": ["/secret/my_videos"], "validation": ["/secret/held"], "cache": None}
    (run / "data.json").write_text(json.dumps(data))
    rows = [{"step": 1, "val_psnr": 21.5, "val_ssim": 0.5}, {"step": 9, "val_psnr": 99.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"st')
    figures = {"clips": [{}, {}], "mean": {"psnr": 30.25, "ssim": 0.9, "bits_per_pixel": 0.0625}}
    priced = {"rate": "lambda 1", "psnr": 28.5}
    (tmp_path / "eval.json").write_text(json.dumps(figures | {"rates": [priced]}))
    names = "--dataset", "org/data", "--eval", "eval.json"
    works("push", run, "hf:org/name", *LICENSE, *names, "-o", "out")
    header, text = card(tmp_path / "out")
    assert header == {
        "library_name": "vqtok",
        "license": "apache-2.0",
        "datasets": ["org/data"],
        "tags": ["video", "video-tokenizer", "vector-quantization", "fsq"],
    }
    for line in (
        "vqtok encode clip.mp4 --tokenizer hf:org/name -o tokens.safetensors",
        "Trained by `vqtok train` for 2 steps.",
        "Data: `my_videos`.",
        "Validated on `held`.",
        "| `model.widths` | `[8, 16]` |",
        "| 21.50 | 0.500 |",
        "`vqtok eval`, means over 2 clips:",
        "|  | 0.0625 | 30.25 | 0.900 |",
        "| lambda 1 |  | 28.50 |  |",
    ):
        assert line in text, line
    assert "train.seed" not in text  # the default
    assert "secret" not in text and "99.00" not in text


@pytest.mark.parametrize(
    ("code", "message", "args"),
    [
        (2, "others need a license to use the weights", []),
        (2, "--license Apache 2: choose an identifier", ["--license", "Apache 2"]),
        (2, "--dataset data: write it as org/name", [*LICENSE, "--dataset", "data"]),
        (1, "eval.json: no such file", [*LICENSE, "--eval", "eval.json", "-o", "out"]),
        (1, "is not what `vqtok eval --json` prints", [*LICENSE, "--eval", "RUN", "-o", "out"]),
    ],
)
def test_options_that_are_wrong(tiny_run, tmp_path, monkeypatch, code, message, args):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    names = {"RUN": tiny_run / "config.json"}
    fails(code, message, "push", tiny_run, "hf:org/name", *(names.get(a, a) for a in args))
    assert file_names(tmp_path) == []


def test_sources_that_are_no_tokenizer(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/tokenizer.safetensors").write_bytes(b"no")
    target = "hf:org/name", *LICENSE, "-o", "out"
    fails(2, "empty holds no tokenizer.safetensors", "push", "empty", *target)
    fails(2, "copy holds no training run", "push", "copy", *target)
    for name in ("none", "ema-4x8x8-64k", "hf:org/other"):
        fails(2, f"{name} does not exist: name the folder of", "push", name, *target)
    fails(1, "is damaged or not a tokenizer", "push", "copy/tokenizer.safetensors", *target)
    fails(2, "is not the name of a repository", "push", tiny_run, "org/name", *target[1:])


@pytest.mark.parametrize("revision", ["refs/pr/1", "0" * 40])
def test_only_a_branch_can_be_pushed_to(tiny, revision):
    fails(2, "push to a branch, such as org/name@next", "push", tiny[1], f"hf:org/name@{revision}")


def test_a_public_repository_is_not_pushed_to_as_private(server, owner, tiny):
    server.add("org/public", {".gitattributes": b""})
    message = "it exists and is public: make it private"
    fails(1, message, "push", tiny[1], "hf:org/public", *LICENSE, "--private", run=owner)
    assert commits(server, "org/public") == []


def test_the_card_names_no_folder_of_the_settings(tmp_path):
    training = {"init_from": "/secret/a.safetensors", "perceptual_model": "/secret/b"}
    outline = checkpoint.describe("ema-4x8x8-64k")
    changes = model_card._changes(replace(outline, training=training))
    assert changes["train.init_from"] == "a.safetensors"
    assert changes["train.perceptual_model"] == "b"


def test_an_upload_without_a_token_is_refused(server, tiny, tmp_path):
    args = "push", tiny[1], "hf:org/name", *LICENSE
    message = "no token to upload with: log in with `hf auth login`, or set HF_TOKEN"
    fails(1, message, *args, run=asking(server.url, tmp_path))


@pytest.mark.parametrize(
    ("message", "license_", "variables"),
    [
        ("the hub answers 401 Unauthorized: check the token", "mit", {"HF_TOKEN": "hf_wrong"}),
        ("HF_HUB_OFFLINE is set", "mit", {"HF_HUB_OFFLINE": "1"}),
        ("does not answer: check the connection", "mit", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
        ('"license" must be one of these', "unheard-of", {}),
    ],
)
def test_an_upload_that_is_refused_is_one_sentence(server, tmp_path, message, license_, variables):
    code = f"""
from vqtok import hub
files = {{"README.md": hub.card_header({license_!r}, [], []).encode(), "config.json": b"{{}}"}}
hub.push(hub.parse_name("hf:org/refused"), files, "message", False, True)
"""
    env = environment(server.url, tmp_path, **{"HF_TOKEN": TOKEN} | variables)
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("vqtok.errors.VqtokError: cannot push to hf:org/refused: ")
    assert message in last
    assert "org/refused" not in server.repositories or commits(server, "org/refused") == []


def test_a_terminal_is_asked_for_the_license(server, tiny, tmp_path):
    ours, theirs = pty.openpty()
    args = "push", tiny[1], "hf:org/name", "-o", tmp_path / "out"
    command = [sys.executable, "-m", "vqtok", *args]
    env = environment(server.url, tmp_path)
    streams = {"stdin": theirs, "stderr": theirs, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=env, **streams) as process:
        os.write(ours, b"cc-by-4.0\n")
        assert process.stdout.read() == b""
        assert process.wait(60) == 0, os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)
    assert card(tmp_path / "out")[0]["license"] == "cc-by-4.0"
