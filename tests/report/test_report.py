"""The screens of `vqtok stats`, compared with snapshots at three widths.

To accept a new screen, delete its files in tests/snapshots and run the tests: they write the files
anew and fail once, so that somebody looks at them.
"""

import io
from unittest.mock import patch

import numpy as np
import pytest
from rich.console import Console

from helpers import TESTS
from helpers.tokens import count_codes
from vqtok import report
from vqtok.codebook_stats.codebook_report import codebook_report
from vqtok.codebook_stats.codes import CodebookTable, CodeStatistics, Distribution
from vqtok.commands.progress import ProgressBars

SNAPSHOTS = TESTS / "snapshots"
LEVELS = (5, 5, 5, 8)


def random_clip(size, codebooks=1, seed=0, t=40):
    """Return indices with uneven frequencies, repeats in time, and low entropy at the top edge."""
    rng = np.random.default_rng(seed)
    shape = (t, 18, 32) if codebooks == 1 else (t, 18, 32, codebooks)
    indices = (size * rng.random(shape) ** 3).astype(np.int32)
    indices[:, :4] //= 9
    for i in range(1, t):
        repeat = rng.random(shape[1:]) < 0.4
        indices[i][repeat] = indices[i - 1][repeat]
    return indices


def make_report(kind, name, levels=None, codebooks=1, **options):
    size = 1000 if kind == "fsq" else 1024
    clips = [random_clip(size, codebooks, **options)]
    return codebook_report(count_codes(clips, codebook_size=size, quantizer=kind), name, levels)


def huge_report():
    """Return a report of ten billion tokens, with many levels per dimension."""
    counts = count_codes([random_clip(4096)], codebook_size=4096, quantizer="fsq")
    for name in (
        *("occurrences", "changes", "latent_frames", "distinct_ids", "transitions"),
        *("frames", "pixels", "seconds"),
    ):
        setattr(counts, name, getattr(counts, name) * 432_101)
    counts.files = 100_000
    return codebook_report(counts, "corpus", (16, 16, 16))


def sparse_report(stages, name="walk"):
    """Return a report with a zero code: much is new in key frames, then most of it in the middle.

    Each later stage has a token at half of the positions of the one before it.
    """
    indices = 1 + random_clip(1023, stages).reshape(40, 18, 32, stages)
    shares = np.where(np.arange(40) % 16 == 0, 0.8, 0.1)[:, None, None]
    shares = shares * np.exp(-(((np.arange(32) - 16) / 8) ** 2))
    drawn = np.random.default_rng(1).random((40, 18, 32, 1))
    indices *= drawn < shares[..., None] / 2 ** np.arange(stages)
    clip = indices[..., 0] if stages == 1 else indices
    counts = count_codes([clip], codebook_size=1024, quantizer="ema", zero_code=True)
    return codebook_report(counts, name)


def still_report():
    """Return a report without a single token."""
    clip = np.zeros((9, 6, 8), np.int32)
    return codebook_report(count_codes([clip], quantizer="ema", zero_code=True), "still")


VALUES = Distribution(0.5, 1.25, 3.0, [0, 1, 5, 9, 12, 40, 33, 20, 9, 3, 0, 1])
EMA = CodebookTable("ema", 1024, 8, CodeStatistics(VALUES, VALUES, 2, VALUES, 31, 7))
FSQ = CodebookTable("fsq", 1000, 4, None)
SCREENS = {
    "fsq": lambda c: report.render_report(make_report("fsq", "walk", LEVELS), c),
    "fsq_of_unknown_levels": lambda c: report.render_report(make_report("fsq", "walk", t=1), c),
    "huge": lambda c: report.render_report(huge_report(), c),
    "lfq": lambda c: report.render_report(make_report("lfq", "walk"), c),
    "several_codebooks": lambda c: report.render_report(make_report("vq2", "walk", codebooks=3), c),
    "zero_code": lambda c: report.render_report(sparse_report(1), c),
    "zero_code_of_stages": lambda c: report.render_report(sparse_report(3), c),
    "zero_code_alone": lambda c: report.render_report(still_report(), c),
    "comparison_of_zero_codes": lambda c: report.render_comparison(
        [sparse_report(3), still_report(), make_report("ema", "dense")], c
    ),
    "comparison": lambda c: report.render_comparison(
        [
            make_report("fsq", "a walk with a rather long name", LEVELS),
            make_report("lfq", "run"),
            make_report("ema", "still", t=1),
        ],
        c,
    ),
    "codes": lambda c: report.render_codebook(EMA, c),
    "no_codes": lambda c: report.render_codebook(FSQ, c),
}


def screen_text(screen, width, **options):
    """Return a screen as text, without trailing spaces."""
    console = Console(file=io.StringIO(), width=width, record=True, **options)
    console.print(SCREENS[screen](console))
    return "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("screen", SCREENS)
def test_screens_match_their_snapshots(screen, width):
    text, path = screen_text(screen, width), SNAPSHOTS / f"{screen}_{width}.txt"
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text  # nothing is cut off
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path.name} did not exist and was written: check it, and run again")
    assert text == path.read_text()


@pytest.mark.parametrize("screen", SCREENS)
def test_screens_can_be_encoded_in_ascii(screen):
    file = io.TextIOWrapper(io.BytesIO(), "ascii")
    console = Console(file=file, width=80)
    console.print(SCREENS[screen](console))
    file.flush()
    assert file.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("colors", ["standard", "256", "truecolor", None])
def test_colors_do_not_change_the_text(screen, colors):
    options = {"force_terminal": colors is not None, "color_system": colors}
    assert screen_text(screen, 80, **options) == screen_text(screen, 80)


@pytest.mark.parametrize("screen", SCREENS)
def test_only_the_16_named_colors_are_used(screen):
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="truecolor")
    console.print(SCREENS[screen](console))
    assert "\x1b[38;" not in file.getvalue() and "\x1b[48;" not in file.getvalue()


def test_report_shows_its_figures():
    expected, text = make_report("fsq", "walk", LEVELS), screen_text("fsq", 80)
    use = expected.use
    for figure in (f"{use.tokens:,}", f"{use.usage:.2%}", f"{use.perplexity:,.1f}"):
        assert figure in text
    assert f"{use.entropy_bits:.3f}" in text and f"{use.entropy_bits_corrected:.3f}" in text
    assert text.splitlines()[1].startswith(f"│ {expected.health.status.upper()}")


def test_comparison_marks_the_best_value_of_a_row():
    lines = screen_text("comparison", 120).splitlines()
    row = next(line for line in lines if "usage / chance" in line)
    assert row.count("◀") == 1
    assert not any("◀" in line for line in lines if "│ tokens" in line)


def test_comparison_marks_nothing_among_equal_values():
    reports = [make_report("fsq", "a"), make_report("fsq", "b")]
    console = Console(file=io.StringIO(), width=80)
    console.print(report.render_comparison(reports, Console(width=80)))
    assert "◀" not in console.file.getvalue().split("\n", 1)[1]


@pytest.mark.parametrize("name", ["[red]a", "[/a]", "[bold]"])
def test_names_with_brackets_are_not_markup(name):
    one, other = make_report("fsq", name, t=1), make_report("lfq", "b", t=1)
    console = Console(file=io.StringIO(), width=120)
    for screen in (
        report.render_report(one, console),
        report.render_comparison([one, other], console),
    ):
        console.file.truncate(0)
        console.print(screen)
        assert name in console.file.getvalue().split("verdict")[0]


@pytest.mark.parametrize("name", ["[red]a", "[/a]", "[bold]"])
def test_names_with_brackets_are_not_markup_in_progress_bars(name):
    terminal = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with patch("vqtok.commands.progress.console", return_value=terminal):
        bars = ProgressBars(False)
    with bars, bars.task(name, 3):
        pass  # the bar is drawn as it ends
    assert name in terminal.file.getvalue()
