"""Run a case in a folder of its own, and say what is wrong with what it did."""

import json
import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path

from fuzzing.case import Case, Result
from fuzzing.odd_paths import make_odd_paths
from typer.testing import CliRunner

import vqtok
from vqtok.cli import app

PACKAGE = Path(vqtok.__file__).parent
MAX_LINE = 2000  # characters of a message
MEMORY = 1536  # MiB that a case may take
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
UNEXPECTED = re.compile(
    r"\b(?:[A-Za-z]+Error|[A-Za-z]*(?:Exception|Warning))\b: ?[^\n]*|Traceback[^\n]*"
)


@dataclass(frozen=True)
class Finding:
    """A fault. `kind` and `where` are the same for all cases that show it."""

    kind: str
    where: str
    detail: str = ""


def run_command(case: Case) -> Result:
    """Run vqtok in this process."""
    data = case.files[case.subject] if case.stdin else None
    result = CliRunner().invoke(app, list(case.args), input=data)
    error = None if isinstance(result.exception, SystemExit) else result.exception
    return Result(result.exit_code, result.stdout_bytes, result.stderr_bytes, error)


def try_case(case: Case, run: Callable[[Case], Result], folder: Path) -> Finding | None:
    """Run a case, and return the first thing that is wrong."""
    root, native = folder / "case", folder / "native.log"
    shutil.rmtree(root, ignore_errors=True)
    inside, temporary = root / "a" / "b", root / "tmp"
    inside.mkdir(parents=True)
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    os.truncate(native, 0)
    for name, data in case.files.items():
        path = inside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if case.odd_paths:
        make_odd_paths(inside)
    before = snapshot(root)
    start = reset_peak_memory()
    with chdir(inside):
        try:
            result = run(case)
        except Exception as error:
            result = Result(1, error=error)
    peak = peak_memory() - start
    if peak > MEMORY:
        return Finding("memory", case.args[0], f"{peak:.0f} MiB; {text(result.stderr)[-300:]}")
    return next(complaints(case, result, before, root, native), None)


def complaints(
    case: Case, result: Result, before: dict[str, bytes], root: Path, native: Path
) -> Iterator[Finding]:
    """Yield what is wrong with what a case printed, returned and left behind.

    before: the snapshot of the root.
    native: what libraries have printed past Python.
    """
    if result.error is not None:
        yield crashed(result.error)
    yield from wrong_messages(case, result)
    yield from wrong_output(case, result)
    yield from wrong_files(case, result, before, root)
    if printed := text(native.read_bytes()):
        yield Finding("native output", generic(printed, case), printed[:500])


def crashed(error: BaseException) -> Finding:
    """Return the finding of an exception, by its type and the last line of vqtok that it left."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    frame = (own or frames)[-1]
    where = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.name}"
    return Finding("exception", where, f"line {frame.lineno}: {str(error)[:300]}")


def wrong_messages(case: Case, result: Result) -> Iterator[Finding]:
    """Yield what is wrong with stderr and the exit code."""
    stderr = text(result.stderr)
    last = stderr.rstrip("\n").rpartition("\n")[2]
    if result.code not in (0, 1, 2):
        yield Finding("exit code", f"{result.code}", stderr[-500:])
    is_usage = re.search("^Error: ", stderr, re.MULTILINE)  # of Typer
    if result.code and not last.startswith("vqtok: ") and not is_usage:
        broken = any("\n" in arg for arg in case.args)
        where = "a line break in an argument" if broken else generic(last, case)
        yield Finding("no sentence", where, stderr[-500:])
    if found := UNEXPECTED.search(stderr):
        yield Finding("unexpected error", generic(found[0], case), stderr[-1000:])
    if found := CONTROL.search(stderr.replace("\n\t", "\n")):  # Typer indents choices
        start = max(0, stderr.rfind("\n", 0, found.start()) + 1, found.start() - 60)
        around = stderr[start : found.end() + 40]
        yield Finding("control character", generic(around, case)[:30], repr(around))
    typed = max(map(len, case.args))  # may be repeated
    if (longest := max(map(len, stderr.split("\n")))) > MAX_LINE + 2 * typed:
        yield Finding("long line", case.args[0], f"{longest} characters: {stderr[:300]}")
    if not case.may_run_out and re.search("out of memory|file too large", last):
        yield Finding("out of memory", generic(last, case), last[:500])
    if case.must_fail and result.code == 0:
        yield Finding("file read that was not named", case.args[0], stderr[-500:])


def wrong_output(case: Case, result: Result) -> Iterator[Finding]:
    """Yield what is wrong with stdout."""
    if not result.stdout or "--help" in case.args or "--version" in case.args:
        return
    if result.code and case.args[0] not in ("stats", "eval"):  # these report what they could read
        yield Finding("stdout of a failure", case.args[0], repr(result.stdout[:200]))
    if case.args[0] in ("encode", "decode"):
        return
    if "--json" in case.args:
        try:
            json.loads(result.stdout, parse_constant=lambda name: float(f"x{name}"))
        except ValueError as error:
            yield Finding("invalid JSON", case.args[0], f"{error}: {result.stdout[:300]!r}")
    if found := CONTROL.search(text(result.stdout)):
        yield Finding("control character", f"stdout of {case.args[0]}", repr(found[0]))


def wrong_files(
    case: Case, result: Result, before: dict[str, bytes], root: Path
) -> Iterator[Finding]:
    """Yield inputs that changed, and files that should not be there."""
    after = snapshot(root)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        inside = name.removeprefix("a/b/")
        named = inside in case.args
        own = any(inside == output or inside.startswith(f"{output}/") for output in case.outputs)
        if case.odd_paths:  # a command line with options of its own
            own = name not in before or ("--force" in case.args and case.args.count(inside) < 2)
        is_journal = re.fullmatch(r"\.(encoded|decoded)(-.*)?\.jsonl", Path(name).name)
        temporary = name.startswith("tmp/") or re.match(r"\.|.*tmp", Path(name).name)
        suffix = Path(name).suffix
        if name not in after or (name in before and not own):
            yield Finding("changed input", f"{case.args[0]} {suffix}", name)
        elif temporary and not is_journal:
            yield Finding("temporary file", f"{case.args[0]} {suffix}", name)
        elif not own:
            yield Finding("stray file", f"{case.args[0]} {suffix}", name)
        elif result.code and named and case.args[0] not in ("train", "stats"):
            yield Finding("target of a failure", f"{case.args[0]} {suffix}", name)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the contents of all regular files, links not followed, below a folder."""
    found = {}
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def text(data: bytes) -> str:
    return data.decode(errors="replace")


def generic(message: str, case: Case) -> str:
    """Return a message without what differs from case to case."""
    for arg in sorted(case.args[1:], key=len, reverse=True):
        message = message.replace(arg, "X") if len(arg) > 1 else message
    message = CONTROL.sub("?", message)
    message = re.sub(r"\S*[/\\.]\S*|'[^']*'|\"[^\"]*\"", "X", message[:500])
    return re.sub(r"[-+]?\d[\w.]*", "N", message)[:80]


def reset_peak_memory() -> float:
    """Start a new high-water mark of this process's memory; return the memory in MiB now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> float:
    """Return the high-water mark in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024
