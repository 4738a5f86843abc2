"""Residual stages, the zero code and the price of a token."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from helpers.quantizers import assert_close
from vqtok.errors import UsageError
from vqtok.quantizers import EMAQuantizer, VectorQuantizer, staged_search

SEARCHING = {"vq": VectorQuantizer, "ema": EMAQuantizer}
SIZE, DIM = 16, 4  # codes in each stage, channels
INF = float("inf")
PRICES = [0.0, 0.1, 0.5, 2.0, 8.0, INF]

every_kind = pytest.mark.parametrize("kind", SEARCHING.values(), ids=SEARCHING)
every_stages = pytest.mark.parametrize("stages", [1, 2, 3])


def staged(kind=VectorQuantizer, stages=3, **options):
    """Return a quantizer whose codes are random, and smaller in each stage."""
    quantizer = kind(SIZE, DIM, 0.25, stages=stages, **options)
    rows = torch.arange(stages * SIZE)
    codes = torch.randn(len(rows), DIM) * 0.6 ** (rows // SIZE)[:, None]
    kept = rows % SIZE > 0
    with torch.no_grad():
        quantizer._set_codes(rows[kept], codes[kept])
    return quantizer


def latents():
    return torch.randn(2, DIM, 3, 8, 10)


def count(indices, stages):
    """Return the number of tokens at each position."""
    return (indices != 0).sum(-1) if stages > 1 else (indices != 0).long()


def flat(indices, stages):
    """Return indices as (n stages)."""
    return indices.reshape(-1, stages)


def prefixes(quantizer, z, price, first=slice(1, None)):
    """Return the greedy choices of each latent z (n d), and the cost of each number of stages.

    first: range of codes of the first stage.
    """
    tables = quantizer.codebook.detach().double().view(quantizer.stages, SIZE, DIM)
    rest, indices = z.double(), []
    costs = [rest.square().sum(-1)]
    for stage, table in enumerate(tables):
        codes = slice(1, None) if stage else first
        choice = codes.start + (rest[:, None] - table[codes]).square().sum(-1).argmin(-1)
        rest = rest - table[choice]
        indices.append(choice)
        costs.append(rest.square().sum(-1) + (stage + 1) * price)
    return torch.stack(indices, -1), torch.stack(costs, -1)


@every_kind
@every_stages
@pytest.mark.parametrize("init", [False, True], ids=["random", "from data"])
def test_code_0_stays_exactly_zero_in_training(kind, stages, init):
    layer = nn.Conv2d(DIM, DIM, 1)
    quantizer = kind(SIZE, DIM, 0.25, stages=stages, init_from_data=init, revive_after=2)
    before = quantizer.codebook.detach().clone()
    parameters = [*layer.parameters(), *quantizer.parameters()]
    optimizer = torch.optim.AdamW(parameters, 0.05, weight_decay=0.1)
    for _ in range(20):
        z = torch.randn(2, DIM, 8, 8)
        z[..., :4] = 0  # the cheapest code there is 0
        z = layer(z) - layer.bias.view(-1, 1, 1)
        indices = quantizer.search(z, 0.5)[0]
        out = quantizer.quantize(z) if torch.rand(()) < 0.5 else quantizer.quantize_to(z, indices)
        optimizer.zero_grad()
        (out.z_q.square().mean() + out.loss).backward()
        optimizer.step()
    codebook = quantizer.codebook.detach()
    is_zero = torch.arange(stages * SIZE) % SIZE == 0
    assert not codebook[is_zero].any()
    assert (codebook != before).any(-1)[~is_zero].all()
    zeros = torch.zeros_like(out.indices)
    assert not quantizer.decode(zeros).any()


@every_kind
@every_stages
@pytest.mark.parametrize("price", [0.0, 0.5, "tensor"])
def test_the_cost_is_the_squared_distance_and_the_price_of_each_token(kind, stages, price):
    quantizer, z = staged(kind, stages), latents()
    if price == "tensor":
        price = torch.tensor([0.2, 1.0]).view(2, 1, 1, 1)  # one for each clip
    indices, costs = quantizer.search(z, price)
    distance = (z.double() - quantizer.decode(indices)).square().sum(1)
    assert_close(costs, distance + price * count(indices, stages), rtol=1e-5, atol=1e-5)
    assert_close(quantizer.distance(z, indices), distance)


@every_stages
@pytest.mark.parametrize("price", PRICES[:-1])
def test_search_keeps_the_cheapest_number_of_stages(stages, price):
    quantizer, z = staged(stages=stages), latents()
    choices, costs = prefixes(quantizer, z.movedim(1, -1).reshape(-1, DIM), price)
    cheapest = costs.argmin(-1)
    expected = choices * (torch.arange(stages) < cheapest[:, None])
    indices, cost = quantizer.search(z, price)
    assert torch.equal(flat(indices, stages), expected)
    assert_close(cost.flatten(), costs.min(-1)[0], rtol=1e-5, atol=1e-5)
    used = set(cheapest.tolist())
    assert used if price in (0.0, 8.0) else len(used) > 1


@every_stages
def test_a_higher_price_never_gives_more_tokens_anywhere(stages):
    quantizer, z = staged(stages=stages), latents()
    tokens = [count(quantizer.search(z, price)[0], stages) for price in PRICES]
    for more, fewer in pairwise(tokens):
        assert (fewer <= more).all()
    assert tokens[0].float().mean() > 0.8 * stages
    assert not tokens[-1].any()


@every_stages
@pytest.mark.parametrize("price", [INF, torch.tensor(INF)], ids=["number", "tensor"])
def test_at_an_infinite_price_there_are_only_zeros(stages, price):
    quantizer, z = staged(stages=stages), latents()
    indices, costs = quantizer.search(z, price)
    assert not indices.any()
    assert_close(costs, z.square().sum(1))


@every_stages
@pytest.mark.parametrize("price", [0.0, 0.3])
def test_of_two_targets_the_cheaper_is_coded(stages, price):
    quantizer, z, other = staged(stages=stages), latents(), latents()
    first, second = slice(1, 9), slice(9, SIZE)
    indices, costs = quantizer.search(z, price, first, (other, second))
    alone, alone_costs = quantizer.search(z, price, first)
    choices, cost = prefixes(quantizer, other.movedim(1, -1).reshape(-1, DIM), price, second)
    least, tokens = cost[:, 1:].min(-1)  # the zero code is for z: other latents need a token
    expected = least < alone_costs.flatten()
    assert 0.05 < expected.float().mean() < 0.95
    choices = choices * (torch.arange(stages) <= tokens[:, None])
    chosen = torch.where(expected[:, None], choices, flat(alone, stages))
    assert torch.equal(flat(indices, stages), chosen)
    least = torch.where(expected, least, alone_costs.flatten().double())
    assert_close(costs.flatten(), least, rtol=1e-5, atol=1e-5)


@every_stages
def test_only_the_first_stage_is_held_to_a_range_of_codes(stages):
    quantizer, z = staged(stages=stages), latents()
    indices = flat(quantizer.search(z, 0.05, slice(3, 7))[0], stages)
    assert set(indices[:, 0].tolist()) == {0, 3, 4, 5, 6}
    assert all(later.max() >= 7 for later in indices.T[1:])


@every_stages
@pytest.mark.parametrize("price", PRICES)
def test_searching_only_where_a_token_can_pay_changes_nothing(stages, price, monkeypatch):
    quantizer, z = staged(stages=stages), latents()
    indices, costs = quantizer.search(z, price)
    monkeypatch.setattr(staged_search, "_where_a_token_can_pay", lambda *_: None)
    expected, expected_costs = quantizer.search(z, price)
    assert torch.equal(indices, expected)
    assert torch.equal(costs, expected_costs)


@every_kind
def test_each_stage_brings_the_codes_nearer(kind):
    quantizer = kind(SIZE, DIM, 0.25, stages=3, init_from_data=True)
    z = latents()
    quantizer.init_from_data(z)
    indices = quantizer.encode(z)
    errors = [
        quantizer.distance(z, indices * (torch.arange(3) < stages)).mean() for stages in range(4)
    ]
    assert all(after < 0.8 * before for before, after in pairwise(errors))


def test_an_ema_code_moves_to_the_mean_of_what_its_stage_had_to_code():
    quantizer, z = staged(EMAQuantizer, decay=0.0), latents()
    codes = quantizer.codebook.view(3, SIZE, DIM).clone()
    indices = quantizer.search(z, 0.1)[0]
    quantizer.quantize_to(z, indices)
    rest = z.movedim(1, -1)
    for stage in range(3):
        chosen = indices[..., stage]
        for i in set(chosen.unique().tolist()) - {0}:
            mean = rest[chosen == i].mean(0)
            assert_close(quantizer.codebook[stage * SIZE + i], mean, rtol=1e-3, atol=1e-3)
        rest = rest - codes[stage][chosen] * (chosen > 0)[..., None]


@every_stages
def test_gradients_reach_the_chosen_codes_but_0(stages):
    quantizer, z = staged(stages=stages), latents()
    indices = quantizer.search(z, 0.3)[0]
    quantizer.quantize_to(z, indices).loss.backward()
    trained = quantizer.codebook.grad.abs().sum(-1) > 0
    tokens = flat(indices, stages)
    expected = torch.zeros(stages, SIZE, dtype=torch.bool)
    for stage in range(stages):
        expected[stage, tokens[:, stage]] = True
    expected[:, 0] = False
    assert torch.equal(trained.view(stages, SIZE), expected)


@every_kind
def test_a_dead_code_becomes_a_latent_of_its_stage(kind):
    quantizer = staged(kind, revive_after=1)
    dead = torch.tensor([5, SIZE + 5, 2 * SIZE + 5])
    with torch.no_grad():
        quantizer._set_codes(dead, torch.full((3, DIM), 100.0))
    quantizer.quantize(latents())
    assert (quantizer.codebook[dead].abs() < 10).all()
    assert (quantizer.codebook[dead].norm(dim=-1) > 0).all()


@every_stages
def test_tokens_per_position_are_reported(stages):
    quantizer, z = staged(stages=stages), latents()
    indices = quantizer.search(z, 0.5)[0]
    terms = quantizer.quantize_to(z, indices).terms
    assert_close(terms["tokens_per_position"], count(indices, stages).float().mean())


@every_kind
def test_without_stages_a_codebook_is_plain(kind):
    quantizer, z = kind(SIZE, DIM, 0.25), latents()
    assert (quantizer.stages, quantizer.zero_code) == (1, False)
    assert quantizer.codebook[0].any()
    assert quantizer.encode(z).shape == (2, 3, 8, 10)
    assert "tokens_per_position" not in quantizer.quantize(z).terms


@every_kind
def test_stages_of_a_single_code_are_refused(kind):
    with pytest.raises(UsageError, match=r"quantizer\.codebook_size must be 2 or more"):
        kind(1, DIM, 0.25, stages=1)
