"""Run folders: what a training run is made of, and where it is kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from vqtok import config
from vqtok.config import Config
from vqtok.errors import UsageError, VqtokError
from vqtok.files import atomic_write
from vqtok.training.data import Clips, Procedural, find_media

SETTINGS, DATA, STATE = "config.json", "data.json", "resume.safetensors"
TOKENIZER = "tokenizer.safetensors"


@dataclass(frozen=True)
class Run:
    """A folder, the settings in it, and where its data comes from.

    sources: files and folders to train on; none: clips made up.
    validation: files and folders held out; none: every so many-th of the sources' files.
    cache: a folder for decoded clips; None: memory.
    """

    folder: Path
    settings: Config
    sources: Sequence[Path]
    validation: Sequence[Path] = ()
    cache: Path | None = None

    def clips(self) -> Clips | Procedural:
        """The training data. Raises UsageError when a source is gone or empty."""
        settings = self.settings.train
        if not self.sources:
            return Procedural(settings)
        files = find_media(self.sources)
        if self.validation:
            held_out = find_media(self.validation)
        elif settings.validation_share:
            every = round(1 / settings.validation_share)
            held_out = files[every - 1 :: every]
        else:
            held_out = []
        paths = sorted(set(files) - set(held_out))
        if not paths:
            raise UsageError("--validation takes all files of --data: nothing is left to train on")
        return Clips(paths, settings, held_out, self.cache)

    def write(self) -> None:
        """Make the folder, with the settings and places that `reopen` reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        places = {
            "sources": [str(path) for path in self.sources],
            "validation": [str(path) for path in self.validation],
            "cache": self.cache and str(self.cache),
        }
        for name, text in ((DATA, json.dumps(places)), (SETTINGS, self.settings.to_json())):
            with atomic_write(self.folder / name) as temporary:
                temporary.write_text(text + "\n")


def create(
    folder: Path | None,
    quantizer: str | None,
    file: Path | None,
    overrides: Sequence[str],
    sources: Sequence[Path],
    validation: Sequence[Path] = (),
    cache: Path | None = None,
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
    return Run(folder, settings, *_absolute(sources, validation, cache))


def reopen(
    folder: Path,
    sources: Sequence[Path],
    validation: Sequence[Path] = (),
    cache: Path | None = None,
) -> Run:
    """Open a run that was stopped; `sources`, `validation`, `cache` replace its own, if given.

    Raises UsageError when the folder holds no run.
    """
    if not all((folder / name).is_file() for name in (SETTINGS, DATA)):
        raise UsageError(f"{folder} holds no run to resume")
    settings = config.from_json((folder / SETTINGS).read_text(), str(folder / SETTINGS))
    try:
        kept = json.loads((folder / DATA).read_text())
        paths = {name: [Path(p) for p in kept[name]] for name in ("sources", "validation")}
        place = kept["cache"] and Path(kept["cache"])
    except (ValueError, KeyError, TypeError):
        raise VqtokError(f"{folder / DATA} is damaged: make a new run with this --data") from None
    given = sources or paths["sources"], validation or paths["validation"], cache or place
    return Run(folder, settings, *_absolute(*given))


def _absolute(
    sources: Sequence[Path], validation: Sequence[Path], cache: Path | None
) -> tuple[list[Path], list[Path], Path | None]:
    """The same places from any working folder."""
    return (
        [s.resolve() for s in sources],
        [v.resolve() for v in validation],
        cache and cache.resolve(),
    )


def _free(parent: Path, kind: str) -> Path:
    names = (parent / (kind if i == 1 else f"{kind}-{i}") for i in count(1))
    return next(folder for folder in names if not folder.exists())
