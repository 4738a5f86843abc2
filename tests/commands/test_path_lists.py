"""Lists of files: what a line may be, where the mirrored names come from, and what is refused."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT
from helpers.command import fails, file_names, in_process, works
from vqtok.errors import UsageError, VqtokError
from vqtok.files import is_list, is_pattern, list_files
from vqtok.options import output_folder
from vqtok.training.runs import DataPaths

NESTED = "[" * 100_000


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A new working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_list(path, *paths):
    path.write_text("".join(json.dumps(text) + "\n" for text in paths))
    return f"@{path}"


def found(source):
    """Return the folder that mirrored names are relative to, and those names."""
    files = list_files([source], {".mp4"}).files
    return str(files[0][0]), [str(file.relative_to(root)) for root, file in files]


@pytest.mark.parametrize(
    "lines, root, names",
    [
        (["a.mp4"], ".", ["a.mp4"]),
        (["x/a.mp4"], "x", ["a.mp4"]),
        (["x/y/b.mp4", "x/z.mp4", "x/y/a"], "x", ["y/b.mp4", "z.mp4", "y/a"]),
        (["x/a.mp4", "y/a.mp4"], ".", ["x/a.mp4", "y/a.mp4"]),
        (["./x/a.mp4", "x//b.mp4"], "x", ["a.mp4", "b.mp4"]),
        (["/d/x/a.mp4", "/d/x-b/a.mp4"], "/d", ["x/a.mp4", "x-b/a.mp4"]),
        (["/d/a.mp4", "/e/a.mp4"], "/", ["d/a.mp4", "e/a.mp4"]),
        (["//d/a.mp4", "/d/b.mp4"], "/d", ["a.mp4", "b.mp4"]),
        (["*.mp4"], ".", ["*.mp4"]),
        (["x/@a.jsonl"], "x", ["@a.jsonl"]),
        ([{"path": "/d/a.mp4", "name": "q.mp4", "bytes": 7}, "/d/b.mp4"], "/d", ["a.mp4", "b.mp4"]),
        (["x/caf\udce9.mp4", "x/\u00e9\n.mp4"], "x", ["caf\udce9.mp4", "\u00e9\n.mp4"]),
    ],
    ids=str,
)
def test_names_are_relative_to_the_folder_that_all_paths_share(lines, root, names, inside):
    assert found(write_list(inside / "l.jsonl", *lines)) == (root, names)


def test_paths_with_dots_and_mixed_ones_do_not_lead_out_of_the_output(inside):
    folder = str(inside)
    source = write_list(inside / "l.jsonl", "../a.mp4", "b.mp4", f"{folder}/c.mp4")
    assert found(source) == (
        str(inside.parent),
        ["a.mp4", f"{inside.name}/b.mp4", f"{inside.name}/c.mp4"],
    )
    (inside / "real" / "deep").mkdir(parents=True)
    (inside / "link").symlink_to("real/deep")
    source = write_list(inside / "l.jsonl", "link/../a.mp4")  # as the system reads it
    assert found(source) == (f"{folder}/real", ["a.mp4"])


def test_empty_lines_are_skipped_and_the_last_needs_no_end(inside):
    Path("l").write_bytes(b'\xef\xbb\xbf"a"\n\n  \r\n{"path": "b"}')
    assert found("@l") == (".", ["a", "b"])


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("", UsageError, "l: this list of files is empty"),
        ("\n\n", UsageError, "l: this list of files is empty"),
        ('"a"\nb.mp4\n', VqtokError, "l, line 2 is not JSON"),
        ('"a"\n"b', VqtokError, "l, line 2 is not JSON"),
        ("\udcff\n", VqtokError, "l, line 1 is not JSON"),
        (NESTED, VqtokError, "l, line 1 is not JSON"),
        ("9" * 5000, VqtokError, "l, line 1 is not JSON"),
        ('"a"\n\n["b"]', VqtokError, "l, line 3 is neither a string nor an object"),
        ('{"source": "a"}', VqtokError, "l, line 1 is neither a string nor an object"),
        ('{"path": 7}', VqtokError, "l, line 1 is neither a string nor an object"),
        ('""', VqtokError, "l, line 1 names no file"),
        ('"-"', VqtokError, "l, line 1 names no file"),
        ('"' + "a" * 2**20 + '"', VqtokError, "l, line 1 has more than 1,048,576 bytes"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_list_is_refused_in_one_sentence(text, error, message, inside):
    Path("l").write_bytes(os.fsencode(text))
    with pytest.raises(error, match=message) as raised:
        list_files(["@l"], {".mp4"})
    assert len(str(raised.value)) < 200 and "\n" not in str(raised.value)


def test_a_list_that_cannot_be_read_is_refused(inside):
    Path("folder").mkdir()
    for name, reason in (("none", "no such file"), ("folder", "is a directory")):
        with pytest.raises(
            UsageError, match=f"{name}: this list of files cannot be read: {reason}"
        ):
            list_files([f"@{name}"], {".mp4"})


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_line_without_end_takes_no_memory(inside):
    """A sparse file stands for a line of 10 GB."""
    with Path("l").open("wb") as file:
        file.truncate(10 * 2**30)
    code = "from vqtok.files import list_files; list_files(['@l'], set())"
    limit = 2**29
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert b"l, line 1 has more than 1,048,576 bytes" in process.stderr


def test_files_of_a_list_are_not_looked_at(inside, monkeypatch):
    source = write_list(inside / "l.jsonl", *(f"x/{i}.mp4" for i in range(100)))
    looked_at = []
    stat = os.stat

    def count(path, *args, **options):
        looked_at.append(str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr("os.stat", count)
    assert len(list_files([source], {".mp4"}).files) == 100
    assert not [path for path in looked_at if path.endswith(".mp4")]


def test_what_begins_with_an_at_sign_is_a_list_unless_it_is_a_file_or_a_pattern(inside):
    for name in ("@clip.mp4", "l[1].jsonl", "@a.mp4", "l"):
        Path(name).touch()
    sources = ["@l", "@l[1].jsonl", "@none", "@clip.mp4", "@*.mp4", "@none/*.mp4", "x"]
    assert list(map(is_list, sources)) == [True] * 3 + [False] * 4
    assert list(map(is_pattern, sources)) == [False] * 4 + [True] * 2 + [False]
    assert found("@*.mp4") == (".", ["@a.mp4", "@clip.mp4"])
    assert output_folder(["@l"], "out") == output_folder(["@none"], "out") == Path("out")
    assert output_folder(["@clip.mp4"], "out") is None


def test_the_list_of_a_training_run_is_found_from_any_folder(inside, monkeypatch):
    write_list(inside / "l.jsonl", "a.mp4")
    data = DataPaths(sources=[Path("@l.jsonl")]).absolute()
    assert data == DataPaths.from_json(data.to_json())
    monkeypatch.chdir("/")
    assert is_list(data.sources[0]) and found(data.sources[0])[1] == ["a.mp4"]


def test_a_missing_file_of_a_list_is_its_failure_alone(make_clip, inside, tiny):
    make_clip("a.mp4", frames=5)
    source = write_list(inside / "clips.jsonl", "a.mp4", "gone.mp4")
    message = "1 of 2 files failed, see out/failures.jsonl: gone.mp4: no such file"
    fails(1, message, "encode", source, "-o", "out", *tiny)
    assert "a.mp4.safetensors" in file_names(inside / "out")
    result = in_process("eval", source, "--frames", 2, "--json", *tiny)
    assert len(json.loads(result.stdout)["clips"]) == 1 and b"gone.mp4: no such" in result.stderr
    tokens = write_list(inside / "tokens.jsonl", {"path": "out/a.mp4.safetensors"})
    assert json.loads(works("stats", tokens, "--json").stdout)["files"] == 1
    works("decode", tokens, "-o", "videos", *tiny)
    assert "a.mp4" in file_names(inside / "videos")
    fails(2, "several files need an output folder", "encode", source)
