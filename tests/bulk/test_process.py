"""A process that works, and what it prints and finds where it is started."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass

import pytest

from vqtok.bulk.process import COMMAND, PYTHON, Setup, WorkerProcess


@dataclass
class Word:
    """The first line that a process reads."""

    word: str


def replies(*command):
    """Return the replies of a process until it ends."""
    process = WorkerProcess(Word("first"), command)
    found = []
    while (reply := process.receive(30)) is not None:
        found.append(reply)
    process.close()
    return found


def test_a_process_may_print_what_is_no_reply():
    code = (
        "import sys; out = sys.stdout.buffer; out.write(b'hello\\n[1]\\n\\xff\\n'); "
        'out.write(b\'{"a": 1}\\n{"b": 2\')'
    )
    assert replies(sys.executable, "-c", code) == [{"a": 1}]


def test_modules_of_the_working_directory_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("print('{\"imported\": 1}')")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "replies.py").write_text("import json; print(json.dumps({'b': 2}))")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    assert replies(*PYTHON, "replies") == [{"b": 2}]


def test_a_process_is_not_disturbed_by_signals_of_the_terminal_and_the_parent_is():
    code = """
import os, signal
for number in (signal.SIGINT, signal.SIGHUP):
    os.kill(os.getpid(), number)
print('{"lives": 1}')
"""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert replies(sys.executable, "-c", code) == [{"lives": 1}]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.parametrize("is_set_up", [False, True])
def test_a_worker_whose_parent_is_gone_ends_without_a_word(is_set_up, tmp_path):
    """Before it could read its setup, or while it starts."""
    setup = Setup(str(tmp_path), "none", "cpu", 1)
    worker = subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    worker.stdout.close()
    _, errors = worker.communicate(json.dumps(asdict(setup)) + "\n" if is_set_up else "")
    assert (worker.returncode, errors) == (int(is_set_up), "")
