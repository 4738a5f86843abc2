"""Small packed corpora, written with Python's tarfile as docs/corpus.md lays them out."""

import hashlib
import io
import json
import tarfile
from fractions import Fraction

import numpy as np

from helpers.tokens import make_tokens
from vqtok.tokens import tokens_to_bytes

# Names that take an archive apart which splits them at dots or that are equal but for the folder.
NAMES = ("a.b.mp4", "day 1/clip.mp4", "day 2/clip.mp4", "day 2/clip.webm", "día/ñandú 雪.mov")
SECONDS = {"reading": 0.5, "model": 2.0, "writing": 0.25}
SETTINGS = {
    "tokenizer": "video-xs",
    "model": "a" * 64,
    "quantizer": "lfq",
    "stride": [4, 8, 8],
    "codebook_size": 16,
    "stages": 1,
    "keyframe_interval": 1,
    "dtype": "float32",
    "size": None,
    "fps": None,
    "start": 0.0,
    "duration": None,
    "strict": False,
    "rate": {},
    "sources": ["/videos"],
    "pack": 2**20,
}


def sample_clips(names=NAMES, shape=(3, 4, 5)):
    """Return the content of a token file for each name: random indices, each clip longer."""
    clips = {}
    for seed, name in enumerate(sorted(names)):
        indices = np.random.default_rng(seed).integers(0, 16, (shape[0] + seed, *shape[1:]))
        clips[name] = tokens_to_bytes(make_tokens(indices))
    return clips


def write_folder(folder, clips):
    """Write token files as `vqtok encode videos -o folder` does."""
    for name, data in clips.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_corpus(folder, clips, per_shard=2, published=None):
    """Write a corpus of token files, given their content by name, and return its folder.

    published: numbers of the shards to write; all by default.
    """
    (folder / "shards").mkdir(parents=True)
    names = sorted(clips)
    lines = ({"path": f"/videos/{name}", "name": name, "bytes": 1000} for name in names)
    (folder / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    starts = [*range(0, len(names), per_shard), len(names)]
    corpus = {"format": "vqtok-corpus", "version": 1, "settings": SETTINGS}
    (folder / "corpus.json").write_text(json.dumps(corpus | {"shards": starts}))
    for number, start in enumerate(starts[:-1]):
        if published is None or number in published:
            keyed = [
                (key, names[key], clips[names[key]]) for key in range(start, starts[number + 1])
            ]
            _write_shard(folder / "shards" / f"{number:05}.tar", number, keyed)
    return folder


def _write_shard(path, number, clips):
    entries = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, name, data in clips:
            offset = tar.offset + 512
            _add(tar, f"{key:09}.safetensors", data)
            _add(tar, f"{key:09}.json", json.dumps({"name": name}).encode())
            entries.append(_entry(key, name, offset, data))
    total = {
        "frames": sum(e["frames"] for e in entries),
        "tokens": sum(e["tokens"] for e in entries),
    }
    data = path.read_bytes()
    record = {"format": "vqtok-shard", "version": 1, "shard": number}
    record |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **total}
    record |= {"seconds": SECONDS, "attempts": len(entries), "clips": entries, "failures": []}
    path.with_suffix(".json").write_text(json.dumps(record))


def _add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _entry(key, name, offset, data):
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    indices, metadata = header["indices"], header["__metadata__"]
    timing = _timing(metadata)
    if times := header.get("timestamps"):
        timing["timestamps"] = offset + start + times["data_offsets"][0]
    return {
        "key": key,
        "name": name,
        "offset": offset,
        "bytes": len(data),
        "indices": offset + start + indices["data_offsets"][0],
        "dtype": indices["dtype"],
        "shape": indices["shape"],
        "frames": int(metadata["frames"]),
        "tokens": int(np.prod(indices["shape"])),
        "timing": timing,
        "attempts": 1,
        "seconds": SECONDS,
        "notes": [],
    }


def _timing(metadata):
    (fps_num, fps_den), (time_base_num, time_base_den) = (
        Fraction(metadata[key]).as_integer_ratio() for key in ("fps", "time_base")
    )
    return {
        "fps_num": fps_num,
        "fps_den": fps_den,
        "time_base_num": time_base_num,
        "time_base_den": time_base_den,
        **{key: int(metadata.get(key, 0)) for key in ("origin", "start", "step")},
        "timestamps": 0,
    }


def edit_json(path, change):
    """Change the value in a JSON file in place: change(value) edits it."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
