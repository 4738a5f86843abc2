"""`--keyframe-interval`: what `encode` writes, later commands honour, and folders keep."""

from dataclasses import replace

import pytest
import torch

import vqtok
from helpers.clips import pattern, write_clip
from helpers.command import fails, in_process, works
from helpers.packed import members, token_files
from helpers.tokenizers import save_staged_tokenizer
from vqtok.errors import UsageError
from vqtok.model.checkpoint import load_for_inference
from vqtok.tokens import read_tokens, tokens_to_bytes, write_tokens
from vqtok.video import open_video

INTERVALS = (1, 2, 3)  # 3 is that of the tokenizer


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A small tokenizer that predicts, with a key frame every 3 latent frames."""
    folder = tmp_path_factory.mktemp("predictive")
    return save_staged_tokenizer(folder / "t.safetensors", "model.predictor_blocks=1")


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    for i in range(3):
        write_clip(tmp_path / "videos" / f"{i}.mkv", pattern(21 + 4 * i, 32, 48))
    return tmp_path / "videos"


def frames_of(path):
    with open_video(path) as video:
        return torch.cat([torch.from_numpy(frames) for frames, _ in video.chunks(100)])


def test_decode_honours_the_interval_of_each_file(videos, path, tmp_path, monkeypatch):
    monkeypatch.setattr("vqtok.commands.batch.batch_rows", lambda device, clips: clips)
    tokenizer = load_for_inference(path, "cpu", None)
    tokens, out = tmp_path / "tokens", tmp_path / "out"
    tokens.mkdir()
    for k in INTERVALS:
        target, options = tokens / f"{k}.safetensors", ("--keyframe-interval", k)
        works("encode", videos / "0.mkv", "-o", target, "--tokenizer", path, *options)
        file = read_tokens(target)
        assert file.keyframe_interval == k
        same = vqtok.encode_video(videos / "0.mkv", tokenizer=tokenizer, keyframe_interval=k)
        assert tokens_to_bytes(same) == target.read_bytes()
    works("decode", tokens, "-o", out, "--codec", "ffv1", "--tokenizer", path, "--jobs", 3)
    shown = {}
    for k in INTERVALS:
        file = read_tokens(tokens / f"{k}.safetensors")
        indices = torch.from_numpy(file.indices.astype("int64"))[None]
        video = tokenizer.decode(indices, 21, 32, 48, keyframe_interval=k)
        shown[k] = frames_of(out / f"{k}.mp4")
        expected = (video[0].movedim(0, -1) * 255).round()
        assert (shown[k].float() - expected).abs().max() <= 2
    assert not torch.equal(shown[1], shown[3])


def test_an_interval_out_of_range_is_refused(videos, path, tiny, tmp_path):
    output = tmp_path / "out"
    for options, message in (
        (("--tokenizer", path, "--keyframe-interval", 4), "can be 1 to 3 latent frames, not 4"),
        ((*tiny, "--keyframe-interval", 2), "can be 1, as it predicts nothing, not 2"),
    ):
        for source, pack in (videos / "0.mkv", ()), (videos, ()), (videos, ("--pack", "4K")):
            fails(2, message, "encode", source, "-o", output, *options, *pack)
            assert not output.exists()


def test_a_folder_never_mixes_intervals(videos, path, tmp_path):
    out = tmp_path / "tokens"
    words = "encode", videos, "-o", out, "--tokenizer", path
    works(*words, "--keyframe-interval", 2)
    for journal in (True, False):
        assert b"nothing to do" in works(*words, "--keyframe-interval", 2).stderr
        for other in ((), ("--keyframe-interval", 1)):
            fails(
                2,
                "made with another tokenizer, rate (--lambda, --tokens or --psnr), --keyframe",
                *words,
                *other,
            )
        if journal:
            (out / ".encoded.jsonl").unlink()
    works(*words, "--force")
    assert b"nothing to do" in works(*words, "--keyframe-interval", 3).stderr


def test_files_that_do_not_tell_their_interval_have_that_of_the_tokenizer(videos, path, tmp_path):
    out = tmp_path / "tokens"
    words = "encode", videos, "-o", out, "--tokenizer", path
    works(*words)
    (out / ".encoded.jsonl").unlink()
    for file in out.glob("*.safetensors"):
        write_tokens(file, replace(read_tokens(file), keyframe_interval=None))
    fails(2, "exists and was made with another", *words, "--keyframe-interval", 1)
    assert b"nothing to do" in works(*words).stderr


@pytest.mark.slow
def test_a_corpus_has_the_token_files_of_a_folder(videos, path, tmp_path):
    options = "--tokenizer", path, "--keyframe-interval", 2
    works("encode", videos, "-o", tmp_path / "files", *options)
    works("encode", videos, "-o", tmp_path / "corpus", "--pack", "4K", *options)
    assert members(tmp_path / "corpus") == token_files(tmp_path / "files")
    works("decode", tmp_path / "corpus", "-o", tmp_path / "out", "--tokenizer", path)
    again = in_process("encode", videos, "-o", tmp_path / "corpus", "--pack", "4K", *options[:2])
    assert again.returncode == 0


def test_generated_tokens_have_the_interval_that_is_given(path):
    tokenizer, indices = vqtok.load(path), torch.ones(4, 2, 3, 2, dtype=torch.int64)
    for interval, expected in ((None, 3), (1, 1)):
        tokens = vqtok.tokens_from_indices(indices, tokenizer=tokenizer, keyframe_interval=interval)
        assert tokens.keyframe_interval == expected
    with pytest.raises(UsageError, match="can be 1 to 3 latent frames, not 4"):
        vqtok.tokens_from_indices(indices, tokenizer=tokenizer, keyframe_interval=4)
