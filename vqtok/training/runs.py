"""Run folders: the settings of a training run, its data, and where both are saved."""

import glob
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Self

from vqtok import config, distributed
from vqtok.atomic import atomic_write
from vqtok.errors import UsageError, VqtokError
from vqtok.files import (
    RUN_CONFIG,
    RUN_DATA,
    RUN_FILES,
    exists,
    is_list,
    is_pattern,
    list_path,
    real_path,
)
from vqtok.settings import QUANTIZERS, Config
from vqtok.training.clips import TrainingClips
from vqtok.training.data import VideoClips, find_media
from vqtok.training.synthetic import SyntheticClips
from vqtok.untrusted import parse_json, read_text

RUNS = Path("runs")  # where new runs go by default
MAX_DATA = 2**26  # bytes of the data paths of a run, which name every file that is held out


@dataclass(frozen=True)
class DataPaths:
    """Where the clips of a run come from.

    sources: files, folders, glob patterns and lists to train on; empty: synthetic clips.
    validation: the same, to validate on; empty: a share of the files in `sources`.
    cache: folder for decoded clips; None: memory.
    held_out: files in `sources` that the run has validated on so far; None: it is new.
    """

    sources: Sequence[Path] = ()
    validation: Sequence[Path] = ()
    cache: Path | None = None
    held_out: Sequence[Path] | None = None

    def absolute(self) -> Self:
        """Return the same paths, independent of the working directory."""
        return type(self)(
            sources=[_absolute(path) for path in self.sources],
            validation=[_absolute(path) for path in self.validation],
            cache=self.cache and real_path(self.cache),
            held_out=self.held_out,
        )

    def to_json(self) -> str:
        """Return JSON for `from_json`."""
        paths = {
            "sources": [str(path) for path in self.sources],
            "validation": [str(path) for path in self.validation],
            "cache": self.cache and str(self.cache),
            "held_out": None if self.held_out is None else list(map(str, self.held_out)),
        }
        return json.dumps(paths)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises ValueError for other text."""
        paths = parse_json(text)
        if not isinstance(paths, dict):
            raise ValueError("not a JSON object")
        cache = paths.get("cache")
        held_out = paths.get("held_out")  # missing in older runs
        return cls(
            _parse_paths(paths.get("sources")),
            _parse_paths(paths.get("validation")),
            cache=None if cache is None else _parse_paths([cache])[0],
            held_out=None if held_out is None else _parse_paths(held_out),
        )


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
        training, held_out = self._files
        return VideoClips(training, settings, held_out, self.data.cache)

    @cached_property
    def _files(self) -> tuple[list[Path], list[Path]]:
        """The files to train on, and those to validate on."""
        files = find_media(self.data.sources)
        if self.data.validation:
            held_out = find_media(self.data.validation)
        else:
            share = self.settings.train.validation_share
            held_out = _hold_out(files, self.data.held_out, share)
        resolved = {real_path(path) for path in held_out}
        training = [path for path in files if real_path(path) not in resolved]
        if not training:
            raise UsageError("--validation takes all files of --data: nothing is left to train on")
        return training, held_out

    def save(self) -> None:
        """Create the folder, with the settings and data paths that `reopen` reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.data
        if data.sources and not data.validation:
            data = replace(data, held_out=sorted({*(data.held_out or ()), *self._files[1]}))
        files = {RUN_DATA: data.to_json(), RUN_CONFIG: self.settings.to_json()}
        for name, text in files.items():
            with atomic_write(self.folder / name) as temporary:
                temporary.write_text(text + "\n")

    def release(self) -> None:
        """Give up the folder that `create` claimed, if the run has ended before it was saved."""
        claim = self.folder / RUN_CONFIG
        with suppress(OSError):  # there are other files, or the folder is gone
            if distributed.rank() == 0 and claim.stat().st_size == 0:
                claim.unlink()
                self.folder.rmdir()
                if self.folder.parent == RUNS:
                    RUNS.rmdir()


def create(
    folder: Path | None,
    quantizer: str | None,
    config_file: Path | None,
    overrides: Sequence[str],
    data: DataPaths,
) -> Run:
    """Return a new run, in a folder that no other run can take until `Run.release`.

    folder: by default the next free one in `runs/`.
    quantizer: chooses the config file if none is given; ema by default.
    overrides: `section.key=value`.

    Raises UsageError for wrong settings or a folder that contains a run.
    """
    if quantizer is not None and quantizer not in QUANTIZERS:
        raise UsageError(f"--quantizer {quantizer}: must be one of {', '.join(QUANTIZERS)}")
    config_file = config_file or config.folder() / f"{quantizer or 'ema'}.toml"
    settings = config.load(config_file, overrides)
    kind = settings.quantizer.kind
    if quantizer not in (None, kind):
        raise UsageError(f"{config_file} is for the quantizer {kind}, not {quantizer}")
    data = data.absolute()
    return Run(_claim(folder, kind), settings, data)


def reopen(folder: Path, data: DataPaths) -> Run:
    """Return the run in a folder, to be resumed.

    data: paths that are given replace those of the run.

    Raises UsageError if the folder contains no run, VqtokError if its files are damaged.
    """
    if not all((folder / name).is_file() for name in (RUN_CONFIG, RUN_DATA)):
        raise UsageError(f"{folder} holds no training run")
    settings = config.read_json(folder / RUN_CONFIG)
    try:
        saved = DataPaths.from_json(read_text(folder / RUN_DATA, MAX_DATA))
    except VqtokError:
        raise
    except ValueError as error:
        raise VqtokError(
            f"{folder / RUN_DATA} is damaged: {error}; start a new run with the same --data"
        ) from None
    data = DataPaths(
        data.sources or saved.sources,
        data.validation or saved.validation,
        data.cache or saved.cache,
        saved.held_out,
    )
    return Run(folder, settings, data.absolute())


def _parse_paths(paths: Any) -> list[Path]:
    if not isinstance(paths, list):
        raise ValueError("the paths are not a list")
    if not all(isinstance(path, str) and path and "\0" not in path for path in paths):
        raise ValueError("a path is not valid")
    return list(map(Path, paths))


def _absolute(source: Path) -> Path:
    if is_list(source):
        return Path(f"@{real_path(list_path(source))}")
    if is_pattern(source):
        return Path(glob.escape(str(Path.cwd()))) / source
    return real_path(source)


def _hold_out(files: list[Path], known: Sequence[Path] | None, share: float) -> list[Path]:
    """Return the files to validate on: those that the run has held out, else every n-th.

    known: the files that it has held out; None for a new run. If none of them is left, the data is
        another, and files are held out anew.
    """
    resolved = {real_path(path) for path in known or ()}
    kept = [path for path in files if real_path(path) in resolved]
    is_new = known is None or (known and not kept)
    if is_new and share:
        n = round(1 / share)
        return files[n - 1 :: n]
    return kept


def _claim(folder: Path | None, kind: str) -> Path:
    """Return the folder of a new run, by default the next free one, with an empty config file.

    Of several processes, only one can create that file. Under `torchrun`, rank 0 does. Raises
    UsageError if it, or another file that a run writes, exists.
    """
    names = [folder] if folder else (RUNS / (kind if i == 1 else f"{kind}-{i}") for i in count(1))
    if distributed.rank() > 0:
        return next(name for name in names if folder or not name.exists())
    (folder or RUNS).mkdir(parents=True, exist_ok=True)  # raises for a link that leads nowhere
    for name in names:
        with suppress(FileExistsError):
            name.mkdir(exist_ok=name == folder)
            if not any(exists(name / file) for file in RUN_FILES):
                (name / RUN_CONFIG).touch(exist_ok=False)
                return name
    raise UsageError(
        f"{folder} is a file or holds a run already: --resume the run or choose another --out"
    )
