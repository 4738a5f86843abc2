"""The documentation matches the code: its commands and Python run, its links and names exist."""

import ast
import os
import re
import shlex
import subprocess
import sys
from contextlib import chdir
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

import vqtok
from helpers.clips import pattern, write_clip
from helpers.command import works
from vqtok import config
from vqtok.cli import app
from vqtok.export.layout import Layout
from vqtok.settings import ModelSettings, QuantizerSettings, TrainSettings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("vqtok/bundled/*.md"))]
SCRIPTS = sorted(ROOT.glob("scripts/*.py"))
SMALL = (
    "--steps 1 --set train.batch_size=1 --set train.frames=5 --set train.crop=32 "
    "--set model.widths=[8,16] --set model.encoder_blocks=[1,1] --set model.decoder_blocks=[1,1]"
)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page, *languages):
    """The contents of the fenced code blocks in these languages."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [code for language, code in fenced if language in languages]


def prose(page):
    """The page without its fenced code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def inline_code(page):
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def command_lines(page):
    """The lines of shell blocks, continuation lines joined."""
    text = "".join(blocks(page, "sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def simple_commands(page):
    """Each command of the page as a list of words: a pipe is several, redirections are split off.

    Looks at shell blocks, blocks without a language, and inline code.
    """
    text = "".join(blocks(page, "", "sh")).replace("\\\n", " ")
    for line in [*text.splitlines(), *inline_code(page)]:
        if "vqtok " in line or "python " in line:
            words = shlex.shlex(line, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            is_operator = re.compile(r"[|&;<>]+").fullmatch
            groups = groupby(words, key=lambda word: is_operator(word) is not None)
            yield from (list(group) for operator, group in groups if not operator)


def vqtok_arguments(page):
    """The arguments of each `vqtok` command of the page."""
    for words in simple_commands(page):
        if words[0] == "vqtok":
            yield words[1:]
        elif "-m vqtok" in " ".join(words):
            yield words[words.index("vqtok") + 1 :]


def options_of(words):
    return {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}


def settings():
    """Every `section.key` there is."""
    kinds = get_args(get_args(QuantizerSettings)[0])
    sections = {"train": [TrainSettings], "model": [ModelSettings]}
    sections["quantizer"] = list(kinds)
    return {f"{name}.{f.name}" for name, cs in sections.items() for c in cs for f in fields(c)}


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what commands expect: clip.mp4 with audio, tokens, my_videos, a corpus.

    The commands of docs/export.md have been run in it.
    """
    folder = tmp_path_factory.mktemp("desk")
    (folder / "my_videos").mkdir()
    write_clip(folder / "my_videos" / "one.mp4", pattern(frames=33))
    write_clip_with_audio(folder / "clip.mp4", pattern(height=128, width=160))
    works("encode", folder / "clip.mp4", "-o", folder / "tokens.safetensors")
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
    line = line.replace("python scripts/", f"python {ROOT}/scripts/")
    if re.search(r"[|<>]|^python ", line):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shell = ["bash", "-o", "pipefail", "-c", line]
        result = subprocess.run(
            shell, env=os.environ | {"PATH": path}, capture_output=True, timeout=300
        )
        return result.returncode, result.stderr.decode()
    result = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
    return result.exit_code, result.stderr


@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_order(desk):
    lines = [line for line in command_lines(README) if re.search("vqtok |python ", line)]
    assert len(lines) >= 10
    failures = {}
    with chdir(desk):
        for line in lines:
            # Training is cut short; a resumed run keeps the settings it was started with.
            line = line.replace("--resume runs/mine", "--resume runs/mine --steps 2")
            line += f" {SMALL}" if "vqtok train" in line and "--resume" not in line else ""
            line += " --steps 1 --width 64 --depth 1" if "world_model.py train" in line else ""
            code, stderr = run_line(line)
            if code != 0:
                failures[line] = stderr
    assert not failures


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


def test_the_readme_is_short():
    assert len(README.read_text().split()) < 1600


@each_page
def test_every_documented_command_and_option_exists(page):
    group = get_command(app)
    unknown = []
    for words in vqtok_arguments(page):
        name = words[0]
        command = group if name.startswith("-") or name == "COMMAND" else group.commands[name]
        options = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        unknown += [(words, option) for option in options_of(words) - options - {"--help"}]
    assert not unknown


@each_page
def test_every_documented_setting_exists(page):
    text, _, _ = page.read_text().partition("### Renamed settings")
    named = re.findall(r"(?<![\w/.])((?:train|model|quantizer)\.[a-z]\w+)\b(?!\()", text)
    files = {name for layout in Layout for name in layout.files}
    assert set(named) - files <= settings()


def test_the_changelog_lists_every_renamed_setting():
    rows = re.findall(r"^\| `(\S+)` \| `(\S+)` \|$", (ROOT / "docs/CHANGELOG.md").read_text(), re.M)
    assert dict(rows) == config.RENAMED


def test_the_changelog_and_the_citation_are_of_this_version():
    version, date = re.search(
        r"^## ([\d.]+) - ([\d-]+)$", (ROOT / "docs/CHANGELOG.md").read_text(), re.MULTILINE
    ).groups()
    citation = (ROOT / "CITATION.cff").read_text()
    assert version == vqtok.__version__
    assert f"\nversion: {version}\n" in citation
    assert f"\ndate-released: {date}\n" in citation


@each_page
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_every_path_in_the_repository_that_is_named_exists(page):
    for path in inline_code(page):
        if re.fullmatch(r"(scripts|configs|tests|docs|vqtok)/[\w./*-]*", path):
            assert list(ROOT.glob(path.rstrip("/"))), path
    for path in re.findall(r"configs/\w+\.toml", "".join(blocks(page, "", "sh"))):
        assert (ROOT / path).is_file(), path


def test_the_architecture_page_lists_every_module_and_package():
    tree = next(code for code in blocks(ROOT / "docs/architecture.md", "") if "cli.py" in code)
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines()[1:] if line[2] != " "}
    present = {path.name for path in (ROOT / "vqtok").iterdir() if not path.name.startswith(".")}
    assert listed == present - {"__pycache__", "py.typed"}


def definitions(path):
    """The functions and classes of a Python file, and methods as `Class.method`."""
    body = ast.parse(path.read_text()).body
    kinds = ast.ClassDef, ast.FunctionDef
    for node in body:
        if isinstance(node, kinds):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (
                f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, kinds)
            )


def test_the_architecture_page_names_functions_that_exist():
    page = (ROOT / "docs/architecture.md").read_text()
    tables = re.findall(r"^\| file \| function \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    rows = [[cell.strip() for cell in row.split("|")[1:3]] for row in "".join(tables).splitlines()]
    assert len(rows) > 20
    for file, name in rows:
        assert re.fullmatch(r"`[\w/]+\.py`", file) and re.fullmatch(r"`[\w.]+`", name), (file, name)
        assert name.strip("`") in definitions(ROOT / "vqtok" / file.strip("`")), (file, name)


def test_every_shell_script_that_is_named_can_be_run():
    lines = [line for page in PAGES for line in command_lines(page)]
    names = {line.split()[0] for line in lines if line.startswith("scripts/")}
    assert "scripts/demo.sh" in names
    for name in names:
        assert os.access(ROOT / name, os.X_OK), name
        assert subprocess.run(["bash", "-n", ROOT / name]).returncode == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_script_explains_its_options(script):
    command = [sys.executable, script, "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert script.name in result.stdout
    path = f"scripts/{script.name}"
    text = result.stdout
    for name in re.findall(r"^│ (\w+) ", text.partition("Commands ─")[2], re.MULTILINE):
        subcommand = [sys.executable, script, name, "--help"]
        text += subprocess.run(subcommand, cwd=ROOT, capture_output=True, text=True).stdout
    calls = [words for page in PAGES for words in simple_commands(page) if path in words]
    for words in calls:
        options = options_of(words[words.index(path) + 1 :])
        assert all(option in text for option in options), words


@pytest.mark.slow
@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv", reason="needs the .venv of scripts/setup.sh"
)
def test_the_demo_runs_in_an_existing_environment():
    result = subprocess.run([ROOT / "scripts" / "demo.sh"], capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr.decode()
    assert b"codebook report" in result.stdout
    assert (ROOT / "runs" / "demo" / "decoded.mp4").stat().st_size > 10_000
