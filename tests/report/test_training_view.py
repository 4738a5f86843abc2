"""The live view of training: in a terminal, as plain lines, and from a run's folder."""

import io
import json

import pytest
from rich.console import Console

from vqtok import config, report
from vqtok.errors import UsageError
from vqtok.settings import TrainSettings

ROW = {
    "loss": 0.5,
    "psnr": 20,
    "usage": 0.25,
    "usage_by_chance": 0.5,
    "perplexity": 12.0,
    "seconds_per_step": 0.5,
}


@pytest.mark.parametrize("usage, is_warned", [(0.12, True), (0.13, False)])
def test_view_warns_of_codebook_collapse(usage, is_warned):
    console = Console(file=io.StringIO(), width=100)
    report.TrainingView(console, TrainSettings()).show(ROW | {"step": 1, "usage": usage})
    assert ("codebook collapse" in console.file.getvalue()) == is_warned


def test_view_prints_lines_without_a_terminal():
    console = Console(file=io.StringIO(), width=100)
    view = report.TrainingView(console, TrainSettings())
    with view.open(20):
        for step in (10, 20):
            view.show(ROW | {"step": step})
    assert console.file.getvalue().splitlines() == [
        f"step {step}: loss 0.5000, PSNR 20.00 dB, usage 25.0% (by chance 50.0%), perplexity 12, "
        "frames/s 104.0"
        for step in (10, 20)
    ]


@pytest.mark.parametrize("key", ["step", *ROW])
def test_view_skips_rows_without_a_required_key(key):
    console = Console(file=io.StringIO(), width=100)
    view = report.TrainingView(console, TrainSettings())
    row = ROW | {"step": 10}
    with view.open(20):
        view.show({name: value for name, value in row.items() if name != key})
        assert console.file.getvalue() == ""
        view.show(row)
    assert console.file.getvalue().startswith("step 10: loss 0.5000")


def test_view_draws_sparklines_on_a_terminal():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    view = report.TrainingView(console, TrainSettings())
    with view.open(1000):
        for step in range(10, 1001, 10):
            view.show(ROW | {"step": step, "psnr": 20 + step / 100})
    last_frame = console.file.getvalue().split("│ loss")[-1]
    assert "▁▁▂▂▂▂▂▃▃▃▃▄▄" in last_frame  # PSNR, going up
    assert "30.00 dB" in last_frame and "1000/1000" in last_frame


def test_watch_run_shows_rows_until_the_last_step(tmp_path):
    settings = config.load(config.folder() / "fsq.toml", ["train.steps=30"])
    (tmp_path / "config.json").write_text(settings.to_json())
    good = [json.dumps(ROW | {"step": step}).encode() for step in (10, 20, 30)]
    bad = [b"\x00\xff", b"", b"[1]", b"30", b'{"step": "30"}', b'{"loss": 1}']
    bad.append(json.dumps(ROW | {"step": 20, "loss": None}).encode())
    lines = [good[0], *bad, *good[1:], b'{"step": 40, "los']  # the last one is incomplete
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    console = Console(file=io.StringIO(), width=100)
    report.watch_run(tmp_path, console)
    printed = console.file.getvalue().splitlines()
    assert [line.split(":")[0] for line in printed] == ["step 10", "step 30"]


def test_watch_run_rejects_a_folder_without_a_run(tmp_path):
    with pytest.raises(UsageError, match="not a training run"):
        report.watch_run(tmp_path, Console())


@pytest.mark.parametrize(
    "row",
    [
        '{"step": 1, ' + '"x": ' + "[" * 100_000,
        '{"step": ' + "9" * 5000 + "}",
        {"seconds_per_step": 0},
        {"loss": 10**400},
        {"psnr": float("nan")},
        {"loss": float("inf")},
        {"perplexity": "many"},
        "\0",
    ],
    ids=lambda row: str(row)[:20],
)
def test_watch_run_survives_damaged_rows(tmp_path, row):
    settings = config.load(config.folder() / "fsq.toml", ["train.steps=2"])
    (tmp_path / "config.json").write_text(settings.to_json())
    damaged = row if isinstance(row, str) else json.dumps(ROW | {"step": 1} | row)
    rows = [damaged, json.dumps(ROW | {"step": 2})]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{text}\n" for text in rows))
    console = Console(file=io.StringIO(), width=200)
    report.watch_run(tmp_path, console)
    assert "step 2: loss" in console.file.getvalue()
