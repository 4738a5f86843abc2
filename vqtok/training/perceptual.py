"""How different two videos look to a network that has learned to see."""

import torch
from einops import rearrange
from torch import Tensor, nn

from vqtok.config import TrainSettings
from vqtok.errors import UsageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which they were shown
STAGES = slice(1, 4)  # of a network, from fine to coarse; before them is its stem


class Perceptual(nn.Module):
    """Compares feature maps of a frozen convolutional network, frame by frame.

    As LPIPS does (arXiv:1801.03924), but with all channels alike: features are normalised at each
    position, and their squared distances averaged over positions and stages.

    Raises UsageError where transformers is missing or the network cannot be loaded.
    """

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        model, self.reduced = settings.perceptual_model, settings.dtype == "bfloat16"
        try:
            from transformers import AutoModel
        except ImportError:
            raise UsageError(
                "train.perceptual_weight needs transformers: pip install 'vqtok[perceptual]'"
            ) from None
        try:
            self.net = AutoModel.from_pretrained(model)
        except (ImportError, OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"train.perceptual_model={model} cannot be loaded: {reason}") from None
        self.net.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Videos (b 3 t h w) in 0..1 -> a number, 0 where they look the same."""
        pairs = zip(self._features(reconstruction), self._features(target), strict=True)
        return torch.stack([(one - other).square().sum(1).mean() for one, other in pairs]).mean()

    def _features(self, video: Tensor) -> list[Tensor]:
        """Unit vectors (n c h w) at every position of every stage."""
        frames = (rearrange(video, "b c t h w -> (b t) c h w") - self.mean) / self.std
        with torch.autocast(video.device.type, torch.bfloat16, enabled=self.reduced):
            stages = self.net(frames, output_hidden_states=True).hidden_states[STAGES]
        if any(maps.ndim != 4 for maps in stages):
            raise UsageError("train.perceptual_model has no feature maps: take a ResNet, say")
        return [nn.functional.normalize(maps.float(), dim=1) for maps in stages]
