"""The documentation builds into a site, with a reference of all that the code has."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec, module_from_spec, spec_from_file_location

import pytest
from typer.main import get_command

import vqtok
from helpers import ROOT
from vqtok import quantizers, settings
from vqtok.cli import app

needs_generator = pytest.mark.skipif(
    find_spec("material") is None or find_spec("mkdocstrings_handlers") is None,
    reason="needs the extra docs",
)


def load_reference():
    spec = spec_from_file_location("reference", ROOT / "scripts/site/reference.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_reference()


def build(site, config=ROOT / "scripts/site/mkdocs.yml"):
    command = [sys.executable, "-m", "mkdocs", "build", "-f", config, "-d", site]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    result = build(folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_reference_has_every_command_with_its_arguments_and_options():
    sections = dict(re.findall(r"^## (vqtok.*)\n((?:(?!^## ).*\n?)+)", page(), re.MULTILINE))
    group = get_command(app)
    assert set(sections) == {"vqtok", *(f"vqtok {name}" for name in group.commands)}
    for name, command in group.commands.items():
        for parameter in command.params:
            is_argument = parameter.param_type_name == "argument"
            names = [parameter.name.upper()] if is_argument else parameter.opts
            row = f"| {', '.join(f'`{n}`' for n in names)} |"
            assert row in sections[f"vqtok {name}"]
            assert parameter.help in sections[f"vqtok {name}"]


def page():
    return reference.commands_page()


def test_the_reference_tells_ranges_choices_and_defaults():
    assert "| `--jobs` | integer, 1 to 256 | `1` | Files to process at once. |" in page()
    assert "| `--to` | `1x`, `nanogpt`, `parquet` | required |" in page()
    row = "| `train.batch_size` | integer, 1 to 65,536 | `4` | clips per step, over all processes |"
    assert row in reference.settings_page()


def test_the_reference_has_every_setting():
    text = reference.settings_page()
    for section, kinds in {
        "train": [settings.TrainSettings],
        "model": [settings.ModelSettings],
        "quantizer": reference.QUANTIZERS,
    }.items():
        rows = [f"| `{section}.{field.name}` |" for kind in kinds for field in fields(kind)]
        assert all(text.count(row) == rows.count(row) for row in rows)


def test_the_api_has_every_public_name():
    text = reference.api_page().splitlines()
    assert {f"::: vqtok.{name}" for name in vqtok.__all__} <= set(text)
    assert {f"::: vqtok.quantizers.{name}" for name in quantizers.__all__} <= set(text)


@needs_generator
def test_docstrings_are_rendered_with_their_fields_as_lists(site):
    html = (site / "reference/api/index.html").read_text()
    assert re.search(r'id="vqtok.encode_video"', html)
    assert "<li><strong>size</strong>: scale the short side to this many pixels.</li>" in html
    assert "<p>Raises UsageError for an option out of range" in html


@needs_generator
def test_the_site_asks_no_other_server(site):
    """Links may lead elsewhere; fonts, styles, scripts and pictures may not."""
    loaded = (
        r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(https?:|//)|<link[^>]*href=["']?(https?:|//)"""
    )
    for path in site.rglob("*.html"):
        assert not re.search(loaded, path.read_text()), path
    for path in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        assert not re.search(r"url\([\"']?(https?:|//)|@import", path.read_text()), path


@needs_generator
@pytest.mark.parametrize("link", ["nowhere.md", "usage.md#nowhere", "../scripts/nowhere.py"])
def test_a_broken_link_fails_the_build(link, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# Home\n\n[link]({link})\n")
    (tmp_path / "docs/usage.md").write_text("# Usage\n")
    text = (ROOT / "scripts/site/mkdocs.yml").read_text()
    text = re.sub(r"^nav:\n(  .*\n)+", "", text, flags=re.MULTILINE)
    text = re.sub(r"^hooks: .*\n|^  - mkdocstrings:\n(   .*\n)+", "", text, flags=re.MULTILINE)
    text = text.replace("../../docs", str(tmp_path / "docs"))
    (tmp_path / "mkdocs.yml").write_text(text)
    result = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert result.returncode == 1
    assert "nowhere" in result.stderr
