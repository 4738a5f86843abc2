"""Tokenizers on the hub: names, the cache, downloads and what may go wrong with them."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from helpers.clips import pattern, write_clip
from helpers.command import TINY, fails, file_names, works
from helpers.hub import TOKEN, asking, environment, stand_in
from helpers.tokenizers import save_tokenizer
from vqtok import hub
from vqtok.corpus.settings import open_corpus
from vqtok.errors import UsageError, VqtokError
from vqtok.hub import HubName
from vqtok.model import checkpoint

REFUSE_SOCKETS = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("a request was sent")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A small tokenizer file."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", pattern(5, 16, 24))


@pytest.fixture
def server(tokenizer):
    """A hub with org/name, and repositories that cannot be used."""
    with stand_in() as server:
        files = {hub.FILE: tokenizer.read_bytes(), "README.md": b"", "model.py": b"print()"}
        server.add("org/name", files)
        server.add("org/private", files, private=True)
        server.add("org/gated", files, gated=True)
        server.add("org/other", {"model.pt": b"", "README.md": b""})
        server.add("org/damaged", {hub.FILE: b"\x80\x04pickle"})
        yield server


def files_asked_for(server, method="GET|HEAD"):
    """The files that requests were about; the library also asks the hub about itself."""
    pattern = re.compile(rf"({method}) /org/\w+/resolve/(.*)")
    return [found[2] for request in server.requests if (found := pattern.fullmatch(request))]


def fetch(server, cache, name):
    """Return the file that `hub.fetch` finds, in a process of its own."""
    code = f"from vqtok import hub; print(hub.fetch({name!r}), end='')"
    command, env = [sys.executable, "-c", code], environment(server.url, cache)
    return Path(subprocess.run(command, env=env, capture_output=True, check=True).stdout.decode())


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf:org/name", ("org/name", None)),
        ("hf:org/name@v1.0", ("org/name", "v1.0")),
        ("hf:org/na.me-2_x@refs/pr/1", ("org/na.me-2_x", "refs/pr/1")),
    ],
)
def test_names_have_a_repository_and_a_revision(name, parts):
    assert hub.parse_name(name) == HubName(*parts)
    assert str(hub.parse_name(name)) == name


MALFORMED = [
    *("hf:", "hf:name", "hf:a/b/c", "hf:../x", "hf:org/..", "hf:org/name@", "hf:/name", "hf:org/"),
    *("hf:org/name@../main", "hf:org/name@/etc/passwd", "hf:org/name@a@b", "hf:org/na me"),
    *("hf:org/name@a..b", "hf:org/a--b", "hf:org/name\n", "hf:örg/name", "hf:org/" + "x" * 97),
    "hf:org/name.git",
]


@pytest.mark.parametrize("name", MALFORMED, ids=ascii)
def test_malformed_names_are_wrong_usage(name):
    with pytest.raises(UsageError, match="is not the name of a repository: write hf:org/name"):
        hub.find_cached(name)


def test_a_command_refuses_a_malformed_name(clip):
    fails(2, "hf:org is not the name of a repository", "encode", clip, "--tokenizer", "hf:org")


def test_a_bare_name_is_a_path_and_the_error_suggests_the_hub(clip):
    stderr = fails(1, "org/name: no such tokenizer", "encode", clip, "--tokenizer", "org/name")
    assert "on the Hugging Face Hub: hf:org/name" in stderr
    assert "hf:" not in fails(1, "no such", "encode", clip, "--tokenizer", "runs/a/b")


def test_a_tokenizer_is_downloaded_once_and_gives_the_tokens_of_its_file(
    server, tokenizer, clip, tmp_path
):
    run = asking(server.url, tmp_path)
    expected = works("encode", clip, "--tokenizer", tokenizer).stdout
    commit = server.repositories["org/name"].branches["main"]
    verbose = works("encode", clip, "--tokenizer", "hf:org/name", "--verbose", run=run)
    assert verbose.stdout == expected
    assert f"hf:org/name@{commit}: fsq, weights " in verbose.stderr.decode()
    assert b"B/s" not in verbose.stderr  # no progress bar
    assert files_asked_for(server, "GET") == [f"main/{hub.FILE}"]

    server.requests.clear()
    server.add("org/name", {hub.FILE: b"newer"})
    for name in ("hf:org/name", "hf:org/name@main", f"hf:org/name@{commit}"):
        again = works("encode", clip, "--tokenizer", name, "--quiet", run=run)
        assert (again.stdout, again.stderr) == (expected, b"")
    assert server.requests == []


def test_a_cached_tokenizer_is_loaded_without_a_socket(server, tokenizer, tmp_path):
    env = environment(server.url, tmp_path)
    load = "import vqtok; print(vqtok.load('hf:org/name').fingerprint)"
    first = subprocess.run([sys.executable, "-c", load], env=env, capture_output=True, check=True)
    command = [sys.executable, "-c", REFUSE_SOCKETS + load]
    cached = subprocess.run(command, env=env, capture_output=True, check=True)
    assert cached.stdout == first.stdout
    assert cached.stdout.decode().strip() == checkpoint.read_fingerprint(tokenizer)
    env = environment(server.url, tmp_path / "empty")
    refused = subprocess.run(command, env=env, capture_output=True)
    assert b"a request was sent" in refused.stderr


def test_a_revision_is_a_branch_a_tag_or_a_commit(server, tokenizer, tmp_path):
    commit = server.add("org/name", {hub.FILE: b"other"}, "refs/pr/1")
    assert fetch(server, tmp_path, "hf:org/name").read_bytes() == tokenizer.read_bytes()
    for revision in ("refs/pr/1", commit):
        assert fetch(server, tmp_path, f"hf:org/name@{revision}").read_bytes() == b"other"
    assert len(files_asked_for(server, "GET")) == 2


def test_only_the_tokenizer_is_read_of_a_repository(server, tmp_path):
    path = fetch(server, tmp_path, "hf:org/name")
    assert set(files_asked_for(server)) == {f"main/{hub.FILE}"}
    assert file_names(path.parent) == [hub.FILE]


def test_a_corpus_is_begun_with_a_commit_that_is_downloaded_once(server, clip, tmp_path):
    run, corpus = asking(server.url, tmp_path / "cache"), tmp_path / "corpus"
    args = clip, "-o", f"{corpus}/", "--pack", "1M", "--tokenizer"
    works("encode", *args, "hf:org/name", run=run)
    commit = server.repositories["org/name"].branches["main"]
    settings = open_corpus(corpus).settings
    assert settings.tokenizer == f"hf:org/name@{commit}"
    assert files_asked_for(server, "GET") == [f"main/{hub.FILE}"]
    server.requests.clear()
    works("encode", *args, "hf:org/name@main", run=run)
    assert server.requests == []
    other = save_tokenizer(tmp_path / "other.safetensors", "lfq").read_bytes()
    server.add("org/name", {hub.FILE: other}, "new")
    stderr = fails(2, "(hf:org/name@", "encode", *args, "hf:org/name@new", run=run)
    assert settings.model[:12] in stderr


@pytest.mark.slow
def test_a_run_starts_from_a_tokenizer_of_the_hub(server, tmp_path):
    run = asking(server.url, tmp_path / "cache")
    args = *TINY, "--set", "train.steps=1", "--quiet", "--quantizer", "fsq"
    first, second = tmp_path / "first", tmp_path / "second"
    works("train", *args, "--out", first)
    server.add("org/first", {hub.FILE: (first / hub.FILE).read_bytes()})
    start = "--set", "train.init_from=hf:org/first"
    assert works("train", *args, "--out", second, *start, run=run).stderr == b""
    assert (second / hub.FILE).is_file()


def test_a_private_repository_needs_a_token(server, tmp_path):
    args = "stats", "--tokenizer", "hf:org/private"
    fails(1, "it is private", *args, run=asking(server.url, tmp_path))
    works(*args, run=asking(server.url, tmp_path, HF_TOKEN=TOKEN))


@pytest.mark.parametrize(
    ("name", "message", "variables"),
    [
        (
            "org/missing",
            "there is no such repository, or it is private: check the name, or log",
            {},
        ),
        ("org/missing", "there is no such repository", {"HF_TOKEN": TOKEN}),
        ("org/private", "or log in with `hf auth login`, or set HF_TOKEN", {}),
        ("org/gated", "the repository is gated: accept its terms on the hub and log in", {}),
        ("org/gated", "the repository is gated", {"HF_TOKEN": TOKEN}),
        ("org/name@none", "the repository has no such revision: name a branch, a tag", {}),
        (
            "org/other",
            "the repository has no tokenizer.safetensors: it is not a vqtok tokenizer",
            {},
        ),
        ("org/damaged", "is damaged or not a tokenizer file", {}),
        ("org/name", "HF_HUB_OFFLINE is set", {"HF_HUB_OFFLINE": "1"}),
        (
            "org/name",
            "does not answer: check the connection",
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
        ),
    ],
)
def test_what_cannot_be_downloaded_is_one_sentence(server, tmp_path, name, message, variables):
    args = "stats", "--tokenizer", f"hf:{name}"
    stderr = fails(1, message, *args, run=asking(server.url, tmp_path, **variables))
    assert stderr.startswith("vqtok: ") and stderr.count("\n") == 1
    assert name.partition("@")[0].split("/")[1] in stderr
    assert len(files_asked_for(server)) <= 1 or name == "org/damaged"  # it is not tried again


def test_a_hub_that_is_down_or_answers_nonsense_is_one_sentence(server, tmp_path):
    args = "stats", "--tokenizer", "hf:org/name"
    server.down = True
    fails(1, "the hub answers 503", *args, run=asking(server.url, tmp_path))
    fails(1, "cannot download hf:org/name", *args, run=asking(f"{server.url}/x", tmp_path))


def test_a_file_that_is_too_large_is_not_downloaded(server, tmp_path, monkeypatch):
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(hub, "MAX_BYTES", 100)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for module in (constants, file_download):
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    with pytest.raises(VqtokError, match=r"hf:org/name, .*its tokenizer.safetensors has \d+ bytes"):
        hub.fetch("hf:org/name")
    assert files_asked_for(server, "GET") == []


@pytest.mark.parametrize("args", [["encode", "CLIP"], ["stats"], ["push", "CLIP"]])
def test_without_the_library_the_extra_is_named(clip, monkeypatch, args):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    command = [clip if arg == "CLIP" else arg for arg in args]
    name = ["hf:org/name"] if args[0] == "push" else ["--tokenizer", "hf:org/name"]
    fails(2, "pip install 'vqtok[hub]'", *command, *name)


def test_hf_download_brings_what_is_on_the_branch_now(server, tmp_path):
    old = fetch(server, tmp_path, "hf:org/name")
    commit = server.add("org/name", {hub.FILE: b"newer"})
    assert fetch(server, tmp_path, "hf:org/name") == old
    code = f"from huggingface_hub import hf_hub_download as get; get('org/name', {hub.FILE!r})"
    env = environment(server.url, tmp_path)
    subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    new = fetch(server, tmp_path, "hf:org/name")
    assert (new.parent.name, new.read_bytes()) == (commit, b"newer")


@pytest.mark.parametrize(("quiet", "shown"), [(False, True), (True, False)])
def test_a_terminal_shows_progress_unless_quiet(server, tmp_path, quiet, shown):
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    code = f"from vqtok import hub; hub.fetch('hf:org/name', {quiet})"
    command, env = [sys.executable, "-c", code], environment(server.url, tmp_path)
    subprocess.run(command, env=env, stderr=theirs, check=True)
    os.write(theirs, b"END")
    received = b""
    while not received.endswith(b"END"):  # a terminal gives a part at a time
        received += os.read(ours, 10_000)
    os.close(theirs)
    os.close(ours)
    assert (b"100%" in received) == shown
