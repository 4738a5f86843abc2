"""Run folders: the settings of a training run, its data, and where both are saved."""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

from vqtok import config
from vqtok.config import Config
from vqtok.errors import UsageError, VqtokError
from vqtok.files import RUN_CONFIG, RUN_DATA, atomic_write, is_pattern
from vqtok.training.data import TrainingClips, VideoClips, find_media
from vqtok.training.synthetic import SyntheticClips


@dataclass(frozen=True)
class DataPaths:
    """Where the clips of a run come from.

    sources: files, folders and glob patterns to train on; empty: synthetic clips.
    validation: the same, to validate on; empty: a share of the files in `sources`.
    cache: folder for decoded clips; None: memory.
    """

    sources: Sequence[Path] = ()
    validation: Sequence[Path] = ()
    cache: Path | None = None

    def absolute(self) -> Self:
        """Return the same paths, independent of the working directory."""
        return type(self)(
            sources=[_absolute(path) for path in self.sources],
            validation=[_absolute(path) for path in self.validation],
            cache=self.cache and self.cache.resolve(),
        )

    def to_json(self) -> str:
        """Return JSON for `from_json`."""
        paths = {
            "sources": [str(path) for path in self.sources],
            "validation": [str(path) for path in self.validation],
            "cache": self.cache and str(self.cache),
        }
        return json.dumps(paths)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises ValueError, KeyError or TypeError for other text."""
        paths = json.loads(text)
        sources, validation = ([Path(p) for p in paths[k]] for k in ("sources", "validation"))
        return cls(sources, validation, paths["cache"] and Path(paths["cache"]))


@dataclass(frozen=True)
class Run:
    """A training run: its folder, its settings and its data."""

    folder: Path
    settings: Config
    data: DataPaths = DataPaths()

    def open_clips(self) -> TrainingClips:
        """Return the clips of the run.

        Raises UsageError if a source does not exist, or if no file is left to train on.
        """
        settings = self.settings.train
        if not self.data.sources:
            return SyntheticClips(settings)
        files = find_media(self.data.sources)
        held_out: list[Path] = []
        if self.data.validation:
            held_out = find_media(self.data.validation)
        elif settings.validation_share:
            n = round(1 / settings.validation_share)
            held_out = files[n - 1 :: n]
        resolved = {path.resolve() for path in held_out}
        training = [path for path in files if path.resolve() not in resolved]
        if not training:
            raise UsageError("--validation takes all files of --data: nothing is left to train on")
        return VideoClips(training, settings, held_out, self.data.cache)

    def save(self) -> None:
        """Create the folder, with the settings and data paths that `reopen` reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = {RUN_DATA: self.data.to_json(), RUN_CONFIG: self.settings.to_json()}
        for name, text in files.items():
            with atomic_write(self.folder / name) as temporary:
                temporary.write_text(text + "\n")


def create(
    folder: Path | None,
    quantizer: str | None,
    config_file: Path | None,
    overrides: Sequence[str],
    data: DataPaths,
) -> Run:
    """Return a new run; nothing is written yet.

    folder: by default the next free one in `runs/`.
    quantizer: chooses the config file if none is given; fsq by default.
    overrides: `section.key=value`.

    Raises UsageError for wrong settings or a folder that contains a run.
    """
    if quantizer is not None and quantizer not in config.QUANTIZERS:
        raise UsageError(f"--quantizer {quantizer}: must be one of {', '.join(config.QUANTIZERS)}")
    config_file = config_file or config.folder() / f"{quantizer or 'fsq'}.toml"
    settings = config.load(config_file, overrides)
    kind = settings.quantizer.kind
    if quantizer not in (None, kind):
        raise UsageError(f"{config_file} is for the quantizer {kind}, not {quantizer}")
    folder = folder or _next_free_folder(Path("runs"), kind)
    if (folder / RUN_CONFIG).exists():
        raise UsageError(f"{folder} holds a run already: --resume it or choose another --out")
    return Run(folder, settings, data.absolute())


def reopen(folder: Path, data: DataPaths) -> Run:
    """Return the run in a folder, to be resumed.

    data: paths that are given replace those of the run.

    Raises UsageError if the folder contains no run, VqtokError if its files are damaged.
    """
    if not all((folder / name).is_file() for name in (RUN_CONFIG, RUN_DATA)):
        raise UsageError(f"{folder} holds no run to resume")
    settings = config.read_json(folder / RUN_CONFIG)
    try:
        saved = DataPaths.from_json((folder / RUN_DATA).read_text(errors="replace"))
    except (ValueError, KeyError, TypeError):
        raise VqtokError(
            f"{folder / RUN_DATA} is damaged: start a new run with the same --data"
        ) from None
    data = DataPaths(
        data.sources or saved.sources,
        data.validation or saved.validation,
        data.cache or saved.cache,
    )
    return Run(folder, settings, data.absolute())


def _absolute(source: Path) -> Path:
    if is_pattern(source):
        return Path(glob.escape(str(Path.cwd()))) / source
    return source.resolve()


def _next_free_folder(parent: Path, kind: str) -> Path:
    names = (parent / (kind if i == 1 else f"{kind}-{i}") for i in count(1))
    return next(folder for folder in names if not folder.exists())
