"""Options of `push`, and checks of them that need no PyTorch."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vqtok import hub
from vqtok.errors import UsageError
from vqtok.files import RUN_TOKENIZER, check_not_empty, exists, printable
from vqtok.hub import HubName
from vqtok.targets import check_apart, check_writable_folder

FILES = (RUN_TOKENIZER, "config.json", "README.md")  # of a repository
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")

Source = Annotated[
    str, typer.Argument(metavar="RUN", help="Folder of a training run, or a tokenizer file.")
]
Repository = Annotated[
    str, typer.Argument(metavar="REPOSITORY", help="hf:org/name, or hf:org/name@branch.")
]
License = Annotated[
    str | None,
    typer.Option("--license", help="License of the weights, such as apache-2.0 (default: asks)."),
]
Dataset = Annotated[
    list[str] | None,
    typer.Option("--dataset", metavar="ORG/NAME", help="Data set on the hub it was trained on."),
]
EvalFile = Annotated[
    Path | None,
    typer.Option("--eval", metavar="FILE", help="Show these figures of `vqtok eval --json`."),
]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
Output = Annotated[
    str | None,
    typer.Option("-o", "--output", help="Write the files to this new folder; upload nothing."),
]


def check_repository(repository: str, datasets: Sequence[str], output: str | None) -> HubName:
    """Return the repository to push to.

    Raises UsageError if it or a data set has a malformed name, VqtokError if there is no token.
    """
    name = hub.parse_name(repository)
    if re.fullmatch(r"refs/.*|[0-9a-f]{40}", name.revision or ""):
        raise UsageError(f"{printable(repository)}: push to a branch, such as {name[0]}@next")
    for dataset in datasets:
        if not hub.is_repository(dataset):
            raise UsageError(f"--dataset {printable(dataset)}: write it as org/name")
    if output is None:
        hub.check_login()
    return name


def check_push_output(source: str, output: str | None) -> Path | None:
    """Return the folder to write to, None to upload. UsageError if it has one of the files."""
    check_not_empty(source, "the run")
    check_not_empty(output, "the output")
    if output is None:
        return None
    folder = Path(output)
    check_writable_folder(folder)
    check_apart(folder, [source])
    for file in FILES:
        if exists(folder / file):
            raise UsageError(f"{folder / file} exists: choose another folder")
    return folder


def check_license(license_: str | None) -> str:
    """Return the license, which is asked for on a terminal.

    Raises UsageError if there is no terminal to ask on, or if it is no identifier of a license.
    """
    if license_ is None:
        streams = sys.stdin, sys.stderr
        if not all(stream is not None and stream.isatty() for stream in streams):
            raise UsageError("others need a license to use the weights: --license apache-2.0")
        typer.echo("License of the weights, such as apache-2.0: ", err=True, nl=False)
        license_ = sys.stdin.readline().strip()  # a prompt of Typer also writes to stdout
    if not _LICENSE.fullmatch(license_):
        raise UsageError(
            f"--license {printable(license_)}: choose an identifier of the hub, such as "
            "apache-2.0, cc-by-4.0 or other"
        )
    return license_
