"""Paths that break programs that walk folders."""

import os
from contextlib import suppress
from pathlib import Path

# Made by `make_odd_paths`.
NAMES = (
    *("loop", "dangling", "folder", "folder/up", "folder.mp4", "empty.mp4", "empty.safetensors"),
    *(
        "\x1b[31mred.mp4",
        "a\nb.mp4",
        "\udce9.mp4",
        "[1].mp4",
        "frame%03d.png",
        "-dash.mp4",
        "é.mp4",
    ),
    *("file:x.mp4", "linked.mp4"),
)
# Not made.
OTHERS = (
    *("", ".", "..", "~", "-", "--", "missing.mp4", "/dev/null", "/dev/zero", "/dev/full"),
    *(
        "/proc/self/mem",
        "/proc/self/environ",
        "a" * 300,
        "a/" * 3000,
        "nul\0.mp4",
        "**",
        "*",
        "**.mp4",
    ),
    *("c**", "[", "[!", "***/*", "*/" * 50, "**/" * 20 + "*", "{a,b}", "http://127.0.0.1:9/a.mp4"),
    *(
        "concat:clip.mp4|clip.mp4",
        "file:clip.mp4",
        "pipe:0",
        "data:,x",
        "subfile,,start,0,end,9,,:clip.mp4",
    ),
    *("lavfi:testsrc", "testsrc", "udp://127.0.0.1:9", "clip.mp4/", "clip.mp4/x", "./././clip.mp4"),
)
# Outputs that cannot be, or should not.
UNWRITABLE = (
    *("", ".", "..", "-", "~", "nul\0.mp4", "a" * 300 + ".mp4", "missing/x.mp4", "clip.mp4/x.mp4"),
    *(
        "folder",
        "folder/up",
        "./clip.mp4",
        "folder/up/clip.mp4",
        "folder/x.mp4",
        "x.xyz",
        "x.mp4\0",
    ),
)


def make_odd_paths(folder: Path) -> None:
    """Make links to themselves, upwards and to nothing, and names that need care."""
    (folder / "folder").mkdir()
    (folder / "folder.mp4").mkdir()
    links = {"loop": "loop", "dangling": "nothing", "folder/up": "..", "linked.mp4": "clip.mp4"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    for name in NAMES:
        path = folder / os.fsdecode(os.fsencode(name))
        if not os.path.lexists(path):
            with suppress(OSError):
                path.write_bytes(b"")
