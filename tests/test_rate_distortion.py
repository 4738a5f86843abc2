"""The scripts that measure and draw rate and distortion."""

import json

import av
import numpy as np
import pytest
import torch

from helpers import ROOT
from helpers.clips import pattern
from helpers.tokenizers import save_staged_tokenizer, save_tokenizer
from vqtok.encoding import Rate
from vqtok.model.checkpoint import load_for_inference
from vqtok.quality import evaluate_clip
from vqtok.video import open_video


@pytest.fixture
def scripts(monkeypatch):
    """The modules rate_distortion and plot_rates."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import plot_rates
    import rate_distortion

    return rate_distortion, plot_rates


def test_figures_are_those_of_eval_and_can_be_drawn_again(scripts, make_clip, tmp_path, capsys):
    measuring, drawing = scripts
    (tmp_path / "clips").mkdir()
    clips = [make_clip(tmp_path / "clips" / name, frames=9) for name in ("a.mp4", "b.mkv")]
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"not a video")
    staged, fixed = save_staged_tokenizer(tmp_path / "s.safetensors"), tmp_path / "f.safetensors"
    options = {"size": 48, "frames": 9, "tokens": "0.4,1.2"}
    options |= {"tokenizer": str(staged), "fixed_grid": str(save_tokenizer(fixed))}
    files = {"json_": tmp_path / "out.json", "plot": tmp_path / "out.png"}
    measuring.main([tmp_path / "clips"], **options, **files)
    output = capsys.readouterr()
    assert "skipped" in output.err and "broken.mp4" in output.err
    results = json.loads(files["json_"].read_text())["clips"]
    assert list(results) == [str(path) for path in clips]

    with open_video(clips[0], size=48) as clip:
        video = torch.from_numpy(next(clip.chunks(9))[0]).movedim(-1, 0)[None]
    rates = [Rate(tokens=0.4), Rate(tokens=1.2)]
    expected = evaluate_clip(video, load_for_inference(staged, "auto", None), rates=rates)
    points = results[str(clips[0])]
    for point, other in zip(points, [*expected.curve, expected.full], strict=False):
        assert point["psnr"] == pytest.approx(other.reconstruction.psnr)
        assert point["ssim"] == pytest.approx(other.reconstruction.ssim)
        assert point["tokens_per_position"] == other.tokens_per_position
        assert point["token_bits_per_pixel"] == pytest.approx(other.bits_per_pixel)
        bits_of_map = point["bits_per_pixel"] - point["token_bits_per_pixel"]
        assert 8 <= round(bits_of_map * video[0, 0].numel(), 3) <= 3 * 6 * 9 * 2 + 7
    methods = [point["method"] for point in points]
    assert methods == [*["tokenizer"] * 3, "fixed grid", *["x264"] * 4, "block averages"]
    assert points[3]["bits_per_pixel"] == points[3]["token_bits_per_pixel"]
    assert points[-1]["psnr"] == pytest.approx(expected.baseline.psnr)

    rows = output.out.splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        *("tokens=0.4", "tokens=1.2", "all tokens", "fixed grid", "block averages")
    ]
    mean = np.mean([points[2]["psnr"] for points in results.values()])
    assert rows[4].split("|")[5].strip() == f"{mean:.2f}"
    drawing.main(files["json_"], tmp_path / "again.png")
    assert capsys.readouterr().out == output.out
    for name in ("out.png", "again.png"):
        with av.open(str(tmp_path / name)) as image:
            assert image.streams.video[0].width == 1800


def test_without_a_clip_there_is_no_table(scripts, tmp_path):
    options = {"tokenizer": str(save_staged_tokenizer(tmp_path / "s.safetensors"))}
    options["fixed_grid"] = options["tokenizer"]
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(SystemExit, match="no clip could be measured"):
        scripts[0].main([tmp_path / "broken.mp4"], **options)


def test_x264_takes_the_bits_that_it_is_given(scripts):
    frames = np.random.default_rng(0).integers(-20, 20, (9, 63, 95, 3)) + pattern(9, 63, 95)
    video = torch.from_numpy(frames.clip(0, 255).astype(np.uint8)).movedim(-1, 0)[None]
    x264 = scripts[0].X264Encoder(video, tune=None)
    low, high = (x264.point("rate", bits) for bits in (0.5, 2.0))
    # x264 with AVX-512 may give streams of such small frames that differ by 3% from run to run.
    assert low.bits_per_pixel == pytest.approx(0.5, rel=0.1)
    assert high.bits_per_pixel == pytest.approx(2.0, rel=0.1)
    assert 20 < low.psnr < high.psnr and low.ssim < high.ssim
    assert x264.point("rate", 1e-4).bits_per_pixel < 0.2  # crf 51


def test_bits_of_a_stream_leave_out_messages(scripts):
    parameters, message, picture = b"\0\0\1\x67abc", b"\0\0\1\x06version of x264", b"\0\0\1\x65de"
    packets = [av.Packet(parameters + message + picture), av.Packet(picture)]
    assert scripts[0].stream_bits(packets) == 8 * (7 + 6 + 6)


def test_a_map_takes_a_bit_per_index_or_less(scripts):
    random = np.random.default_rng(0).integers(0, 2, (4, 8, 8, 2))
    assert scripts[0].map_bits(random) == random.size
    assert scripts[0].map_bits(np.zeros((9, 32, 32, 2), int)) < 500
