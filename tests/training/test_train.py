"""Training: every quantizer runs, a resumed run is the run, and what it leaves can be used."""

import json
import shutil
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from helpers.clips import write_clip
from helpers.training import TINY, settings
from vqtok import config
from vqtok.errors import UsageError, VqtokError
from vqtok.model import checkpoint
from vqtok.training import runs, train
from vqtok.training.data import Clips, Procedural, find_media
from vqtok.training.discriminator import Discriminator
from vqtok.training.optimizer import Muon
from vqtok.training.state import State
from vqtok.training.step import learning_rate, reconstruction_loss

CPU = torch.device("cpu")


def run_to(folder, steps, kind="fsq", sources=()):
    """Train in a folder up to a step; the lines shown."""
    shown = []
    folder.mkdir(exist_ok=True)
    run = runs.Run(folder, settings(kind), sources)
    train(run, run.clips(), CPU, shown.append, steps)
    return shown


@pytest.mark.parametrize("kind", config.QUANTIZERS)
def test_ten_steps_and_ten_resumed_are_twenty(kind, tmp_path):
    straight = run_to(tmp_path / "straight", 20, kind)
    run_to(tmp_path / "stopped", 10, kind)
    resumed = run_to(tmp_path / "stopped", 20, kind)
    once, twice = (load_file(tmp_path / n / "resume.safetensors") for n in ("straight", "stopped"))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key], twice[key]) for key in once)
    assert straight[1]["loss"] == resumed[0]["loss"]
    lines = (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]


@pytest.mark.parametrize("kind", config.QUANTIZERS)
def test_a_trained_tokenizer_rebuilds_itself(kind, tmp_path):
    run_to(tmp_path / "run", 10, kind)
    tokenizer = checkpoint.load(tmp_path / "run" / "tokenizer.safetensors")
    clip = Procedural(settings().train).batch(0)
    indices = tokenizer.encode(clip)
    assert indices.shape[:4] == (2, 2, 4, 4)
    assert tokenizer.kind == kind
    assert (
        tokenizer.fingerprint == checkpoint.load(tmp_path / "run/tokenizer.safetensors").fingerprint
    )


def test_training_learns(tmp_path, make_clip):
    faster = settings("fsq", "train.learning_rate=0.005", "train.steps=200")
    run = runs.Run(tmp_path / "run", faster, [make_clip(height=32, width=32)])
    shown = []
    train(run, run.clips(), CPU, shown.append)
    assert shown[-1]["psnr"] > shown[0]["psnr"] + 3


def test_steps_after_a_save_are_forgotten_on_resume(tmp_path):
    run_to(tmp_path / "run", 10)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 15, "loss": 0}) + "\n")
        file.write('{}\n{"step": 1, "los}\n[3]\n{"step": null}\n\n{"step": 1')
    run_to(tmp_path / "run", 20)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]


def test_a_damaged_state_is_refused_in_a_sentence(tmp_path):
    run_to(tmp_path / "run", 10)
    state = tmp_path / "run" / "resume.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(VqtokError, match=r"resume\.safetensors is damaged"):
        run_to(tmp_path / "run", 20)


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(step, settings("fsq", "train.steps=100").train) for step in range(101)]
    peak = settings().train.learning_rate
    assert rates[0] == pytest.approx(peak / 5)
    assert max(rates) == peak == rates[5]
    assert rates[100] == pytest.approx(0)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_wsd_stays_up_and_falls_at_the_end():
    wsd = settings("fsq", "train.steps=100", "train.schedule=wsd", "train.decay_share=0.25").train
    rates = [learning_rate(step, wsd) / wsd.learning_rate for step in range(121)]
    assert rates[0] == pytest.approx(1 / 5)
    assert rates[5:76] == [1] * 71
    assert rates[80] == pytest.approx(20 / 25)
    assert rates[100:] == [0] * 21


def test_muon_makes_steps_of_kernels_orthogonal_and_those_of_the_rest_adams():
    torch.manual_seed(0)
    kernel, bias = torch.nn.Parameter(torch.randn(8, 4, 1, 3, 3)), torch.nn.Parameter(torch.ones(8))
    before = kernel.detach().clone()
    optimizer = Muon([kernel, bias], lr=0.01, weight_decay=0.0)
    kernel.grad, bias.grad = torch.randn(8, 4, 1, 3, 3), torch.linspace(-1, 1, 8)
    optimizer.step()
    step = (before - kernel.detach()).flatten(1) / (0.01 * 0.2 * 36**0.5)
    values = torch.linalg.svdvals(step)
    assert 0.6 < values.min() < values.max() < 1.3
    torch.testing.assert_close(bias.detach(), 1 - 0.01 * bias.grad.sign())  # Adam's first step


def test_the_average_follows_weights_and_takes_buffers_as_they_are():
    state = State.new(settings("ema"), CPU)
    mean = state.tokenizer.encoder[0].weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            state.tokenizer.encoder[0].weight.add_(0.1)
            state.tokenizer.quantizer.embedding.weight.add_(0.1)
        state.stepped(0.8)
        share = 1 - min(0.8, (1 + step) / (10 + step))
        mean += share * (state.tokenizer.encoder[0].weight.detach() - mean)
    torch.testing.assert_close(state.average.encoder[0].weight, mean)
    codes = [t.quantizer.embedding.weight for t in (state.average, state.tokenizer)]
    assert torch.equal(*codes)
    state.stepped(0.0)
    assert torch.equal(state.average.encoder[0].weight, state.tokenizer.encoder[0].weight)


@pytest.mark.parametrize("kind", config.QUANTIZERS)
def test_the_average_is_what_is_shipped(kind, tmp_path):
    run_to(tmp_path / "run", 10, kind)
    state = load_file(tmp_path / "run" / "resume.safetensors")
    name = "encoder.0.weight"
    assert not torch.equal(state[f"weights {name}"], state[f"average {name}"])
    shipped = load_file(tmp_path / "run" / "tokenizer.safetensors")
    for name, weight in shipped.items():
        assert torch.equal(weight, state[f"average {name}"].to(weight.dtype))


def test_a_run_killed_at_any_moment_loses_the_steps_since_the_last_save(tmp_path, make_clip):
    """SIGKILL, twice, while it trains; what comes out is a run that was never stopped."""
    clips = [make_clip(f"{i}.mp4", frames=12, height=40, width=48) for i in range(2)]
    more = ["train.save_every=3", "train.validate_every=7", "quantizer.codebook_size=64"]
    options = [f"--set={o}" for o in [*TINY, *more]]
    base = [sys.executable, "-m", "vqtok", "train", "--steps", "80", "--device", "cpu"]
    new = ["--quantizer", "gumbel", "--data", *clips, "--validation", clips[0], *options, "--out"]
    subprocess.run([*base, *new, tmp_path / "straight"], check=True, capture_output=True)
    killed = tmp_path / "killed"
    for done, command in ((5, [*base, *new, killed]), (25, [*base, "--resume", killed])):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and last_step(killed) < done:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    saved = load_steps(killed)
    assert saved >= 25 - 3
    subprocess.run([*base, "--resume", killed], check=True, capture_output=True)
    for name in ("resume.safetensors", "tokenizer.safetensors"):
        once, twice = (load_file(tmp_path / run / name) for run in ("straight", "killed"))
        assert all(torch.equal(once[key], twice[key]) for key in once)
    rows, again = (metrics(tmp_path / run) for run in ("straight", "killed"))
    assert [row["step"] for row in rows] == [row["step"] for row in again]
    assert [row["loss"] for row in rows] == [row["loss"] for row in again]
    assert [row.get("val_psnr") for row in rows] == [row.get("val_psnr") for row in again]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last_step(folder):
    try:
        return metrics(folder)[-1]["step"]
    except (OSError, ValueError, IndexError):
        return 0


def load_steps(folder):
    with safe_open(folder / "resume.safetensors", "pt") as file:
        return int(file.metadata()["step"])


def test_an_adversary_takes_part_at_the_end_and_is_resumed(tmp_path):
    rival = ["train.steps=20", "train.adversarial_weight=0.5", "train.adversarial_share=0.7"]
    for name, stops in (("straight", [20]), ("stopped", [3, 10, 20])):
        run = runs.Run(tmp_path / name, settings("fsq", *rival), [])
        for until in stops:
            train(run, run.clips(), CPU, [].append, until)
    once, twice = (load_file(tmp_path / n / "resume.safetensors") for n in ("straight", "stopped"))
    assert once.keys() == twice.keys() and any(key.startswith("adversary") for key in once)
    assert all(torch.equal(once[key], twice[key]) for key in once)
    rows = metrics(tmp_path / "stopped")
    assert ["adversary" in row for row in rows] == [False, True, True]
    assert 0 < rows[-1]["adversary"] < 2
    run_to(tmp_path / "without", 20)
    without = load_file(tmp_path / "without" / "resume.safetensors")
    assert not any(key.startswith("adversary") for key in without)


def test_what_the_adversary_pulls_is_the_weight_times_the_loss():
    rival = settings("fsq", "train.adversarial_weight=0.3").train
    adversary = Discriminator(rival)
    made = torch.rand(2, 3, 5, 32, 32, requires_grad=True)
    loss = (made - 0.5).abs().mean()
    pull = torch.autograd.grad(adversary.pull(made, loss), made)[0]
    other = torch.autograd.grad(loss, made)[0]
    assert (pull.norm() / other.norm()).item() == pytest.approx(0.3, rel=1e-3)
    assert all(p.grad is None and p.requires_grad for p in adversary.parameters())


@pytest.mark.parametrize("frames", [1, 9])
@pytest.mark.parametrize("kind", config.QUANTIZERS)
def test_a_predictor_is_trained_at_any_length_and_resumed(kind, frames, tmp_path):
    more = ["model.intra_share=0.25"] if kind in ("vq2", "ema") else []
    guessed = settings(kind, "model.predictor_blocks=1", f"train.frames={frames}", *more)
    for name, stops in (("straight", [10]), ("stopped", [5, 10])):
        run = runs.Run(tmp_path / name, guessed, [])
        for until in stops:
            train(run, run.clips(), CPU, [].append, until)
    once, twice = (load_file(tmp_path / n / "resume.safetensors") for n in ("straight", "stopped"))
    assert all(torch.equal(once[key], twice[key]) for key in once)
    first = State.new(guessed, CPU)
    first.start(torch.cat([run.clips().batch(step) for step in range(16)]))
    name = "predictor.net.0.weight"
    moved = once[f"weights {name}"] - first.tokenizer.state_dict()[name]
    assert (moved.abs().max() > 1e-4) == (frames > 1)


def test_a_run_begins_from_a_tokenizer_and_stays_near(tmp_path):
    run_to(tmp_path / "first", 10, "ema")
    file = tmp_path / "first" / "tokenizer.safetensors"
    still = [f"train.init_from={file}", "train.steps=1", "train.learning_rate=1e-9"]
    run = runs.Run(tmp_path / "second", settings("ema", *still), [])
    train(run, run.clips(), CPU, [].append)
    before, after = (load_file(path) for path in (file, run.folder / file.name))
    name = "encoder.0.weight"
    torch.testing.assert_close(after[name], before[name], atol=1e-3, rtol=1e-2)
    for unlike in (
        settings("fsq", still[0]),
        settings("ema", still[0], "model.intra_share=0.1"),
    ):
        other = runs.Run(tmp_path / "other", unlike, [])
        with pytest.raises(UsageError, match=r"train\.origin has other \[model\]"):
            train(other, other.clips(), CPU, [].append)
        assert not other.folder.exists()


def test_a_decibel_of_an_easy_clip_counts_as_much_as_one_of_a_hard_clip():
    weights = ["train.l1_weight=0", "train.l2_weight=0", "train.log_mse_weight=2"]
    alike = settings("fsq", *weights).train
    target = torch.zeros(2, 3, 1, 8, 8)
    error = torch.tensor([0.1, 0.3]).view(2, 1, 1, 1, 1).expand_as(target)
    losses = [
        reconstruction_loss(error * torch.tensor(share).view(2, 1, 1, 1, 1), target, alike)
        for share in ([1.0, 1.0], [0.5, 1.0], [1.0, 0.5])
    ]
    gains = [(losses[0] - loss).item() for loss in losses[1:]]
    assert gains[0] == pytest.approx(gains[1], rel=0.05)  # the floor takes a little of the first
    assert gains[1] == pytest.approx(np.log(4), rel=0.01)


def test_a_perceptual_loss_learns_or_says_what_to_install(tmp_path):
    folder = tmp_path / "seer"
    seen = settings(
        "fsq", "train.perceptual_weight=0.1", f"train.perceptual_model={folder}", "train.steps=2"
    )
    run = runs.Run(tmp_path / "run", seen, [])
    try:
        from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel
    except ImportError:
        with pytest.raises(UsageError, match=r"pip install 'vqtok\[perceptual\]'"):
            train(run, run.clips(), CPU, [].append)
    else:
        with pytest.raises(UsageError, match="cannot be loaded"):
            train(run, run.clips(), CPU, [].append)
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
        tokens = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
        ViTModel(ViTConfig(**tokens, image_size=32)).save_pretrained(folder)
        with pytest.raises(UsageError, match="has no feature maps"):
            train(run, run.clips(), CPU, [].append)
        shutil.rmtree(folder)
        ResNetModel(ResNetConfig(**sizes)).save_pretrained(folder)
        train(run, run.clips(), CPU, [].append)
        assert metrics(run.folder)[-1]["perceptual"] > 0


def test_validation_measures_files_held_out(tmp_path, make_clip):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(8):
        make_clip(data / f"{i}.mp4", frames=20, height=40 + 2 * i, width=48)
    (data / "8.mp4").write_bytes(b"no video")
    every = settings("vq2", "train.validate_every=10", "train.validation_share=0.25")
    run = runs.Run(tmp_path / "run", every, [data])
    clips = run.clips()
    assert [p.name for p in clips.paths] == [f"{i}.mp4" for i in (0, 1, 2, 4, 5, 6, 8)]
    train(run, clips, CPU, [].append, 20)
    rows = metrics(run.folder)
    keys = {"val_psnr", "val_ssim", "val_usage", "val_usage_by_chance", "val_perplexity"}
    keys |= {"val_tokens", "tokens", "usage", "usage_by_chance", "perplexity"}
    assert all(keys <= row.keys() for row in rows)
    assert 5 < rows[1]["val_psnr"] < 50 and 0 < rows[1]["val_ssim"] < 1
    assert rows[1]["data_wait"] < rows[1]["seconds_per_step"]
    assert rows[1]["cache_hits"] > 0.5
    with av.open(str(run.folder / "samples" / "step-20.png")) as container:
        (picture,) = container.decode(video=0)
    assert (picture.height, picture.width) == (2 * 46, 2 * 46)  # two clips, the smaller side
    named = runs.Run(tmp_path / "named", every, [data], [data / "1.mp4"]).clips()
    assert len(named.paths) == 8 and data / "1.mp4" not in named.paths
    with pytest.raises(UsageError, match="nothing is left to train on"):
        runs.Run(tmp_path / "none", every, [data], [data]).clips()


def test_frames_can_be_taken_with_strides(tmp_path):
    brighter = np.arange(30)[:, None, None, None] * np.full((1, 32, 32, 3), 8)
    write_clip(tmp_path / "long.mp4", brighter.astype(np.uint8))
    write_clip(tmp_path / "short.mp4", brighter[:6].astype(np.uint8))
    batches = Clips(find_media([tmp_path]), settings("fsq", "train.strides=[1, 2]").train)
    seen = set()
    for step in range(20):
        levels = batches.batch(step).float().mean((1, 3, 4))  # (b t)
        steps = (levels[:, 1:] - levels[:, :-1]) / 8
        assert (steps - steps.mean(1, keepdim=True)).abs().max() < 0.3
        seen.update(steps.mean(1).round().int().tolist())
    assert seen == {1, 2}


def test_a_batch_that_does_not_split_is_explained(tmp_path):
    run = runs.Run(tmp_path / "run", settings("fsq", "train.accumulate=3"), [])
    with pytest.raises(
        UsageError, match=r"batch_size=2 does not split evenly .*accumulate=3 parts"
    ):
        train(run, run.clips(), CPU, [].append)
    assert not run.folder.exists()


def test_the_smallest_clips_for_an_adversary_are_named(tmp_path):
    rival = ["train.steps=1", "train.adversarial_weight=0.5", "train.adversarial_share=0.99"]
    small, least = (
        runs.Run(tmp_path / f"{crop}", settings("fsq", *rival, f"train.crop={crop}"), [])
        for crop in (7, 8)
    )
    with pytest.raises(UsageError, match=r"train\.crop=7 is too small .* make it 8 at least"):
        train(small, small.clips(), CPU, [].append)
    assert not small.folder.exists()
    train(least, least.clips(), CPU, [].append)
    assert "adversary" in metrics(least.folder)[0]


def test_steps_beyond_the_schedule_are_refused(tmp_path):
    run = runs.Run(tmp_path / "run", settings("fsq", "train.steps=10"), [])
    with pytest.raises(UsageError, match=r"beyond train\.steps=10"):
        train(run, run.clips(), CPU, [].append, 11)


def test_accumulated_parts_are_the_batch(tmp_path):
    rows = []
    for parts in (1, 2):
        run = runs.Run(tmp_path / f"{parts}", settings("fsq", f"train.accumulate={parts}"), [])
        train(run, run.clips(), CPU, rows.append, 10)
    assert rows[0]["psnr"] == pytest.approx(rows[1]["psnr"], abs=0.02)


def test_tensorboard_writes_or_says_what_to_install(tmp_path):
    run = runs.Run(tmp_path / "run", settings("fsq", "train.tensorboard=true"), [])
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match=r"pip install 'vqtok\[tensorboard\]'"):
            train(run, run.clips(), CPU, [].append, 10)
        assert not (run.folder / "tokenizer.safetensors").exists()
    else:
        train(run, run.clips(), CPU, [].append, 10)
        assert list((run.folder / "tensorboard").glob("events.*"))


def test_a_run_folder_is_made_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = runs.create(None, "lfq", None, TINY, [])
    assert not first.folder.exists()
    first.write()
    second = runs.create(None, "lfq", None, TINY, [])
    assert (str(first.folder), str(second.folder)) == ("runs/lfq", "runs/lfq-2")
    assert runs.reopen(first.folder, []).settings == first.settings
    places = [tmp_path / "data"], [tmp_path / "held_out"], tmp_path / "cache"
    third = runs.create(tmp_path / "third", "vq2", None, TINY, *places)
    third.write()
    assert runs.reopen(third.folder, []) == third
    assert runs.reopen(third.folder, [], [], tmp_path / "other").cache == tmp_path / "other"
    (third.folder / "data.json").write_text("{}")
    with pytest.raises(VqtokError, match=r"data\.json is damaged"):
        runs.reopen(third.folder, [])
    with pytest.raises(UsageError, match="holds a run already"):
        runs.create(first.folder, "lfq", None, TINY, [])
    with pytest.raises(UsageError, match="holds no run"):
        runs.reopen(tmp_path, [])
    with pytest.raises(UsageError, match="no such file or folder"):
        runs.create(tmp_path / "x", "lfq", None, TINY, [tmp_path / "none"]).clips()


def test_training_clips_come_from_every_kind_of_file(tmp_path, make_clip, make_still):
    make_clip(tmp_path / "long.mp4", frames=20, height=48, width=64)
    make_clip(tmp_path / "short.mkv", frames=3, height=24, width=90)
    make_still(tmp_path / "still.png", height=50, width=70)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "notes.txt").write_text("not listed")
    (tmp_path / ".hidden.mp4").write_bytes(b"not listed")
    (tmp_path / "folder.mp4").mkdir()
    paths = find_media([tmp_path])
    assert [p.name for p in paths] == ["broken.mp4", "long.mp4", "short.mkv", "still.png"]
    kept = Clips(paths, settings().train)
    streamed = Clips(paths, settings("fsq", "train.cache_gib=0").train)
    for step in range(20):
        batch = kept.batch(step)
        assert batch.shape == (2, 3, 5, 32, 32)
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, streamed.batch(step))
        shares = [kept.batch(step, rank, 2) for rank in (0, 1)]
        assert torch.equal(torch.cat(shares), batch)
    assert [p.name for p in kept.broken] == ["broken.mp4"]


def test_no_readable_file_is_an_error(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(VqtokError, match="none of the 1 training files can be read"):
        Clips(find_media([tmp_path]), settings().train).batch(0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no videos or images"):
        find_media([tmp_path / "empty"])


def test_procedural_clips_are_varied_and_repeatable():
    clips = Procedural(settings().train)
    assert torch.equal(clips.batch(3), clips.batch(3))
    assert not torch.equal(clips.batch(3), clips.batch(4))
    assert np.std(clips.batch(0).numpy()) > 20


def test_resuming_on_files_is_exact_with_a_broken_one_and_little_memory(tmp_path, make_clip):
    data = tmp_path / "data"
    data.mkdir()
    for i, name in enumerate(["a.mp4", "b.mkv", "c.webm", "d.avi", "e.gif"]):
        codec = {"c.webm": "libvpx-vp9", "d.avi": "mpeg4", "e.gif": "gif"}.get(name, "libx264")
        pixels = "rgb8" if codec == "gif" else "yuv420p"
        make_clip(data / name, frames=12 + i, height=40, width=48, codec=codec, pix_fmt=pixels)
    (data / "f.mp4").write_bytes(b"no video")
    little = settings("fsq", "train.cache_gib=0.0001", "train.strides=[1, 2]").train
    straight, resumed = Clips(find_media([data]), little), Clips(find_media([data]), little)
    batches = [straight.batch(step) for step in range(20)]
    assert straight.broken
    kept = {source.kept is not None for source in straight._sources.values()}
    assert kept == {True, False}
    assert all(torch.equal(resumed.batch(step), batches[step]) for step in range(19, 9, -1))


def test_a_loss_that_is_no_number_stops_the_run_before_the_save(tmp_path):
    run = runs.Run(tmp_path / "run", settings("fsq", "train.learning_rate=1e30"), [])
    with pytest.raises(VqtokError, match=r"no longer a number .* lower train\.learning_rate"):
        train(run, run.clips(), CPU, [].append, 20)
    assert not (tmp_path / "run" / "tokenizer.safetensors").exists()
