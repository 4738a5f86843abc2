"""`vqtok stats`: reports on token files, on a codebook, and on a training run."""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from rich.console import Console

from vqtok import report
from vqtok.codebook_stats.codebook_report import CodebookReport
from vqtok.commands.counting import count_inputs, list_inputs
from vqtok.errors import VqtokError

MAX_REASONS = 5  # printed: the rest are most often the same


@dataclass(frozen=True)
class Output:
    """Where reports go: to stdout as JSON, as CSV or for people, and into a plot if it is given.

    force: overwrite a plot that exists.
    """

    as_json: bool
    as_csv: bool
    plot: Path | None
    force: bool


def show_tokens(
    sources: Sequence[str],
    tokenizer: str | None,
    device: str,
    each: bool,
    output: Output,
    quiet: bool,
) -> None:
    """Report on token files, and on clips, which `tokenizer` encodes without writing tokens.

    each: report on every source by itself.
    Raises VqtokError at the end if any file could not be counted.
    """
    if output.plot:
        report.check_plot(output.plot, output.force)
    inputs = list_inputs(sources, each, allow_clips=tokenizer is not None)
    model = None
    if tokenizer is not None:
        from vqtok.model.checkpoint import load_for_inference  # imports PyTorch

        model = load_for_inference(tokenizer, device, None)
    reports, failures = count_inputs(inputs, model, each, quiet)
    if reports:
        _show(reports, output)
    if failures:
        reasons = "; ".join(failures[:MAX_REASONS])
        more = f"; and {len(failures) - MAX_REASONS} more" if len(failures) > MAX_REASONS else ""
        count = f"{len(failures)} of {len(inputs)} files"
        raise VqtokError(f"{count} could not be counted: {reasons}{more}")


def show_codes(tokenizer: str, as_json: bool) -> None:
    """Report on the codebook of a tokenizer."""
    from vqtok.codebook_stats.codes import table  # imports PyTorch
    from vqtok.model import checkpoint

    model = checkpoint.load(tokenizer)
    codebook = table(model.kind, model.quantizer)
    if as_json:
        print(json.dumps(codebook.numbers(), indent=2))
    else:
        console = Console(highlight=False)
        console.print(report.table_report(codebook, console))


def watch_run(folder: Path) -> None:
    """Follow a training run until its last step."""
    report.follow(folder, Console(highlight=False))


def _show(reports: list[CodebookReport], output: Output) -> None:
    if output.plot:
        report.plot(reports, output.plot)
    single = len(reports) == 1
    if output.as_json:
        numbers = [each.numbers() for each in reports]
        print(json.dumps(numbers[0] if single else numbers, indent=2))
    elif output.as_csv:
        _write_csv(reports)
    else:
        console = Console(highlight=False)
        screen = (
            report.report(reports[0], console) if single else report.comparison(reports, console)
        )
        console.print(screen)


def _write_csv(reports: Sequence[CodebookReport]) -> None:
    """Print a header, and one line per report with the numbers that are not lists."""
    rows = [each.numbers() for each in reports]
    keys = list(takewhile(lambda key: key != "top", rows[0]))
    writer = csv.DictWriter(sys.stdout, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
