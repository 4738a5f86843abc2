"""Pictures of the screen of real commands, for the documentation.

    python scripts/screens.py CLIPS... -o docs/screens

Runs them in a terminal of 88 columns, in a temporary folder in which the clips are in `my_videos`
and the first of them is `clip.mp4`, and draws what is on the screen as SVG. The run of
`vqtok train` is that of a small tokenizer.
"""

import os
import pty
import re
import shlex
import shutil
import struct
import sys
import termios
from fcntl import ioctl
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 88, 60
SMALL = "model.widths=[32,64] model.encoder_blocks=[1,1] model.decoder_blocks=[1,1] train.crop=64"
SCREENS = {  # name: the command of a screen, and what is on it while the command still runs
    "encode": ("vqtok encode clip.mp4 --size 128 -o tokens.safetensors", None),
    "progress": ("vqtok encode my_videos -o my_tokens --size 256 --duration 3 --lambda 1", "━"),
    "stats": ("vqtok stats my_tokens", None),
    "train": ("vqtok train --data my_videos --out runs/mine --steps 20", "step"),
    "help": ("vqtok --help", None),
}
# How rich draws a bar anew: it erases the line, then each of those above.
REDRAW = re.compile(r"(\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*)")


def main(clips: list[Path], output: Annotated[Path, typer.Option("-o", "--output")]) -> None:
    """Draw the screens of real commands on these clips, as SVG in a folder."""
    output.mkdir(exist_ok=True)
    output, clips = output.absolute(), [clip.absolute() for clip in clips]
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("my_videos").mkdir()
        for clip in clips:
            shutil.copy(clip, "my_videos")
        shutil.copy(clips[0], "clip.mp4")
        for name, (command, moment) in SCREENS.items():
            screen = f"$ {command}\n{run(command, moment)}"
            (output / f"{name}.svg").write_text(draw(screen, command))


def run(command: str, moment: str | None) -> str:
    """Return what a command leaves on the terminal, or the last screen with the words `moment`."""
    words = shlex.split(command)
    words += [word for s in SMALL.split() for word in ("--set", s)] if "train" in words else []
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        os.execv(sys.executable, [sys.executable, "-m", *words])
    received = b"".join(iter(lambda: read(terminal), b"")).decode().replace("\r\n", "\n")
    _, status = os.waitpid(pid, 0)
    if status:
        raise typer.Exit(f"{command}: {received}")
    return settle(received, moment)


def read(terminal: int) -> bytes:
    """Return what is there to read, nothing at the end."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux: its program has ended
        return b""


def settle(received: str, moment: str | None) -> str:
    """Return the screen after all redraws, or the last before one that contains `moment`."""
    screen, chosen = "", ""
    for i, part in enumerate(REDRAW.split(received)):
        if i % 2 == 0:
            screen += part
        else:
            chosen = screen if moment and moment in screen else chosen
            kept = screen.split("\n")[: -1 - part.count("\x1b[1A")]
            screen = "".join(f"{line}\n" for line in kept)
    return chosen or screen


def draw(screen: str, title: str) -> str:
    """Return a terminal with this text as SVG, in a font that the reader has."""
    plain = re.sub(r"\x1b\[\?\d+[hl]", "", screen)
    console = Console(width=COLUMNS, record=True, file=StringIO())
    console.print(Text.from_ansi(plain))
    return re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=title), flags=re.DOTALL)


if __name__ == "__main__":
    typer.run(main)
