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
        limit: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the cheapest indices (b *grid), or (b *grid stages), of z (b d *grid).

        Also return their costs (b *grid): the squared distance from z, plus `price` for each
        index that is not 0. Each stage is searched for the code nearest to what is left, and the
        cheapest number of stages is kept.

        price: a number, or a tensor that broadcasts to (b *grid).
        codes: range of codes of the first stage to choose from.
        limit: (b *grid) costs to stay below; where that is impossible, they are returned, with
            indices of 0. None: the cost of the zero code, if there is one.
        """
        with fixed_precision(z.device.type):
            grid, latents = (len(z), *z.shape[2:]), flatten(z)
            if isinstance(price, Tensor):
                price = price.to(latents.dtype).expand(grid).flatten()
            if limit is not None:
                costs = limit.flatten()
            elif self._zero_code:
                costs = latents.square().sum(-1)
            else:
                costs = latents.new_full((len(latents),), INF)
            indices, costs = self._search(latents, price, codes, costs)
        stages = len(self._codebook)
        indices = indices.view(*grid, stages)
        return indices.squeeze(-1) if stages == 1 else indices, costs.view(grid)

    def _search(
        self, rest: Tensor, price: Tensor | float, codes: slice, costs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Search as `search` does: latents (n d), price (n), limits (n) -> (n stages), (n)."""
        found = []
        kept = costs.new_zeros(len(costs), dtype=torch.int64)  # number of stages that cost least
        for stage, codebook in enumerate(self._codebook):
            least = (stage + 1) * price
            table = self._table(stage, ALL if stage else codes)
            found.append(_nearest(table, rest, costs, least))
            rest = rest - F.embedding(found[-1], codebook)
            cost = rest.square().sum(-1)
            cost = cost + least if _has_price(least) else cost
            better = cost < costs
            kept = torch.where(better, stage + 1, kept)
            costs = torch.where(better, cost, costs)
        stages = torch.arange(len(found), device=kept.device)
        return torch.stack(found, -1) * (stages < kept[:, None]), costs

    def _table(self, stage: int, codes: slice) -> CodeTable:
        part = code_range(codes, self._codebook.shape[1], self._zero_code)
        key = stage, part.start, part.stop
        if key not in self._tables:
            self._tables[key] = CodeTable(self._codebook[stage, part], part.start)
        return self._tables[key]


def _nearest(table: CodeTable, rest: Tensor, costs: Tensor, least: Tensor | float) -> Tensor:
    """Return the indices (n) of the nearest codes, where a token can pay; elsewhere any.

    costs: (n) of the alternative. least: (n) cost of the tokens.
    """
    # A GPU would have to wait for the number of positions that are worth a search.
    if rest.device.type != "cpu" or not _has_price(least):
        return table.nearest(rest)
    rows = (costs > least).nonzero().squeeze(-1)
    found = torch.zeros(len(rest), dtype=torch.int64)
    found[rows] = table.nearest(rest[rows])
    return found


def _has_price(price: Tensor | float) -> bool:
    return isinstance(price, Tensor) or price > 0


def code_range(codes: slice, size: int, zero_code: bool) -> slice:
    """Return a range of the codes of a stage of this size, without the zero code."""
    start, stop, _ = codes.indices(size)
    return slice(max(start, int(zero_code)), stop)


def flatten(z: Tensor) -> Tensor:
    """Return the latents (n d) of z (b d *grid), in float32 or wider, without gradient."""
    return rearrange(at_least_float32(z.detach()).contiguous(), "b d ... -> (b ...) d")
