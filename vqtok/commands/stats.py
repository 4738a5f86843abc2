"""`vqtok stats`: reports on token files, on a codebook, and on a training run."""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vqtok import report
from vqtok.codebook_stats.codebook_report import CodebookReport
from vqtok.codebook_stats.codes import codebook_table
from vqtok.commands.counting import count_inputs
from vqtok.commands.progress import say
from vqtok.commands.token_inputs import files_read, list_inputs
from vqtok.errors import VqtokError, join_reasons
from vqtok.targets import check_targets, tokenizer_file

if TYPE_CHECKING:
    from vqtok.quantizers import Quantizer


@dataclass(frozen=True)
class Output:
    """Where reports go: to stdout as JSON, as CSV or for people, and into a plot if given."""

    as_json: bool
    as_csv: bool
    plot: Path | None


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
    hint = "choose a --tokenizer to encode it" if tokenizer is None else None
    inputs, notes = list_inputs(sources, each, hint)
    say(quiet, *notes)
    read = files_read(inputs)
    read += [] if tokenizer is None else [tokenizer_file(tokenizer)]
    check_targets([sys.stdout, output.plot], read)
    model = None
    if tokenizer is not None:
        from vqtok.model.checkpoint import load_for_inference  # imports PyTorch

        model = load_for_inference(tokenizer, device, None)
    reports, files, failures = count_inputs(inputs, model, each, quiet)
    if reports:
        _show(reports, output)
    if failures:
        reasons = join_reasons(failures, len(failures))
        count = f"{len(failures)} of {files + len(failures)} files"
        raise VqtokError(f"{count} could not be counted: {reasons}")


def show_codes(tokenizer: str, as_json: bool) -> None:
    """Report on the codebook of a tokenizer."""
    from vqtok.model import checkpoint  # imports PyTorch

    model = checkpoint.load(tokenizer)
    quantizer = model.coder.quantizer
    codes = quantizer.stages * (quantizer.codebook_size - quantizer.zero_code)
    size = codes, quantizer.dim
    codebook = codebook_table(model.kind, *size, **codebook_arrays(quantizer))
    if as_json:
        print(json.dumps(codebook.to_dict(), indent=2))
    else:
        console = Console(highlight=False)
        console.print(report.render_codebook(codebook, console))


def codebook_arrays(quantizer: "Quantizer") -> dict[str, Any]:
    """Return the arguments of `codebook_table` that describe the codes of a quantizer.

    The codes of all stages are taken together, without the zero codes.
    """
    import torch

    from vqtok.quantizers.search import neighbors

    state = quantizer.codebook_state()
    if quantizer.zero_code:
        is_code = torch.arange(len(state["codes"])) % quantizer.codebook_size > 0
        state = {name: tensor[is_code] for name, tensor in state.items()}
    arrays = {name: tensor.float().numpy() for name, tensor in state.items()}
    if len(state.get("codes", ())) > 1:
        arrays["nearest"] = neighbors(state["codes"].float()).numpy()
    return arrays | {"revive_after": quantizer.revive_after}


def watch_run(folder: Path) -> None:
    """Follow a training run until its last step."""
    report.watch_run(folder, Console(highlight=False))


def _show(reports: list[CodebookReport], output: Output) -> None:
    if output.plot:
        report.save_plot(reports, output.plot)
    single = len(reports) == 1
    if output.as_json:
        numbers = [each.to_dict() for each in reports]
        print(json.dumps(numbers[0] if single else numbers, indent=2))
    elif output.as_csv:
        _write_csv(reports)
    else:
        console = Console(highlight=False)
        render = report.render_comparison
        screen = report.render_report(reports[0], console) if single else render(reports, console)
        console.print(screen)


def _write_csv(reports: Sequence[CodebookReport]) -> None:
    """Print a header, and one line per report with the numbers that are not lists."""
    rows = [each.to_dict() for each in reports]
    keys = list(takewhile(lambda key: key != "top", rows[0]))
    writer = csv.DictWriter(sys.stdout, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
