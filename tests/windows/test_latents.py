"""What a tokenizer makes of a window is what it makes of the whole clip there."""

import pytest
import torch
from torch.utils.data import DataLoader

import vqtok
from helpers.tokenizers import random_video


@pytest.mark.parametrize("factors", [1, 2])
def test_latents_of_any_window_are_those_of_the_clip(tmp_path, staged, factors):
    tokenizer = vqtok.load(staged[1])
    assert tokenizer.keyframe_interval == 3 and tokenizer.coder.predictor is not None
    indices = tokenizer.encode(random_video(1 + 4 * 8))
    tokens = vqtok.tokens_from_indices(indices[0], tokenizer=tokenizer)
    vqtok.write_tokens(tmp_path / "a.safetensors", tokens)
    whole = tokenizer.latents(indices)[0]

    path, length = tmp_path / "a.safetensors", 4
    windows = vqtok.TokenWindows(path, length, start="any", step=1, factors=factors)
    assert len(windows) == 6
    batch = next(iter(DataLoader(windows, batch_size=6)))
    codes = batch["indices"].masked_fill(batch["indices"] == windows.pad_token, 0)
    latents = tokenizer.latents(windows.join(codes), windows.keyframe_interval)
    for z, lead, frame in zip(latents, batch["lead"], batch["frame"], strict=True):
        torch.testing.assert_close(z[:, lead : lead + length], whole[:, frame : frame + length])
