"""Run folders: what a training run is made of, and where it is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from vqtok import config
from vqtok.config import Config
from vqtok.data import Clips, Procedural, find
from vqtok.errors import UsageError

SETTINGS, SOURCES, STATE = "config.json", "data.txt", "resume.safetensors"


@dataclass(frozen=True)
class Run:
    """A folder, the settings in it, and where its training data comes from (nothing: made up)."""

    folder: Path
    settings: Config
    sources: Sequence[Path]

    def clips(self) -> Clips | Procedural:
        """The training data. Raises UsageError when a source is gone or empty."""
        if not self.sources:
            return Procedural(self.settings.train)
        return Clips(find(self.sources), self.settings.train)

    def write(self) -> None:
        """Make the folder, with the settings and sources that `reopen` reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / SOURCES).write_text("".join(f"{s}\n" for s in self.sources))
        (self.folder / SETTINGS).write_text(self.settings.to_json() + "\n")


def create(
    folder: Path | None,
    quantizer: str | None,
    file: Path | None,
    overrides: Sequence[str],
    sources: Sequence[Path],
) -> Run:
    """A new run, by default in the next free folder in `runs/`; nothing is written yet.

    Raises UsageError for settings that are not right or a folder that holds a run already.
    """
    if quantizer is not None and quantizer not in config.QUANTIZERS:
        raise UsageError(f"--quantizer {quantizer}: must be one of {', '.join(config.QUANTIZERS)}")
    file = file or config.folder() / f"{quantizer or 'fsq'}.toml"
    settings = config.load(file, overrides)
    kind = settings.quantizer.kind
    if quantizer not in (None, kind):
        raise UsageError(f"{file} is for the quantizer {kind}, not {quantizer}")
    folder = folder or _free(Path("runs"), kind)
    if (folder / SETTINGS).exists():
        raise UsageError(f"{folder} holds a run already: --resume it or choose another --out")
    return Run(folder, settings, [s.resolve() for s in sources])


def reopen(folder: Path, sources: Sequence[Path]) -> Run:
    """Open a run that was stopped; `sources` replace its own, if given.

    Raises UsageError when the folder holds no run.
    """
    if not (folder / SETTINGS).is_file():
        raise UsageError(f"{folder} holds no run to resume")
    settings = config.from_json((folder / SETTINGS).read_text(), str(folder / SETTINGS))
    kept = (folder / SOURCES).read_text().splitlines() if (folder / SOURCES).exists() else []
    return Run(folder, settings, [s.resolve() for s in sources] or [Path(line) for line in kept])


def _free(parent: Path, kind: str) -> Path:
    names = (parent / (kind if i == 1 else f"{kind}-{i}") for i in count(1))
    return next(folder for folder in names if not folder.exists())
