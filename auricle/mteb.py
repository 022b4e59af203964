"""Our encoders for MTEB, the embedding benchmark: an object of its protocol for encoders of audio.

    import mteb
    from auricle.mteb import MtebEncoder

    results = mteb.evaluate(MtebEncoder("runs/mockingjay"), mteb.get_tasks(tasks=["ESC50"]))

Only what MTEB itself asks for is imported from it, when it asks.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from auricle.audio.io import as_waveform
from auricle.encoders.base import Encoder, Layers, Pooling, choose_layers, pool_stretches
from auricle.encoders.checkpoint import load
from auricle.errors import AudioError, ConfigError, MissingDependencyError

log = logging.getLogger("auricle")


class MtebEncoder:
    """An encoder by any name that `auricle.load` takes, or one loaded already, as MTEB (2.x) calls it.

    `layers` and `pool` say what of it a clip's vector is (several layers are laid side by side); audio of any rate is
    resampled. Raises `ConfigError` for layers that are not there, and what `auricle.load` raises.
    """

    def __init__(
        self,
        model_name: str | Encoder,
        revision: str | None = None,
        *,
        device: str | None = None,
        layers: Layers = "last",
        pool: Pooling = "mean",
        **kwargs: Any,
    ) -> None:
        if kwargs:
            raise ConfigError(f"auricle.mteb: unknown option '{next(iter(kwargs))}'; known: device, layers, pool")
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        encoder = load(model_name, place) if isinstance(model_name, str) else model_name.to(place)
        self.encoder = encoder.eval()
        self.layers, self.pool = layers, pool
        self.revision = revision or encoder.fingerprint()
        chosen = choose_layers(layers, encoder.dims, encoder.outputs)
        dims = [encoder.dims[layer] for layer in chosen][: 1 if layers == "mean" else None]
        self.embed_dim = sum(dims) * (2 if pool == "meanstd" else 1)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Vectors (N, D) of batches whose column `audio` holds clips, each with `array` and `sampling_rate`.

        What MTEB says of task, split and prompt changes nothing. A clip shorter than one frame gets zeros, and a
        warning. Raises `AudioError` for batches without audio, and for samples that are no audio.
        """
        vectors = []
        for batch in inputs:
            if "audio" not in batch:
                raise AudioError("auricle.mteb: the batch has no column 'audio', and our encoders take nothing else")
            waveforms = [self._waveform(clip) for clip in batch["audio"]]
            sizes = [len(waveform) for waveform in waveforms]
            groups = [range(len(sizes))] if self.encoder.pads_safely else _equal(sizes)
            found = torch.empty(len(sizes), self.embed_dim)
            for group in filter(len, groups):
                found[list(group)] = self._embed([waveforms[row] for row in group])
            vectors.append(found.numpy())
        return np.concatenate([np.empty((0, self.embed_dim), np.float32), *vectors])

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Tensor:
        """Cosines (N, M) of vectors (N, D) and (M, D); a single vector counts as one row."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Tensor:
        """Cosines (N,) of vectors (N, D) with those in the same row of others (N, D)."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(1)

    @property
    def mteb_model_meta(self) -> Any:
        """MTEB's record of the model, under which it files results. Raises `MissingDependencyError`."""
        try:
            models = importlib.import_module("mteb.models")
        except ImportError:
            raise MissingDependencyError(
                "auricle.mteb: needs mteb; install it with: pip install 'mteb[audio]'"
            ) from None
        slug = re.sub(r"[^\w.-]+", "-", self.encoder.name or self.encoder.family).strip("-.")
        weights = sum(weight.numel() for weight in self.encoder.parameters())
        return models.ModelMeta.create_empty(
            {
                "name": f"auricle/{slug}",
                "revision": self.revision,
                "n_parameters": weights,
                "embed_dim": self.embed_dim,
                "modalities": ["audio"],
                "framework": ["PyTorch"],
                "similarity_fn_name": "cosine",
            }
        )

    def _waveform(self, clip: Any) -> Tensor:
        samples, rate = np.asarray(clip["array"]), int(clip["sampling_rate"])
        return torch.from_numpy(as_waveform(samples, rate, self.encoder.sample_rate))

    @torch.inference_mode()
    def _embed(self, waveforms: list[Tensor]) -> Tensor:
        """Vectors (b, D), on the CPU, of clips (s,), padded if their lengths differ."""
        device = self.encoder.device
        lengths = torch.tensor([len(waveform) for waveform in waveforms], device=device)
        padded = pad_sequence(waveforms, batch_first=True).to(device)
        pooled, counts = pool_stretches(self.encoder.chosen(padded, lengths, self.layers), len(lengths), self.pool)
        if short := int((counts == 0).sum()):
            log.warning("%s: %d clips are shorter than one frame, and get a vector of zeros", self.encoder.name, short)
        return torch.cat(pooled, 1)


def _equal(sizes: list[int]) -> list[list[int]]:
    """Rows of equal size, group by group."""
    return [[row for row, other in enumerate(sizes) if other == size] for size in dict.fromkeys(sizes)]


def _unit(vectors: ArrayLike) -> Tensor:
    """Vectors (N, D), or one (D,), as rows of length 1; zeros stay zeros."""
    rows = torch.as_tensor(np.asarray(vectors), dtype=torch.float32)
    return torch.nn.functional.normalize(rows.reshape(-1, rows.shape[-1]))
