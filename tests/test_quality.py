"""Quality metrics against direct computation: PSNR, SSIM, block averages, and those of a clip."""

import numpy as np
import pytest
import torch

import vqtok
from helpers.clips import pattern
from helpers.tokenizers import random_video, save_staged_tokenizer, small_tokenizer
from vqtok.encoding import Rate
from vqtok.quality import block_averages, evaluate_clip, psnr, ssim
from vqtok.video import open_video


def ssim_of_one_channel(x, y):
    """Compute SSIM as published, pixel by pixel."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / 4.5)
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = ((window * (v - (window * v).sum()) ** 2).sum() for v in (a, b))
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            light = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
            values.append(light * (2 * both + 0.03**2) / (var_a + var_b + 0.03**2))
    return np.mean(values)


def test_ssim_equals_the_published_formula():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 2, 14, 19, dtype=torch.float64)
    y = (x + 0.2 * torch.randn_like(x)).clamp(0, 1)
    for t, value in enumerate(ssim(x, y)[0]):
        channels = [ssim_of_one_channel(x[0, c, t].numpy(), y[0, c, t].numpy()) for c in range(3)]
        assert value.item() == pytest.approx(np.mean(channels), abs=1e-5)
    assert torch.allclose(ssim(x, x), torch.ones(1, 2))
    assert ssim(x[..., :5, :7], y[..., :5, :7]).shape == (1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = ssim(x, y)
    assert torch.equal(reduced, ssim(x, y))


def test_block_averages_are_means_of_blocks():
    video = torch.randint(0, 256, (1, 3, 9, 16, 24), dtype=torch.uint8)
    blocks = block_averages(video, (4, 8, 8), first=True)
    assert blocks.shape == video.shape
    mean = video[0, 1, 5:9, 8:16, 16:24].float().mean().round()
    assert (blocks[0, 1, 5:9, 8:16, 16:24] == mean).all()
    assert (blocks[0, 2, 0, :8, :8] == video[0, 2, 0, :8, :8].float().mean().round()).all()
    later = block_averages(video[:, :, 1:], (4, 8, 8), first=False)
    assert torch.equal(later, blocks[:, :, 1:])
    odd = block_averages(video[:, :, :7, :13, :17], (4, 8, 8), first=True)
    assert odd.shape == (1, 3, 7, 13, 17)


def test_metrics_equal_those_of_the_decoded_clip(make_clip):
    with open_video(make_clip(frames=14, height=44, width=60)) as clip:
        pixels = next(clip.chunks(14))[0]
    video, tokenizer = torch.from_numpy(pixels).movedim(-1, 0)[None], vqtok.load()
    seen = []
    quality = evaluate_clip(video, tokenizer, seen.append)
    indices = tokenizer.encode(video)
    decoded = tokenizer.decode(indices, *video.shape[2:]).mul(255).round() / 255
    assert quality.full.reconstruction.psnr == pytest.approx(
        psnr(video / 255, decoded).item(), abs=1e-3
    )
    assert quality.full.reconstruction.ssim == pytest.approx(
        ssim(video / 255, decoded).mean().item(), abs=1e-5
    )
    averages = block_averages(video, tokenizer.stride, first=True)
    assert quality.baseline.psnr == pytest.approx(
        psnr(video / 255, averages / 255).item(), abs=1e-3
    )
    assert quality.counts.sum() == (indices != 0).sum()
    assert quality.encode_fps > 0 and quality.decode_fps > 0
    assert np.array_equal(np.concatenate([frames for frames, _ in seen]), pixels)
    expected = decoded[0].movedim(0, -1).mul(255).round().byte().numpy()
    assert np.array_equal(np.concatenate([frames for _, frames in seen]), expected)


class SlowStart:
    """A tokenizer on a GPU that takes 100 s to start, and later 2 s to encode and 1 s to decode.

    The GPU works in the background: time passes when the host waits for it.
    """

    device = torch.device("cuda")

    def __init__(self, tokenizer):
        self._tokenizer, self.now, self.queued = tokenizer, 0.0, 100.0

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def wait(self, device=None):
        self.now, self.queued = self.now + self.queued, 0.0

    def encode(self, video, *rate):
        indices = self._tokenizer.encode(video, *rate)
        self.queued += 2
        self.wait()  # the indices are copied to the host
        return indices

    def decode_stream(self, chunks):
        parts = self._tokenizer.decode_stream(chunks)
        self.queued += 1
        yield from parts


class OnGPU(torch.Tensor):
    """A video that stays on the CPU if it is moved to a GPU."""

    def to(self, device):
        assert device == SlowStart.device
        return self.as_subclass(torch.Tensor)


def test_the_start_of_a_gpu_is_no_part_of_the_frames_per_second(monkeypatch):
    tokenizer = SlowStart(small_tokenizer("fsq"))
    monkeypatch.setattr("vqtok.quality.synchronize", tokenizer.wait)
    monkeypatch.setattr("time.perf_counter", lambda: tokenizer.now)
    video = random_video(9).mul(255).byte().as_subclass(OnGPU)
    for _ in range(2):  # the second clip is as fast
        result = evaluate_clip(video, tokenizer)
        assert (result.encode_fps, result.decode_fps) == (9 / 2, 9 / 1)


def test_unquantized_is_what_the_decoder_makes_of_the_latents():
    tokenizer = small_tokenizer("ema", "quantizer.codebook_size=16")
    video = random_video(14, 44, 60).mul(255).byte()
    with torch.no_grad():
        z = tokenizer.encoder(tokenizer.pad(video, first=True))
        decoded = tokenizer.decoder(z)[:, :, 3:17, :44, :60]
    expected = ((decoded + 1) / 2).clamp(0, 1)
    parts = list(tokenizer.reconstruct_stream(video.split(5, dim=2)))
    assert len(parts) > 1
    torch.testing.assert_close(torch.cat(parts, 2)[:, :, :14, :44, :60], expected)
    unquantized = evaluate_clip(video, tokenizer).unquantized
    assert unquantized.psnr == pytest.approx(psnr(video / 255, expected).item(), abs=0.01)


def test_the_zero_code_is_no_token(tmp_path):
    tokenizer = vqtok.load(save_staged_tokenizer(tmp_path / "t.safetensors"))
    video = torch.from_numpy(pattern(9, 32, 48)).movedim(-1, 0)[None]
    indices = tokenizer.encode(video, Rate(price=1))
    spent = int(indices.count_nonzero())
    assert 0 < spent < indices.numel()
    result = evaluate_clip(video, tokenizer, rates=[Rate(price=1)])
    assert len(result.counts) == tokenizer.codebook_size - 1
    assert result.counts.sum() == tokenizer.encode(video).count_nonzero()
    (point,) = result.curve
    assert point.tokens_per_position == spent / (3 * 4 * 6)
    assert point.bits_per_pixel == pytest.approx(spent * 6 / (9 * 32 * 48))
