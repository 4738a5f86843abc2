"""`vqtok eval`: its table, its JSON, and saved comparisons."""

import json

import av
import numpy as np
import pytest

import vqtok
from helpers.command import fails, in_process, works
from vqtok.quality import evaluate_clip
from vqtok.video import open_video


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
    for key in ("psnr", "ssim", "unquantized_psnr", "blocks_psnr", "blocks_ssim", "bits_per_pixel"):
        assert numbers["mean"][key] == pytest.approx((clip[key] + still[key]) / 2)
    assert numbers["mean"]["tokens"] == clip["tokens"] + still["tokens"]
    table = works("eval", folder, *options).stdout.decode()
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == ["clip", "a.mp4", "b.png", "mean of 2"]
    assert f"{clip['psnr']:.2f}" in rows[1] and f"{still['ssim']:.3f}" in rows[2]
    small = json.loads(works("eval", folder / "a.mp4", "--size", 24, "--json", *tiny).stdout)
    assert (small["clips"][0]["height"], small["clips"][0]["width"]) == (24, 32)


def test_rates_give_a_curve(folder, staged):
    rates = "--tokens", "0.4,1.2", "--psnr", "25", "--lambda", "1"
    args = "eval", folder, "--frames", 17, *rates, *staged
    numbers = json.loads(works(*args, "--json").stdout)
    names = ["price=1", "tokens=0.4", "tokens=1.2", "psnr=25"]
    for row in (*numbers["clips"], numbers):
        assert [point["rate"] for point in row["rates"]] == names
    clip, still = numbers["clips"]
    for i, point in enumerate(numbers["rates"]):
        for key in ("tokens_per_position", "psnr", "ssim", "bits_per_pixel"):
            values = [row["rates"][i][key] for row in (clip, still)]
            assert point[key] == pytest.approx(np.mean(values))
    curve = clip["rates"][1:3]
    for point, target in zip(curve, (0.4, 1.2), strict=True):
        assert point["tokens_per_position"] == pytest.approx(target, rel=0.05)
        bits = point["tokens_per_position"] * 5 * 6 * 8 * np.log2(64)
        assert point["bits_per_pixel"] == pytest.approx(bits / (17 * 48 * 64))
    assert curve[0]["psnr"] < curve[1]["psnr"] < clip["psnr"] < clip["unquantized_psnr"]
    table = works("eval", folder / "b.png", *rates, *staged).stdout.decode()
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows[3:]] == ["rate", *names]
    assert rows[5][3].strip() == f"{still['rates'][1]['psnr']:.2f}"


def test_rates_are_numbers_that_the_tokenizer_can_keep(folder, tiny, staged):
    for options, message in (
        (("--tokens", "0.4,all", *staged), "0.4,all is not a list of numbers"),
        (("--psnr", "30,200", *staged), "must be above 0 and at most 100 dB, not 200"),
        (("--tokens", "0.4", *tiny), "a rate needs one that was trained with quantizer.stages"),
    ):
        assert fails(2, message, "eval", folder, *options).count("\n") == 1


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


def test_after_a_failure_of_the_gpu_no_clip_is_tried(folder, tiny, make_clip, monkeypatch):
    def fail_on_images(video, *args, **options):
        if video.shape[2] > 1:
            return evaluate_clip(video, *args, **options)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    make_clip(folder / "c.mp4")
    monkeypatch.setattr("vqtok.commands.eval.evaluate_clip", fail_on_images)
    result = in_process("eval", folder, "--frames", 2, "--json", *tiny)
    assert result.returncode == 1
    assert b"1 of 3 clips could not be measured" in result.stderr
    assert b"b.png: the GPU failed (CUDA error: an illegal memory access" in result.stderr
    assert [clip["clip"] for clip in json.loads(result.stdout)["clips"]] == ["a.mp4"]


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
