"""Run the command line, in this process or in one of its own."""

import subprocess
import sys
import time
from types import SimpleNamespace

from typer.testing import CliRunner

from helpers import training
from vqtok.cli import app

TINY = tuple(f"--set={override}" for override in training.TINY)  # options of a fast `train`


def in_process(*args, stdin=None):
    """Run a command in this process, where torch is imported already."""
    result = CliRunner().invoke(app, list(map(str, args)), input=stdin)
    return SimpleNamespace(
        returncode=result.exit_code, stdout=result.stdout_bytes, stderr=result.stderr_bytes
    )


def in_subprocess(*args, stdin=None, **options):
    """Run a command as users do, where pipes, signals and limits matter."""
    command = [sys.executable, "-m", "vqtok", *map(str, args)]
    return subprocess.run(
        command, input=stdin, **{"capture_output": True, "timeout": 300} | options
    )


def start(*args, **options):
    """Start a command in the background, with a pipe from its stderr."""
    command = [sys.executable, "-m", "vqtok", *map(str, args)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)


def wait_until(condition, process, timeout=60):
    """Wait until the condition holds; fail if the process ends first or the time is over."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def works(*args, run=in_process, **options):
    """Run a command that must succeed."""
    result = run(*args, **options)
    assert result.returncode == 0, result.stderr.decode()
    return result


def fails(code, message, *args, run=in_process, **options):
    """Run a command that must fail with this exit code and message; return its stderr."""
    result = run(*args, **options)
    stderr = result.stderr.decode()
    assert result.returncode == code, stderr
    assert message in stderr
    assert "Traceback" not in stderr
    assert not result.stdout
    return stderr


def file_names(folder):
    """Return the names of all files in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())
