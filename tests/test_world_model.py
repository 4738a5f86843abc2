"""world_model.py and tokens_for_models.py of scripts/, on very small tokens."""

import json
import shutil
import sys

import pytest
import torch

import vqtok
from helpers import ROOT
from helpers.clips import pattern, write_clip
from helpers.command import works
from helpers.tokenizers import save_staged_tokenizer

LENGTH = 8  # latent frames
SMALL = [f"--length={LENGTH}", "--width=64", "--depth=1", "--batch-size=2", "--log-every=2"]
WAYS = {"ids": [], "latents": ["--latents"], "digits": ["--factors=2"]}


@pytest.fixture(scope="module")
def scripts():
    """The modules world_model and tokens_for_models."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import tokens_for_models
    import world_model

    yield world_model, tokens_for_models
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with clips, their tokens in a key-frame interval of 3, and the tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = save_staged_tokenizer(folder / "t.safetensors", "model.predictor_blocks=1")
    (folder / "clips").mkdir()
    for i, frames in enumerate((65, 53)):
        video = pattern(frames, 16, 24)
        write_clip(folder / "clips" / f"{i}.mp4", video if i else video[::-1], codec="libx264")
    works("encode", folder / "clips", "-o", folder / "tokens", "--tokenizer", tokenizer)
    return folder


def run(module, *arguments):
    """Run a script with arguments of the command line."""
    module.app([str(argument) for argument in arguments], standalone_mode=False)


def train(scripts, data, out, way, steps):
    tokenizer = f"--tokenizer={data / 't.safetensors'}"
    options = [*SMALL, *WAYS[way], tokenizer, f"--validation={data / 'tokens'}"]
    run(scripts[0], "train", data / "tokens", out, *options, f"--steps={steps}")
    return out


@pytest.fixture(scope="module", params=WAYS)
def trained(request, scripts, data, tmp_path_factory):
    """A model of 4 steps that sees ids, latents, or digits of ids."""
    out = tmp_path_factory.mktemp("world") / request.param
    return train(scripts, data, out, request.param, 4)


def test_training_logs_and_validates(trained):
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert 0 < rows[1]["validation_bits"] < rows[0]["validation_bits"] < 14  # two of 64 codes


def test_a_resumed_run_equals_an_uninterrupted_one(scripts, data, trained, monkeypatch, tmp_path):
    expected = torch.load(trained / "model.pt")["model"]
    world_model, _ = scripts
    # Stop after the second step, as a kill would.
    with monkeypatch.context() as killed:
        killed.setattr(world_model, "print", lambda *a, **k: sys.exit(1), raising=False)
        with pytest.raises(SystemExit):
            train(scripts, data, tmp_path / "run", trained.name, 4)
    assert torch.load(tmp_path / "run" / "model.pt")["step"] == 2
    train(scripts, data, tmp_path / "run", trained.name, 4)
    resumed = torch.load(tmp_path / "run" / "model.pt")["model"]
    for name, weight in expected.items():
        torch.testing.assert_close(resumed[name], weight, atol=0, rtol=0)


def test_a_position_sees_only_what_comes_before_it(scripts, trained):
    model, data, _ = scripts[0].load(trained)
    batch = next(iter(scripts[0].DataLoader(data.windows, 2)))
    digits, z, phase = data.window(batch)
    t, y, x = 2, 1, 1  # a position in the middle
    changed = digits.clone()
    changed[:, t, y, x] = (changed[:, t, y, x] + 1) % data.windows.bos_token
    other = None
    if z is not None:
        other = z.clone()
        other[:, :, t, y, x] += 1
    before = model(model.inputs(digits, z, phase)).sum(-1)
    after = model(model.inputs(changed, other, phase)).sum(-1)
    number = (t * digits.shape[2] + y) * digits.shape[3] + x
    assert torch.equal(before[:, : number + 1], after[:, : number + 1])
    assert (before[:, number + 1 :] != after[:, number + 1 :]).any()


def test_the_cache_changes_nothing(scripts, trained):
    model, data, _ = scripts[0].load(trained)
    batch = next(iter(scripts[0].DataLoader(data.windows, 2)))
    x = model.inputs(*data.window(batch))
    cache = []
    parts = [model(x[:, :5], cache), *(model(x[:, i : i + 1], cache) for i in range(5, x.shape[1]))]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(x), atol=1e-5, rtol=1e-5)


def test_bits_are_those_of_the_logits(scripts, trained):
    model, data, _ = scripts[0].load(trained)
    window = data.window(next(iter(scripts[0].DataLoader(data.windows, 2))))
    digits = window[0]
    state = model(model.inputs(*window)).unflatten(1, digits.shape[1:4])
    probability = torch.ones(digits.shape[:4])
    for i in range(digits.shape[4]):
        p = model.logits(state, digits[..., :i]).softmax(-1)
        probability *= p.gather(-1, digits[..., i : i + 1])[..., 0]
    torch.testing.assert_close(model.bits(*window), -probability.log2(), atol=1e-3, rtol=1e-3)


def test_a_clip_is_continued_as_video(scripts, data, trained, tmp_path):
    for name, frames in (("long.mp4", 8), ("a.mp4", 2), ("b.mp4", 2)):
        options = [tmp_path / name, "--given=2", f"--frames={frames}", "--temperature=0.5"]
        run(scripts[0], "continue", trained, data / "tokens", *options)
        again = vqtok.encode_video(tmp_path / name, tokenizer=data / "t.safetensors")
        assert again.frames == 1 + 4 * (2 + frames - 1)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_continuations_keep_what_is_given_and_are_codes(scripts, trained):
    model, data, _ = scripts[0].load(trained)
    digits, _, _ = data.window(next(iter(scripts[0].DataLoader(data.windows, 2))))
    longer = scripts[0].extend(model, data, digits[:, :2], 3, 1.0)
    assert torch.equal(longer[:, :2], digits[:, :2])
    assert longer.shape[1] == 5
    assert data.join(longer).max() < data.windows.codebook_size


def test_what_does_not_go_together_is_refused(scripts, data, trained, tmp_path):
    tokens = data / "tokens"
    for message, arguments in (
        ("do not make the codebook", ("train", tokens, tmp_path / "new", "--factors=4")),
        ("of other options", ("train", tokens, trained, *SMALL, "--steps=9")),
        ("choose 1 to 8 frames", ("continue", trained, tokens, "a.mp4", "--given=9")),
        ("window 0 to 16", ("continue", trained, tokens, "a.mp4", "--window=999")),
    ):
        tokenizer = [f"--tokenizer={data / 't.safetensors'}"] * (arguments[0] == "train")
        with pytest.raises(SystemExit, match=message):
            run(scripts[0], *arguments, *tokenizer)
    works(
        "encode",
        data / "clips",
        "-o",
        tmp_path / "t",
        "--tokenizer",
        data / "t.safetensors",
        "--keyframe-interval",
        1,
    )
    with pytest.raises(SystemExit, match="another tokenizer or key-frame interval"):
        scripts[0].load(trained, str(tmp_path / "t"))


def test_figures_of_runs(scripts, data, trained, monkeypatch, tmp_path, capsys):
    arguments = [data / "clips", trained, "--temperature", "1", "0"]
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    scripts[1].main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["interval"] == 3
    assert figures["bits_per_pixel"] == pytest.approx(figures["bits"] / 256)
    for name in ("continued_1", "continued_0"):
        rows = figures[name]
        assert {key: len(row) for key, row in rows.items()} == dict.fromkeys(rows, 16)
        assert sum(rows["tokenizer"]) > sum(rows["model"])
    assert figures["spread"]["error"][0] > 0


def test_folders_can_be_moved(scripts, data, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "moved")
    model, windows, _ = scripts[0].load(tmp_path / "moved", str(data / "tokens"))
    assert model.length == windows.windows.length == LENGTH
