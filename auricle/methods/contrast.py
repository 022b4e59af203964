"""CSC's contrast: embeddings in mixtures against the vectors of talkers, kept or made of the batch; and who is who."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Literal, NamedTuple, Self

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from auricle.config import Config
from auricle.errors import ConfigError
from auricle.nn.gather import gather_rows
from auricle.nn.global_vectors import ConditionAttention, GlobalVectors, in_batch_scores, scores, tell
from auricle.nn.kmeans import KMeansConfig, fit, in_blocks, nearest
from auricle.nn.mixtures import Mixtures


class ContrastConfig(Config):
    """Who counts as the same talker, and what stands for each."""

    supervision: Literal["none", "session", "speaker", "pseudo"] = "none"
    """What tells who talks: nothing (each recording counts as a talker of its own), labels of sessions or of speakers,
    or clusters of embeddings. Written into checkpoints and results."""
    label_column: str = ""
    """Column of the manifest with those labels; empty: the one of the supervision's name."""
    vectors: Literal["table", "ema", "inbatch"] = "inbatch"
    """Global vectors: learned, averaged, or made of the batch, of conditions other than what they are compared with."""
    identities: int = Field(0, ge=0)
    """Rows of the table or average: how many speakers, or sessions, the manifest names. Clusters are as many anyway."""
    momentum: float = Field(0.99, ge=0, le=1)
    """Share of itself that an averaged vector keeps in a step."""
    attention: Literal["identity", "batch", "none"] = "identity"
    """What gathers conditions: attention over the same recording's, over all talkers' in the batch, or a plain mean."""
    alpha: float = Field(10.0, gt=0.1)
    """Precision of the Gaussians around the vectors, at first; it is learned."""
    clusters: KMeansConfig = KMeansConfig(clusters=64, rows=2048, batches=50, inits=5)
    """Supervision `pseudo`: clusters of the embeddings of the last `rows` recordings."""
    refresh: int = Field(1000, ge=1)
    """Steps after which they are made anew."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.vectors == "inbatch" and self.attention == "batch":
            raise ValueError("attention: 'batch' would hear what 'inbatch' vectors are compared with")
        if self.vectors != "inbatch" and self.supervision == "none":
            raise ValueError(f"vectors: '{self.vectors}' needs labels or clusters (supervision); 'inbatch' needs none")
        if self.vectors != "inbatch" and self.labelled and self.identities < 2:
            raise ValueError(f"identities: '{self.vectors}' needs to know how many the manifest names, two or more")
        return self

    @property
    def labelled(self) -> bool:
        """Whether labels are read."""
        return self.supervision in ("session", "speaker")

    @property
    def column(self) -> str:
        """The column that tells who may be told from whom: one of labels, or else `path`, the recordings themselves."""
        return (self.label_column or self.supervision) if self.labelled else "path"


class Told(NamedTuple):
    """How well the talkers of I recordings are told in M mixtures each, all (I, M)."""

    attended: Tensor
    """Loss of the attended embeddings, nats."""
    bottom_up: Tensor
    """Loss of the embeddings themselves, mean over a mixture's talkers."""
    chance: Tensor
    """What guessing costs: the logarithm of the number of talkers."""
    attended_right: Tensor
    """Whether the target's own vector is nearer than all others'."""
    bottom_up_right: Tensor
    """The same of the embeddings themselves."""


class Contrast(nn.Module):
    """Attention over conditions, global vectors to tell talkers by, and clusters where they say who is who.

    Vectors of a batch leave one out: an embedding in condition m is compared with what the other conditions say of each
    recording, and what those say with the embeddings in condition m. So nothing is compared with itself, and nothing
    but the talker favours a recording's own vector.
    """

    most: Tensor

    def __init__(self, dim: int, config: ContrastConfig) -> None:
        super().__init__()
        self.config = config
        pseudo = config.supervision == "pseudo"
        identities = config.clusters.clusters if pseudo else config.identities
        self.attention = None if config.attention == "none" else ConditionAttention(dim, config.attention)
        self.vectors = GlobalVectors(config.vectors, dim, identities, config.momentum, config.alpha)
        self.clusters = Clusters(dim, config.clusters) if pseudo else None
        self.register_buffer("most", torch.zeros((), dtype=torch.int64))  # labels met, at least

    def begin(self, embeddings: Iterable[Tensor]) -> None:
        """Cluster an endless stream of z (I, M, C, E), where clusters are the supervision."""
        if self.clusters:
            self.clusters.begin(z[:, :, 0] for z in embeddings)
            self.vectors.take(self.clusters.centroids)

    def follow(self, step: int) -> None:
        """After optimizer step `step`: averages follow, clusters are made anew.

        Raises `ConfigError` where there are more labels than `identities`.
        """
        self.vectors.follow()
        config = self.config
        if config.labelled and (step == 1 or step % 100 == 0) and int(self.most) > config.identities:
            names = f"the values of column '{config.column}', {int(self.most)} or more"
            raise ConfigError(f"objective.identities: {config.identities} are fewer than {names}")
        if self.clusters and step % config.refresh == 0:
            self.clusters.refresh()
            self.vectors.take(self.clusters.centroids)

    def forward(self, z: Tensor, mixed: Mixtures, codes: Tensor) -> Told:
        """z (I, M, C, E) of unit length, in the order of the sources; codes (I,) of who talks, as far as is known.

        In evaluation mode, and with `inbatch` vectors, talkers are told within the batch (in training, of all
        processes): each recording's own vector, and those of other recordings of the same talker, from all others;
        unusable ones are left out. Of a single condition nothing can be told then, and all is 0.
        """
        recordings, conditions = z.shape[:2]
        who = torch.arange(recordings, device=z.device).view(-1, 1, 1).expand(-1, conditions, 1)
        who = torch.cat([who, mixed.interferer], 2)  # (I, M, C): the recording of each
        codes = self.clusters(z[:, :, 0]) if self.clusters else codes
        if self.training and self.config.vectors != "inbatch":
            of_c, of_z, same, apart = self._in_table(z, mixed, codes)
        elif conditions > 1:
            of_c, of_z, same, apart = self._in_batch(z, mixed, codes)
        else:
            return Told(*z.new_zeros(5, recordings, 1))
        target, every = who[..., 0].flatten(), who.flatten()
        attended, chance, right = (
            values.view(recordings, conditions) for values in tell(of_c, same[target], apart[target])
        )
        bottom_up, _, bottom_up_right = (
            values.view(recordings, conditions, -1).mean(2) for values in tell(of_z, same[every], apart[every])
        )
        return Told(attended, bottom_up, chance, right, bottom_up_right)

    def attend(self, z: Tensor, leave_one_out: bool = False) -> Tensor:
        """What conditions say of each target, of unit length: z (I, M, C, E) to (I, M, E).

        Attention over the whole batch would hear what it is compared with there: leaving one out, it is a mean.
        """
        target = z[:, :, 0]
        if self.attention is None or (leave_one_out and self.config.attention == "batch"):
            others = target.sum(1, keepdim=True) - (target if leave_one_out else 0)
            return F.normalize(others.expand_as(target), dim=-1)
        return F.normalize(self.attention(target, leave_one_out, z[:, :, 1:].flatten(0, 2))[0], dim=-1)

    def _in_table(self, z: Tensor, mixed: Mixtures, codes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `_in_batch`, the columns being the vectors kept."""
        known, alpha = self.vectors(), self.vectors.alpha
        self.most.copy_(torch.maximum(self.most, codes.max() + 1))
        talkers = codes.clamp_max(len(known) - 1)  # `follow` tells of more
        c = self.attend(z)
        heard = c * mixed.usable.all(1)[:, None, None]
        self.vectors.hear(heard.flatten(0, 1), talkers.repeat_interleave(z.shape[1]))
        same = F.one_hot(talkers, len(known)).bool()
        return scores(c.flatten(0, 1), known, alpha), scores(z.flatten(0, 2), known, alpha), same, ~same

    def _in_batch(self, z: Tensor, mixed: Mixtures, codes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores of the attended (I M, J) and bottom-up (I M C, J) embeddings against the vectors of J recordings;
        and which of these are of the same talker, or of others, (I, J) each."""
        recordings, conditions, _, dim = z.shape
        c, alpha = self.attend(z, leave_one_out=True), self.vectors.alpha
        parts, rank = self._gathered(torch.stack([z[:, :, 0], c], 2).flatten(1))
        everyone = torch.cat(parts).view(-1, conditions, 2, dim)  # (J, M, 2, E)
        own = sum(len(part) for part in parts[:rank]) + torch.arange(recordings, device=z.device)
        facts = torch.cat(self._gathered(torch.stack([codes, mixed.usable.all(1)], 1))[0])  # (J, 2)
        alike, usable = codes[:, None] == facts[:, 0], facts[:, 1] > 0
        same, apart = (alike & usable).scatter(1, own[:, None], True), ~alike & usable

        bank_of_z, bank_of_c = everyone.permute(2, 1, 0, 3)  # (M, J, E) each: bank m of what condition m says, or not
        condition = torch.arange(conditions, device=z.device).expand(recordings, -1)
        of_c = in_batch_scores(c.flatten(0, 1), condition.flatten(), bank_of_z, alpha)
        condition = torch.cat([condition[..., None], mixed.crop], 2)
        return of_c, in_batch_scores(z.flatten(0, 2), condition.flatten(), bank_of_c, alpha), same, apart

    def _gathered(self, rows: Tensor) -> tuple[list[Tensor], int]:
        return gather_rows(rows) if self.training else ([rows], 0)


class Clusters(nn.Module):
    """Clusters of the embeddings of the last recordings, as talkers."""

    recent: Tensor
    centroids: Tensor

    def __init__(self, dim: int, config: KMeansConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("recent", torch.zeros(config.rows, dim))
        self.register_buffer("centroids", torch.zeros(config.clusters, dim))

    @torch.no_grad()
    def forward(self, z: Tensor) -> Tensor:
        """The cluster (I,) of recordings whose embeddings in M mixtures are z (I, M, E). In training they are kept."""
        middle = _middle(z)
        if self.training:
            self.recent.copy_(torch.cat([self.recent, middle.nan_to_num()])[-len(self.recent) :])
        return nearest(middle, self.centroids)[0]

    @torch.no_grad()
    def begin(self, embeddings: Iterable[Tensor]) -> None:
        """Cluster the first recordings of an endless stream of z (I, M, E)."""
        self.recent.copy_(next(in_blocks(map(_middle, embeddings), len(self.recent))))
        self._cluster()

    @torch.no_grad()
    def refresh(self) -> None:
        """Cluster the last recordings; of several processes, those of the first."""
        several = dist.is_available() and dist.is_initialized()
        if several:
            dist.broadcast(self.recent, 0)
        self._cluster()
        if several:
            dist.broadcast(self.centroids, 0)

    def _cluster(self) -> None:
        self.centroids.copy_(F.normalize(fit(repeat(self.recent), self.config), dim=1))


def _middle(z: Tensor) -> Tensor:
    return F.normalize(z.detach().float().mean(1), dim=1)
