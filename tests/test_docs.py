"""The documentation matches the code: its commands, options, settings, links and names exist."""

import ast
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

import vqtok
from helpers.pages import PAGES, README, ROOT, blocks, command_lines, inline_code, prose
from vqtok import config
from vqtok.cli import app
from vqtok.export.layout import Layout
from vqtok.settings import ModelSettings, QuantizerSettings, TrainSettings

SCRIPTS = sorted(ROOT.glob("scripts/*.py"))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


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
    named = re.findall(r"(?<![\w/.-])((?:train|model|quantizer)\.[a-z]\w+)\b(?!\()", text)
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
