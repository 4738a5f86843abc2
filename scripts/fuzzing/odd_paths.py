"""Paths that break programs that walk folders."""

import os
from contextlib import suppress
from pathlib import Path

# Made by `make_odd_paths`.
NAMES = (
    *"loop dangling folder folder/up folder.mp4 linked.mp4 empty.mp4 empty.safetensors".split(),
    *"\udce9.mp4 é.mp4 [1].mp4 frame%03d.png -dash.mp4 file:x.mp4".split(),
    *("\x1b[31mred.mp4", "a\nb.mp4"),
)
# Not made.
OTHERS = (
    *". .. ~ - -- missing.mp4 clip.mp4/ clip.mp4/x ./././clip.mp4 nul\0.mp4".split(),
    *"/dev/null /dev/zero /dev/full /proc/self/mem /proc/self/environ".split(),
    *"** * **.mp4 c** [ [! ***/* {a,b}".split(),
    *("", "a" * 300, "a/" * 3000, "*/" * 50, "**/" * 20 + "*"),
    *"concat:clip.mp4|clip.mp4 file:clip.mp4 pipe:0 data:,x lavfi:testsrc testsrc".split(),
    *"subfile,,start,0,end,9,,:clip.mp4 http://127.0.0.1:9/a.mp4 udp://127.0.0.1:9".split(),
)
# Outputs that cannot be, or should not.
UNWRITABLE = (
    *". .. - ~ nul\0.mp4 x.mp4\0 x.xyz missing/x.mp4 clip.mp4/x.mp4 ./clip.mp4".split(),
    *"folder folder/up folder/up/clip.mp4 folder/x.mp4".split(),
    *("", "a" * 300 + ".mp4"),
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
