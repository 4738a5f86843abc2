"""Running the command line, in this process or in one of its own."""

import subprocess
import sys
from types import SimpleNamespace

from typer.testing import CliRunner

from vqtok.cli import app

TINY = (
    *("--set", "model.widths=[8,16]", "--set", "model.encoder_blocks=[1,1]"),
    *("--set", "model.decoder_blocks=[1,1]", "--set", "train.batch_size=2"),
    *("--set", "train.frames=5", "--set", "train.crop=32", "--set", "train.dtype=float32"),
)


def process(*args, stdin=None, **options):
    """Run the command as people do: where pipes, signals and limits matter."""
    command = [sys.executable, "-m", "vqtok", *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=300, **options)


def inside(*args, stdin=None):
    """Run the command in this process, where torch is imported already."""
    result = CliRunner().invoke(app, list(map(str, args)), input=stdin)
    return SimpleNamespace(
        returncode=result.exit_code, stdout=result.stdout_bytes, stderr=result.stderr_bytes
    )


def works(*args, run=inside, **options):
    result = run(*args, **options)
    assert result.returncode == 0, result.stderr.decode()
    return result


def fails(code, sentence, *args, run=inside, **options):
    """The command fails with this exit code and says so without a traceback."""
    result = run(*args, **options)
    said = result.stderr.decode()
    assert result.returncode == code, said
    assert sentence in said
    assert "Traceback" not in said
    assert result.stdout == b""
    return said
