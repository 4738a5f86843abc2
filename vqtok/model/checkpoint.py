"""Tokenizers in files: weights as safetensors with the configuration in the metadata, no pickle."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from vqtok import DEFAULT, config
from vqtok.config import Config
from vqtok.device import find_device
from vqtok.errors import UsageError, VqtokError
from vqtok.files import atomic_write
from vqtok.model.tokenizer import Tokenizer
from vqtok.precision import has_fast_bfloat16, set_global_flags

BUNDLED = Path(__file__).parents[1] / "bundled"  # each tokenizer beside its model card
FORMAT = {"format": "vqtok-tokenizer", "version": "1"}


def save(path: Path, tokenizer: Tokenizer, settings: Config, step: int) -> None:
    """Write a tokenizer so that `load` can rebuild it from this file alone.

    Convolutions and learned codes are kept in float16, which halves the file; the rest of a
    quantizer stays as it is. What loading can make from the rest is left out.
    """
    recomputed_keys = {f"quantizer.{name}" for name in tokenizer.quantizer.recomputed_keys}
    fp16_keys = {f"quantizer.{name}" for name in tokenizer.quantizer.fp16_keys}
    weights = {
        name: (
            w.half() if name in fp16_keys or not name.startswith("quantizer.") else w
        ).contiguous()
        for name, w in tokenizer.state_dict().items()
        if name not in recomputed_keys
    }
    metadata = FORMAT | {"config": settings.to_json(), "step": str(step)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(to_bytes(weights, metadata))


def load(source: str | Path = DEFAULT) -> Tokenizer:
    """Read a tokenizer: a file that `vqtok train` wrote, or the name of a bundled one.

    It comes in eval mode, in float32, on the CPU; `.to("cuda").cast(torch.bfloat16)` makes it fast.
    Raises VqtokError when there is no such file or name, or when it is not a whole tokenizer.
    """
    path = _found(source)
    metadata, weights = _read(path)
    if {key: metadata.get(key) for key in FORMAT} != FORMAT:
        raise VqtokError(f"{path} is not a vqtok tokenizer of version {FORMAT['version']}")
    settings = config.from_json(metadata.get("config", ""), str(path))
    try:
        with torch.device("meta"):  # an edited size must not take memory before it is compared
            shapes = Tokenizer(settings.model, settings.quantizer).state_dict()
        # What a file of an older version lacks, loading fills in or refuses.
        if any(k not in shapes or shapes[k].shape != v.shape for k, v in weights.items()):
            raise VqtokError("the weights do not fit")
        tokenizer = Tokenizer(settings.model, settings.quantizer)
        tokenizer.load_state_dict(weights)
    except (RuntimeError, VqtokError) as error:
        raise VqtokError(f"{path} does not fit its own configuration: {error}") from None
    tokenizer.fingerprint = fingerprint(weights)
    return tokenizer.eval()


def identify(source: str | Path) -> str:
    """The fingerprint that `load` gives a tokenizer; raises VqtokError for what is none."""
    return fingerprint(_read(_found(source))[1])


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and weights."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            return metadata, {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise VqtokError(f"{path} is damaged or no tokenizer: {error}") from None


def fingerprint(weights: dict[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        w = weights[name].contiguous()
        digest.update(f"{name} {w.dtype} {tuple(w.shape)}\n".encode())
        digest.update(w.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _found(source: str | Path) -> Path:
    bundled = {f.stem: f for f in BUNDLED.glob("*.safetensors")}
    path = bundled.get(str(source), Path(source))
    if not path.is_file():
        names = ", ".join(sorted(bundled))
        raise VqtokError(f"{path}: no such tokenizer file; the bundled tokenizers are {names}")
    return path


def load_for_inference(
    source: str | Path, device: str = "auto", dtype: str | None = None
) -> Tokenizer:
    """Load a tokenizer onto a device, in a dtype, and set the torch flags that commands run with.

    device: auto, cpu, cuda or cuda:N.
    dtype: float32 or bfloat16; by default bfloat16 where the device computes it natively.
    Raises UsageError if there is no such device or dtype.
    """
    if dtype not in (None, "float32", "bfloat16"):
        raise UsageError(f"dtype {dtype}: must be float32 or bfloat16")
    set_global_flags()
    target = find_device(device)
    dtype = dtype or ("bfloat16" if has_fast_bfloat16(target) else "float32")
    return load(source).to(target).cast(getattr(torch, dtype))
