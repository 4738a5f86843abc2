"""Commands that run the model for several clips at once, as on a GPU, but here on a CPU."""

import time
from concurrent.futures import as_completed
from threading import Event

import pytest

from helpers.clips import pattern, write_clip
from helpers.command import fails, file_names, in_process, works
from vqtok.model.tokenizer import Tokenizer
from vqtok.tokens import read_tokens
from vqtok.video import open_video


@pytest.fixture
def clips(tmp_path):
    """Four clips of different lengths and two sizes, and one that is no video."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(4):
        write_clip(folder / f"{i}.mkv", pattern(5 + 11 * i, 32, 64 if i == 2 else 48))
    (folder / "bad.mkv").write_text("not a video")
    return folder


@pytest.fixture
def batched(monkeypatch):
    """Run clips in batches although this is a CPU."""
    monkeypatch.setattr("vqtok.commands.batch.batch_rows", lambda device, clips: clips)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if path.suffix != ".jsonl"}


@pytest.mark.parametrize("rate", [(), ("--tokens", 0.8)], ids=["all", "tokens"])
def test_tokens_and_videos_are_those_of_clips_one_by_one(clips, tmp_path, staged, batched, rate):
    results = []
    for jobs in (1, 3):
        tokens, videos = tmp_path / f"tokens{jobs}", tmp_path / f"videos{jobs}"
        args = *staged, "--jobs", jobs
        fails(1, "1 of 5 files failed", "encode", clips, "-o", tokens, *rate, *args)
        # Lossless: on some machines, two runs of x264 on one clip differ.
        works("decode", tokens, "-o", videos, "--codec", "ffv1", *args)
        results.append((contents(tokens), contents(videos)))
    assert results[0][0].keys() == {f"{i}.mkv.safetensors" for i in range(4)}
    assert results[0] == results[1]


def test_a_batch_without_memory_fails_and_other_sizes_go_on(
    clips, tmp_path, staged, batched, monkeypatch
):
    encode = Tokenizer._encode_chunk

    def failing(tokenizer, video, state):
        if video.shape[-1] == 64:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return encode(tokenizer, video, state)

    monkeypatch.setattr(Tokenizer, "_encode_chunk", failing)
    args = "encode", clips, "-o", tmp_path / "out", "--jobs", 3, *staged
    stderr = fails(1, "2 of 5 files failed", *args)
    assert "2.mkv: out of memory with 3 clips at once: choose fewer --jobs" in stderr
    assert contents(tmp_path / "out").keys() == {f"{i}.mkv.safetensors" for i in (0, 1, 3)}


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failure_of_the_gpu_ends_the_run(clips, tmp_path, staged, batched, jobs, monkeypatch):
    (clips / "bad.mkv").unlink()
    for i in range(8):
        write_clip(clips / f"more{i}.mkv", pattern(1, 32, 48))

    def read(source, **options):
        if source.endswith("1.mkv"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return open_video(source, **options)

    monkeypatch.setattr("vqtok.pipeline.source.open_video", read)
    args = "encode", clips, "-o", tmp_path / "out", "--jobs", jobs, *staged
    fails(1, "vqtok: the GPU failed (CUDA error: an illegal memory access was encountered)", *args)
    assert "failures.jsonl" not in file_names(tmp_path / "out")
    assert len(contents(tmp_path / "out")) < 4 + jobs


def test_ctrl_c_ends_a_batch(clips, tmp_path, staged, batched, monkeypatch):
    calling = Event()
    encode = Tokenizer._encode_chunk

    def interrupt(futures):
        assert calling.wait(60)
        raise KeyboardInterrupt
        yield from as_completed(futures)

    def slow(tokenizer, video, state):
        calling.set()
        time.sleep(0.1)
        return encode(tokenizer, video, state)

    write_clip(clips / "long.mkv", pattern(600, 32, 48))
    monkeypatch.setattr("vqtok.commands.batch.as_completed", interrupt)
    monkeypatch.setattr(Tokenizer, "_encode_chunk", slow)
    start = time.monotonic()
    args = "encode", clips, "-o", tmp_path / "out", "--jobs", 3, *staged
    assert in_process(*args).returncode == 130
    assert time.monotonic() - start < 8  # less than the grace of jobs that do not stop
    assert "long.mkv.safetensors" not in file_names(tmp_path / "out")


def test_a_short_last_chunk_leaves_no_trace(clips, tmp_path, staged, batched):
    """It is padded to the shape of the others."""
    for frames in (4, 9, 10, 13, 14):
        clip = write_clip(tmp_path / "clip.mkv", pattern(frames, 32, 48))
        args = "--force", "--jobs", 2, *staged
        works("encode", clip, "-o", f"{tmp_path}/out/", *args)
        tokens = read_tokens(tmp_path / "out" / "clip.mkv.safetensors")
        assert (tokens.frames, len(tokens.indices)) == (frames, 1 + -(-(frames - 1) // 4))
        works("decode", tmp_path / "out", "-o", tmp_path / "videos", *args)
        with open_video(tmp_path / "videos" / "clip.mkv") as decoded:
            assert sum(len(times) for _, times in decoded.chunks(8)) == frames
