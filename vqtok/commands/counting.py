"""Count the codes of token files, and of clips encoded on the fly, one report per tokenizer."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vqtok.codebook_stats.codebook_report import CodebookReport, codebook_report
from vqtok.codebook_stats.counts import CodeCounts
from vqtok.commands.progress import ProgressBars
from vqtok.commands.token_inputs import Input, is_clip, read_file
from vqtok.corpus.reader import PackedTokens
from vqtok.errors import INTERRUPTS, VqtokError, describe_failure
from vqtok.files import is_pattern, printable, real_path
from vqtok.tokens import Tokens, check_tokenizer

# PyTorch and PyAV are imported where a clip is encoded: counting token files needs neither.
if TYPE_CHECKING:
    from vqtok.model.tokenizer import Tokenizer


class Counted(NamedTuple):
    """What was counted.

    reports: on the codes of the files. files: how many were counted.
    failures: the reasons why others were not.
    """

    reports: list[CodebookReport]
    files: int
    failures: list[str]


@dataclass
class _Column:
    """The counts of one column, and the arguments that its files come from."""

    counts: CodeCounts
    arguments: set[str] = field(default_factory=set)


def count_inputs(
    inputs: Sequence[Input], tokenizer: "Tokenizer | None", each: bool, quiet: bool
) -> Counted:
    """Make one report per tokenizer, or, if `each` is set, per argument and tokenizer.

    One file is read at a time, and one record of a corpus.

    tokenizer: encodes the clips; token files of another one are refused.
    """
    columns: dict[tuple[object, ...], _Column] = {}
    failures: list[str] = []
    total = sum(entry.size for entry in inputs)
    files = 0
    with ProgressBars(quiet) as bars, bars.task("counting", total) as task:
        for argument, file in _iter_files(inputs, failures):
            try:
                tokens = _read(file, tokenizer, bars)
                key = (argument if each else None, *_codebook_key(tokens))
                column = columns.get(key) or _Column(CodeCounts(tokens))
                column.counts.add(tokens)
            except INTERRUPTS:
                raise
            except BaseException as error:
                failures.append(describe_failure(error, _path(file)))
            else:
                columns[key] = column
                column.arguments.add(argument)
                files += 1
            task.advance()
    names = _names(list(columns.values()))
    reports = [
        codebook_report(column.counts, name, tokenizer.levels if tokenizer else None)
        for column, name in zip(columns.values(), names, strict=True)
    ]
    return Counted(reports, files, failures)


def _iter_files(
    inputs: Iterable[Input], failures: list[str]
) -> Iterator[tuple[str, str | PackedTokens]]:
    """Yield all files, each with its argument; a record that cannot be read is a failure."""
    for entry in inputs:
        try:
            files = entry.files()
        except VqtokError as error:
            failures.append(str(error))
            continue
        for file in files:
            yield entry.argument, file


def _path(file: str | PackedTokens) -> str:
    return file if isinstance(file, str) else str(file.path)


def _codebook_key(tokens: Tokens) -> tuple[object, ...]:
    codebooks = tokens.indices.shape[3:], tokens.codebook_size, tokens.zero_code
    return tokens.model, tokens.quantizer, tokens.stride, *codebooks


def _read(file: str | PackedTokens, tokenizer: "Tokenizer | None", bars: ProgressBars) -> Tokens:
    """Read a token file, or encode a clip; raise VqtokError for tokens of another tokenizer."""
    path = _path(file)
    if tokenizer is not None and isinstance(file, str) and is_clip(file):
        from vqtok.encoding import EncodeOptions
        from vqtok.pipeline.source import encode_source

        with bars.task(Path(path).name) as task:
            tokens, clip = encode_source(
                path, tokenizer, EncodeOptions(), task.advance, task.set_total
            )
        bars.say(*(f"{path}: {note}" for note in clip.notes))
    else:
        tokens = read_file(file)
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
