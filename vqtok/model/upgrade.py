"""Tokenizer files of version 1, as vqtok 0.1 and its development versions wrote them."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from vqtok.config import rename_keys
from vqtok.errors import VqtokError

MAX_FOLDED = 2**26  # numbers in a codebook that has been projected


def upgrade(settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Bring the settings and weights of a version 1 file to today's layout, in place.

    Raises VqtokError for networks that today's code cannot build.
    """
    model, quantizer = settings.setdefault("model", {}), settings.setdefault("quantizer", {})
    _upgrade_networks(model, weights)
    _fold_transforms(quantizer, weights)
    if count := quantizer.pop("absolute_codes", 0):  # before it was a share
        # The middle of the interval of shares that are rounded down to this count.
        model["intra_share"] = (count + 0.5) / quantizer["codebook_size"]
    if model.get("predictor_blocks") and "key_every" not in model:
        model["keyframe_interval"] = 2**31 - 1  # only the first frame was a key frame
    rename_keys(settings)
    for name in list(weights):
        if name.startswith(("quantizer.", "predictor.")):
            new_name = f"coder.{name}".replace("quantizer.started", "quantizer.initialized")
            weights[new_name] = weights.pop(name)


def _upgrade_networks(model: dict[str, Any], weights: dict[str, Tensor]) -> None:
    norm = f"encoder.{2 + sum(model.get('encoder_blocks', ()))}.weight"
    if norm in weights and weights[norm].ndim == 1:
        raise VqtokError("its encoder ends in a norm, which this version of vqtok cannot run")
    for name in ("weight", "bias"):
        if f"decoder.0.{name}" in weights:
            weights[f"decoder.0.conv.{name}"] = weights.pop(f"decoder.0.{name}")


def _fold_transforms(quantizer: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Fold the projection and normalization of codes, once options, into the codes."""
    projected, normalized = quantizer.pop("project", False), quantizer.pop("normalize", False)
    quantizer.pop("rotate", None)  # changed gradients only
    codes = "quantizer.embedding.weight"
    if projected:
        projection = weights.pop("quantizer.projection.weight")
        if len(weights[codes]) * len(projection) > MAX_FOLDED:
            raise VqtokError("its projected codebook is too large")
        weights[codes] = F.linear(weights[codes].float(), projection.float())
    if normalized:
        weights[codes] = F.normalize(weights[codes].float(), dim=-1)
        weights.pop("quantizer.embedding.embed_avg", None)
