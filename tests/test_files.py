"""Which files folders and patterns stand for, and writing files atomically."""

import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from vqtok.atomic import atomic_write
from vqtok.errors import UsageError
from vqtok.files import MEDIA_SUFFIXES, list_files, printable
from vqtok.targets import check_overwrite

VIDEOS = [
    *(".mp4", ".m4v", ".mov", ".qt", ".f4v", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".wmv"),
    *(".asf", ".flv", ".ogv", ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".mxf"),
    *(".nut", ".dv", ".rm", ".264", ".h264", ".265", ".h265", ".hevc", ".ivf", ".y4m", ".MP4"),
]
PICTURES = [
    *(".png", ".apng", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".avif", ".heic", ".heif"),
    *(".tif", ".tiff", ".jp2", ".ppm", ".tga", ".JPG"),
]
OTHERS = [
    *(".mp3", ".m4a", ".wav", ".flac", ".ogg", ".mka", ".srt", ".txt", ".json", ".safetensors"),
    *(".m3u8", ".yuv", ".part"),
]


def make(folder, *names):
    """Make empty files in a folder and below."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(*sources, suffixes=frozenset({".mp4"})):
    """Return the paths that are found, relative to their roots."""
    return [str(file.relative_to(root)) for root, file in list_files(sources, suffixes).files]


def test_folders_give_every_kind_of_video_and_picture(tmp_path):
    make(tmp_path, *(f"a{suffix}" for suffix in (*VIDEOS, *PICTURES, *OTHERS)))
    assert found(tmp_path, suffixes=MEDIA_SUFFIXES) == sorted(f"a{s}" for s in VIDEOS + PICTURES)
    assert found(tmp_path / "*", suffixes=MEDIA_SUFFIXES) == found(
        tmp_path, suffixes=MEDIA_SUFFIXES
    )
    assert found(*(tmp_path / f"a{s}" for s in OTHERS)) == [f"a{s}" for s in OTHERS]


def test_what_is_passed_over_is_noted(tmp_path):
    def notes(*sources):
        return list_files(sources, {".mp4"}).notes

    make(tmp_path, "a.mp4", ".hidden", "sub/b.mp4")
    assert notes(tmp_path) == []
    make(tmp_path, "sub/README")
    assert notes(tmp_path) == ["1 file of other kinds passed over"]
    make(tmp_path, "c.MOD", "sub/d.mod", "sub/e.txt")
    expected = ["4 files of other kinds passed over (.mod, .txt)"]
    assert (
        notes(tmp_path) == notes(tmp_path, tmp_path / "sub") == notes(tmp_path / "**") == expected
    )
    assert notes(tmp_path / "**/*.mp4") == notes(tmp_path / "c.MOD") == []
    (tmp_path / "link.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert notes(tmp_path / "*.mp4") == ["2 files of other kinds passed over (.mp4)"]


def test_hidden_files_and_folders_are_skipped_unless_named(tmp_path):
    names = ".a.mp4", ".hidden/b.mp4", "@eaDir/c.mp4/thumb.mp4", "$RECYCLE.BIN/d.mp4", "sub/e.mp4"
    make(tmp_path, *names, "sub/.f.mp4", "sub/._e.mp4")
    assert found(tmp_path) == found(tmp_path / "**" / "*.mp4") == ["sub/e.mp4"]
    assert found(tmp_path / "*" / "*.mp4") == ["sub/e.mp4"]
    assert found(tmp_path / ".hidden") == found(tmp_path / ".hidden" / "*") == ["b.mp4"]
    assert found(tmp_path / ".hid*" / "*") == [".hidden/b.mp4"]
    assert found(tmp_path / "**" / ".*.mp4") == [".a.mp4", "sub/._e.mp4", "sub/.f.mp4"]
    assert found(tmp_path / ".a.mp4") == [".a.mp4"]


def test_linked_folders_are_entered_and_loops_end(tmp_path):
    make(tmp_path, "in/a/x.mp4", "in/b/y.mp4", "elsewhere/z.mp4")
    links = {"link": "../elsewhere", "a/up": "..", "a/b": "../b", "b/a": "../a", "loop": "loop"}
    for name, target in links.items():
        (tmp_path / "in" / name).symlink_to(target)
    expected = ["a/b/y.mp4", "a/x.mp4", "b/a/x.mp4", "b/y.mp4", "link/z.mp4"]  # as `find -L` does
    assert found(tmp_path / "in") == found(tmp_path / "in" / "**" / "*.mp4") == expected
    assert found(tmp_path / "in" / "link" / "*") == ["z.mp4"]


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("*.mp4", ["1.mp4"]),
        ("?.mp4", ["1.mp4"]),
        ("*/*.mp4", ["a/2.mp4", "b/3.mp4"]),
        ("**/*.mp4", ["1.mp4", "a/2.mp4", "a/c/4.mp4", "b/3.mp4"]),
        ("**/**/*.mp4", ["1.mp4", "a/2.mp4", "a/c/4.mp4", "b/3.mp4"]),
        ("**", ["1.mp4", "a/2.mp4", "a/c/4.mp4", "b/3.mp4"]),
        ("*/**", ["a/2.mp4", "a/c/4.mp4", "b/3.mp4"]),
        ("**/c/**/*.mp4", ["a/c/4.mp4"]),
        ("[ab]/[0-2].mp4", ["a/2.mp4"]),
        ("*/c/4.mp4", ["a/c/4.mp4"]),
        ("*.avi", []),
    ],
)
def test_patterns_match_as_in_a_shell(pattern, expected, tmp_path):
    make(tmp_path, "1.mp4", "a/2.mp4", "a/c/4.mp4", "b/3.mp4", "b/n.txt")
    assert found(tmp_path / pattern) == expected


def test_wrong_sources_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        list_files([tmp_path / "none.mp4"], {".mp4"})
    with pytest.raises(UsageError, match="the name of an input is empty"):
        list_files([""], {".mp4"})
    assert found(tmp_path / "none" / "*.mp4") == []
    assert found(tmp_path / f"*{'x' * 300}.mp4") == []


@pytest.mark.parametrize("part, star", [("**.mp4", "*.mp4"), ("c**", "c*"), ("***", "*")])
def test_two_stars_stand_alone_or_are_refused(part, star, tmp_path):
    hint = rf"write {re.escape(star)} to search one folder, \*\*/{re.escape(star)} to"
    with pytest.raises(UsageError, match=hint):
        list_files([tmp_path / part], {".mp4"})


@pytest.mark.parametrize(
    "pattern", ["*a" * 100 + "b", "?*" * 120, "**/" * 900 + "*b", "**/*/" * 900 + "*", "[" * 200]
)
def test_patterns_of_many_wildcards_are_fast(pattern, tmp_path):
    make(tmp_path, "a" * 240 + ".mp4", "a/a/a/a/a/a/a/a.mp4")
    started = time.process_time()
    assert len(found(tmp_path / pattern)) <= 1
    assert time.process_time() - started < 2


def test_links_that_multiply_folders_are_refused(tmp_path):
    """Each of 30 folders has two links to the next: 2^30 paths, and none of them is a loop."""
    for i in range(30):
        make(tmp_path, f"{i}/a.mp4")
        for name in "pq" if i < 29 else "":
            (tmp_path / f"{i}" / name).symlink_to(f"../{i + 1}")
    started = time.process_time()
    with pytest.raises(UsageError, match="links lead to the same folders again and again"):
        found(tmp_path)
    assert time.process_time() - started < 5
    assert len(found(tmp_path / "22")) == 2**8 - 1


def test_folders_are_searched_deeper_than_python_recurses(tmp_path):
    depth = sys.getrecursionlimit() + 100
    folders = [tmp_path.joinpath(*["a"] * (i + 1)) for i in range(depth)]
    for folder in folders:
        folder.mkdir()
    make(folders[-1], "x.mp4")
    files = found(tmp_path)
    (folders[-1] / "x.mp4").unlink()
    for folder in reversed(folders):  # shutil.rmtree recurses
        folder.rmdir()
    assert len(files) == 1


def test_a_folder_that_cannot_be_read_is_noted(tmp_path, monkeypatch):
    make(tmp_path, "a.mp4", "locked/b.mp4", "z/c.mp4")
    scandir = os.scandir

    def refuse(folder):
        if folder == tmp_path / "locked":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr("os.scandir", refuse)
    assert found(tmp_path) == ["a.mp4", "z/c.mp4"]
    assert list_files([tmp_path], {".mp4"}).notes == [f"{tmp_path / 'locked'}: permission denied"]


def test_files_with_the_longest_name_are_written(tmp_path):
    for name in ("x" * 251 + ".mp4", "\u00e9" * 125 + ".json", "a"):
        with atomic_write(tmp_path / name) as temporary:
            assert temporary.parent == tmp_path and temporary.name.startswith(".")
            assert temporary.suffix == (tmp_path / name).suffix
            temporary.write_text("new")
        assert (tmp_path / name).read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 3
    too_long = tmp_path / ("x" * 252 + ".mp4")
    check_overwrite(too_long, force=False)
    with pytest.raises(OSError, match="too long"), atomic_write(too_long):
        pass


def test_several_threads_write_one_file(tmp_path):
    barrier = Barrier(4)

    def write(content):
        with atomic_write(tmp_path / "a.json") as temporary:
            barrier.wait(60)
            temporary.write_text(content)
            barrier.wait(60)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "0123"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() in "0123"


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", "café.mp4".encode(), b"\xff\xfe"])
def test_names_that_are_not_utf8_can_be_printed(name):
    text = printable(os.fsdecode(name))
    assert text == name.decode(errors="backslashreplace") == printable(text)
    text.encode()
