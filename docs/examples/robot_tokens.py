"""Tokens of a robot data set in the LeRobot v3 layout, with its actions beside them.

python docs/examples/robot_tokens.py my_robot robot observation.images.top
"""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import typer
from safetensors.numpy import save_file

import vqtok
from vqtok.model.checkpoint import load_for_inference


def align(rows: np.ndarray, stride: int) -> np.ndarray:
    """Return rows of frames (n d) as those of latent frames (t stride d).

    The first and the last row are repeated as the tokenizer repeats these frames.
    """
    padding = stride - 1, (1 - len(rows)) % stride
    return np.pad(rows, (padding, (0, 0)), mode="edge").reshape(-1, stride, rows.shape[1])


def main(data: Path, output: Path, camera: str, column: str = "action", size: int = 128) -> None:
    """Write a token file to OUTPUT/tokens and its --column to OUTPUT/rows, for each episode."""
    path = data / "meta/info.json"
    info = json.loads(path.read_text()) if path.is_file() else {"codebase_version": ""}
    features = info["features"] if info["codebase_version"].startswith("v3.") else {}
    if column not in features or features.get(camera, {}).get("dtype") != "video":
        raise SystemExit(f"{data}: not a LeRobot v3 data set with {column} and videos of {camera}")
    tokenizer = load_for_inference(vqtok.DEFAULT, "auto", None)
    table = pq.read_table(data / "data", columns=["episode_index", "frame_index", column])
    table = table.sort_by([("episode_index", "ascending"), ("frame_index", "ascending")])
    for folder in ("tokens", "rows"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    for episode in pq.read_table(data / "meta/episodes").to_pylist():
        number = episode["episode_index"]
        name = f"episode_{number:06}.safetensors"
        if (output / "tokens" / name).exists():  # from a run before
            continue
        video = {k.split("/")[-1]: v for k, v in episode.items() if f"videos/{camera}/" in k}
        begin, end = video.pop("from_timestamp"), video.pop("to_timestamp")
        path = data / info["video_path"].format(video_key=camera, **video)
        half = 0.5 / info["fps"]  # cut between frames: times of a container are rounded
        span = {"start": max(0.0, begin - half), "duration": end - max(half, begin), "size": size}
        tokens = vqtok.encode_video(path, tokenizer=tokenizer, **span)
        first, last = table["episode_index"].to_numpy().searchsorted([number, number + 1])
        rows = np.array(table[column][first:last].to_pylist(), np.float32).reshape(last - first, -1)
        if len(rows) != tokens.frames:
            raise SystemExit(f"{path}: {tokens.frames} frames for {len(rows)} rows of {number}")
        save_file({column: align(rows, tokens.stride[0])}, output / "rows" / name)
        vqtok.write_tokens(output / "tokens" / name, tokens)


if __name__ == "__main__":
    typer.run(main)
