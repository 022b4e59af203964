"""One vector a talker, whatever talks over them: attention over conditions, and a contrast with all talkers' vectors.

The parts of contrastive separative coding (Wang et al. 2021, arXiv:2103.00816) behind its encoder. The paper's abstract
says that there are an attention over a speaker's representations under several interfering conditions, global speaker
vectors, and a probabilistic contrastive loss without negative sampling; the formulas here are ours.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.features.spectrum import full_precision_matmul
from auricle.nn.gather import gather_rows

_NEVER = -1e9
"""Score of what is no candidate: finite, so that where nothing is apart the gradient is 0."""
LEAST_ALPHA = 0.1
"""Below this the loss could no longer tell anybody apart, nor find its way back."""


class ConditionAttention(nn.Module):
    """What the other conditions say of a talker: single-head attention, from the embedding in one condition over all.

    With `scope="identity"` over the same recording's conditions; with `"batch"` over everybody's, among which attention
    has to find the talker. The values' map begins as the identity: attention begins as a mean.
    """

    def __init__(self, dim: int, scope: Literal["identity", "batch"] = "identity") -> None:
        super().__init__()
        self.scope = scope
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        nn.init.eye_(self.value.weight)

    def forward(self, z: Tensor, leave_one_out: bool = False, others: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings z (I, M, E) of I talkers in M conditions to what is attended, c (I, M, E), and its weights.

        Weights are (I, M, M), or (I, M, I M + R) with `scope="batch"`, where attention also sees `others` (R, E), the
        embeddings of interferers. `leave_one_out` hides each embedding from itself. Raises `ValueError` where nothing
        would be left. In float32 at least, inside autocast too.
        """
        talkers, conditions, dim = z.shape
        if leave_one_out and conditions == 1:
            raise ValueError("leave_one_out: needs two conditions or more, since one alone leaves nothing to attend to")
        seen, own = z, torch.eye(conditions, dtype=torch.bool, device=z.device).expand(talkers, -1, -1)
        if self.scope == "batch":
            seen = z.flatten(0, 1) if others is None else torch.cat([z.flatten(0, 1), others])
            own = torch.eye(talkers * conditions, len(seen), dtype=torch.bool, device=z.device)
            own = own.view(talkers, conditions, -1)
        with torch.autocast(z.device.type, enabled=False):
            wide = self.query.weight.dtype  # float32, or float64 in tests
            q, k, v = self.query(z.to(wide)), self.key(seen.to(wide)), self.value(seen.to(wide))
            scores = q @ k.mT / math.sqrt(dim)
            weights = (scores.masked_fill(own, -torch.inf) if leave_one_out else scores).softmax(-1)
            return weights @ v, weights


class GlobalVectors(nn.Module):
    """The vectors e (N, E) of N talkers, of unit length, and the precision alpha of the Gaussians around them.

    `table`: learned by gradient. `ema`: e follows the mean of what attention says of its talker. `inbatch`: there are
    none but those that the batch makes (`in_batch_scores`), and `identities` is not looked at.
    """

    e: Tensor

    def __init__(
        self,
        kind: Literal["table", "ema", "inbatch"],
        dim: int,
        identities: int = 0,
        momentum: float = 0.99,
        alpha: float = 10.0,
    ) -> None:
        super().__init__()
        self.kind, self.momentum = kind, momentum
        self.a = nn.Parameter(torch.tensor(math.log(math.expm1(alpha - LEAST_ALPHA))))
        start = F.normalize(torch.randn(identities, dim), dim=1) if kind != "inbatch" else torch.zeros(0, dim)
        if kind == "table":
            self.e = nn.Parameter(start)
        else:
            self.register_buffer("e", start)
        self._heard: list[tuple[Tensor, Tensor]] = []  # since the last step

    @property
    def alpha(self) -> Tensor:
        """The precision (): `LEAST_ALPHA + softplus(a)`."""
        return LEAST_ALPHA + F.softplus(self.a)

    def forward(self) -> Tensor:
        """The vectors (N, E), of unit length."""
        return F.normalize(self.e, dim=1)

    @torch.no_grad()
    def take(self, vectors: Tensor) -> None:
        """Begin anew from these (N, E); `inbatch` has nothing to begin."""
        if self.kind != "inbatch":
            self.e.copy_(F.normalize(vectors, dim=1))

    @torch.no_grad()
    def hear(self, c: Tensor, y: Tensor) -> None:
        """Remember c (n, E) of talkers y (n,) for `follow`; only `ema` does."""
        if self.kind == "ema":
            self._heard.append((c.detach().nan_to_num(), y))

    @torch.no_grad()
    def follow(self) -> None:
        """Move each vector to `momentum` of itself and the rest of the mean of what was heard of its talker.

        All processes' shares count. Call it after each optimizer step.
        """
        if not self._heard:
            return
        c, y = (torch.cat(parts) for parts in zip(*self._heard, strict=True))
        self._heard.clear()
        c, y = (torch.cat(gather_rows(rows)[0]) for rows in (c, y[:, None]))
        counts = y[:, 0].bincount(minlength=len(self.e))[:, None]
        means = torch.zeros_like(self.e).index_add_(0, y[:, 0], c.to(self.e.dtype)) / counts.clamp_min(1)
        moved = F.normalize(torch.lerp(means, self.e, self.momentum), dim=1)
        self.e.copy_(torch.where(counts > 0, moved, self.e))


def scores(c: Tensor, vectors: Tensor, alpha: Tensor | float) -> Tensor:
    """c (N, E) and vectors (K, E) to (N, K): minus alpha times their squared distance, plus alpha |c|^2.

    What is left out is the same for all K; so the softmax is that of the distances, at the price of one product.
    """
    return alpha * (2 * full_precision_matmul(c, vectors.mT) - vectors.square().sum(-1))


def csc_loss(c: Tensor, vectors: Tensor, y: Tensor, alpha: Tensor | float) -> Tensor:
    """Minus the log-probability (N,), nats, that c (N, E) is of talker y (N,), Gaussians of precision alpha around all
    `vectors` (K, E) being alike probable. The sum over K is exact: nothing is sampled.

    ln K minus its mean bounds from below the mutual information of c and y (Barber and Agakov 2003), y being uniform.
    """
    same = F.one_hot(y, len(vectors)).bool()
    return tell(scores(c, vectors, alpha), same, ~same)[0]


def tell(found: Tensor, same: Tensor, apart: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Telling the talkers of R embeddings by their `scores` (R, K): loss, what guessing costs, success, (R,) each.

    Of the K vectors some are of the `same` talker (R, K), one at least, and some are `apart`. Each of the same is told
    from all apart, at minus its log-probability; means over them. Guessing costs ln of one more than are apart.
    """
    others = found.masked_fill(~apart, _NEVER)
    share = same / same.sum(1, keepdim=True)
    loss = (F.softplus(others.logsumexp(1, keepdim=True) - found) * share).sum(1)
    success = ((found > others.amax(1, keepdim=True)) * share).sum(1)
    return loss, (apart.sum(1) + 1).log(), success


def in_batch_scores(queries: Tensor, conditions: Tensor, banks: Tensor, alpha: Tensor) -> Tensor:
    """`scores` (R, J) of queries (R, E) against the vectors of J talkers in the bank of each query's condition (R,).

    `banks` (M, J, E): bank m holds each talker's vector made without condition m, so that a query meets no copy of
    itself, and its own talker's vector is in nothing else unlike the others'.
    """
    every = scores(queries, banks.flatten(0, 1), alpha).view(len(queries), *banks.shape[:2])
    return every[torch.arange(len(queries), device=queries.device), conditions]
