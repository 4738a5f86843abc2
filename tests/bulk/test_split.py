"""`vqtok encode --pack --split`: long clips in pieces, with the tokens of whole ones."""

import pytest

from helpers.clips import pattern, write_clip
from helpers.command import fails, file_names, works
from helpers.packed import members, token_files
from helpers.tokenizers import save_staged_tokenizer
from vqtok.bulk import Encode, finish, plan
from vqtok.corpus.clips import read_clips
from vqtok.corpus.publish import read_failures
from vqtok.corpus.records import read_record
from vqtok.corpus.settings import open_corpus

pytestmark = pytest.mark.slow
GOP = {"g": "12", "bf": "3"}


@pytest.fixture
def tokenizer(tmp_path):
    """A tokenizer that predicts, with a key frame every 3 latent frames."""
    return save_staged_tokenizer(tmp_path / "t.safetensors", "model.predictor_blocks=1")


@pytest.fixture
def clips(tmp_path):
    """A long clip, a short one, and one that cannot be read from the middle."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, frames in (("long.mp4", 300), ("short.mp4", 9), ("stream.ts", 210)):
        write_clip(folder / name, pattern(frames, 32, 48), **GOP)
    return folder


def test_a_split_corpus_has_the_token_files_of_a_folder(clips, tmp_path, tokenizer):
    choice = "--tokenizer", tokenizer, "--lambda", 0.5
    works("encode", clips, "-o", tmp_path / "files", *choice)
    packed = tmp_path / "tokens"
    split = "--pack", "1M", "--split", "3s"
    result = works("encode", clips, "-o", packed, *choice, *split, "--jobs", 2)
    assert members(packed) == token_files(tmp_path / "files")
    assert b"stream.ts cannot be read from the middle" in result.stderr
    assert {clip.name: clip.pieces for clip in read_clips(packed)} == {
        "long.mp4": 4,
        "short.mp4": 1,
        "stream.ts": 3,
    }
    record = read_record(open_corpus(packed).shard(0).record)
    assert all(clip.attempts == 1 and clip.seconds.model > 0 for clip in record.clips)
    assert file_names(packed / "parts") == []
    rate = "--tokenizer", tokenizer, "--tokens", 0.5
    fails(2, "met over a whole clip", "encode", clips, "-o", tmp_path / "x", *rate, *split)
    fails(2, "--split 3.0, not 4.0", "encode", clips, "-o", packed, *choice, *split[:3], "4s")
    fails(2, "--split 3.0, not none", "encode", clips, "-o", packed, *choice, *split[:2])


def test_pieces_may_be_encoded_in_any_order_and_place(clips, tmp_path, tokenizer):
    works("encode", clips / "long.mp4", "-o", f"{tmp_path}/files/", "--tokenizer", tokenizer)
    folder = tmp_path / "tokens"
    rows = plan(str(clips), folder, pack="1M", tokenizer=str(tokenizer), split=3)
    assert [row["piece"] for row in rows if row["name"] == "long.mp4"] == [0, 1, 2, 3]
    long = [row for row in rows if row["name"] == "long.mp4"]
    workers = Encode(folder), Encode(folder)
    for row, encode in zip(reversed(long), workers * 2, strict=True):
        encode(row)
    assert not list((folder / "parts/00000").glob("*.piece*"))
    for encode in workers:
        encode({key: [row[key] for row in rows] for key in rows[0]})
        encode.close()
    finish(folder)
    assert not list(read_failures(open_corpus(folder)))
    assert members(folder)["long.mp4"] == token_files(tmp_path / "files")["long.mp4"]


@pytest.mark.parametrize("pieces", [2, 7])
def test_more_or_fewer_pieces_than_the_header_promised(pieces, clips, tmp_path, tokenizer):
    works("encode", clips / "long.mp4", "-o", f"{tmp_path}/files/", "--tokenizer", tokenizer)
    folder = tmp_path / "tokens"
    (row, *_) = plan(clips / "long.mp4", folder, pack="1M", tokenizer=str(tokenizer), split=3)
    encode = Encode(folder)
    results = [encode(row | {"pieces": pieces, "piece": piece}) for piece in range(pieces)]
    encode.close()
    assert sum(int(result["frames"].sum()) for result in results) == 300
    finish(folder)
    assert members(folder) == token_files(tmp_path / "files")
