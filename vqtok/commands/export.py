"""`vqtok export`: tokens in the layouts of other projects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vqtok.commands.progress import ProgressBars, ProgressTask, say
from vqtok.commands.token_inputs import Input, files_read, list_inputs, read_file
from vqtok.export.clips import Clip
from vqtok.export.layout import Layout
from vqtok.export.nanogpt import write_nanogpt
from vqtok.export.one_x import write_1x
from vqtok.export.parquet import write_parquet
from vqtok.files import printable
from vqtok.targets import check_overwrite, check_targets

_WRITERS = {
    Layout.ONE_X: write_1x,
    Layout.NANOGPT: write_nanogpt,
    Layout.PARQUET: write_parquet,
}


@dataclass
class _Exported:
    """How much was exported."""

    clips: int = 0
    latent_frames: int = 0


def export(sources: Sequence[str], layout: Layout, folder: Path, force: bool, quiet: bool) -> None:
    """Write the clips of all sources, in their order, into a folder.

    sources: token files, folders and patterns of them, or corpora; - is stdin.
    force: overwrite the files of an export in the folder.
    Raises VqtokError, and writes nothing, if one of the clips cannot be exported.
    """
    inputs, notes = list_inputs(sources, each=False, clip_hint="encode it with `vqtok encode`")
    say(quiet, *notes)
    targets = [folder / name for name in layout.files]
    check_targets(targets, files_read(inputs))
    for target in targets:
        check_overwrite(target, force)
    total = sum(entry.size for entry in inputs)
    done = _Exported()
    with ProgressBars(quiet) as bars, bars.task("exporting", total) as task:
        notes = _WRITERS[layout](_read(inputs, task, done), folder)
    say(quiet, *(f"{folder}: {note}" for note in notes))
    say(quiet, f"{folder}: {done.latent_frames:,} latent frames, clips: {done.clips:,}")


def _read(inputs: Sequence[Input], task: ProgressTask, done: _Exported) -> Iterator[Clip]:
    """Yield all clips, and count them; one record of a corpus is in memory at a time."""
    for entry in inputs:
        for file in entry.files():
            name = printable(entry.clip_name(file))
            tokens = read_file(file)
            yield Clip(name, str(file), tokens)
            done.clips += 1
            done.latent_frames += len(tokens.indices)
            task.advance()
