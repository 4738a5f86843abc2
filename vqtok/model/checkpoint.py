"""Tokenizer files: weights as safetensors, settings as JSON in the metadata, no pickle."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqtok import DEFAULT, config, hub
from vqtok.device import check_dtype, find_device
from vqtok.distributed import local_device
from vqtok.errors import VqtokError
from vqtok.model.tokenizer import Tokenizer
from vqtok.model.upgrade import upgrade
from vqtok.precision import has_fast_bfloat16, set_global_flags
from vqtok.quantizers import build
from vqtok.safetensors_io import read_file, write_file
from vqtok.settings import Config, TokenizerConfig
from vqtok.targets import BUNDLED, tokenizer_file
from vqtok.untrusted import parse_json, quote, shorten

FORMAT, VERSION = "vqtok-tokenizer", "2"
PRICE = "coder.price"  # its range is unknown: float16 might not hold it
_DAMAGED = (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError)
_STORED_AS = {torch.float32: {torch.float16, torch.float32}}
QUANTIZER = "coder.quantizer."  # prefix of the quantizer's state dict


@dataclass(frozen=True)
class Description:
    """What a tokenizer file says of itself.

    outline: the tokenizer without its weights. version: of the file's format. step: when it was
    saved. training: the settings of its training, a note that is not checked.
    """

    outline: Tokenizer
    settings: TokenizerConfig
    version: str
    step: int
    training: dict[str, Any]


def save(path: Path, tokenizer: Tokenizer, settings: Config, step: int) -> None:
    """Write a tokenizer so that `load` can rebuild it from this file alone.

    Convolutions and learned codes are stored in float16, the rest of the quantizer as it is. The
    training settings are a note for people: loading does not read them.
    """
    quantizer = tokenizer.coder.quantizer
    weights = {}
    for name, tensor in tokenizer.state_dict().items():
        in_quantizer, key = name.startswith(QUANTIZER), name.removeprefix(QUANTIZER)
        if in_quantizer and key in quantizer.recomputed_keys:
            continue
        half = name != PRICE and (not in_quantizer or key in quantizer.fp16_keys)
        weights[name] = (tensor.half() if half else tensor).contiguous()
    sections = {
        "model": settings.model,
        "quantizer": settings.quantizer,
        "training": settings.train,
    }
    metadata = {name: json.dumps(asdict(section)) for name, section in sections.items()}
    metadata |= {"format": FORMAT, "version": VERSION, "step": str(step)}
    write_file(path, metadata, {name: weight.cpu().numpy() for name, weight in weights.items()})


def load(source: str | Path = DEFAULT) -> Tokenizer:
    """Load a tokenizer: a file that `vqtok train` wrote, or the name of a bundled one.

    hf:org/name and hf:org/name@revision are repositories on the Hugging Face Hub. What is in the
    cache is loaded without a request; else it is downloaded, with a progress bar on a terminal.

    It is in eval mode, in float32, on the CPU. `.to("cuda").cast(torch.bfloat16)` makes it fast.
    Raises VqtokError if there is no such file or name, if it is not a valid tokenizer, or if it
    cannot be downloaded.
    """
    tokenizer, settings, _, weights = _open(source)
    # The outline becomes the tokenizer: another one would draw all weights, only to lose them.
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay the same
        tokenizer.coder.quantizer = build(settings.quantizer)  # it has buffers that are in no file
    expected = tokenizer.state_dict()
    weights = {name: _copy_as(expected[name], weight) for name, weight in weights.items()}
    tokenizer.load_state_dict(weights, assign=True)
    return tokenizer.eval()


def load_outline(source: str | Path) -> Tokenizer:
    """Return a tokenizer without its weights, on the meta device, to ask what it can do.

    Raises VqtokError as `load`.
    """
    return _open(source).outline


def describe(source: str | Path) -> Description:
    """Return what a tokenizer file says of itself. Raises VqtokError as `load`."""
    outline, settings, metadata, _ = _open(source)
    step = metadata.get("step", "")
    notes = [_json_object(metadata.get(name, "")) for name in ("training", "config")]
    training = notes[0] or (notes[1] or {}).get("train")
    return Description(
        outline,
        settings,
        metadata["version"],
        int(step) if step.isdecimal() and len(step) < 12 else 0,
        training if isinstance(training, dict) else {},
    )


def load_for_inference(source: str | Path, device: str, dtype: str | None) -> Tokenizer:
    """Load a tokenizer onto a device, and set torch's global flags.

    device: auto, cpu, cuda or cuda:N; under `torchrun`, cuda is a GPU of its own for each process.
    dtype: float32 or bfloat16, None for whichever is fast.
    Raises UsageError if there is no such device or dtype, else as `load`.
    """
    set_global_flags()
    target = local_device(find_device(device))
    return load(source).to(target).cast(getattr(torch, inference_dtype(target, dtype)))


def inference_dtype(device: torch.device, dtype: str | None) -> str:
    """Return the dtype to run in: float32 or bfloat16, or for None whichever is fast.

    Raises UsageError for another one.
    """
    check_dtype(dtype)
    return dtype or ("bfloat16" if has_fast_bfloat16(device) else "float32")


def read_fingerprint(source: str | Path) -> str:
    """Return the fingerprint that `load` would set; raises VqtokError as it does."""
    return fingerprint(_read(_find(source))[1])


def fingerprint(weights: dict[str, Tensor]) -> str:
    """Return the SHA-256, in hex, of the names, dtypes, shapes and bytes of weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _File(NamedTuple):
    """A tokenizer file that has been checked; outline: the tokenizer on the meta device."""

    outline: Tokenizer
    settings: TokenizerConfig
    metadata: dict[str, str]
    weights: dict[str, Tensor]


def _open(source: str | Path) -> _File:
    """Read a tokenizer file; raises as `load`."""
    path = _find(source)
    metadata, weights = _read(path)
    digest = fingerprint(weights)
    try:
        settings = _settings(path, metadata, weights)
        outline = _outline(settings, weights)
    except VqtokError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise VqtokError(f"cannot load {path}: {reason}") from None
    outline.fingerprint = digest
    return _File(outline.eval(), settings, metadata, weights)


def _find(source: str | Path) -> Path:
    path = tokenizer_file(source)
    if path is None:
        return hub.fetch(str(source))
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for a name that is too long
        names = ", ".join(sorted(file.stem for file in BUNDLED.glob("*.safetensors")))
        is_local = path.parent.is_dir() or path.suffix == ".safetensors"
        on_hub = hub.is_repository(source) and not is_local
        hint = f"; on the Hugging Face Hub: hf:{source}" if on_hub else ""
        raise VqtokError(
            f"{path}: no such tokenizer file; the bundled tokenizers are {names}{hint}"
        )
    return path


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and weights."""
    metadata, arrays = read_file(path, "a tokenizer file")
    return metadata, {name: torch.from_numpy(array) for name, array in arrays.items()}


def _settings(path: Path, metadata: dict[str, str], weights: dict[str, Tensor]) -> TokenizerConfig:
    """Return the settings; the weights of an older version are upgraded in place."""
    version = metadata.get("version")
    if metadata.get("format") != FORMAT or version not in ("1", VERSION):
        raise VqtokError(f"it is not a vqtok tokenizer file of version 1 or {VERSION}")
    if version == "1":
        settings = _json(metadata.get("config", ""))
        try:
            upgrade(settings, weights)
        except VqtokError:
            raise
        except _DAMAGED as error:
            raise VqtokError(f"its settings are damaged: {quote(str(error))}") from None
    else:
        settings = {name: _json(metadata.get(name, "")) for name in ("model", "quantizer")}
    return config.validate(TokenizerConfig, settings, str(path))


def _json(text: str) -> dict[str, Any]:
    value = _json_object(text)
    if value is None:
        raise VqtokError("it has no settings")
    return value


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _outline(settings: TokenizerConfig, weights: Mapping[str, Tensor]) -> Tokenizer:
    """Return the tokenizer on the meta device, without memory: that of a forged size costs nothing.

    Raises VqtokError unless it can load these weights, all finite, and no others.
    """
    with torch.device("meta"):
        tokenizer = Tokenizer(settings.model, settings.quantizer)
        expected = tokenizer.state_dict()
        # What may be absent: to compute it on this device, torch would import for a second.
        computed = {f"{QUANTIZER}{key}" for key in tokenizer.coder.quantizer.recomputed_keys}
        given = {name: expected[name] for name in computed & expected.keys()}
        try:
            tokenizer.load_state_dict(given | {n: w.to("meta") for n, w in weights.items()})
        except RuntimeError as error:
            reason = shorten(str(error).partition("\n")[2].strip())
            raise VqtokError(f"the weights do not fit its settings: {reason}") from None
    for name, weight in weights.items():
        if weight.dtype not in _STORED_AS.get(expected[name].dtype, {expected[name].dtype}):
            raise VqtokError(f"the weights do not fit its settings: {name} is {weight.dtype}")
        if not is_finite(weight):
            raise VqtokError(f"the weights of {name} hold NaN or infinity; train it again")
    return tokenizer


def _copy_as(expected: Tensor, weight: Tensor) -> Tensor:
    """Return a copy of a weight on the CPU, in the dtype and the memory layout that is expected."""
    copy = torch.empty_strided(expected.shape, expected.stride(), dtype=expected.dtype)
    return copy.copy_(weight)


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds no NaN or infinity."""
    if not tensor.is_floating_point():
        return True
    # The sum is six times as fast; it may overflow.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
