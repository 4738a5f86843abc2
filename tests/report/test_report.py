"""The screens, held by snapshots at three widths, and the figures of a training run as lines.

To accept a new look, delete the file in tests/snapshots and run the test: it is written anew, and
the test fails once, so that somebody looks at it.
"""

import io
import json
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from helpers import TESTS
from helpers.tokens import entropy, tallied
from vqtok import config, report
from vqtok.codebook_stats.codebook_report import figures
from vqtok.codebook_stats.codes import Codes, Spread, Table
from vqtok.codebook_stats.usage import bits_per_pixel, codebook_use, usage_by_chance
from vqtok.commands.progress import ProgressBars
from vqtok.config import TrainSettings
from vqtok.errors import UsageError

SNAPSHOTS = TESTS / "snapshots"
LEVELS = (5, 5, 5, 8)


def clip(size, books=1, seed=0, t=40):
    """Uneven, with repeats in time, and dull at the edge."""
    rng = np.random.default_rng(seed)
    shape = (t, 18, 32) if books == 1 else (t, 18, 32, books)
    indices = (size * rng.random(shape) ** 3).astype(np.int32)
    indices[:, :4] //= 9
    for i in range(1, t):
        same = rng.random(shape[1:]) < 0.4
        indices[i][same] = indices[i - 1][same]
    return indices


def run(kind, name, levels=None, books=1, **options):
    size = 1000 if kind == "fsq" else 1024
    made = [clip(size, books, **options)]
    return figures(tallied(made, codebook_size=size, quantizer=kind), name, levels)


def huge():
    """Ten thousand million tokens, and dimensions of many levels."""
    counted = tallied([clip(4096)], codebook_size=4096, quantizer="fsq")
    for name in ("counts", "fresh", "over_time", "followed", "frames", "pixels", "seconds"):
        setattr(counted, name, getattr(counted, name) * 432_101)
    counted.files = 100_000
    return figures(counted, "corpus", (16, 16, 16))


SPREAD = Spread(0.5, 1.25, 3.0, [0, 1, 5, 9, 12, 40, 33, 20, 9, 3, 0, 1])
EMA = Table("ema", 1024, 8, Codes(SPREAD, SPREAD, 2, SPREAD, 31, None))
SCREENS = {
    "fsq": lambda c: report.report(run("fsq", "walk", LEVELS), c),
    "fsq_of_unknown_levels": lambda c: report.report(run("fsq", "walk", t=1), c),
    "huge": lambda c: report.report(huge(), c),
    "lfq": lambda c: report.report(run("lfq", "walk"), c),
    "several_codebooks": lambda c: report.report(run("vq2", "walk", books=3), c),
    "comparison": lambda c: report.comparison(
        [
            run("fsq", "a walk with a rather long name", LEVELS),
            run("lfq", "run"),
            run("ema", "still", t=1),
        ],
        c,
    ),
    "codes": lambda c: report.table_report(EMA, c),
    "no_codes": lambda c: report.table_report(Table("fsq", 1000, 4, None), c),
}


def shown(screen, width, **options):
    """The screen as text, without the blanks at the ends of lines."""
    console = Console(file=io.StringIO(), width=width, record=True, **options)
    console.print(SCREENS[screen](console))
    return "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("screen", SCREENS)
def test_screens_look_as_they_did(screen, width):
    text, path = shown(screen, width), SNAPSHOTS / f"{screen}_{width}.txt"
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text  # nothing is cut off
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path.name} was not there: look at it, and run again")
    assert text == path.read_text()


@pytest.mark.parametrize("screen", SCREENS)
def test_screens_need_no_more_than_ascii(screen):
    file = io.TextIOWrapper(io.BytesIO(), "ascii")
    console = Console(file=file, width=80)
    console.print(SCREENS[screen](console))
    file.flush()
    assert file.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("colours", ["standard", "256", "truecolor", None])
def test_colours_change_no_character(screen, colours):
    options = {"force_terminal": colours is not None, "color_system": colours}
    assert shown(screen, 80, **options) == shown(screen, 80)


@pytest.mark.parametrize("screen", SCREENS)
def test_colours_are_the_sixteen_that_every_terminal_has(screen):
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="truecolor")
    console.print(SCREENS[screen](console))
    assert "\x1b[38;" not in file.getvalue() and "\x1b[48;" not in file.getvalue()


def test_the_report_shows_the_figures():
    found, text = run("fsq", "walk", LEVELS), shown("fsq", 80)
    use = found.use
    for figure in (f"{use.tokens:,}", f"{use.usage:.2%}", f"{use.perplexity:,.1f}"):
        assert figure in text
    assert f"{use.entropy_bits:.3f}" in text and f"{use.entropy_bits_corrected:.3f}" in text
    assert text.splitlines()[1].startswith(f"│ {found.verdict.state.upper()}")


def test_a_comparison_marks_the_better():
    lines = shown("comparison", 120).splitlines()
    row = next(line for line in lines if "usage / chance" in line)
    assert row.count("◀") == 1
    assert not any("◀" in line for line in lines if "│ tokens" in line)
    text = report.comparison([run("fsq", "a"), run("fsq", "b")], Console(width=80))
    console = Console(file=io.StringIO(), width=80)
    console.print(text)
    assert "◀" not in console.file.getvalue().split("\n", 1)[1]  # equals: none is better


@pytest.mark.parametrize("name", ["[red]a", "[/a]", "[bold]"])
def test_a_name_in_brackets_is_a_name(name):
    one, other = run("fsq", name, t=1), run("lfq", "b", t=1)
    console = Console(file=io.StringIO(), width=120)
    for screen in (report.report(one, console), report.comparison([one, other], console)):
        console.file.truncate(0)
        console.print(screen)
        assert name in console.file.getvalue().split("verdict")[0]
    terminal = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with patch("vqtok.commands.progress.console", return_value=terminal):
        bars = ProgressBars(False)
    with bars, bars.task(name, 3):
        pass  # the bar is drawn as it ends
    assert name in terminal.file.getvalue()


@settings(deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=60))
def test_use_equals_a_direct_computation(indices):
    use = codebook_use(np.bincount(indices, minlength=16))
    number = len(set(indices))
    assert (use.tokens, use.used, use.dead) == (len(indices), number, 16 - number)
    assert use.usage == pytest.approx(number / 16)
    assert use.usage_by_chance == pytest.approx(1 - (1 - 1 / 16) ** len(indices))
    assert use.entropy_bits == pytest.approx(entropy(indices), abs=1e-9)
    assert use.perplexity == pytest.approx(2 ** entropy(indices))


def test_chance_stays_exact_where_floats_run_out():
    assert usage_by_chance(65_536, 262_144) == pytest.approx(0.2212, abs=1e-4)
    assert usage_by_chance(1, 2**40) == pytest.approx(2**-40)
    assert usage_by_chance(5, 1) == 1
    assert usage_by_chance(0, 1) == usage_by_chance(0, 16) == 0


def test_bits_per_pixel_of_the_default_codebook():
    assert bits_per_pixel(1, 2**16, 4 * 8 * 8) == 0.0625


ROW = {"loss": 0.5, "psnr": 20, "usage": 0.25, "usage_by_chance": 0.5, "perplexity": 12.0}
ROW |= {"seconds_per_step": 0.5}


@pytest.mark.parametrize("usage, warned", [(0.12, True), (0.13, False)])
def test_training_warns_of_a_codebook_that_collapses(usage, warned):
    screen = Console(file=io.StringIO(), width=100)
    report.TrainingView(screen, TrainSettings()).show(ROW | {"step": 1, "usage": usage})
    assert ("the codebook collapses" in screen.file.getvalue()) == warned


def test_training_shows_lines_where_there_is_no_terminal():
    screen = Console(file=io.StringIO(), width=100)
    view = report.TrainingView(screen, TrainSettings())
    with view.open(20):
        for step in (10, 20):
            view.show(ROW | {"step": step})
            view.show({"step": step, "val_psnr": 21.0})  # another kind
    assert screen.file.getvalue().splitlines() == [
        f"step {step}: loss 0.5000, PSNR 20.00 dB, usage 25.0% (chance 50.0%), perplexity 12, "
        "frames/s 104.0"
        for step in (10, 20)
    ]


def test_training_shows_its_course_on_a_terminal():
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    view = report.TrainingView(screen, TrainSettings())
    with view.open(1000):
        for step in range(10, 1001, 10):
            view.show(ROW | {"step": step, "psnr": 20 + step / 100})
    last = screen.file.getvalue().split("│ loss")[-1]
    assert "▁▁▂▂▂▂▂▃▃▃▃▄▄" in last  # PSNR, going up
    assert "30.00 dB" in last and "1000/1000" in last


def test_a_run_is_followed_to_its_last_step(tmp_path):
    settings = config.load(config.folder() / "fsq.toml", ["train.steps=30"])
    (tmp_path / "config.json").write_text(settings.to_json())
    rows = [ROW | {"step": step} for step in (10, 20, 30)]
    good = [json.dumps(row).encode() for row in rows]
    bad = [b"\x00\xff", b"", b"[1]", b"30", b'{"step": "30"}', b'{"loss": 1}']
    bad.append(json.dumps(ROW | {"step": 20, "loss": None}).encode())
    lines = [good[0], *bad, *good[1:], b'{"step": 40, "los']  # being written
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    screen = Console(file=io.StringIO(), width=100)
    report.follow(tmp_path, screen)
    said = screen.file.getvalue().splitlines()
    assert [line.split(":")[0] for line in said] == ["step 10", "step 30"]


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        report.follow(tmp_path, Console())
