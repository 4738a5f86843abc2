"""docs/examples: each runs from its command line, on small real inputs, and does what it says."""

import ast
import json
import re
import signal
import subprocess
import sys
from itertools import pairwise

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

import vqtok
from helpers import ROOT
from helpers.clips import mean_difference, pattern, read_clip, write_clip

FOLDER = ROOT / "docs" / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
CAMERA = "observation.images.top"
LENGTHS = 22, 9  # frames of the episodes
has_lavfi = pytest.mark.skipif(
    "lavfi" not in av.formats_available, reason="needs FFmpeg's virtual device"
)


def run(name, *arguments, fails=False):
    """Run an example as users do; return stdout and stderr."""
    command = [sys.executable, FOLDER / name, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode != 0) == fails, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_short_and_explains_itself(example):
    text = example.read_text()
    assert len(text.splitlines()) < 60
    usage = f"python docs/examples/{example.name} "
    words = ast.get_docstring(ast.parse(text)).partition(usage)[2].split()
    assert words
    page, _ = run(example.name, "--help")
    assert example.name in page
    assert all(word in page for word in words if word.startswith("--"))


@pytest.mark.slow
def test_a_file_gives_the_tokens_of_encode(tmp_path):
    times = [0, 40, 90, 130, 210, 250, 290, 300, 400]  # ms: a variable frame rate
    clip = write_clip(tmp_path / "clip.mkv", pattern(9, 100, 140), times=times)
    _, stderr = run("live_tokens.py", clip, tmp_path / "t.safetensors", "--size", 64)
    tokens = vqtok.read_tokens(tmp_path / "t.safetensors")
    expected = vqtok.encode_video(clip, size=64)
    np.testing.assert_array_equal(tokens.indices, expected.indices)
    assert (tokens.frames, tokens.height, tokens.width) == (9, 64, 90)
    assert list(tokens.timestamps) == times
    assert [int(line.split()[0]) for line in stderr.splitlines()] == [2, 3]
    spent = [int(n) for n in re.findall(r"(\d+) new tokens", stderr)]
    assert sum(spent) == np.count_nonzero(expected.indices)


@pytest.mark.slow
def test_frames_of_one_millisecond_are_kept_apart_and_no_file_is_overwritten(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", pattern(5, 32, 48), fps=4000)
    run("live_tokens.py", clip, tmp_path / "t.safetensors", "--size", 32)
    times = vqtok.read_tokens(tmp_path / "t.safetensors").timestamps
    assert len(times) == 5 and all(earlier < later for earlier, later in pairwise(times))
    for output in (clip, tmp_path / "none" / "t"):
        _, stderr = run("live_tokens.py", clip, output, fails=True)
        assert "choose another output" in stderr


@pytest.mark.slow
@has_lavfi
def test_a_device_that_is_too_fast_loses_frames_which_are_counted(tmp_path):
    source, target = "testsrc=size=96x64:rate=500,realtime", tmp_path / "t.safetensors"
    command = [sys.executable, FOLDER / "live_tokens.py", source, target, "--device", "lavfi"]
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    lines = [process.stderr.readline() for _ in range(6)]
    process.send_signal(signal.SIGINT)
    lines += process.stderr.read().splitlines()
    assert process.wait(60) == 0, lines
    tokens = vqtok.read_tokens(target)
    assert len(tokens.indices) == int(lines[-1].split()[0])
    assert tokens.frames == 4 * len(tokens.indices) - 3
    dropped = int(re.search(r"(\d+) frames dropped", lines[-1])[1])
    assert dropped > 0
    # At 500 frames per second, what is missing between the first and the last frame was dropped.
    assert (tokens.timestamps[-1] - tokens.timestamps[0]) // 2 + 1 - tokens.frames == dropped


@pytest.mark.slow
@pytest.mark.parametrize("name", ["missing.mp4", "text.txt", "no device"])
def test_what_is_no_video_is_refused_in_a_sentence(name, tmp_path):
    (tmp_path / "text.txt").write_text("no video")
    options = ["--device", "none"] if name == "no device" else []
    source = tmp_path / name
    _, stderr = run("live_tokens.py", source, tmp_path / "t", *options, fails=True)
    assert f"{source}: no frames" in stderr
    assert len(stderr.splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--ema"]], ids=["fsq", "ema"])
def test_an_autoencoder_learns_and_uses_its_codes(options):
    clip = ROOT / "tests" / "clips" / "dev" / "driving_small.mp4"
    stdout, stderr = run("own_autoencoder.py", clip, "--steps", 60, *options)
    errors = [float(error) for error in re.findall(r"mean squared error ([\d.]+)", stderr)]
    assert len(errors) == 4
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 0.2 * errors[0]
    indices = np.array(json.loads(stdout))
    assert indices.shape == (8, 14)
    assert indices.min() >= 0 and indices.max() < 1000
    used = int(re.search(r"(\d+) of 1,000 codes", stderr)[1])
    assert used >= len(np.unique(indices)) > 20


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    """A data set in the LeRobot v3 layout, two episodes in one video, and what the example made."""
    data = tmp_path_factory.mktemp("robot")
    video = data / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    for folder in (video.parent, data / "data/chunk-000", data / "meta/episodes/chunk-000"):
        folder.mkdir(parents=True)
    first, second = (pattern(frames) for frames in LENGTHS)
    write_clip(video, np.concatenate([first, 255 - second, first]), fps=10)
    episodes = np.repeat([0, 1], LENGTHS)
    frames = np.concatenate([np.arange(n) for n in LENGTHS])
    rows = {
        "action": pa.array(np.stack([frames, 100 + episodes], 1).tolist(), pa.list_(pa.float32())),
        "timestamp": pa.array(frames / 10, pa.float32()),
        "frame_index": frames,
        "episode_index": episodes,
    }
    pq.write_table(pa.table(rows), data / "data/chunk-000/file-000.parquet")
    meta = {
        "episode_index": [0, 1],
        "length": LENGTHS,
        "data/chunk_index": [0, 0],
        f"stats/{CAMERA}/count": [[LENGTHS[0]], [LENGTHS[1]]],
        f"videos/{CAMERA}/chunk_index": [0, 0],
        f"videos/{CAMERA}/file_index": [0, 0],
        # A little late: to be off by rounding must not take the frames of the next episode.
        f"videos/{CAMERA}/from_timestamp": [0.0, LENGTHS[0] / 10 + 6e-5],
        f"videos/{CAMERA}/to_timestamp": [LENGTHS[0] / 10 + 6e-5, sum(LENGTHS) / 10 + 6e-5],
    }
    pq.write_table(pa.table(meta), data / "meta/episodes/chunk-000/file-000.parquet")
    info = {
        "codebase_version": "v3.0",
        "fps": 10,
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {CAMERA: {"dtype": "video"}, "action": {"dtype": "float32", "shape": [2]}},
    }
    (data / "meta/info.json").write_text(json.dumps(info))
    run("robot_tokens.py", data, data / "out", CAMERA, "--size", 64)
    return data


@pytest.mark.slow
def test_each_episode_has_the_tokens_of_its_frames(robot):
    for number, frames in enumerate(LENGTHS):
        name = f"episode_{number:06}.safetensors"
        tokens = vqtok.read_tokens(robot / "out/tokens" / name)
        assert tokens.frames == frames
        vqtok.decode_video(tokens, robot / "decoded.mkv", codec="ffv1")
        decoded, _, _ = read_clip(robot / "decoded.mkv")
        expected = pattern(frames) if number == 0 else 255 - pattern(frames)
        assert mean_difference(decoded, expected) < 8
        assert np.abs(decoded.astype(int) - expected).mean() < 8


@pytest.mark.slow
def test_actions_are_those_of_the_frames_of_each_latent_frame(robot):
    for number, (frames, latent_frames) in enumerate(zip(LENGTHS, (7, 3), strict=True)):
        rows = load_file(robot / f"out/rows/episode_{number:06}.safetensors")["action"]
        assert rows.shape == (latent_frames, 4, 2)
        k, j = np.mgrid[:latent_frames, :4]
        np.testing.assert_array_equal(rows[..., 0], np.clip(4 * (k - 1) + j + 1, 0, frames - 1))
        assert (rows[..., 1] == 100 + number).all()


@pytest.mark.slow
def test_actions_are_found_by_the_clip_and_the_frame_of_a_window(robot):
    windows = vqtok.TokenWindows(robot / "out/tokens", 2, start="any", step=1)
    assert len(windows) == 6 + 2
    for item in windows:
        rows = load_file(robot / f"out/rows/{item['clip']}.safetensors")["action"]
        actions = rows[item["frame"] : item["frame"] + 2]
        assert actions.shape == (2, 4, 2)
        # The last row of a latent frame is that of its last frame.
        assert actions[0, -1, 0] == 4 * item["frame"]
        shown = 0 if item["frame"] == 0 else 4 * item["frame"] - 3
        assert item["time"] == pytest.approx(shown / 10)


@pytest.mark.slow
def test_finished_episodes_are_skipped_and_other_data_is_refused(robot, tmp_path):
    token_files = sorted((robot / "out/tokens").iterdir())
    before = [path.stat().st_mtime_ns for path in token_files]
    run("robot_tokens.py", robot, robot / "out", CAMERA, "--size", 64)
    assert [path.stat().st_mtime_ns for path in token_files] == before
    for data, camera in ((robot, "observation.images.wrist"), (tmp_path, CAMERA)):
        _, stderr = run("robot_tokens.py", data, tmp_path / "out", camera, fails=True)
        assert f"{data}: not a LeRobot v3 data set" in stderr
