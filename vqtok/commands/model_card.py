"""The model card of a tokenizer: the README.md of its repository on the hub."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqtok import hub
from vqtok.errors import VqtokError
from vqtok.files import is_list, list_path, printable
from vqtok.hub import HubName
from vqtok.metric_rows import Row, is_number, parse_row
from vqtok.model.checkpoint import Description
from vqtok.settings import ModelSettings, TrainSettings
from vqtok.training.runs import DataPaths
from vqtok.untrusted import parse_json, read_text

MAX_EVAL = 2**26  # bytes of the JSON of `vqtok eval`
MAX_NAMES = 20  # sources of data that a card names
_COLUMNS = {
    "rate": ("rate", "{}"),
    "tokens_per_position": ("tokens per position", "{:.3f}"),
    "bits_per_pixel": ("bits per pixel", "{:.4f}"),
    "psnr": ("PSNR (dB)", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "usage": ("codes used", "{:.1%}"),
}


@dataclass(frozen=True)
class About:
    """What the author says of a tokenizer.

    license_: identifier of a license. datasets: repositories of the data it was trained on.
    eval_file: what `vqtok eval --json` printed.
    """

    license_: str
    datasets: Sequence[str]
    eval_file: Path | None


def model_card(
    name: HubName,
    tokenizer: Description,
    about: About,
    data: DataPaths | None,
    validation: Row | None,
) -> str:
    """Return the text of README.md.

    data: of the run. validation: the row of its log with the last validation.
    Raises VqtokError if `about.eval_file` cannot be read or is something else.
    """
    tags = ["video", "video-tokenizer", "vector-quantization", tokenizer.outline.kind]
    sections = [
        hub.card_header(about.license_, tags, about.datasets),
        f"# {name.repository.split('/')[1]}\n\nA video tokenizer for `vqtok`: it turns videos into "
        "grids of integers, and back.\n",
        _quick_start(name),
        _properties(tokenizer),
        _training(tokenizer, about, data),
        _figures(about.eval_file, validation),
    ]
    return "\n".join(section for section in sections if section)


def _quick_start(name: HubName) -> str:
    return f"""## Use

```sh
pip install 'vqtok[hub]'
vqtok encode clip.mp4 --tokenizer {name} -o tokens.safetensors
vqtok decode tokens.safetensors --tokenizer {name} -o decoded.mp4
```

```python
import vqtok

tokenizer = vqtok.load("{name}")
indices = tokenizer.encode(video)  # (b 3 t h w), uint8 or float 0..1
```
"""


def _properties(tokenizer: Description) -> str:
    outline = tokenizer.outline
    stride = "x".join(map(str, outline.stride))
    bits = math.log2(outline.codebook_size)
    rows = {
        "Quantizer": f"`{outline.kind}`, {outline.codebook_size:,} indices ({bits:.4g} bits)",
        "Stride": f"{stride}: one position for {outline.stride[0]} frames x {outline.stride[1]} x "
        f"{outline.stride[2]} pixels",
        "Stages": f"{outline.stages}, each with one index per position",
        "Key frames": f"every {outline.keyframe_interval} latent frames"
        if outline.keyframe_interval > 1
        else "every latent frame",
        "Parameters": f"{sum(p.numel() for p in outline.parameters()):,}",
        "SHA-256 of the weights": f"`{outline.fingerprint}`",
    }
    if outline.zero_code:
        rows["Stages"] += "; index 0 costs no token"
    return "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in rows.items())


def _training(tokenizer: Description, about: About, data: DataPaths | None) -> str:
    text = f"## Training\n\nTrained by `vqtok train` for {tokenizer.step:,} steps.\n"
    if about.datasets:
        text += f"\nData sets: {', '.join(about.datasets)}.\n"
    if data is not None:
        text += f"\nData: {_names(data.sources) or 'synthetic clips'}.\n"
        if data.validation:
            text += f"Validated on {_names(data.validation)}.\n"
        elif data.held_out:
            text += f"Validated on {len(data.held_out)} held-out files of them.\n"
    rows = "".join(f"| `{key}` | {_code(value)} |\n" for key, value in _changes(tokenizer).items())
    if rows:
        text += (
            "\nSettings that differ from the defaults:\n\n| setting | value |\n|---|---|\n" + rows
        )
    return text


def _names(sources: Sequence[Path]) -> str:
    """Return what sources are called, without the folders of the author's machine."""
    paths = [Path(list_path(source)) if is_list(source) else source for source in sources]
    names = [_code(path.name) for path in paths[:MAX_NAMES]]
    more = len(paths) - len(names)
    return ", ".join([*names, f"and {more:,} more"] if more else names)


def _changes(tokenizer: Description) -> Row:
    """Return the settings that are not the defaults, by `section.key`."""
    quantizer = tokenizer.settings.quantizer
    sections = {
        "model": (asdict(tokenizer.settings.model), asdict(ModelSettings())),
        "quantizer": (asdict(quantizer), asdict(type(quantizer)()) | {"kind": None}),
        "train": (tokenizer.training, asdict(TrainSettings())),
    }
    changes: Row = {}
    for section, (values, defaults) in sections.items():
        for key in defaults.keys() & values.keys():
            # JSON has no tuples.
            if json.dumps(values[key]) != json.dumps(defaults[key]):
                changes[f"{section}.{key}"] = values[key]
    for key in ("train.init_from", "train.init_networks_from", "train.perceptual_model"):
        if key in changes:
            changes[key] = _without_folders(changes[key])
    return dict(sorted(changes.items()))


def _without_folders(name: object) -> str:
    """Return a name on the hub as it is, and of a path that of the file."""
    is_public = hub.is_hub_name(name) or hub.is_repository(name)
    return str(name) if is_public else Path(str(name)).name


def _figures(eval_file: Path | None, validation: Row | None) -> str:
    text = ""
    if validation is not None:
        row = {key.removeprefix("val_"): value for key, value in validation.items()}
        text += f"\nAt the last validation of the run, at step {validation['step']:,}:\n\n"
        text += _table([row])
    if eval_file is not None:
        figures = _read_eval(eval_file)
        text += f"\n`vqtok eval`, means over {figures['clips']:,} clips:\n\n"
        text += _table(figures["rows"])
    return f"## Figures\n{text}" if text else ""


def _read_eval(path: Path) -> Row:
    """Return the number of clips, and the mean figures at the full rate and at others."""
    try:
        figures = parse_json(read_text(path, MAX_EVAL))
        rows = [figures["mean"], *figures.get("rates", [])]
        if not all(isinstance(row, dict) and _is_finite(row["psnr"]) for row in rows):
            raise TypeError
        return {"clips": len(figures["clips"]), "rows": rows}
    except VqtokError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise VqtokError(
            f"{path} is not what `vqtok eval --json` prints: generate it again"
        ) from None


def _table(rows: Sequence[Row]) -> str:
    keys = [key for key in _COLUMNS if any(_is_shown(key, row) for row in rows)]

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |\n"

    text = line(_COLUMNS[key][0] for key in keys) + line("---" for _ in keys)
    for row in rows:
        text += line(
            _COLUMNS[key][1].format(row[key]) if _is_shown(key, row) else "" for key in keys
        )
    return text


def _is_shown(key: str, row: Row) -> bool:
    if key == "rate":
        return re.fullmatch(r"[\w .,=-]{1,40}", str(row.get(key, ""))) is not None
    return _is_finite(row.get(key))


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _code(value: object) -> str:
    """Return a value as code in a cell of a table."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{printable(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def last_validation(log: Path, last_step: int) -> Row | None:
    """Return the last row of a run's log with a validation, not after `last_step`, if any."""
    if not log.is_file():
        return None
    found = None
    with log.open(errors="replace") as lines:
        for row in map(parse_row, lines):
            if row is not None and row["step"] <= last_step and _is_finite(row.get("val_psnr")):
                found = row
    return found
