"""What `stats` does: tokens counted by tokenizer, and shown to people and machines."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from vqtok import report
from vqtok.codebook_stats.codebook_report import CodebookReport, figures
from vqtok.codebook_stats.counts import CodeCounts
from vqtok.commands.progress import Bars
from vqtok.errors import UsageError, VqtokError
from vqtok.files import MEDIA_SUFFIXES, TOKEN_SUFFIXES, list_files
from vqtok.tokens import Tokens, check_tokenizer, read_tokens

MOST = 2**26  # codes: two counts of each take 1 GiB
TOLD = 5  # reasons: the next are most often the same

# torch and av are imported where a clip or a checkpoint is at hand: token files need neither.
if TYPE_CHECKING:
    from vqtok.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Showing:
    """Where figures go: as JSON or CSV to stdout, else as screens; and into a picture, if named,
    with `force` over the one that is there.
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
    how: Showing,
    quiet: bool,
) -> None:
    """Report on token files, and on clips that the tokenizer encodes, without writing tokens.

    Raises VqtokError at the end if any could not be counted.
    """
    if how.plot:
        report.check_plot(how.plot, how.force)
    todo = _once(_named(sources, clips_too=tokenizer is not None), each)
    model = _loaded(tokenizer, device) if tokenizer else None
    runs, broken = count(todo, model, each, quiet)
    if runs:
        _show(runs, how)
    if broken:
        told = "; ".join(broken[:TOLD]) + "; and so on" * (len(broken) > TOLD)
        raise VqtokError(f"{len(broken)} of {len(todo)} cannot be counted: {told}")


def _show(runs: list[CodebookReport], how: Showing) -> None:
    if how.plot:
        report.plot(runs, how.plot)
    if how.as_json:
        numbers = [run.numbers() for run in runs]
        print(json.dumps(numbers if len(runs) > 1 else numbers[0], indent=2))
    elif how.as_csv:
        _write_csv(runs)
    else:
        console = Console(highlight=False)
        one = len(runs) == 1
        console.print(report.report(runs[0], console) if one else report.comparison(runs, console))


def show_codes(tokenizer: str, as_json: bool) -> None:
    """Report on the codes of a checkpoint."""
    from vqtok.codebook_stats.codes import table
    from vqtok.model import checkpoint

    model = checkpoint.load(tokenizer)
    found = table(model.kind, model.quantizer)
    if as_json:
        print(json.dumps(found.numbers(), indent=2))
    else:
        console = Console(highlight=False)
        console.print(report.table_report(found, console))


def watch(run: Path) -> None:
    """Follow a training run until its last step."""
    report.follow(run, Console(highlight=False))


def count(
    todo: Sequence[tuple[str, str]], model: "Tokenizer | None", each: bool, quiet: bool
) -> tuple[list[CodebookReport], list[str]]:
    """Return the reports of (argument, file) pairs, one per tokenizer or per argument, and the
    reasons why files were left out: no tokens, tokens of another tokenizer than the one given, or
    a codebook too large to count.
    """
    tallies: dict[tuple[object, ...], CodeCounts] = {}
    arguments: dict[tuple[object, ...], set[str]] = {}
    broken: list[str] = []
    with Bars(quiet, "counting", len(todo)) as bars:
        for argument, file in todo:
            try:
                content = _read(file, model, bars)
                _check(file, content, model)
            except (VqtokError, OSError) as error:
                broken.append(str(error))
            else:
                rest = content.stride, content.codebook_size, content.indices.shape[3:]
                key = (each and argument, content.model, content.quantizer, *rest)
                if key not in tallies:
                    tallies[key], arguments[key] = CodeCounts(content), set()
                tallies[key].add(content)
                arguments[key].add(argument)
            bars.done()
    names = _names(list(tallies.values()), list(arguments.values()))
    groups = zip(tallies.values(), names, strict=True)
    return [figures(tally, name, levels(tally, model)) for tally, name in groups], broken


def levels(tally: CodeCounts, model: "Tokenizer | None") -> Sequence[int] | None:
    """The levels of the FSQ that made tokens, where it is given; the tokens do not tell them."""
    return model.quantizer.levels if model and tally.quantizer == "fsq" else None


def _named(sources: Sequence[str], clips_too: bool) -> Iterator[tuple[str, str]]:
    """Each file with the argument it comes from; of a folder its token files, else its clips."""
    for source in sources:
        if source == "-":
            yield source, source
            continue
        found = list_files([source], TOKEN_SUFFIXES)
        first = next(found, None)
        if first is None:
            found = list_files([source], MEDIA_SUFFIXES)
            first = next(found, None)
        if first is None:
            raise UsageError(f"{source}: no token files in it")
        for _, path in chain([first], found):
            if _is_clip(str(path)) and not clips_too:
                raise UsageError(f"{path} is a clip: say with --tokenizer what is to encode it")
            yield source, str(path)


def _once(named: Iterable[tuple[str, str]], each: bool) -> list[tuple[str, str]]:
    """Each file once, with the first argument it comes from; or once for each argument."""
    found: dict[tuple[object, Path], tuple[str, str]] = {}
    for argument, file in named:
        found.setdefault((each and argument, Path(file).resolve()), (argument, file))
    return list(found.values())


def _is_clip(file: str) -> bool:
    return Path(file).suffix.lower() in MEDIA_SUFFIXES


def _loaded(tokenizer: str, device: str) -> "Tokenizer":
    from vqtok.pipeline.clip import load_tokenizer

    return load_tokenizer(tokenizer, device, None)


def _read(file: str, model: "Tokenizer | None", bars: Bars) -> Tokens:
    """The tokens of a token file, or of a clip."""
    if not _is_clip(file):
        return read_tokens(sys.stdin.buffer if file == "-" else file)
    from vqtok.pipeline.clip import encode_clip
    from vqtok.video import open_video

    with open_video(file) as video:
        frames = round((video.duration or 0) * float(video.fps)) or None
        with bars.clip(Path(file).name, frames) as advance:
            content = encode_clip(video, model, advance)
    bars.say(*(f"{file}: {note}" for note in video.notes))
    return content


def _check(file: str, content: Tokens, model: "Tokenizer | None") -> None:
    if content.codebook_size > MOST:
        raise VqtokError(
            f"{file}: a codebook of {content.codebook_size:,} is too large to count its codes, "
            f"{MOST:,} is the most"
        )
    if model:
        check_tokenizer(content, model, file)


def _names(tallies: list[CodeCounts], arguments: list[set[str]]) -> list[str]:
    """Short and different names: the argument where it is one, with the tokenizer where need be."""
    names = []
    for tally, given in zip(tallies, arguments, strict=True):
        tokenizer = f"{tally.quantizer} {tally.model[:8]}"
        if len(given) > 1:
            names.append(tokenizer)
            continue
        (argument,) = given
        path = Path(argument).resolve()  # . has a name, too
        name = argument if has_magic(argument) else path.name.removesuffix(".safetensors")
        names.append(name if arguments.count(given) == 1 else f"{name}, {tokenizer}")
    return names


def _write_csv(runs: list[CodebookReport]) -> None:
    """A head, and a line of the numbers that are no lists for each run."""
    rows = [run.numbers() for run in runs]
    keys = list(takewhile(lambda key: key != "top", rows[0]))
    lines = csv.DictWriter(sys.stdout, keys, extrasaction="ignore", lineterminator="\n")
    lines.writeheader()
    lines.writerows(rows)
