"""The training loop: every quantizer trains, and a resumed run equals an uninterrupted one."""

import re
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.command import start, wait_until
from helpers.training import TINY, make_run, read_metrics, same_tensors, train_run
from vqtok.errors import UsageError, VqtokError
from vqtok.files import RUN_METRICS, RUN_STATE, RUN_TOKENIZER
from vqtok.model import checkpoint
from vqtok.settings import QUANTIZERS
from vqtok.training.runs import DataPaths, reopen
from vqtok.training.synthetic import SyntheticClips

PREDICTOR = ["model.predictor_blocks=1", "train.frames=9"]


def predictive_run(folder, kind):
    intra = ["model.intra_share=0.25"] if kind in ("vq2", "ema") else []
    return make_run(folder, kind, *PREDICTOR, *intra)


@pytest.fixture(scope="module", params=QUANTIZERS)
def finished(request, tmp_path_factory):
    """A run of 20 steps with a predictor: its quantizer, folder and rows."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    return request.param, folder, train_run(predictive_run(folder, request.param), 20)


def test_resumed_run_equals_uninterrupted_run(finished, tmp_path):
    kind, folder, rows = finished
    run = predictive_run(tmp_path / "resumed", kind)
    train_run(run, 10)
    resumed_rows = train_run(run, 20)
    assert same_tensors(folder / RUN_STATE, run.folder / RUN_STATE)
    assert resumed_rows[0]["loss"] == rows[1]["loss"]
    assert [row["step"] for row in read_metrics(run.folder)] == [10, 20]


def test_saved_tokenizer_loads_without_its_run(finished):
    kind, folder, _ = finished
    tokenizer = checkpoint.load(folder / RUN_TOKENIZER)
    indices = tokenizer.encode(SyntheticClips(predictive_run(folder, kind).settings.train).batch(0))
    assert indices.shape[:4] == (2, 3, 4, 4)
    assert tokenizer.kind == kind
    assert tokenizer.fingerprint == checkpoint.load(folder / RUN_TOKENIZER).fingerprint


def test_saved_tokenizer_has_the_averaged_weights(finished):
    _, folder, _ = finished
    state = load_file(folder / RUN_STATE)
    name = "encoder.0.weight"
    assert not torch.equal(state[f"tokenizer.{name}"], state[f"ema_model.{name}"])
    for name, weight in load_file(folder / RUN_TOKENIZER).items():
        assert torch.equal(weight, state[f"ema_model.{name}"].to(weight.dtype))


def predictor_update(folder, kind, *overrides):
    """The largest change of a predictor weight in five steps."""
    run = make_run(folder, kind, *PREDICTOR, *overrides, "train.save_every=1")
    key = "tokenizer.coder.predictor.net.0.weight"
    train_run(run, 1)
    before = load_file(run.folder / RUN_STATE)[key]
    train_run(run, 6)
    return (load_file(run.folder / RUN_STATE)[key] - before).abs().max()


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_predictor_learns_from_videos_but_not_from_images(kind, tmp_path):
    assert predictor_update(tmp_path / "videos", kind) > 1e-4
    assert predictor_update(tmp_path / "images", kind, "train.frames=1") < 1e-4


def test_training_improves_psnr(tmp_path, make_clip):
    faster = ["train.learning_rate=0.02", "train.steps=80", "train.accumulate=1"]
    clip = make_clip(height=32, width=32)
    rows = train_run(make_run(tmp_path / "run", "fsq", *faster, sources=[clip]))
    assert rows[-1]["psnr"] > rows[0]["psnr"] + 3


def test_rows_after_the_last_save_are_dropped_on_resume(tmp_path):
    run = make_run(tmp_path / "run")
    train_run(run, 10)
    with (run.folder / RUN_METRICS).open("a") as file:
        file.write(
            '{"step": 15, "loss": 0}\n{}\n{"step": 1, "los}\n[3]\n{"step": null}\n\n{"step": 1'
        )
    train_run(run, 20)
    assert [row["step"] for row in read_metrics(run.folder)] == [10, 20]


def logged_step(folder):
    try:
        return read_metrics(folder)[-1]["step"]
    except (OSError, ValueError, IndexError):
        return 0


def train_and_kill(step, *args):
    """Run `vqtok train` with these arguments; send SIGKILL once it has logged a step."""
    process = start("train", *args)
    wait_until(lambda: logged_step(args[-1]) >= step, process, timeout=120)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_run_loses_only_the_steps_since_its_last_save(tmp_path, make_clip):
    clips = [make_clip(f"{i}.mp4", frames=12, height=40, width=48) for i in range(2)]
    often = ["train.save_every=3", "train.validate_every=7"]
    run = make_run(tmp_path / "straight", "gumbel", *often, sources=clips, validation=clips[:1])
    train_run(run, 60)
    killed = tmp_path / "killed"
    options = [f"--set={o}" for o in [*TINY, *often, "quantizer.codebook_size=64"]]
    data = ["--data", *clips, "--validation", clips[0]]
    train_and_kill(5, "--quantizer", "gumbel", *data, *options, "--device", "cpu", "--out", killed)
    train_and_kill(25, "--device", "cpu", "--resume", killed)
    with safe_open(killed / RUN_STATE, "pt") as file:
        assert int(file.metadata()["step"]) >= 25 - 3
    train_run(reopen(killed, DataPaths()), 60)
    for name in (RUN_STATE, RUN_TOKENIZER):
        assert same_tensors(run.folder / name, killed / name)
    rows, killed_rows = read_metrics(run.folder), read_metrics(killed)
    for key in ("step", "loss", "val_psnr"):
        assert [row.get(key) for row in rows] == [row.get(key) for row in killed_rows]


def test_micro_batches_add_up_to_the_batch(tmp_path):
    rows = []
    for parts in (1, 2):
        run = make_run(tmp_path / f"{parts}", "fsq", f"train.accumulate={parts}")
        rows += train_run(run, 10)
    assert rows[0]["psnr"] == pytest.approx(rows[1]["psnr"], abs=0.02)


@pytest.mark.parametrize(
    "overrides, last_step, message",
    [
        (
            ["train.accumulate=3"],
            None,
            "train.batch_size=2 does not split evenly into train.accumulate=3 parts",
        ),
        (
            ["train.crop=7", "train.adversarial_weight=0.5"],
            None,
            "train.crop=7 is too small for train.adversarial_weight: make it 8 at least",
        ),
        (["train.steps=10"], 11, "--steps 11 is beyond train.steps=10"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    overrides, last_step, message, tmp_path
):
    run = make_run(tmp_path / "run", "fsq", *overrides)
    with pytest.raises(UsageError, match=re.escape(message)):
        train_run(run, last_step)
    assert not run.folder.exists()


def test_finished_run_is_not_trained_again(tmp_path):
    run = make_run(tmp_path / "run", "fsq", "train.steps=1")
    train_run(run)
    with pytest.raises(UsageError, match="has done 1 steps already"):
        train_run(run)


def test_non_finite_loss_stops_the_run_before_it_is_saved(tmp_path):
    run = make_run(tmp_path / "run", "fsq", "train.learning_rate=1e30")
    with pytest.raises(VqtokError, match=r"loss is not finite at step \d+: .* lower train\.learn"):
        train_run(run, 20)
    assert not (run.folder / RUN_TOKENIZER).exists()


def test_tensorboard_files_are_written_if_it_is_installed(tmp_path):
    run = make_run(tmp_path / "run", "fsq", "train.tensorboard=true")
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match=r"pip install 'vqtok\[tensorboard\]'"):
            train_run(run, 1)
        assert not (run.folder / RUN_TOKENIZER).exists()
    else:
        train_run(run, 1)
        assert list((run.folder / "tensorboard").glob("events.*"))
