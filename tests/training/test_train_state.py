"""The saved state of a run: averaged weights, initial weights, and files that are refused."""

import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.training import CPU, make_run, settings, train_run
from vqtok.errors import UsageError, VqtokError
from vqtok.files import RUN_STATE, RUN_TOKENIZER
from vqtok.training.train_state import TrainState


def test_ema_follows_the_weights_and_copies_buffers():
    state = TrainState.new(settings("ema"), CPU)
    weight, average = (model.encoder[0].weight for model in (state.tokenizer, state.ema_model))
    expected = weight.detach().clone()
    for _ in range(30):
        with torch.no_grad():
            weight.add_(0.1)
            state.tokenizer.coder.quantizer.embedding.weight.add_(0.1)
        state.update_ema(0.8)
        expected += 0.2 * (weight.detach() - expected)
    torch.testing.assert_close(average, expected)
    codebooks = [m.coder.quantizer.embedding.weight for m in (state.tokenizer, state.ema_model)]
    assert torch.equal(*codebooks)
    state.update_ema(0)
    assert torch.equal(average, weight)


def test_ema_copies_the_price_of_a_token():
    state = TrainState.new(settings("ema", "quantizer.stages=2"), CPU)
    state.tokenizer.coder.price.fill_(3.0)
    state.update_ema(0.8)
    assert state.ema_model.coder.price == 3


def test_run_starts_from_the_weights_of_a_tokenizer(tmp_path):
    first = make_run(tmp_path / "first", "ema")
    train_run(first, 1)
    file = first.folder / RUN_TOKENIZER
    init = [f"train.init_from={file}", "train.steps=1", "train.learning_rate=1e-9"]
    second = make_run(tmp_path / "second", "ema", *init)
    train_run(second)
    before, after = (load_file(run.folder / RUN_TOKENIZER) for run in (first, second))
    name = "encoder.0.weight"
    torch.testing.assert_close(after[name], before[name], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    "kind, overrides", [("fsq", []), ("ema", ["model.predictor_blocks=1", "model.intra_share=0.1"])]
)
def test_tokenizer_with_other_settings_is_refused(kind, overrides, tmp_path):
    first = make_run(tmp_path / "first", "ema", "model.predictor_blocks=1")
    train_run(first, 1)
    init = f"train.init_from={first.folder / RUN_TOKENIZER}"
    other = make_run(tmp_path / "other", kind, init, *overrides)
    with pytest.raises(UsageError, match=r"train\.init_from has other \[model\]"):
        train_run(other)
    assert not other.folder.exists()


def test_run_starts_from_the_networks_of_a_tokenizer_with_another_codebook(tmp_path):
    first = make_run(tmp_path / "first", "ema", "model.predictor_blocks=1")
    train_run(first, 1)
    init = [f"train.init_networks_from={first.folder / RUN_TOKENIZER}", "train.steps=1"]
    other = ["model.predictor_blocks=0", "quantizer.codebook_size=32", "train.learning_rate=1e-9"]
    second = make_run(tmp_path / "second", "ema", *init, *other)
    train_run(second)
    before, after = (load_file(run.folder / RUN_TOKENIZER) for run in (first, second))
    for name in before:
        if name.startswith(("encoder", "decoder")):
            torch.testing.assert_close(after[name], before[name], atol=1e-3, rtol=1e-2)
    used = after["coder.quantizer.embedding.weight"].unique(dim=0)
    assert len(used) > 1  # k-means of latents
    third = make_run(tmp_path / "third", "ema", *init, "quantizer.dim=3")
    with pytest.raises(UsageError, match=r"init_networks_from has other \[model\] settings"):
        train_run(third)
    both = make_run(tmp_path / "both", "ema", *init, f"train.init_from={first.folder}")
    with pytest.raises(UsageError, match=r"one of train\.init_from and train\.init_networks"):
        train_run(both)


def test_damaged_state_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    train_run(run, 1)
    state = run.folder / RUN_STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(VqtokError, match=r"resume\.safetensors is damaged"):
        train_run(run, 2)


def test_state_with_other_settings_is_refused(tmp_path):
    train_run(make_run(tmp_path / "run"), 1)
    wider = make_run(tmp_path / "run", "fsq", "model.widths=[8, 24]")
    with pytest.raises(VqtokError, match=r"resume\.safetensors does not fit the settings"):
        train_run(wider, 2)


def test_state_of_an_older_version_is_refused_with_a_way_to_go_on(tmp_path):
    run = make_run(tmp_path / "run")
    train_run(run, 1)
    old = {"weights encoder.0.bias": torch.zeros(8), "optimizer 0 mean": torch.zeros(8)}
    save_file(old, run.folder / RUN_STATE, {"step": "1"})
    hint = f"start a new run with --set train.init_from={run.folder / RUN_TOKENIZER}"
    with pytest.raises(VqtokError, match=re.escape(hint)):
        train_run(run, 2)


def test_a_saved_state_has_equal_bytes(tmp_path):
    run = make_run(tmp_path / "run")
    train_run(run, 1)
    state = TrainState.new(run.settings, CPU)
    state.load(run.folder / RUN_STATE)
    state.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (run.folder / RUN_STATE).read_bytes()


def test_a_forged_state_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    train_run(run, 1)
    path = run.folder / RUN_STATE
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    moment = next(key for key in tensors if key.endswith("exp_avg"))
    momentum = next(key for key in tensors if key.endswith("momentum_buffer"))
    nan, shape = torch.full_like(tensors[moment], torch.nan), "does not fit the settings"
    rest = {key: value for key, value in tensors.items() if key != moment}
    for forged, changes, message in (
        (tensors | {moment: torch.zeros(3, 5)}, {}, shape),
        (tensors | {momentum: torch.zeros(3, 5)}, {}, shape),
        (tensors | {momentum: tensors[momentum].long()}, {}, shape),
        (tensors | {"optimizer_0.999.exp_avg": torch.zeros(1)}, {}, shape),
        (tensors | {"optimizer_0.x.exp_avg": torch.zeros(1)}, {}, shape),
        (tensors | {"optimizer_0.1": torch.zeros(1)}, {}, shape),
        (rest, {}, shape),
        (tensors | {moment: nan}, {}, "holds NaN or infinity"),
        (tensors, {"step": "soon"}, "its step is 'soon'"),
        (tensors, {"step": "-1"}, "its step is '-1'"),
        (tensors, {"step": "9" * 5000}, "its step is"),
    ):
        save_file(forged, path, metadata | changes)
        with pytest.raises(VqtokError, match=message) as caught:
            train_run(run, 2)
        assert str(path) in str(caught.value)
