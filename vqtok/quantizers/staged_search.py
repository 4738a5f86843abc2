"""The search of the cheapest codes: in several stages, with a price for each token."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqtok.precision import at_least_float32, fixed_precision
from vqtok.quantizers.search import CodeTable

ALL, INF = slice(None), float("inf")


class StagedSearch:
    """Searches the codes of one or several stages. What it prepares serves all its searches.

    codebook: (stages k d), float32 or float64; it must not change meanwhile.
    zero_code: code 0 of each stage is the zero vector, and costs no token.
    """

    def __init__(self, codebook: Tensor, zero_code: bool) -> None:
        self._codebook, self._zero_code = codebook, zero_code
        self._tables: dict[tuple[int, int, int], CodeTable] = {}  # by stage and range of codes

    @torch.no_grad()
    def search(
        self,
        z: Tensor,
        price: Tensor | float = 0.0,
        codes: slice = ALL,
        other: tuple[Tensor, slice] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the cheapest indices (b *grid), or (b *grid stages), of z (b d *grid).

        Also return their costs (b *grid): the squared distance from z, plus `price` for each
        index that is not 0. Each stage is searched for the code nearest to what is left, and the
        cheapest number of stages is kept.

        price: a number, or a tensor that broadcasts to (b *grid).
        codes: range of codes of the first stage to choose from.
        other: other latents, shaped like z, and the range of their codes. A position is coded as
            these instead where that is cheaper.
        """
        with fixed_precision(z.device.type):
            grid, latents, ranges = (len(z), *z.shape[2:]), [flatten(z)], [codes]
            if other is not None:
                latents.append(flatten(other[0]))
                ranges.append(other[1])
            if isinstance(price, Tensor):
                price = price.to(latents[0].dtype).expand(grid).flatten().repeat(len(latents))
            indices, costs = self._search(latents, ranges, price)
            if other is not None:
                other_is_cheaper = costs[1] < costs[0]
                indices = torch.where(other_is_cheaper.unsqueeze(-1), indices[1], indices[0])
                costs = torch.minimum(costs[0], costs[1])
        stages = len(self._codebook)
        indices = indices.view(*grid, stages)
        return indices.squeeze(-1) if stages == 1 else indices, costs.view(grid)

    def _search(
        self, targets: list[Tensor], ranges: list[slice], price: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Return the indices (m n stages) and costs (m n) of m targets (n d).

        ranges: of the codes of the first stage, for each target. price: a number or (m*n).
        """
        count, rest = len(targets), torch.cat(targets) if len(targets) > 1 else targets[0]
        if self._zero_code:  # of the first target, which the zero code is for
            costs = targets[0].square().sum(-1).repeat(count)
        else:
            costs = rest.new_full((len(rest),), INF)
        found: list[Tensor] = []
        kept = torch.zeros_like(costs, dtype=torch.int64)  # number of stages that cost least
        least = price
        for stage, codebook in enumerate(self._codebook):
            least = least + price if stage else least
            pays = _where_a_token_can_pay(costs, least)
            tables = [self._table(stage, codes) for codes in (ranges if stage == 0 else [ALL])]
            found.append(_nearest(tables, rest, pays))
            rest = rest - F.embedding(found[-1], codebook)
            cost = rest.square().sum(-1)
            cost = cost + least if _has_price(least) else cost
            better = cost < costs
            kept = kept.masked_fill(better, stage + 1)
            costs = torch.where(better, cost, costs)
        stages = torch.arange(len(found), device=kept.device)
        indices = torch.stack(found, -1) * (stages < kept.unsqueeze(-1))
        return indices.unflatten(0, (count, -1)), costs.unflatten(0, (count, -1))

    def _table(self, stage: int, codes: slice) -> CodeTable:
        part = code_range(codes, self._codebook.shape[1], self._zero_code)
        key = stage, part.start, part.stop
        if key not in self._tables:
            self._tables[key] = CodeTable(self._codebook[stage, part], part.start)
        return self._tables[key]


def _nearest(tables: list[CodeTable], latents: Tensor, mask: Tensor | None) -> Tensor:
    """Return the indices (n) of the codes nearest to latents (n d).

    tables: each is for an equal share of the latents. mask: (n) where to search; elsewhere the
    index is any. None: everywhere.
    """
    parts = latents.chunk(len(tables))
    if mask is None:
        found = [table.nearest(part) for table, part in zip(tables, parts, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found)
    indices = torch.zeros(len(latents), dtype=torch.int64)
    shares = zip(tables, parts, mask.chunk(len(tables)), indices.chunk(len(tables)), strict=True)
    for table, part, rows, out in shares:
        out[rows] = table.nearest(part[rows])
    return indices


def _where_a_token_can_pay(costs: Tensor, least: Tensor | float) -> Tensor | None:
    """Return a mask (n) of the costs that are above the least cost of a token; None for all.

    A GPU would have to wait for their number, so there it is all.
    """
    return costs > least if costs.device.type == "cpu" and _has_price(least) else None


def _has_price(price: Tensor | float) -> bool:
    return isinstance(price, Tensor) or price > 0


def code_range(codes: slice, size: int, zero_code: bool) -> slice:
    """Return a range of the codes of a stage of this size, without the zero code."""
    start, stop, _ = codes.indices(size)
    return slice(max(start, int(zero_code)), stop)


def flatten(z: Tensor) -> Tensor:
    """Return the latents (n d) of z (b d *grid), in float32 or wider, without gradient."""
    # No copy if z is stored channels-last, as the networks leave it.
    return rearrange(at_least_float32(z.detach()), "b d ... -> (b ...) d").contiguous()
