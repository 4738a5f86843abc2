"""Run folders and the data of a run."""

import json
from pathlib import Path

import av
import pytest

from helpers.command import file_names, works
from helpers.training import TINY, make_run, read_metrics, train_run
from vqtok.errors import UsageError, VqtokError
from vqtok.files import RUN_CONFIG, RUN_DATA, RUN_FILES, RUN_SAMPLES
from vqtok.training.runs import DataPaths, create, reopen

NO_DATA = DataPaths()


def test_new_runs_go_to_the_next_free_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = create(None, "lfq", None, TINY, NO_DATA)
    second = create(None, "lfq", None, TINY, NO_DATA)  # started before the first has saved
    first.save()
    third = create(None, "lfq", None, TINY, NO_DATA)
    names = [str(run.folder) for run in (first, second, third)]
    assert names == ["runs/lfq", "runs/lfq-2", "runs/lfq-3"]
    for run in (first, second):
        with pytest.raises(UsageError, match="holds a run already"):
            create(run.folder, "lfq", None, TINY, NO_DATA)


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_run_never_takes_a_folder_with_files_of_its_names(name, tmp_path):
    (tmp_path / name).write_text("of the user")
    with pytest.raises(UsageError, match="holds a run already"):
        create(tmp_path, "lfq", None, TINY, NO_DATA)
    assert (tmp_path / name).read_text() == "of the user"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_that_was_not_saved_gives_its_folder_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (None, tmp_path / "mine"):
        run = create(folder, "lfq", None, TINY, NO_DATA)
        run.release()
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    run = create(tmp_path / "mine", "lfq", None, TINY, NO_DATA)
    run.release()
    assert file_names(run.folder) == ["notes.txt"]
    run.save()
    run.release()
    assert file_names(run.folder) == ["config.json", "data.json", "notes.txt"]


def test_reopened_run_is_the_same_run(tmp_path):
    data = DataPaths([tmp_path / "data"], [tmp_path / "validation"], tmp_path / "cache")
    run = create(tmp_path / "run", "vq2", None, TINY, data)
    run.save()
    assert reopen(run.folder, NO_DATA) == run
    moved = reopen(run.folder, DataPaths(cache=tmp_path / "other"))
    assert moved.data == DataPaths(data.sources, data.validation, tmp_path / "other")


def test_folders_without_a_readable_run_are_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no training run"):
        reopen(tmp_path, NO_DATA)
    run = create(tmp_path / "run", "vq2", None, TINY, NO_DATA)
    run.save()
    (run.folder / RUN_DATA).write_text("{}")
    with pytest.raises(VqtokError, match=r"data\.json is damaged"):
        reopen(run.folder, NO_DATA)


@pytest.mark.parametrize("name", [RUN_CONFIG, RUN_DATA])
def test_damaged_files_of_a_run_are_named(name, tmp_path):
    run = create(tmp_path / "run", "vq2", None, TINY, NO_DATA)
    run.save()
    whole = (run.folder / name).read_bytes()
    for content in (b"", b"{", b"[]", b"3", b"\xff", b"[" * 10**5, whole[:-9], b"9" * 5000):
        (run.folder / name).write_bytes(content)
        with pytest.raises(VqtokError, match=name) as caught:
            reopen(run.folder, NO_DATA)
        assert len(str(caught.value)) < 300 + len(str(run.folder))


@pytest.mark.parametrize(
    "change",
    [
        {"sources": "clips"},
        {"sources": [3]},
        {"sources": ["a\0b"]},
        {"validation": None},
        {"cache": 3},
        {"cache": "\0"},
        {"held_out": {}},
        {"held_out": [""]},
    ],
    ids=str,
)
def test_data_paths_of_another_type_are_refused(change, tmp_path):
    run = create(tmp_path / "run", "vq2", None, TINY, NO_DATA)
    run.save()
    paths = json.loads((run.folder / RUN_DATA).read_text())
    (run.folder / RUN_DATA).write_text(json.dumps(paths | change))
    with pytest.raises(VqtokError, match=r"data\.json is damaged"):
        reopen(run.folder, NO_DATA)


def test_missing_data_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        make_run(tmp_path / "run", sources=[tmp_path / "none"]).open_clips()


def test_patterns_are_saved_and_mean_the_same_files_from_any_folder(
    tmp_path, make_clip, monkeypatch
):
    folder = tmp_path / "my [best] clips"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mkv"):
        make_clip(folder / name, frames=8, height=40, width=48)
    monkeypatch.chdir(folder)
    options = [f"--set={o}" for o in TINY]
    data = ["--data", "*.mp4", "--data", "c.mkv", "--validation", "b.*"]
    works("train", *data, *options, "--out", tmp_path / "run", "--steps", 1, "--quiet")
    monkeypatch.chdir(tmp_path)
    saved = json.loads((tmp_path / "run" / RUN_DATA).read_text())
    assert [Path(source).name for source in saved["sources"]] == ["*.mp4", "c.mkv"]
    assert all(Path(source).is_absolute() for source in saved["sources"] + saved["validation"])
    clips = reopen(tmp_path / "run", NO_DATA).open_clips()
    assert [path.name for path in clips.paths] == ["a.mp4", "c.mkv"]
    assert [path.name for path in clips.validation_paths] == ["b.mp4"]


def test_held_out_files_are_not_trained_on(tmp_path, make_clip):
    folder, link = tmp_path / "data", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    for i in range(8):
        make_clip(folder / f"{i}.mp4", frames=2, height=40, width=48)
    share = "train.validation_share=0.25"

    def trained(*validation):
        run = make_run(tmp_path / "run", "fsq", share, sources=[folder], validation=validation)
        return [int(path.stem) for path in run.open_clips().paths]

    assert trained() == [0, 1, 2, 4, 5, 6]
    assert trained(folder / "1.mp4") == [0, 2, 3, 4, 5, 6, 7]
    assert trained(link / "1.mp4") == [0, 2, 3, 4, 5, 6, 7]
    with pytest.raises(UsageError, match="nothing is left to train on"):
        trained(folder)


def test_held_out_files_stay_held_out_when_files_are_added(tmp_path, make_clip):
    data, moved = tmp_path / "data", tmp_path / "moved"
    data.mkdir()
    for i in range(8):
        make_clip(data / f"{i}.mp4", frames=2, height=40, width=48)
    run = make_run(tmp_path / "run", "fsq", "train.validation_share=0.25", sources=[data])
    run.save()

    def names(run):
        clips = run.open_clips()
        return [[path.stem for path in paths] for paths in (clips.paths, clips.validation_paths)]

    assert names(run) == [["0", "1", "2", "4", "5", "6"], ["3", "7"]]
    make_clip(data / "00.mp4", frames=2, height=40, width=48)
    (data / "7.mp4").rename(tmp_path / "7.mp4")
    resumed = reopen(run.folder, NO_DATA)
    assert names(resumed) == [["0", "00", "1", "2", "4", "5", "6"], ["3"]]
    resumed.save()
    (tmp_path / "7.mp4").rename(data / "7.mp4")
    assert names(reopen(run.folder, NO_DATA))[1] == ["3", "7"]

    data.rename(moved)  # none of the files that are held out is left
    assert names(reopen(run.folder, DataPaths([moved])))[1] == ["2", "6"]
    moved.rename(data)
    paths = json.loads((run.folder / RUN_DATA).read_text())
    del paths["held_out"]  # as in runs of 0.2.0
    (run.folder / RUN_DATA).write_text(json.dumps(paths))
    assert names(reopen(run.folder, NO_DATA))[1] == ["2", "6"]


def test_training_files_stay_training_files_when_files_are_added(tmp_path, make_clip):
    make_clip(tmp_path / "a.mp4", frames=2, height=40, width=48)
    run = make_run(tmp_path / "run", "fsq", "train.validation_share=0.5", sources=[tmp_path])
    run.save()
    make_clip(tmp_path / "b.mp4", frames=2, height=40, width=48)
    clips = reopen(run.folder, NO_DATA).open_clips()
    assert [path.stem for path in clips.paths] == ["a", "b"]
    assert clips.validation_paths == []


def test_validation_measures_held_out_files_and_writes_an_image(tmp_path, make_clip):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(8):
        make_clip(data / f"{i}.mp4", frames=20, height=40 + 2 * i, width=48)
    (data / "8.mp4").write_bytes(b"no video")
    overrides = ["train.validate_every=10", "train.validation_share=0.25"]
    run = make_run(tmp_path / "run", "vq2", *overrides, sources=[data])
    train_run(run, 20)
    rows = read_metrics(run.folder)
    keys = {"val_psnr", "val_ssim", "val_usage", "val_usage_by_chance", "val_perplexity"}
    keys |= {
        "val_unquantized_psnr",
        "val_tokens",
        "tokens",
        "usage",
        "usage_by_chance",
        "perplexity",
    }
    assert all(keys <= row.keys() for row in rows)
    assert 5 < rows[1]["val_psnr"] < 50 and 0 < rows[1]["val_ssim"] < 1
    assert rows[1]["data_wait"] < rows[1]["seconds_per_step"]
    assert rows[1]["cache_hits"] > 0.5
    with av.open(str(run.folder / RUN_SAMPLES / "step-20.png")) as container:
        (image,) = container.decode(video=0)
    assert (image.height, image.width) == (2 * 46, 2 * 46)  # two clips, cropped to the smaller


def test_validation_of_a_tokenizer_with_stages_also_measures_one_token_per_position(
    tmp_path, make_clip
):
    for i in range(2):
        make_clip(tmp_path / f"{i}.mp4", frames=9, height=40, width=48)
    overrides = ["train.validate_every=2", "train.validation_share=0.5", "quantizer.stages=2"]
    run = make_run(tmp_path / "run", "ema", *overrides, sources=[tmp_path])
    train_run(run, 2)
    row = read_metrics(run.folder)[-1]
    assert 1 < row["val_tokens_per_position"] <= 2
    assert row["val_psnr_1_token"] < row["val_psnr"] < row["val_unquantized_psnr"]
