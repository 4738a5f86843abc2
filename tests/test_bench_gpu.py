"""The script that measures on a GPU: its page, and steps that fail."""

from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from helpers import ROOT


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import bench_gpu

    return bench_gpu


def run(bench, *options):
    app = typer.Typer()
    app.command()(bench.main)
    return CliRunner().invoke(app, list(map(str, options)))


def test_a_step_that_fails_is_noted_and_the_others_go_on(bench, monkeypatch, tmp_path):
    programs = {
        "bad": "print('| half |'); raise ValueError('no kernel')",
        "slow": "import time; print('| begun |', flush=True); time.sleep(60)",
        "good": "print('| all |')",
        "left out": "print('never')",
    }
    steps = [
        bench.Step(name, f"The {name} one", "", ["-c", code], timeout=3 if name == "slow" else 60)
        for name, code in programs.items()
    ]
    monkeypatch.setattr(bench, "plan", lambda *_: steps)
    page = tmp_path / "page.md"
    only = ("--only", "bad", "--only", "slow", "--only", "good")
    result = run(bench, "--device", "cpu", "--output", page, *only)
    assert result.exit_code == 1
    sections = page.read_text().split("\n## ")
    assert sections[1] == (
        "The bad one\n\n| half |\n\n**Failed**: exit code 1: ValueError: no kernel\n"
    )
    assert sections[2] == "The slow one\n\n| begun |\n\n**Failed**: not finished after 3 s\n"
    assert sections[3] == "The good one\n\n| all |\n"
    assert sections[4].splitlines()[2:5] == [
        "- The left out one.",
        "- The bad one, all or a part of it: exit code 1: ValueError: no kernel",
        "- The slow one, all or a part of it: not finished after 3 s",
    ]
    assert len(sections) == 5
    only = ("--only", "good")
    assert run(bench, "--device", "cpu", "--output", page, *only).exit_code == 0


def test_the_page_of_gpus_holds_no_figures_of_a_cpu(bench, monkeypatch):
    before = bench.PAGE.read_text()
    for options in (
        (),
        ("--output", bench.PAGE),
        ("--output", bench.PAGE.parent / "figures-gpu.md"),
    ):
        result = run(bench, "--device", "cpu", *options)
        assert result.exit_code == 1 and "needs another --output" in result.output
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(bench).exit_code == 1
    assert bench.PAGE.read_text() == before


def test_the_scripts_take_the_arguments_of_each_step(bench, tmp_path):
    for scale in (bench.FULL, bench.QUICK, bench.TRIAL):
        for step in bench.plan(scale, "cuda", tmp_path):
            script, *arguments = map(str, step.arguments)
            if script != "-m":
                app = typer.Typer()
                app.command()(import_module(Path(script).stem).main)
                assert get_command(app).make_context(script, arguments).params
