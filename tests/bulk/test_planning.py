"""Plans of corpora: what is refused, in which order clips come, and how they are divided."""

import pytest

from helpers.clips import pattern, write_clip
from helpers.tokenizers import save_staged_tokenizer
from vqtok import Rate
from vqtok.bulk import plan
from vqtok.bulk.listing import divide
from vqtok.corpus.settings import MAX_CLIPS, open_corpus
from vqtok.errors import UsageError

OTHER = {
    "--pack": {"pack": "5K"},
    "--size": {"size": 32},
    "--fps": {"fps": 5},
    "--start": {"start": 0.1},
    "--duration": {"duration": 0.1},
    "--strict": {"strict": True},
    "--lambda": {"rate": Rate(price=0.1)},
    "--dtype": {"dtype": "float16"},
    "--split": {"split": 60},
    "--keyframe-interval": {"keyframe_interval": 2},
}


def test_a_corpus_keeps_the_options_it_was_begun_with(videos, tmp_path, tiny):
    options = {"pack": "4K", "tokenizer": str(tiny[1])}
    rows = plan(videos, tmp_path / "tokens", **options)
    for name, other in OTHER.items():
        with pytest.raises(UsageError, match=f"was begun with.* {name}.* use the same options"):
            plan(videos, tmp_path / "tokens", **options | other)
    with pytest.raises(UsageError, match="the videos"):
        plan(videos / "b.x", tmp_path / "tokens", **options)
    assert plan(videos, tmp_path / "tokens", **options) == rows


def test_an_option_that_is_left_out_is_another_one(videos, tiny, tmp_path):
    options = {"pack": "4K", "tokenizer": tiny[1]}
    plan(videos, tmp_path / "tokens", **options, size=16)
    with pytest.raises(UsageError, match="begun with --size 16, not without"):
        plan(videos, tmp_path / "tokens", **options)


def test_an_interval_between_key_frames_is_kept_if_it_is_not_given_again(videos, tmp_path):
    path = save_staged_tokenizer(tmp_path / "t.safetensors", "model.predictor_blocks=1")
    folder, options = tmp_path / "tokens", {"pack": "4K", "tokenizer": str(path)}
    with pytest.raises(UsageError, match=r"interval of this tokenizer can be .*, not 99"):
        plan(videos, folder, **options, keyframe_interval=99)
    rows = plan(videos, folder, **options, keyframe_interval=2)
    settings = open_corpus(folder).settings
    assert settings.keyframe_interval == settings.encoding.keyframe_interval == 2
    assert plan(videos, folder, **options) == rows
    with pytest.raises(UsageError, match=r"begun with --keyframe-interval 2, not with .* 3:"):
        plan(videos, folder, **options, keyframe_interval=3)


def test_sources_are_the_same_from_everywhere(videos, tmp_path, tiny, monkeypatch):
    options = {"pack": "4K", "tokenizer": str(tiny[1])}
    (tmp_path / "link").symlink_to(videos)
    (tmp_path / "clips.jsonl").write_text('"a.mp4"\n')
    for i, names in enumerate(
        [("videos", "../videos", "../link/", "."), ("@../clips.jsonl", f"@{tmp_path}/clips.jsonl")]
    ):
        folder = tmp_path / f"tokens{i}"
        for name in names:
            monkeypatch.chdir(tmp_path if name == "videos" else videos)
            assert plan(name, folder, **options)


def test_long_clips_and_shards_with_them_come_first(tmp_path, tiny):
    (tmp_path / "v").mkdir()
    for name, frames in (("a", 5), ("b", 25), ("c", 50), ("d", 5)):
        write_clip(tmp_path / "v" / f"{name}.mp4", pattern(frames, 64, 96))
    rows = plan(tmp_path / "v", tmp_path / "t", pack="4K", tokenizer=str(tiny[1]))
    assert [row["name"] for row in rows] == ["c.mp4", "b.mp4", "a.mp4", "d.mp4"]


@pytest.mark.parametrize(
    "sizes, pack, starts",
    [
        ([5, 5, 5], 10, [0, 2, 3]),
        ([50, 1, 1], 10, [0, 1, 3]),
        ([1, 50, 1], 10, [0, 1, 2, 3]),
        ([0] * (2 * MAX_CLIPS + 1), 10, [0, MAX_CLIPS, 2 * MAX_CLIPS, 2 * MAX_CLIPS + 1]),
        ([7], 1, [0, 1]),
    ],
)
def test_clips_are_divided_into_shards(sizes, pack, starts):
    assert divide(sizes, pack) == starts
