"""Outputs that are inputs, or that cannot be written, are refused before any work."""

import os
import subprocess

import pytest

import vqtok
from helpers.clips import pattern, write_clip
from helpers.command import TINY, fails, file_names, in_subprocess, works
from helpers.tokenizers import save_tokenizer
from vqtok.errors import UsageError
from vqtok.targets import (
    BUNDLED,
    _write_nothing,
    check_targets,
    check_writable,
    check_writable_folder,
)

SAME = "is the same file as the input"
FOLDER = "choose another output folder"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with a clip, its tokens, their tokenizer, and folders of them; the working one."""
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4", pattern(5, 32, 48))
    save_tokenizer(tmp_path / "tiny.safetensors")
    works("encode", "clip.mp4", "-o", "t.safetensors", "--tokenizer", "tiny.safetensors")
    for folder, name in (("clips", "clip.mp4"), ("tokens", "t.safetensors")):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / name).write_bytes((tmp_path / name).read_bytes())
    (tmp_path / "link.mp4").symlink_to("clip.mp4")
    os.link("clip.mp4", "hard.mp4")
    os.link("t.safetensors", "hard.png")
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "video.bin").symlink_to("../t.safetensors")
    return tmp_path


@pytest.fixture
def no_work(monkeypatch):
    """Fail if a tokenizer is loaded."""

    def load(*args):
        raise AssertionError("a tokenizer was loaded")

    monkeypatch.setattr("vqtok.model.checkpoint.load", load)
    monkeypatch.setattr("vqtok.commands.train.create", load)


def contents(folder):
    """Return the bytes of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "args, message",
    [
        ("encode clip.mp4 -o clip.mp4", SAME),
        ("encode clip.mp4 -o clips/../clip.mp4", SAME),
        ("encode clip.mp4 -o here/clip.mp4", SAME),
        ("encode clip.mp4 -o link.mp4", SAME),
        ("encode link.mp4 -o clip.mp4", SAME),
        ("encode clip.mp4 -o hard.mp4", SAME),
        ("encode clip.mp4 -o tiny.safetensors", SAME),
        ("decode t.safetensors -o t.safetensors", SAME),
        ("decode t.safetensors -o hard.png", SAME),
        ("decode t.safetensors -o clip.mp4 --audio-from clip.mp4", SAME),
        ("decode t.safetensors -o link.mp4 --audio-from hard.mp4", SAME),
        ("stats t.safetensors --plot hard.png", SAME),
        ("export t.safetensors --to 1x -o linked", SAME),
        ("export tokens --to 1x -o here/tokens", FOLDER),
        ("encode clips -o clips", FOLDER),
        ("encode clips -o here/clips", FOLDER),
        ("decode tokens -o tokens", FOLDER),
        ("decode clip.mp4 tokens -o tokens", FOLDER),
        ("eval clips --save clips", FOLDER),
        ("eval clips --save clips/new", FOLDER),
        ("eval clips --save here/clips/sub", FOLDER),
        ("eval clips/**/*.mp4 --save clips/new", FOLDER),
        ("train --data clips --out clips", FOLDER),
        ("train --data clips --out clips/run", FOLDER),
        ("train --validation clips --out clips/run", FOLDER),
        ("train --data .", FOLDER),
        ("train --data clips --out run --cache clips", FOLDER),
        ("train --data clips --out run --cache run", FOLDER),
    ],
)
def test_the_input_is_never_the_output(args, message, files, no_work):
    command, *options = args.split()
    options += ["--force"] if command != "train" else TINY * ("--resume" not in args)
    if command in ("encode", "decode", "eval"):
        options += ["--tokenizer", "tiny.safetensors"]
    before = contents(files)
    assert fails(2, message, command, *options).count("\n") == 1
    assert contents(files) == before


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_target_of_many_is_never_an_input(command, files, no_work):
    """The name of a target may be another name of an input."""
    source, target = {
        "encode": ("clips", "clip.mp4.safetensors"),
        "decode": ("tokens", "t.mp4"),
    }[command]
    (files / "out").mkdir()
    for other in (*(files / source).glob("*.*"), files / "tiny.safetensors"):
        (files / "out" / target).symlink_to(other)
        args = source, "-o", "out", "--tokenizer", "tiny.safetensors", "--force"
        fails(2, SAME, command, *args)
        (files / "out" / target).unlink()


def test_stdout_is_not_appended_to_the_input(files):
    before = contents(files)
    tokenizer = "--tokenizer", "tiny.safetensors"
    for args in (
        ("encode", "clip.mp4", *tokenizer),
        ("decode", "t.safetensors", "-o", "-", "--audio-from", "clip.mp4", *tokenizer),
        ("eval", "clip.mp4", *tokenizer),
        ("stats", "clip.mp4", *tokenizer),
    ):
        with (files / "clip.mp4").open("ab") as stdout:
            options = {"stdout": stdout, "stderr": subprocess.PIPE, "capture_output": False}
            fails(2, SAME, *args, run=in_subprocess, **options)
    assert contents(files) == before


def test_outputs_beside_their_inputs_are_fine(files):
    tokenizer = "--tokenizer", "tiny.safetensors"
    works("encode", "clips", "-o", "clips/tokens", *tokenizer)  # which are no clips
    works("encode", "clips/clip.mp4", "-o", "clips", *tokenizer)
    works("encode", "clips/*.mp4", "-o", "clips", "--force", *tokenizer)
    works("eval", "clips/clip.mp4", "--save", "clips/side", "--frames", 2, *tokenizer)
    assert file_names(files / "clips") == [
        ".encoded.jsonl",
        "clip.mp4",
        "clip.mp4.safetensors",
        "side",
        "sub",
        "tokens",
    ]


def test_a_bundled_tokenizer_is_an_input(files):
    bundled = BUNDLED / f"{vqtok.DEFAULT}.safetensors"
    (files / "out.safetensors").symlink_to(bundled)
    fails(2, SAME, "encode", "clip.mp4", "-o", "out.safetensors", "--force")
    assert bundled.is_file()


def test_python_refuses_the_same(files):
    options = {"tokenizer": "tiny.safetensors"}
    with pytest.raises(UsageError, match=SAME):
        vqtok.decode_video("t.safetensors", "link.mp4", audio_from="clip.mp4", **options)
    with pytest.raises(UsageError, match=SAME):
        vqtok.decode_video("t.safetensors", "hard.png", **options)
    with pytest.raises(UsageError, match=SAME), open("t.safetensors", "rb+") as file:  # noqa: PTH123
        vqtok.decode_video(file, "hard.png", **options)
    with pytest.raises(UsageError, match="no such folder"):
        vqtok.decode_video("absent", "none/a.mp4", **options)


def test_only_regular_files_are_compared(tmp_path):
    check_targets(["/dev/null", None, tmp_path, "absent", "a\0b"], ["/dev/null", None, tmp_path])


@pytest.mark.parametrize(
    "name, reason",
    [
        ("loop", "too many levels of symbolic links"),
        ("x" * 300, "file name too long"),
        ("a\0b", "null"),
        ("dangling", "no such folder"),
        ("none/a.mp4", "no such folder"),
        ("a_file/a.mp4", "no such folder"),
        ("a_folder", "is not a regular file"),
        ("pipe", "is not a regular file"),
        ("/dev/null", "is not a regular file"),
        ("/dev/stdout", "- stands for stdout"),
        ("/proc/a.mp4", "cannot be written"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused(name, reason, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("none/a.mp4")
    (tmp_path / "a_file").touch()
    (tmp_path / "a_folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    if name.startswith("/proc") and not os.path.isdir("/proc/self"):  # noqa: PTH112
        pytest.skip("no /proc here")
    names = file_names(tmp_path)
    with pytest.raises(UsageError, match=reason):
        check_writable(tmp_path / name)
    assert file_names(tmp_path) == names


@pytest.mark.parametrize(
    "name, reason",
    [
        ("loop", "too many levels of symbolic links"),
        ("loop/new", "too many levels of symbolic links"),
        ("dangling", "no such file or directory"),
        ("dangling/new", "no such file or directory"),
        ("x" * 300, "file name too long"),
        ("a_file", "is a file: choose a folder"),
        ("a_file/new", "not a directory"),
        ("/proc/new", "cannot be written"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused(name, reason, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("none")
    (tmp_path / "a_file").touch()
    with pytest.raises(UsageError, match=reason):
        check_writable_folder(tmp_path / name)


def test_writable_targets_pass_and_leave_nothing(tmp_path):
    (tmp_path / "old.mp4").touch()
    (tmp_path / "link.mp4").symlink_to("new.mp4")
    for name in ("old.mp4", "new.mp4", "link.mp4"):
        check_writable(tmp_path / name)
    for name in ("", "new", "new/sub"):
        check_writable_folder(tmp_path / name)
    assert file_names(tmp_path) == ["link.mp4", "old.mp4"]


def test_a_read_only_file_system_is_refused_before_the_work(files, no_work, monkeypatch):
    def refuse(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("vqtok.targets.TemporaryFile", refuse)
    _write_nothing.cache_clear()
    reason = "cannot be written: read-only file system"
    for args in (
        "encode clip.mp4 -o new",
        "encode clips -o new",
        "decode t.safetensors -o new.mp4",
        "eval clips --save new",
        "stats t.safetensors --plot new.png",
        "export tokens --to 1x -o new",
        "train --data clips --out new",
    ):
        fails(2, reason, *args.split())
