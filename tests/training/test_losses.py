"""The losses: reconstruction, adversarial and perceptual."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.training import make_run, read_metrics, same_tensors, settings, train_run
from vqtok.errors import UsageError
from vqtok.files import RUN_STATE
from vqtok.training.discriminator import Discriminator
from vqtok.training.step import reconstruction_loss


def test_log_mse_weighs_a_decibel_of_easy_and_of_hard_clips_alike():
    weights = ["train.l1_weight=0", "train.l2_weight=0", "train.log_mse_weight=2"]
    log_mse = settings("fsq", *weights).train
    target = torch.zeros(2, 3, 1, 8, 8)
    error = torch.tensor([0.1, 0.3]).view(2, 1, 1, 1, 1).expand_as(target)
    losses = [
        reconstruction_loss(error * torch.tensor(scale).view(2, 1, 1, 1, 1), target, log_mse)
        for scale in ([1.0, 1.0], [0.5, 1.0], [1.0, 0.5])
    ]
    gains = [(losses[0] - loss).item() for loss in losses[1:]]
    assert gains[0] == pytest.approx(gains[1], rel=0.05)  # the floor takes a little of the first
    assert gains[1] == pytest.approx(np.log(4), rel=0.01)


def test_discriminator_takes_part_at_the_end_and_resumes_exactly(tmp_path):
    overrides = ["train.adversarial_weight=0.5", "train.adversarial_share=0.6", "train.steps=10"]
    overrides += ["train.crop=16", "train.save_every=4"]
    straight, resumed = (make_run(tmp_path / n, "fsq", *overrides) for n in ("straight", "resumed"))
    train_run(straight)
    for step in (2, 6, 10):
        train_run(resumed, step)
    assert same_tensors(straight.folder / RUN_STATE, resumed.folder / RUN_STATE)
    rows = read_metrics(resumed.folder)
    assert ["adversary" in row for row in rows] == [False, False, True, True, True]
    assert 0 < rows[-1]["adversary"] < 2


def test_state_has_a_discriminator_only_if_it_has_a_weight(tmp_path):
    for weight in (0, 1):
        run = make_run(tmp_path / f"{weight}", "fsq", f"train.adversarial_weight={weight}")
        train_run(run, 1)
        names = load_file(run.folder / RUN_STATE)
        assert any(name.startswith("discriminator.") for name in names) == bool(weight)


def test_smallest_crop_for_a_discriminator_works(tmp_path):
    overrides = ["train.adversarial_weight=0.5", "train.adversarial_share=0.99", "train.crop=8"]
    (row,) = train_run(make_run(tmp_path / "run", "fsq", *overrides, "train.steps=1"))
    assert "adversary" in row


def test_gradient_of_the_generator_loss_is_that_of_the_loss_times_the_weight():
    discriminator = Discriminator(settings("fsq", "train.adversarial_weight=0.3").train)
    reconstruction = torch.rand(2, 3, 5, 32, 32, requires_grad=True)
    loss = (reconstruction - 0.5).abs().mean()
    generator_loss = discriminator.generator_loss(reconstruction, loss)
    adversarial = torch.autograd.grad(generator_loss, reconstruction)[0]
    gradient = torch.autograd.grad(loss, reconstruction)[0]
    assert (adversarial.norm() / gradient.norm()).item() == pytest.approx(0.3, rel=1e-3)
    assert all(p.grad is None and p.requires_grad for p in discriminator.parameters())


def test_perceptual_loss_trains_if_transformers_is_installed(tmp_path):
    model = tmp_path / "model"
    overrides = ["train.perceptual_weight=0.1", f"train.perceptual_model={model}", "train.steps=2"]
    run = make_run(tmp_path / "run", "fsq", *overrides)
    try:
        from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel
    except ImportError:
        with pytest.raises(UsageError, match=r"pip install 'vqtok\[perceptual\]'"):
            train_run(run)
        return
    with pytest.raises(UsageError, match="cannot be loaded"):
        train_run(run)
    vit = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(**vit, image_size=32)).save_pretrained(model)
    with pytest.raises(UsageError, match="has no feature maps"):
        train_run(run)
    shutil.rmtree(model)
    resnet = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    ResNetModel(ResNetConfig(**resnet)).save_pretrained(model)
    train_run(run)
    assert read_metrics(run.folder)[-1]["perceptual"] > 0
