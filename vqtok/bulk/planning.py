"""Plan a corpus: list its clips, divide them into shards, and say which are left to encode."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqtok import DEFAULT, hub
from vqtok.atomic import atomic_write
from vqtok.bulk.listing import count_pieces, divide, estimate_ratio, list_clips
from vqtok.bulk.probe import Prober
from vqtok.corpus.clips import CLIPS, Clip, clip_lines, read_clips
from vqtok.corpus.publish import FAILURES, reopen
from vqtok.corpus.settings import (
    CORPUS,
    Corpus,
    CorpusSettings,
    create_corpus,
    encoding_to_json,
    is_corpus,
    open_corpus,
)
from vqtok.corpus.shards import Shard
from vqtok.corpus_options import format_size
from vqtok.encoding import EncodeOptions
from vqtok.errors import UsageError, VqtokError, name_file
from vqtok.files import is_list, list_path, real_path
from vqtok.targets import check_targets, tokenizer_file

_LONGEST = 300  # characters of a value in a message
_GIVEN = "dtype", "keyframe_interval"  # where they are not asked for, what was begun with is right


@dataclass(frozen=True)
class PlanOptions:
    """How to make a corpus, as in `vqtok encode`.

    pack: size of a shard in bytes, about.
    encoding: of each clip.
    tokenizer: a bundled name, a file, or hf:org/name.
    dtype, device: as in `load_for_inference`.
    split: cut long clips into pieces of about so many seconds; None: do not.
    on_gpus: whether workers on other machines have GPUs; this machine then needs none.
    workers: clips that share the cores of a machine with the threads of PyTorch, on CPUs.
    """

    pack: int
    encoding: EncodeOptions
    tokenizer: str = DEFAULT
    dtype: str | None = None
    device: str = "auto"
    split: float | None = None
    on_gpus: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        if self.split is not None and {"tokens", "psnr"} & self.encoding.rate.given.keys():
            raise UsageError(
                "--tokens and --psnr are met over a whole clip: choose --lambda, or do not --split"
            )


def open_or_create(
    sources: Sequence[str], folder: Path, options: PlanOptions, say: Callable[[str], object]
) -> Corpus:
    """Return the corpus in a folder, made if it is new.

    Several processes may do so at once: all get the corpus of the first one.
    Raises UsageError if it was made with other options.
    """
    absolute = tuple(map(_absolute, sources))
    if not is_corpus(folder):
        _create(sources, absolute, folder, options, say)
    corpus = open_corpus(folder)
    _check_same(corpus, absolute, options)
    return corpus


def _absolute(source: str) -> str:
    """Return a source as it is called from everywhere, without links and `..`."""
    if is_list(source):
        return f"@{real_path(list_path(source))}"
    return str(real_path(source))


def _create(
    sources: Sequence[str],
    absolute: tuple[str, ...],
    folder: Path,
    options: PlanOptions,
    say: Callable[[str], object],
) -> None:
    _check_own(folder)
    check_targets([folder / FAILURES], [tokenizer_file(options.tokenizer)])
    encoding = options.encoding
    with Prober(encoding.size, encoding.fps) as prober:

        def pieces(path: Path) -> int:
            if options.split is None:
                return 1
            excerpt = encoding.start, encoding.duration
            return count_pieces(prober.probe(path), *excerpt, options.split)

        clips = list(list_clips(sources, pieces, say))
        settings = _describe_tokenizer(absolute, options)
        ratio = estimate_ratio(clips, settings, prober)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / CLIPS, replace=False) as temporary, temporary.open("wb") as file:
        file.writelines(clip_lines(clips))
    listed = list(read_clips(folder))
    if listed != clips and not is_corpus(folder):
        raise UsageError(
            f"{folder / CLIPS} lists other clips than there are now: delete it, or choose another "
            "folder"
        )
    create_corpus(folder, settings, divide([clip.bytes * ratio for clip in listed], settings.pack))


def _check_own(folder: Path) -> None:
    """Raise UsageError if a folder has files that are not those of a corpus."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    own = {CLIPS, CORPUS, FAILURES}
    others = sorted(name for name in names if name[0] != "." and name not in own)
    if others and not is_corpus(folder):  # or made by another process just now
        raise UsageError(f"{folder} has other files ({others[0]}): choose an empty folder")


def absolute_tokenizer(tokenizer: str) -> str:
    """Return the name of a bundled tokenizer, a commit on the hub, or the absolute path of a file.

    What has not been downloaded yet is, so that all workers find it in the cache.
    """
    if hub.is_hub_name(tokenizer):
        return hub.pin(tokenizer)
    is_path = tokenizer_file(tokenizer) == Path(tokenizer)
    return str(Path(tokenizer).absolute()) if is_path else tokenizer


def _describe_tokenizer(sources: tuple[str, ...], options: PlanOptions) -> CorpusSettings:
    """Return the settings of a new corpus.

    Raises UsageError for a rate or a key-frame interval that the tokenizer cannot keep.
    """
    import torch

    from vqtok.device import find_device
    from vqtok.model.checkpoint import inference_dtype, load_outline
    from vqtok.pipeline.source import resolve_options

    where, dtype = ("cpu", "bfloat16") if options.on_gpus else (options.device, None)
    device = find_device(where)
    dtype = inference_dtype(device, options.dtype or dtype)
    tokenizer = load_outline(options.tokenizer)
    encoding = resolve_options(options.encoding, tokenizer)
    threads = max(1, torch.get_num_threads() // options.workers)
    return CorpusSettings(
        tokenizer=absolute_tokenizer(options.tokenizer),
        model=tokenizer.fingerprint,
        quantizer=tokenizer.kind,
        stride=tokenizer.stride,
        codebook_size=tokenizer.codebook_size,
        stages=tokenizer.stages,
        dtype=dtype,
        sources=sources,
        pack=options.pack,
        split=options.split,
        threads=None if options.on_gpus or device.type != "cpu" else threads,
        **encoding_to_json(encoding),
    )


def _check_same(corpus: Corpus, sources: tuple[str, ...], options: PlanOptions) -> None:
    """Raise UsageError if an option is not what the corpus was begun with."""
    begun = asdict(corpus.settings)
    asked: dict[str, Any] = {"sources": sources, "pack": options.pack, "split": options.split}
    asked |= encoding_to_json(options.encoding) | {"dtype": options.dtype}
    for key in asked:
        if asked[key] is None and key in _GIVEN:
            continue
        if begun[key] != asked[key]:
            raise UsageError(
                f"{corpus.folder} was begun {_describe(key, begun[key])}, not "
                f"{_describe(key, asked[key])}: use the same options, or another folder"
            )
    if absolute_tokenizer(options.tokenizer) != corpus.settings.tokenizer:
        from vqtok.model.checkpoint import read_fingerprint  # imports PyTorch

        corpus.check_model(options.tokenizer, read_fingerprint(options.tokenizer))


def _describe(key: str, value: Any) -> str:
    """Return "with" or "without" an option, as it is written on the command line."""
    match key:
        case "sources":
            text = ", ".join(value)
            return f"with the videos {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}"
        case "rate" if not value:
            return "without --lambda, --tokens or --psnr"
        case "rate":
            names = {"price": "lambda"}
            return "with " + ", ".join(f"--{names.get(k, k)} {v:g}" for k, v in value.items())
        case "pack":
            value = format_size(value)
    key = key.replace("_", "-")
    if isinstance(value, bool):
        return f"{'with' if value else 'without'} --{key}"
    if isinstance(value, float):
        value = f"{value:g}"
    return f"without --{key}" if value is None else f"with --{key} {value}"


def clips_left(corpus: Corpus, shards: Sequence[Shard]) -> list[Clip]:
    """Return the clips of shards that are not finished, those that are split piece by piece.

    Shards with the longest clips come first, and in each its longest clip: what takes long must
    not be begun last.
    """
    left: dict[int, set[int]] = {}
    for shard in shards:
        if not shard.is_published():
            done, failed = shard.finished()
            left[shard.number] = set(shard.keys) - done - failed
    wanted = set().union(*left.values())
    clips = {clip.key: clip for clip in read_clips(corpus.folder) if clip.key in wanted}
    if len(clips) < len(wanted):
        raise VqtokError(f"{corpus.folder / CLIPS} lacks clips that {CORPUS} counts")
    groups = [[p for key in keys for p in _pieces(clips[key])] for keys in left.values()]
    for group in groups:
        group.sort(key=_work)
    groups.sort(key=lambda group: min(map(_work, group), default=0))
    return [clip for group in groups for clip in group]


def _pieces(clip: Clip) -> list[Clip]:
    return [clip._replace(piece=piece) for piece in range(clip.pieces)]


def _work(clip: Clip) -> float:
    """Return a number that is smaller for clips and pieces that take longer."""
    return -clip.bytes / clip.pieces


def plan_clips(
    sources: Sequence[str],
    folder: Path,
    options: PlanOptions,
    shard: tuple[int, int] = (0, 1),
    retry_failed: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> tuple[Corpus, list[Shard], list[Clip]]:
    """Return the corpus in a folder, the shards of this process, and their clips that are left.

    shard: (k, n): of n processes, this is number k and takes every n-th shard.
    retry_failed: also encode clips again that have failed.
    say: gets notes on files that were passed over.
    """
    with name_file(folder):  # that has no space left
        corpus = open_or_create(sources, folder, options, say)
        shards = corpus.shards[shard[0] :: shard[1]]
        if retry_failed:
            for each in shards:
                reopen(corpus, each)
    return corpus, shards, clips_left(corpus, shards)
