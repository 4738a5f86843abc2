"""Every command and every piece of Python in the README runs, in order, on a small clip."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMALL = (
    " --steps 1 --set train.batch_size=1 --set train.frames=5 --set train.crop=32"
    " --set model.widths=[8,16] --set model.encoder_blocks=[1,1] --set model.decoder_blocks=[1,1]"
)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    return [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the README's commands expect: clip.mp4 with sound, and my_videos."""
    from helpers.clips import pattern, write_clip

    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_videos").mkdir()
    write_clip(folder / "my_videos" / "one.mp4", pattern(frames=9))
    write_with_sound(folder / "clip.mp4", pattern(height=128, width=160))
    return folder


def write_with_sound(path, frames):
    """A clip with a second of silence."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", 25), container.add_stream("aac", 48000)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), "fltp", "mono")
        silence.sample_rate = 48000
        for rgb in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(sound.encode(silence))
        container.mux([*video.encode(), *sound.encode()])


def test_every_vqtok_command_runs_in_order(desk):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ours = [line for line in commands() if "vqtok " in line]
    assert len(ours) >= 10
    for line in ours:
        # What takes an hour is cut short; a resumed run keeps the settings it was made with.
        line = line.replace("--resume runs/mine", "--resume runs/mine --steps 2")
        line += SMALL if "train" in line and "--resume" not in line else ""
        shell = ["bash", "-o", "pipefail", "-c", line]
        result = subprocess.run(shell, cwd=desk, env=environment, capture_output=True, timeout=300)
        assert result.returncode == 0, (line, result.stderr.decode())


def test_the_other_commands_are_scripts_that_are_there():
    others = [line.split()[0] for line in commands() if "vqtok " not in line]
    assert others
    for name in others:
        assert os.access(ROOT / name, os.X_OK), name
        assert subprocess.run(["bash", "-n", ROOT / name]).returncode == 0


@pytest.mark.parametrize("script", sorted(ROOT.glob("scripts/*.py")), ids=lambda path: path.stem)
def test_every_script_says_how_it_is_used(script):
    command = [sys.executable, script, "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert script.name in result.stdout


@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv", reason="needs the .venv of scripts/setup.sh"
)
def test_the_demo_runs_where_it_was_set_up_before():
    result = subprocess.run([ROOT / "scripts" / "demo.sh"], capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr.decode()
    assert b"codebook report" in result.stdout
    assert (ROOT / "runs" / "demo" / "decoded.mp4").stat().st_size > 10_000


def test_every_piece_of_python_runs(desk):
    assert len(blocks("python")) >= 3
    for block in blocks("python"):
        subprocess.run([sys.executable, "-c", block], cwd=desk, check=True, timeout=120)


def test_every_link_to_a_file_leads_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / link).exists(), link
