"""Every command over many files: whatever one file does, it alone fails, and the others go on."""

import json
import os
from pathlib import Path

import pytest
from torch import OutOfMemoryError

from helpers.clips import pattern, write_clip
from helpers.command import TINY, fails, in_process, in_subprocess, works
from helpers.ffmpeg import run_ffmpeg
from helpers.tokens import join_file, split_file
from vqtok.tokens import read_tokens
from vqtok.video import open_video

# How each command is run over a folder of clips or of tokens, and where it reads a file.
COMMANDS = {
    "encode": ("encode CLIPS -o OUT", "vqtok.pipeline.source.open_video"),
    "decode": ("decode TOKENS -o OUT", "vqtok.corpus.sources.read_tokens"),
    "eval": ("eval CLIPS --frames 2 --json --save OUT", "vqtok.commands.eval.open_video"),
    "stats": ("stats TOKENS --json", "vqtok.commands.token_inputs.read_tokens"),
    "stats of clips": ("stats CLIPS --json", "vqtok.pipeline.source.open_video"),
    "train": (  # draws enough clips to meet all of three
        "train --data CLIPS --set=train.steps=2 --set=train.init_clips=24 --out OUT",
        "vqtok.training.data.open_video",
    ),
}


class PanicException(BaseException):
    """What a panic in a library written in Rust raises: no Exception."""

    __module__ = "pyo3_runtime"


class Folders:
    """A folder of clips and one of their tokens, for commands to run over."""

    def __init__(self, folder, tiny):
        self.clips, self.tokens, self.out = (folder / name for name in ("clips", "tokens", "out"))
        self.clips.mkdir()
        self.tokens.mkdir()
        self.tiny = tiny

    def add(self, name):
        """Add a clip and its tokens."""
        clip = write_clip(self.clips / "new.mp4", pattern(5, 32, 48))
        self.add_tokens(clip, name)
        clip.rename(self.clips / name)

    def add_tokens(self, clip, name):
        """Add the tokens of a clip unless their name would be too long."""
        if len(os.fsencode(name)) < 244:
            works("encode", clip, "-o", self.tokens / "new", *self.tiny)
            (self.tokens / "new").rename(self.tokens / f"{name}.safetensors")

    def run(self, command, *options):
        """Run a command of COMMANDS with more options."""
        words = {"CLIPS": self.clips, "TOKENS": self.tokens, "OUT": self.out}
        name, *args = (words.get(word, word) for word in COMMANDS[command][0].split())
        return in_process(name, *(TINY if name == "train" else self.tiny), *args, *options)

    def done(self, command, stdout):
        """Return how many files a command has processed, or None for train."""
        match command.split():
            case ["eval"]:
                return len(json.loads(stdout)["clips"])
            case ["stats", *_]:
                return json.loads(stdout)["files"]
            case ["train"]:
                return None
        return sum(path.is_file() and path.suffix != ".jsonl" for path in self.out.rglob("*"))

    def failure(self, command, result):
        """Return what a command says about the file that failed."""
        if command in ("encode", "decode"):
            (line,) = (self.out / "failures.jsonl").read_text().splitlines()
            return json.loads(line)["reason"]
        (line,) = (x for x in result.stderr.decode().splitlines() if x.startswith(("vq", "skip")))
        return line


@pytest.fixture
def folders(tmp_path, tiny):
    return Folders(tmp_path, tiny)


@pytest.mark.parametrize(
    "error, reason",
    [
        (RuntimeError("two\n  lines"), "RuntimeError: two lines"),
        (AssertionError(), "AssertionError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), "UnicodeDecodeError: 'utf-8' codec"),
        (MemoryError(), "out of memory"),
        (RuntimeError("can't allocate memory"), "out of memory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out of memory"),
        (OSError(5, "Input/output error"), "input/output error"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (SystemError("error return"), "SystemError: error return"),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_a_file_raises_is_its_failure_alone(command, error, reason, folders, monkeypatch):
    reader = COMMANDS[command][1]
    original = open_video if reader.endswith("open_video") else read_tokens

    def read(source, *args, **options):
        if "bad" in Path(source).name:
            raise error
        return original(source, *args, **options)

    for name in ("a.mp4", "bad.mp4", "c.mp4"):
        folders.add(name)
    monkeypatch.setattr(reader, read)
    result = folders.run(command)
    assert result.returncode == (command != "train"), result.stderr.decode()
    failure = folders.failure(command, result)
    assert "bad.mp4" in failure and f": {reason}" in failure
    assert b"Traceback" not in result.stderr
    assert folders.done(command, result.stdout) in (2, None)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_panic_is_the_failure_of_its_file_alone(command, folders, monkeypatch):
    test_whatever_a_file_raises_is_its_failure_alone(
        command, PanicException("index"), "pyo3_runtime.PanicException: index", folders, monkeypatch
    )


@pytest.mark.parametrize("command", ["encode", "decode", "eval"])
@pytest.mark.parametrize("error, code", [(KeyboardInterrupt(), 130), (SystemExit(7), 7)])
def test_what_ends_a_command_is_no_failure(command, error, code, folders, monkeypatch):
    def read(*args, **options):
        raise error

    for name in ("a.mp4", "b.mp4"):
        folders.add(name)
    monkeypatch.setattr(COMMANDS[command][1], read)
    assert folders.run(command).returncode == code
    assert not (folders.out / "failures.jsonl").exists()


def test_a_full_disk_ends_a_training_run(folders, monkeypatch):
    """Otherwise clip after clip would be skipped, because none can be cached any more."""

    def write(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vqtok.training.cache.ClipCache._write_entry", write)
    folders.add("a.mp4")
    cache = "--cache", folders.out
    result = in_process("train", "--data", folders.clips, *TINY, *cache, "--out", folders.out / "r")
    assert result.returncode == 1 and b"vqtok: no space left on device" in result.stderr
    assert b"skipped" not in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_metadata_that_is_not_utf8_is_no_obstacle(command, folders):
    inputs = "-f lavfi -i testsrc2=size=48x32:duration=1 -f lavfi -i sine=duration=1 -shortest"
    for name, word in {"a.mp4": b"VideoHandler", "b.avi": b"Lavf", "c.mkv": b"Lavf"}.items():
        path = folders.clips / name
        run_ffmpeg(*inputs.split(), "-pix_fmt", "yuv420p", path)
        data = path.read_bytes()
        assert word in data
        path.write_bytes(data.replace(word, word[:1] + b"\xe9" + word[2:]))
        folders.add_tokens(path, name)
        tokens, decoded = folders.tokens / f"{name}.safetensors", folders.clips.parent / "a.mkv"
        works("decode", tokens, "-o", decoded, "--audio-from", path, "--force", *folders.tiny)
        assert read_tokens(tokens).frames == 25
    result = folders.run(command)
    assert result.returncode == 0, result.stderr
    assert b"skipped" not in result.stderr
    assert folders.done(command, result.stdout) in (3, None)


@pytest.mark.parametrize("command", COMMANDS)
def test_long_names_work_and_too_long_ones_fail_alone_in_every_run(command, folders):
    """With what `encode` or `eval --save` adds to it, the longest name is too long for a file."""
    for name in ("a.mp4", "x" * 236 + ".mp4", "y" * 248 + ".mp4"):
        folders.add(name)
    for _ in range(2 if command == "encode" else 1):
        result = folders.run(command)
        if command in ("encode", "eval"):
            assert result.returncode == 1
            assert folders.failure(command, result).endswith(": file name too long")
        else:
            assert result.returncode == 0, result.stderr
        assert folders.done(command, result.stdout) in (2 + (command == "stats of clips"), None)


@pytest.fixture
def bad_names(folders):
    """Folders in which two names are not UTF-8; one of these files is broken."""
    broken, good = (os.fsdecode(name) for name in (b"b\xff.mp4", b"lat\xe9n.mp4"))
    try:
        (folders.clips / broken).write_text("broken")
    except OSError:
        pytest.skip("this file system has no names that are not UTF-8")
    (folders.tokens / f"{broken}.safetensors").write_text("broken")
    for name in (good, "\u00e9.mp4"):
        folders.add(name)
    return folders


@pytest.mark.parametrize("command", COMMANDS)
def test_names_that_are_not_utf8_are_printed(command, bad_names):
    result = bad_names.run(command)
    assert result.returncode == (command != "train"), result.stderr
    assert "b\\xff.mp4" in bad_names.failure(command, result)
    assert bad_names.done(command, result.stdout) in (2, None)
    if command == "eval":
        names = [clip["clip"] for clip in json.loads(result.stdout)["clips"]]
        assert names == ["lat\\xe9n.mp4", "\u00e9.mp4"]


@pytest.mark.parametrize("args", ["eval CLIPS", "stats TOKENS --each", "stats TOKENS --each --csv"])
def test_names_are_printed_in_any_locale(args, bad_names):
    command, folder, *options = args.split()
    sources = (bad_names.clips if folder == "CLIPS" else bad_names.tokens).iterdir()
    tokenizer = bad_names.tiny if command == "eval" else ()
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = in_subprocess(command, *sources, *options, *tokenizer, env=environment)
    assert result.returncode == 1 and b"Traceback" not in result.stderr
    assert b"b\\xff.mp4" in result.stderr
    assert b"lat\\xe9n.mp4" in result.stdout and b"\\xe9.mp4" in result.stdout
    assert result.stdout.isascii()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_follow_links_and_mention_files_of_other_kinds(command, folders):
    folders.add("a.mp4")
    for folder, name in ((folders.clips, "a.mp4"), (folders.tokens, "a.mp4.safetensors")):
        for target in (".hidden", "@eaDir", f"../linked {folder.name}"):
            (folder / target).mkdir()
            (folder / target / name).write_bytes((folder / name).read_bytes())
        (folder / "link").symlink_to(folder / target)
        (folder / "link" / "up").symlink_to(folder)
        (folder / "notes.txt").touch()
    result = folders.run(command)
    assert b"1 file of other kinds passed over (.txt)\n" in result.stderr
    assert result.returncode == 0 and folders.done(command, result.stdout) in (2, None)
    if command != "train":
        assert folders.run(command, "--quiet", "--force").stderr == b""


def test_clips_encoded_at_another_rate_are_not_resumed(folders, staged):
    folders.add("a.mp4")
    args = "encode", folders.clips, "-o", folders.out, *staged
    for rate in (("--tokens", 0.6), (), ("--lambda", 1)):
        works(*args, *rate, "--force")
        assert b"nothing to do" in works(*args, *rate).stderr
        for other in (("--tokens", 0.7), ("--psnr", 30)):
            fails(2, "exists and was made with another tokenizer, rate", *args, *other)


DAMAGE = {
    "no fps": {"fps": None},
    "fps of text": {"fps": "x"},
    "fps of 10^9999": {"fps": "1e9999"},
    "no height": {"height": None},
    "height of text": {"height": "x"},
    "another format": {"format": "x"},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_token_file_in_the_output_is_the_failure_of_its_clip(damage, folders):
    folders.add("a.mp4")
    folders.run("encode")
    folders.add("b.mp4")
    target = folders.out / "a.mp4.safetensors"
    header, body = split_file(target.read_bytes())
    metadata = header["__metadata__"] | damage
    header["__metadata__"] = {key: value for key, value in metadata.items() if value is not None}
    target.write_bytes(join_file(header, body))
    before = target.read_bytes()
    result = folders.run("encode", "--size", 48, "--fps", 12)
    assert result.returncode == 1
    assert "a.mp4.safetensors" in (failure := folders.failure("encode", result))
    assert "delete " in failure and b"Traceback" not in result.stderr
    assert target.read_bytes() == before
    assert read_tokens(folders.out / "b.mp4.safetensors").fps == 12
