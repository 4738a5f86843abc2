"""The fuzzer finds planted faults, leaves out what does not matter, and finds none in vqtok."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits resources as Linux does")


@pytest.fixture
def scripts(monkeypatch):
    """The script fuzz, and the modules fuzzing.case and fuzzing.worker."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import fuzz
    from fuzzing import case, judge, worker

    monkeypatch.setattr(judge, "MEMORY", 300)  # MiB, to be quick

    return fuzz, case, worker


def raise_error(_):
    raise KeyError("planted")


def hang(_):
    time.sleep(60)


def allocate(_):
    np.ones(400 * 2**20, np.uint8)


def abort(_):
    os.abort()


def leave_file(_):
    Path(".half-written").write_bytes(b"x")


def leave_temporary(_):
    Path("../../tmp/copy").write_bytes(b"x")


def change_input(_):
    Path("input").write_bytes(b"changed")


def print_natively(_):
    os.write(2, b"a library says something")


FAULTS = {
    "KeyError in test_fuzz.py:raise_error": raise_error,
    "test_fuzz.py:hang": hang,
    "memory": allocate,
    "SIGABRT in test_fuzz.py:abort": abort,
    "temporary file": leave_file,
    "temporary file ": leave_temporary,
    "changed input": change_input,
    "native output": print_natively,
}
RESULTS = {
    "control character": (1, b"", b"vqtok: \x1b[31mred\n"),
    "exit code": (3, b"", b"vqtok: x\n"),
    "no sentence": (1, b"", b"it failed\n"),
    "unexpected error": (0, b"", b"a: UserWarning: careful\n"),
    "long line": (1, b"", b"vqtok: " + b"x" * 3000),
    "out of memory": (1, b"", b"vqtok: out of memory: try a smaller --size\n"),
    "stdout of a failure": (1, b"data", b"vqtok: x\n"),
}


def plant(case, fault):
    """Return a target with two mutations, of which the one named `harmful` triggers the fault."""

    def harmful(old, random):
        return replace(old, files={"input": b"harmful"})

    def harmless(old, random):
        return replace(old, args=("encode", *old.args[1:], "x"))

    def run(tried):
        result = fault(tried) if tried.files["input"] == b"harmful" else None
        return result or case.Result(0)

    start = case.Case(("encode",), {"input": b"valid"}, "input")
    return case.Target(lambda random: start, (harmful, harmless), run, most=4)


def find(scripts, fault, limit=20.0):
    """Return the report on a planted fault, and its number of cases."""
    fuzz, case, _ = scripts
    targets = {"planted": plant(case, fault)}
    reports, counts = fuzz.fuzz(targets, fuzz.schedule(targets, 3), seed=0, limit=limit)
    assert len(reports) == 1
    assert 0 < counts["planted"]["findings"] <= counts["planted"]["cases"] == 3
    return reports[0]


@pytest.mark.parametrize("expected", FAULTS)
def test_planted_faults_are_found_and_minimized(scripts, expected):
    report = find(scripts, FAULTS[expected], limit=1.0 if "hang" in expected else 20.0)
    assert expected.strip() in (report["kind"], report["where"])
    assert report["mutations"] == ["harmful"]


@pytest.mark.parametrize("kind", RESULTS)
def test_wrong_results_are_found(scripts, kind):
    report = find(scripts, lambda _: scripts[1].Result(*RESULTS[kind]))
    assert report["kind"] == kind
    assert report["mutations"] == ["harmful"]


def test_a_case_depends_on_its_number_and_the_seed_alone(scripts):
    _, case, _ = scripts
    from fuzzing.targets import TARGETS

    for name, target in TARGETS.items():
        cases = [case.build(target, name, number, seed=0) for number in (*range(20), *range(20))]
        assert cases[:20] == cases[20:]
        assert len({tuple(each.files.values()) + each.args for each, _ in cases}) > 10
        assert case.build(target, name, 0, seed=1) != cases[0]


def test_a_clean_sentence_is_no_finding(scripts):
    _, case, worker = scripts
    from fuzzing.judge import run_command

    start = case.Case(("stats", "missing.safetensors"), {"a": b""}, "a")
    target = case.Target(lambda random: start, (lambda old, random: old,), run_command)
    with worker.Worker({"a": target}, seed=0, limit=20) as tried:
        assert tried.try_case("a", 0) is None


@pytest.mark.slow
def test_two_minutes_find_nothing():
    command = [sys.executable, ROOT / "scripts" / "fuzz.py", "--rounds", "160", "--limit", "60"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
