"""Count the codes of token files, and of clips encoded on the fly, one report per tokenizer."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vqtok.codebook_stats.codebook_report import CodebookReport, codebook_report
from vqtok.codebook_stats.counts import CodeCounts
from vqtok.commands.progress import ProgressBars
from vqtok.errors import INTERRUPTS, UsageError, describe_failure
from vqtok.files import MEDIA_SUFFIXES, TOKEN_SUFFIXES, is_pattern, list_files, printable, real_path
from vqtok.tokens import Tokens, check_tokenizer, read_tokens

# PyTorch and PyAV are imported where a clip is encoded: counting token files needs neither.
if TYPE_CHECKING:
    from vqtok.model.tokenizer import Tokenizer


class Input(NamedTuple):
    """A file to count, and the argument of the command line that it comes from."""

    argument: str
    path: str  # - is stdin


@dataclass
class _Column:
    """The counts of one column, and the arguments that its files come from."""

    counts: CodeCounts
    arguments: set[str] = field(default_factory=set)


def list_inputs(
    sources: Sequence[str], each: bool, allow_clips: bool
) -> tuple[list[Input], list[str]]:
    """Return the token files of each source, or its clips if it has no token files.

    A file that several sources name is listed once, or, if `each` is set, once for each of them.
    Also return notes for the user on what was passed over.
    Raises UsageError for a source without files, or for a clip unless `allow_clips` is set.
    """
    inputs: dict[tuple[object, Path], Input] = {}
    notes: list[str] = []
    for source in sources:
        paths, source_notes = (["-"], []) if source == "-" else _list_paths(source)
        notes += source_notes
        for path in paths:
            if _is_clip(path) and not allow_clips:
                raise UsageError(f"{path} is a clip: choose a --tokenizer to encode it")
            key = (source if each else None, real_path(path))
            inputs.setdefault(key, Input(source, path))
    return list(inputs.values()), notes


def _list_paths(source: str) -> tuple[list[str], list[str]]:
    """Return the token files or clips of a source, and notes on what was passed over."""
    for suffixes in (TOKEN_SUFFIXES, MEDIA_SUFFIXES):
        found = list_files([source], suffixes)
        if found.files:
            return [str(path) for _, path in found.files], found.notes
    raise UsageError(f"{source}: no token files in it")


def _is_clip(path: str) -> bool:
    return Path(path).suffix.lower() in MEDIA_SUFFIXES


def count_inputs(
    inputs: Sequence[Input], tokenizer: "Tokenizer | None", each: bool, quiet: bool
) -> tuple[list[CodebookReport], list[str]]:
    """Return one report per tokenizer, or, if `each` is set, per argument and tokenizer.

    Also return the reasons why files were left out.

    tokenizer: encodes the clips; token files of another one are refused.
    """
    columns: dict[tuple[object, ...], _Column] = {}
    failures: list[str] = []
    with ProgressBars(quiet) as bars, bars.task("counting", len(inputs)) as task:
        for argument, path in inputs:
            try:
                tokens = _read(path, tokenizer, bars)
                key = (argument if each else None, *_codebook_key(tokens))
                column = columns.get(key) or _Column(CodeCounts(tokens))
                column.counts.add(tokens)
            except INTERRUPTS:
                raise
            except BaseException as error:
                failures.append(describe_failure(error, path))
            else:
                columns[key] = column
                column.arguments.add(argument)
            task.advance()
    names = _names(list(columns.values()))
    reports = [
        codebook_report(column.counts, name, tokenizer.levels if tokenizer else None)
        for column, name in zip(columns.values(), names, strict=True)
    ]
    return reports, failures


def _codebook_key(tokens: Tokens) -> tuple[object, ...]:
    codebooks = tokens.indices.shape[3:], tokens.codebook_size, tokens.zero_code
    return tokens.model, tokens.quantizer, tokens.stride, *codebooks


def _read(path: str, tokenizer: "Tokenizer | None", bars: ProgressBars) -> Tokens:
    """Read a token file, or encode a clip; raise VqtokError for tokens of another tokenizer."""
    if tokenizer is not None and _is_clip(path):
        from vqtok.pipeline.source import EncodeOptions, encode_source

        with bars.task(Path(path).name) as task:
            tokens, clip = encode_source(
                path, tokenizer, EncodeOptions(), task.advance, task.set_total
            )
        bars.say(*(f"{path}: {note}" for note in clip.notes))
    else:
        tokens = read_tokens(sys.stdin.buffer if path == "-" else path)
    if tokenizer is not None:
        check_tokenizer(tokens, tokenizer, path)
    return tokens


def _names(columns: Sequence[_Column]) -> list[str]:
    """Return short, unique names: the argument of a column, its tokenizer, or both."""
    arguments = [column.arguments for column in columns]
    names = []
    for column in columns:
        tokenizer = f"{column.counts.quantizer} {column.counts.model[:8]}"
        if len(column.arguments) > 1:
            names.append(tokenizer)
            continue
        (argument,) = column.arguments
        path = real_path(argument)  # gives `.` a name
        name = argument if is_pattern(argument) else path.name.removesuffix(".safetensors")
        unique = arguments.count(column.arguments) == 1
        names.append(name if unique else f"{name}, {tokenizer}")
    return list(map(printable, names))
