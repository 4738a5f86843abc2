"""A process that works, and what it prints and finds where it is started."""

import sys
from dataclasses import dataclass

from vqtok.bulk.process import PYTHON, WorkerProcess


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
