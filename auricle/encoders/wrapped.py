"""Any audio model of transformers behind the encoder's contract: its own feature extractor, its own forward.

Written for models that our networks are not: WavLM, AST, Whisper's encoder, SEW, UniSpeech, Wav2Vec2-Conformer and so
on. Where frames lie is read from the model's config or measured by running it, and whether it takes padded batches too.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from auricle.config import Config
from auricle.encoders.base import Encoder, Frames, Stretch, hash_tensors
from auricle.encoders.check import FAULTS, TOLERANCE
from auricle.encoders.hub import INSTALL
from auricle.errors import CheckpointError, MissingDependencyError

WINDOW_S = 60
"""Seconds of a longer clip that a model without a length of its own is given at once."""
_FIRST_FRAME = {"ASTFeatureExtractor", "SeamlessM4TFeatureExtractor", "Speech2TextFeatureExtractor"}
"""Extractors whose frame 0 is the clip's first 25 ms, as Kaldi's."""


def load_wrapped(folder: Path, name: str) -> Encoder:
    """The audio model in a folder of transformers, its encoder half if it has two.

    Raises `CheckpointError` when transformers cannot open it, or it gives no hidden states for audio alone.
    """
    try:
        from huggingface_hub import errors
        from transformers import AutoFeatureExtractor, AutoModel
    except ImportError:
        raise MissingDependencyError(f"{name}: needs transformers; install it with: {INSTALL}") from None
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)  # type: ignore[no-untyped-call]
        model = AutoModel.from_pretrained(folder, trust_remote_code=False).float().eval()
        return Wrapped(model.get_encoder() if model.config.is_encoder_decoder else model, extractor, name)
    except (OSError, ImportError, getattr(errors, "StrictDataclassError", ValueError), *FAULTS) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name}: transformers gives no hidden states of audio with it ({line})") from None


class Wrapped(Encoder):
    """A model of transformers with its feature extractor; layer 0 enters the first block, the last is the model's own.

    Clips longer than it takes are encoded in consecutive windows. A model with a window of fixed length (AST, Whisper)
    sees shorter clips padded as it was trained, and the frames past a clip's end are left out. Patches are averaged
    over frequency. Layers of fewer frames than the last (SEW) are repeated to its number.
    """

    family: ClassVar[str] = "huggingface"

    def __init__(self, model: Any, extractor: Any, name: str) -> None:
        super().__init__()
        self.name, self.config = name, Config()  # the model's own says it all
        self.model, self.extractor = model.eval(), extractor
        self.sample_rate = int(extractor.sampling_rate)
        self.takes = set(inspect.signature(model.forward).parameters)
        self.bands = 0
        """Of patches; 0 for a model without."""
        self.window: int
        """Frames it computes at once."""
        self.reach: int
        """Samples that one frame takes."""
        self.shortest: int
        """Samples of the shortest clip it takes."""
        self.fixed = self._place_fixed()
        with torch.inference_mode():
            if not self.fixed:
                self._place_free()
            self.dims = tuple(state.shape[-1] for state in self._run([self._noise(2.0)]))
            self.pads_safely = self.fixed or self._measured_safe()

    def forward(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Frames:
        """All `stretches` of waveforms (B, S) put together."""
        parts: list[list[list[Tensor]]] = [[] for _ in waveforms]
        for rows, frames in self.stretches(waveforms, lengths, layers):
            for place, row in enumerate(rows.tolist()):
                count = int(frames.lengths[place])
                parts[row].append([state[place, :count] for state in frames.hidden_states])
        whole = [[torch.cat(states) for states in zip(*row, strict=True)] for row in parts]
        states = [pad_sequence(list(clips), batch_first=True) for clips in zip(*whole, strict=True)]
        return Frames(states, torch.tensor([len(clip[0]) for clip in whole], device=waveforms.device))

    def stretches(self, waveforms: Tensor, lengths: Tensor, layers: Sequence[int] | None = None) -> Iterator[Stretch]:
        """What `forward` returns, window by window; unless the model `pads_safely`, clips of one length at a time."""
        layers = range(len(self.dims)) if layers is None else layers
        step = self.window * self.hop
        for start in range(0, max(1, waveforms.shape[1]), step):
            part = waveforms[:, start : start + step - self.hop + self.reach]
            left = (lengths - start).clamp(0, part.shape[1]).cpu()
            shortest = int(self.offset) + 1 if self.fixed and start else self.shortest
            rows = torch.arange(len(part))
            short = rows[left < shortest]
            if start == 0 and len(short):
                empty = [waveforms.new_zeros(len(short), 0, self.dims[layer]) for layer in layers]
                yield short, Frames(empty, torch.zeros(len(short), dtype=torch.int64, device=waveforms.device))
            rows = rows[left >= shortest]
            groups = [rows] if self.pads_safely else [rows[left[rows] == size] for size in torch.unique(left[rows])]
            for group in groups:
                if len(group):
                    states = self._run([part[row, : left[row]] for row in group])
                    counts = self._counts(left[group], states[0].shape[1])
                    yield group, Frames([states[layer] for layer in layers], counts.to(waveforms.device))

    def fingerprint(self) -> str:
        """Sixteen hex digits over the model's and extractor's options and the weights."""
        options = [
            {key: value for key, value in part.to_dict().items() if not key.startswith(("_", "transformers_version"))}
            for part in (self.model.config, self.extractor)
        ]
        digest = hashlib.sha256(json.dumps([self.family, options], sort_keys=True, default=str).encode())
        hash_tensors(digest, self.state_dict())
        return digest.hexdigest()[:16]

    def _run(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """All hidden states (b, T, D) of clips (s,), padded at their ends."""
        padding = {} if self.fixed else {"padding": True}
        given = self.extractor(
            [clip.cpu().numpy() for clip in clips],
            sampling_rate=self.sample_rate,
            return_tensors="pt",
            return_attention_mask=True,
            **padding,
        )
        inputs = {key: value.to(self.device) for key, value in given.items() if key in self.takes}
        out = self.model(**inputs, output_hidden_states=True)
        states = [*out.hidden_states[:-1], out.last_hidden_state]
        if self.bands:  # tokens: some for the whole clip, then those of each band in turn
            states = [state[:, -self.bands * self.window :].unflatten(1, (self.bands, -1)).mean(1) for state in states]
        frames = max(state.shape[1] for state in states)
        return [state if state.shape[1] == frames else _repeated(state, frames) for state in states]

    def _counts(self, lengths: Tensor, frames: int) -> Tensor:
        """True frames (b,) of clips of `lengths` (b,), the longest of which has so many."""
        if self.fixed:  # those whose centre lies in the clip, and one at least
            return ((lengths - self.offset) / self.hop).ceil().long().clamp(1, frames)
        if self.pads_safely:
            return torch.as_tensor(self.model._get_feat_extract_output_lengths(lengths))
        return torch.full_like(lengths, min(frames, self.window))

    def _place_fixed(self) -> bool:
        """Place the frames of a model that takes windows of one length; False for others."""
        config, tenth = self.model.config, self.sample_rate // 100
        if config.model_type == "audio-spectrogram-transformer":
            self.window = (config.max_length - config.patch_size) // config.time_stride + 1
            self.bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
            self.hop = config.time_stride * tenth
            self.reach = (config.patch_size - 1) * tenth + self.sample_rate // 40
            self.offset = (self.reach - 1) / 2
            self.shortest = self.sample_rate // 40
        elif samples := getattr(self.extractor, "n_samples", 0):
            self.window = int(config.max_source_positions)
            self.hop = self.reach = samples // self.window
            self.offset = 0.0  # its spectra are centred, its convolutions padded
            self.shortest = 1
        else:
            return False
        return True

    def _place_free(self) -> None:
        """Place the frames of a model that takes clips of any length, by running it on two."""
        few, many = (self._run([self._noise(seconds)])[0].shape[1] for seconds in (2.0, 8.0))
        if many == few:
            raise ValueError("it gives long clips no more frames than short ones")
        self.hop = round(6 * self.sample_rate / (many - few))  # 6 s are a whole number of all usual hops
        self.window = max(1, WINDOW_S * self.sample_rate // self.hop)
        config, frame = self.model.config, self.sample_rate // 40
        if hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):
            self.reach = 1
            for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
                self.reach = (self.reach - 1) * stride + kernel
            self.offset = (self.reach - 1) / 2
        else:
            self.reach = self.hop + frame
            kaldi = type(self.extractor).__name__ in _FIRST_FRAME
            tenth = self.sample_rate // 100
            stacked = (getattr(self.extractor, "stride", 1) - 1) * tenth
            self.offset = (frame - 1 + stacked) / 2 if kaldi else self.hop / 2
        self.shortest = self.reach

    def _measured_safe(self) -> bool:
        """Whether a clip keeps its frames beside a longer one, and the model can tell how many it has."""
        if not hasattr(self.model, "_get_feat_extract_output_lengths") or "attention_mask" not in self.takes:
            return False
        clips = [self._noise(1.3), self._noise(2.0)]
        alone = [self._run([clip]) for clip in clips]
        lengths = torch.tensor([len(clip) for clip in clips])
        counts = torch.as_tensor(self.model._get_feat_extract_output_lengths(lengths)).tolist()
        if counts != [states[0].shape[1] for states in alone]:
            return False
        return all(
            float((one[0] - many[0, : counts[0]]).abs().max()) <= TOLERANCE * max(1.0, float(one.abs().max()))
            for one, many in zip(alone[0], self._run(clips), strict=True)
        )

    def _noise(self, seconds: float) -> Tensor:
        return 0.1 * torch.randn(round(seconds * self.sample_rate), generator=torch.Generator().manual_seed(0))


def _repeated(state: Tensor, frames: int) -> Tensor:
    """(B, t, D) to (B, T, D): each frame as often as fits a whole number of times, the last to the end."""
    times = round(frames / state.shape[1])
    return state[:, (torch.arange(frames) // times).clamp_max(state.shape[1] - 1)]
