"""Options of `train`."""

from pathlib import Path
from typing import Annotated

import typer

Files = Annotated[list[Path] | None, typer.Argument(help="More training data, like --data.")]
Quantizer = Annotated[str | None, typer.Option(help="vq2, ema, gumbel, lfq or fsq (default: ema).")]
Data = Annotated[
    list[Path] | None,
    typer.Option(help="Videos, images, folders or glob patterns (default: synthetic clips)."),
]
Validation = Annotated[
    list[Path] | None,
    typer.Option(help="The same, to validate on (default: every 20th file of --data)."),
]
Cache = Annotated[
    Path | None, typer.Option(help="Cache decoded clips in this folder (default: in memory).")
]
ConfigFile = Annotated[
    Path | None, typer.Option(help="TOML file with settings (default: configs/QUANTIZER.toml).")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: train.batch_size=4."),
]
Out = Annotated[Path | None, typer.Option(help="Folder to write to (default: a new one in runs/).")]
LastStep = Annotated[
    int | None,
    typer.Option(min=1, help="Stop after this step; train.steps is the schedule's length."),
]
Resume = Annotated[Path | None, typer.Option(help="Resume the run in this folder.")]
