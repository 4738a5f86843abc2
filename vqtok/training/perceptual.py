"""The perceptual loss: distance of two videos in the features of a pretrained network."""

import torch
from einops import rearrange
from torch import Tensor, nn

from vqtok.errors import UsageError
from vqtok.precision import training_autocast
from vqtok.settings import TrainSettings

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGES = slice(1, 4)  # of the network's hidden states: the stem and the last stage are left out


class PerceptualLoss(nn.Module):
    """Distance between feature maps of a frozen convolutional network, frame by frame.

    LPIPS (arXiv:1801.03924) without its learned channel weights: features are normalized at each
    position, and their squared distances averaged over positions and stages.

    Raises UsageError if transformers is missing or the network cannot be loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        model, self.dtype = settings.perceptual_model, settings.dtype
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
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Return the distance of two videos (b 3 t h w) in 0..1, a scalar."""
        pairs = zip(self._features(reconstruction), self._features(target), strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean()

    def _features(self, video: Tensor) -> list[Tensor]:
        """Return the feature maps (n c h w) of each stage, normalized over channels."""
        frames = (rearrange(video, "b c t h w -> (b t) c h w") - self.mean) / self.std
        with training_autocast(video.device, self.dtype):
            stages = self.net(frames, output_hidden_states=True).hidden_states[STAGES]
        if any(maps.ndim != 4 for maps in stages):
            raise UsageError(
                "train.perceptual_model has no feature maps: use a convolutional network such as "
                "microsoft/resnet-18"
            )
        return [nn.functional.normalize(maps.float(), dim=1) for maps in stages]
