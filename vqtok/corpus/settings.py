"""`corpus.json`: how the clips of a corpus are encoded, and which clips each shard has."""

import json
from bisect import bisect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from vqtok.atomic import atomic_write
from vqtok.corpus.shards import Shard
from vqtok.encoding import EncodeOptions, Rate
from vqtok.errors import UsageError
from vqtok.untrusted import parse_json, quote, reading

CORPUS = "corpus.json"
_FORMAT = {"format": "vqtok-corpus", "version": 1}
MAX_CLIPS = 1000  # of a shard: its folder of parts is listed after each of them
_MAX_BYTES = 2**26
_Count = Annotated[int, Field(gt=0, lt=2**31)]


@dataclass(frozen=True)
class CorpusSettings:
    """How every clip of a corpus is encoded.

    tokenizer: a bundled name, the absolute path of a tokenizer file, or hf:org/name@commit.
    model: SHA-256 of its weights.
    quantizer, stride, codebook_size, stages, dtype: of the tokenizer.
    size, fps, start, duration, strict, keyframe_interval: as in `vqtok encode`; fps as text. Where
        no interval was given, it is the tokenizer's own.
    rate: the one of price, tokens and psnr that was given, if any.
    sources: what was listed, as absolute paths and patterns.
    pack: bytes of a shard, about.
    split: seconds of a piece of a long clip, about; None: clips are not cut.
    threads: of PyTorch for a clip on a CPU, as another number can give other tokens; None: not set.
    """

    __pydantic_config__ = ConfigDict(extra="ignore")

    tokenizer: str
    model: str
    quantizer: str
    stride: tuple[_Count, _Count, _Count]
    codebook_size: _Count
    stages: _Count
    keyframe_interval: _Count
    dtype: str
    size: int | None
    fps: str | None
    start: float
    duration: float | None
    strict: bool
    rate: dict[str, float]
    sources: tuple[str, ...]
    pack: int
    split: float | None = None
    threads: int | None = None

    @property
    def encoding(self) -> EncodeOptions:
        """How every clip is encoded."""
        fps = None if self.fps is None else Fraction(self.fps)
        excerpt = self.size, fps, self.start, self.duration
        return EncodeOptions(*excerpt, self.strict, Rate(**self.rate), self.keyframe_interval)


def encoding_to_json(options: EncodeOptions) -> dict[str, Any]:
    """Return how a clip is encoded as `corpus.json` says it."""
    fps = None if options.fps is None else str(options.fps)
    return asdict(options) | {"fps": fps, "rate": options.rate.given}


@dataclass(frozen=True)
class Corpus:
    """A corpus in a folder.

    starts: key of the first clip of each shard, then the number of clips.
    """

    folder: Path
    settings: CorpusSettings
    starts: Sequence[int]

    def __len__(self) -> int:
        return self.starts[-1]

    def check_model(self, tokenizer: str, fingerprint: str) -> None:
        """Raise UsageError if a tokenizer is not the one that the corpus was begun with."""
        if fingerprint != self.settings.model:
            raise UsageError(
                f"{self.folder} was begun with another tokenizer, weights "
                f"{self.settings.model[:12]} ({self.settings.tokenizer}), than {tokenizer}, "
                f"{fingerprint[:12]}: use the same one, or another folder"
            )

    @property
    def shards(self) -> list[Shard]:
        """All shards, in order."""
        return [self.shard(number) for number in range(len(self.starts) - 1)]

    def shard(self, number: int) -> Shard:
        """Return a shard by its number."""
        return Shard(self.folder, number, range(self.starts[number], self.starts[number + 1]))

    def shard_of(self, key: int) -> Shard:
        """Return the shard that has the clip with this key."""
        return self.shard(bisect(self.starts, key) - 1)


def is_corpus(path: str | Path) -> bool:
    """Return whether a path is the folder of a corpus."""
    try:
        return (Path(path) / CORPUS).is_file()
    except (OSError, ValueError):
        return False


def create_corpus(folder: Path, settings: CorpusSettings, starts: Sequence[int]) -> None:
    """Write `corpus.json`, unless another process was first."""
    value = _FORMAT | {"settings": asdict(settings), "shards": list(starts)}
    with atomic_write(folder / CORPUS, replace=False) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def open_corpus(folder: str | Path) -> Corpus:
    """Open the corpus in a folder.

    Raises UsageError if there is none, VqtokError if its `corpus.json` is damaged.
    """
    folder = Path(folder)
    path = folder / CORPUS
    if not is_corpus(folder):
        raise UsageError(f"{folder} is not a corpus: it has no {CORPUS}")
    with reading(path), path.open("rb") as file:
        return _parse(folder, parse_json(file.read(_MAX_BYTES)))


def _parse(folder: Path, value: Any) -> Corpus:
    if not isinstance(value, dict) or value.get("format") != _FORMAT["format"]:
        raise ValueError("it does not describe a corpus")
    if (version := value.get("version")) != _FORMAT["version"]:
        raise ValueError(f"it has version {quote(version)}, and this vqtok reads version 1")
    try:
        settings = TypeAdapter(CorpusSettings).validate_python(value.get("settings"))
        starts = TypeAdapter(list[int]).validate_python(value.get("shards"), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "settings or shards"
        raise ValueError(f"{key}: {problem['msg']}") from None
    sizes = [b - a for a, b in pairwise(starts)]
    if not sizes or starts[0] != 0 or not all(0 < size <= MAX_CLIPS for size in sizes):
        raise ValueError("its shards are not valid")
    return Corpus(folder, settings, starts)
