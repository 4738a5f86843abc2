"""Every command and every block of Python of the documentation runs, in the order of its page."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.clips import pattern, write_clip
from helpers.command import works
from helpers.pages import PAGES, README, ROOT, blocks, command_lines
from helpers.tokenizers import save_staged_tokenizer
from vqtok.cli import app

SMALL = (
    "--steps 1 --set train.batch_size=1 --set train.frames=5 --set train.crop=32 "
    "--set model.widths=[8,16] --set model.encoder_blocks=[1,1] --set model.decoder_blocks=[1,1]"
)
# What is run in place of what a page says, to be short or because of what the desk has.
INSTEAD = {
    "--size 256": "--size 64",
    "--start 10 --duration 5": "--start 0.2 --duration 0.3",
    "--cache /fast/disk/clips": "--cache clips_cache",
    # A resumed run keeps the settings it was started with.
    "--resume runs/mine": "--resume runs/mine --steps 2",
    "--quantizer ema": f"--quantizer ema --set quantizer.codebook_size=64 {SMALL}",
}
NOT_RUN = {  # commands that no test runs, and why
    r"^#|^srun ": "a job of SLURM",
    r"^torchrun ": "a process for each of 8 GPUs",
    r"--on ray": "a cluster of Ray",
    r"^pip install": "changes the environment of the tests",
    r"^scripts/(setup|test|demo|site|bench_gpu)\.sh": "has tests of its own, or runs them",
    r"^python scripts/(bench_|tokens_for_models)": "measures for minutes",
    r"^ffmpeg ": "another program",
    r"--config configs/bundled": "codebooks of 16,384 and 64,000 codes, on a GPU",
}
BINARIES = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with the clips, tokens, corpus and exports that commands expect."""
    folder = tmp_path_factory.mktemp("desk")
    write_clip_with_audio(folder / "clip.mp4", pattern(height=128, width=160))
    for name in "original.mp4", "more.mov", "pipe":
        shutil.copy(folder / "clip.mp4", folder / name)
    names = "my_videos videos stills my_other_videos train held_out square/train square/held_out"
    for name in names.split():
        (folder / name).mkdir(parents=True)
        write_clip(folder / name / "one.mp4", pattern(frames=33))
    write_clip(folder / "still.mp4", pattern(frames=1))
    (folder / "clips.jsonl").write_text('"my_videos/one.mp4"\n{"path": "videos/one.mp4"}\n')
    works("encode", folder / "clip.mp4", "-o", folder / "tokens.safetensors")
    works("encode", folder / "still.mp4", "-o", folder / "still.safetensors")
    works("encode", folder / "my_videos", "-o", folder / "tokens", "--pack", "256M")
    with chdir(folder):
        for line in command_lines(ROOT / "docs/export.md"):
            assert run_line(line)[0] == 0, line
    return folder


def write_clip_with_audio(path, frames):
    """A clip with a second of silence."""
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", 25), container.add_stream("aac", 48000)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), "fltp", "mono")
        silence.sample_rate = 48000
        for rgb in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(audio.encode(silence))
        container.mux([*video.encode(), *audio.encode()])


def run_line(line):
    """Run a line in this process, or in a shell if it needs one; return exit code and stderr."""
    line = re.sub("python (scripts|docs)/", rf"python {ROOT}/\1/", line)
    if re.search(r"[|<>]", line) or not line.startswith("vqtok "):
        shell = ["bash", "-o", "pipefail", "-c", line]
        result = subprocess.run(
            shell, env=os.environ | {"PATH": BINARIES}, capture_output=True, timeout=300
        )
        return result.returncode, result.stderr.decode()
    result = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
    return result.exit_code, result.stderr


def as_tested(line):
    """Return a command with a short training and without files in its way."""
    for text, instead in INSTEAD.items():
        line = line.replace(text, instead)
    line += f" {SMALL}" if "vqtok train" in line and "--resume" not in line else ""
    line += " --steps 1 --width 64 --depth 1" if "world_model.py train" in line else ""
    writes = re.match(r"vqtok (encode|decode|eval|export) [^|<>]*$", line)
    return f"{line} --force" if writes and not re.search("--(pack|status|json)", line) else line


def runnable(page):
    """The commands of a page that can be run here."""
    lines = command_lines(page)
    return [line for line in lines if not any(re.search(p, line) for p in NOT_RUN)]


@pytest.mark.slow
@pytest.mark.parametrize("page", list(filter(runnable, PAGES)), ids=lambda page: page.name)
def test_every_command_of_a_page_runs_in_order(page, desk, tmp_path):
    makes_tokens = any(re.search(r"-o tokens(/| |$)", line) for line in runnable(page))
    made = shutil.ignore_patterns("tokens") if makes_tokens else None  # a corpus keeps its paths
    shutil.copytree(desk, tmp_path / "desk", ignore=made)
    if not any("--out runs/mine" in line for line in runnable(page)):
        (tmp_path / "desk/runs/mine").mkdir(parents=True, exist_ok=True)
        save_staged_tokenizer(tmp_path / "desk/runs/mine/tokenizer.safetensors")
    failures = {}
    with chdir(tmp_path / "desk"):
        for line in map(as_tested, runnable(page)):
            code, stderr = run_line(line)
            if code != 0:
                failures[line] = stderr
    assert not failures


def test_most_commands_are_run():
    lines = [line for page in PAGES for line in command_lines(page)]
    run = [line for page in PAGES for line in runnable(page)]
    assert len(runnable(README)) >= 10
    assert len(run) > len(lines) / 2
    assert all(any(re.search(pattern, line) for line in lines) for pattern in NOT_RUN)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=f"{page.name}-{i}")
        for page in PAGES
        for i, code in enumerate(blocks(page, "python"), 1)
    ],
)
def test_every_block_of_python_runs(code, desk):
    with chdir(desk):
        exec(code, {"__name__": "__main__"})
