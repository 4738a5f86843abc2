"""`vqtok eval`: its metrics against direct computation, its output, and saved comparisons."""

import json

import av
import numpy as np
import pytest
import torch

import vqtok
from helpers.command import fails, in_process, works
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
    with torch.autocast("cpu", torch.bfloat16):  # as when training validates
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
    assert quality.tokenizer.psnr == pytest.approx(psnr(video / 255, decoded).item(), abs=1e-3)
    assert quality.tokenizer.ssim == pytest.approx(
        ssim(video / 255, decoded).mean().item(), abs=1e-5
    )
    averages = block_averages(video, tokenizer.stride, first=True)
    assert quality.blocks.psnr == pytest.approx(psnr(video / 255, averages / 255).item(), abs=1e-3)
    assert quality.counts.sum() == indices.numel()
    assert quality.encode_fps > 0 and quality.decode_fps > 0
    assert np.array_equal(np.concatenate([frames for frames, _ in seen]), pixels)
    expected = decoded[0].movedim(0, -1).mul(255).round().byte().numpy()
    assert np.array_equal(np.concatenate([frames for _, frames in seen]), expected)


@pytest.fixture
def folder(make_clip, make_still, tmp_path):
    """A folder with a clip and an image."""
    (tmp_path / "clips").mkdir()
    make_clip(tmp_path / "clips" / "a.mp4", frames=20, height=48, width=64)
    make_still(tmp_path / "clips" / "b.png", height=50, width=71)
    return tmp_path / "clips"


def test_the_table_and_json_have_the_same_numbers(folder, tiny):
    options = ("--frames", 9, "--dtype", "float32", *tiny)
    numbers = json.loads(works("eval", folder, *options, "--json").stdout)
    clip, still = numbers["clips"]
    assert (clip["clip"], clip["frames"], clip["height"], clip["width"]) == ("a.mp4", 9, 48, 64)
    assert (still["frames"], still["height"], still["width"]) == (1, 50, 71)
    assert clip["tokens"] == 3 * 6 * 8
    bits = np.log2(vqtok.load(tiny[1]).codebook_size)
    assert clip["bits_per_pixel"] == pytest.approx(clip["tokens"] * bits / (9 * 48 * 64))
    for key in ("psnr", "ssim", "blocks_psnr", "blocks_ssim", "bits_per_pixel"):
        assert numbers["mean"][key] == pytest.approx((clip[key] + still[key]) / 2)
    assert numbers["mean"]["tokens"] == clip["tokens"] + still["tokens"]
    table = works("eval", folder, *options).stdout.decode()
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == ["clip", "a.mp4", "b.png", "mean of 2"]
    assert f"{clip['psnr']:.2f}" in rows[1] and f"{still['ssim']:.3f}" in rows[2]
    small = json.loads(works("eval", folder / "a.mp4", "--size", 24, "--json", *tiny).stdout)
    assert (small["clips"][0]["height"], small["clips"][0]["width"]) == (24, 32)


def test_save_writes_clip_and_reconstruction_side_by_side(folder, tmp_path):
    works("eval", folder, "--save", tmp_path / "side", "--frames", 9)
    with av.open(str(tmp_path / "side" / "a.mp4.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24").astype(int) for f in container.decode(video=0)]
    assert np.shape(frames) == (9, 48, 128, 3)
    with open_video(folder / "a.mp4") as clip:
        original = next(clip.chunks(9))[0]
    left, right = np.split(np.asarray(frames), 2, axis=2)
    assert np.abs(left - original).mean() < 3 < np.abs(left - original[:, ::-1]).mean()
    assert 0.5 < np.abs(right - original).mean() < 25
    fails(2, "--force overwrites it", "eval", folder, "--save", tmp_path / "side")
    works("eval", folder / "a.mp4", "--save", tmp_path / "side", "--force", "--frames", 3)
    fails(2, "is a file", "eval", folder, "--save", folder / "a.mp4")


def test_broken_clips_are_named_after_the_results(folder, tiny):
    (folder / "broken.mp4").write_bytes(b"not a video")
    result = works("eval", folder / "a.mp4", "--frames", 2, *tiny)
    assert b"mean of 1" in result.stdout
    result = in_process("eval", folder, "--frames", 2, *tiny)
    assert result.returncode == 1
    assert b"mean of 2" in result.stdout
    assert b"1 of 3 clips could not be measured" in result.stderr and b"broken.mp4" in result.stderr
    fails(1, "broken.mp4", "eval", folder / "broken.mp4", *tiny)
    fails(2, "no such file or folder", "eval", folder / "none.mp4")


def test_a_failed_write_does_not_lose_the_results(folder, tmp_path, tiny):
    (tmp_path / "side").mkdir()
    (tmp_path / "side" / "sub").write_bytes(b"in the way")
    (folder / "sub").mkdir()
    (folder / "sub" / "c.png").write_bytes((folder / "b.png").read_bytes())
    result = in_process("eval", folder, "--save", tmp_path / "side", "--frames", 2, *tiny)
    assert result.returncode == 1 and b"mean of 2" in result.stdout
    assert b"1 of 3 clips could not be measured" in result.stderr and b"sub" in result.stderr


def test_clip_names_are_unique(folder, tiny):
    (folder / "[sub]").mkdir()
    still = folder / "[sub]" / "b.png"
    still.write_bytes((folder / "b.png").read_bytes())

    def names(*clips):
        args = ("eval", *clips, "--frames", 1, *tiny)
        names = [clip["clip"] for clip in json.loads(works(*args, "--json").stdout)["clips"]]
        table = works(*args).stdout.decode()
        assert all(f"| {name} " in table for name in names)
        return names

    assert names(folder) == ["[sub]/b.png", "a.mp4", "b.png"]
    assert names(folder / "b.png", still) == [str(folder / "b.png"), str(still)]
    assert names(folder / "b.png", folder / "b.png") == ["b.png"]
    fails(2, "no clips in", "eval", folder / "*.gif")
