"""`vqtok push`: a tokenizer, its settings and a model card to the Hugging Face Hub."""

import json
from dataclasses import asdict
from pathlib import Path

from vqtok import __version__, hub
from vqtok.atomic import atomic_write
from vqtok.commands.model_card import About, last_validation, model_card
from vqtok.commands.progress import say
from vqtok.errors import UsageError, VqtokError
from vqtok.files import RUN_METRICS, RUN_TOKENIZER
from vqtok.hub import HubName
from vqtok.model import checkpoint
from vqtok.model.checkpoint import Description
from vqtok.training.runs import DataPaths, reopen


def push(
    source: str, name: HubName, about: About, folder: Path | None, private: bool, quiet: bool
) -> None:
    """Commit a tokenizer, config.json and README.md to a repository, and print the commit's URL.

    source: the folder of a training run, of which nothing else is read but its data paths and its
        log; or a tokenizer file.
    folder: write the three files there instead.
    private: whether a repository that does not exist yet becomes private.
    Raises UsageError if there is no run or file, VqtokError if the tokenizer or the log is damaged,
    or if the upload fails.
    """
    run = Path(source) if Path(source).is_dir() else None
    path = _tokenizer_file(Path(source))
    data = None if run is None else reopen(run, DataPaths()).data
    content = path.read_bytes()
    tokenizer = checkpoint.describe(path.absolute())
    if path.read_bytes() != content:
        raise VqtokError(f"{path} was replaced meanwhile, as training does: push it again")
    validation = None if run is None else last_validation(run / RUN_METRICS, tokenizer.step)
    card = model_card(name, tokenizer, about, data, validation)
    files = {
        RUN_TOKENIZER: content,
        "config.json": (json.dumps(_config(tokenizer), indent=2) + "\n").encode(),
        "README.md": card.encode(),
    }
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            with atomic_write(folder / file) as temporary:
                temporary.write_bytes(content)
        say(quiet, f"{folder}: {', '.join(files)} written, nothing uploaded")
        return
    message = f"Add a tokenizer of vqtok, weights {tokenizer.outline.fingerprint[:12]}"
    url, commit = hub.push(name, files, message, private, quiet)
    print(url)
    say(quiet, f"use it with --tokenizer {name._replace(revision=commit)}")


def _tokenizer_file(source: Path) -> Path:
    """Return the tokenizer of a run, or the file itself. Raises UsageError if there is none."""
    path = source / RUN_TOKENIZER if source.is_dir() else source
    if not path.is_file():
        found = f"holds no {RUN_TOKENIZER}" if source.is_dir() else "does not exist"
        raise UsageError(
            f"{source} {found}: name the folder of a training run, or a tokenizer file"
        )
    return path


def _config(tokenizer: Description) -> dict[str, object]:
    """Return config.json: what is in the tokenizer's file, for people and for the hub."""
    return {
        "format": checkpoint.FORMAT,
        "format_version": tokenizer.version,
        "vqtok_version": __version__,
        "fingerprint": tokenizer.outline.fingerprint,
        "step": tokenizer.step,
        "model": asdict(tokenizer.settings.model),
        "quantizer": asdict(tokenizer.settings.quantizer),
    }
