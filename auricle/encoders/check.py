"""Does an encoder keep the promises of `auricle.encoders.base`? Every broken one is explained, with what to mend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auricle.encoders.base import Encoder, Frames
from auricle.errors import AuricleError, ConfigError

TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, between a clip alone and in a batch (fp32)."""

FAULTS = (
    AuricleError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What somebody's encoder may raise; here it is a finding, not the end."""


@dataclass(frozen=True)
class Finding:
    """One promise: whether it is kept, and what was measured or what to mend."""

    name: str
    ok: bool
    message: str


@dataclass(frozen=True)
class Report:
    """All findings of one encoder; `print` shows them, a line each."""

    encoder: str
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """No promise is broken."""
        return all(finding.ok for finding in self.findings)

    def __str__(self) -> str:
        lines = [f"{'ok     ' if found.ok else 'PROBLEM'} {found.name:12} {found.message}" for found in self.findings]
        problems = sum(not found.ok for found in self.findings)
        return "\n".join([*lines, f"{self.encoder}: {f'{problems} to mend' if problems else 'keeps every promise'}"])


class _Broken(Exception):
    """A promise is not kept."""


def check(encoder: Encoder) -> Report:
    """Try an encoder on noise, clicks, silence, one minute and a few samples, alone and in batches.

    A promise that is broken, or that makes the encoder raise, becomes a finding; nothing is raised for it.
    """
    training = encoder.training
    encoder.eval()
    findings = []
    for name, promise in (PROMISES | _further(encoder)).items():
        try:
            findings.append(Finding(name, True, promise(encoder)))
        except _Broken as broken:
            findings.append(Finding(name, False, str(broken)))
        except FAULTS as error:
            line = (str(error).strip().splitlines() or [""])[0]
            findings.append(Finding(name, False, f"it raised {type(error).__name__}: {line}"))
    encoder.train(training)
    return Report(encoder.name or encoder.family, findings)


def _shapes(encoder: Encoder) -> str:
    out = _run(encoder, [_noise(encoder, 2.0)])
    for index, (state, dim) in enumerate(zip(out.hidden_states, encoder.dims, strict=False)):
        if state.dim() != 3 or state.shape[0] != 1 or state.shape[2] != dim:
            raise _Broken(f"layer {index} has shape {tuple(state.shape)}; make it (1, T, {dim}), as `dims` says")
    if len(out.hidden_states) != len(encoder.dims):
        raise _Broken(f"{len(out.hidden_states)} layers came out, `dims` lists {len(encoder.dims)}; make them agree")
    frames = {state.shape[1] for state in out.hidden_states}
    if (
        out.lengths.shape != (1,)
        or out.lengths.is_floating_point()
        or len(frames) != 1
        or int(out.lengths[0]) > min(frames)
    ):
        raise _Broken(
            f"lengths {out.lengths.tolist()} for {sorted(frames)} frames; return one integer frame count a clip"
        )
    one = _run(encoder, [_noise(encoder, 2.0)], layers=[len(encoder.dims) - 1]).hidden_states
    if len(one) != 1 or not _close(one[0], out.hidden_states[-1]):
        raise _Broken("layers=[last] does not give the last layer alone; return the layers asked for, in that order")
    return f"{len(encoder.dims)} layers of {_range(encoder.dims)} channels at {encoder.sample_rate} Hz"


def _further(encoder: Encoder) -> dict[str, Callable[[Encoder], str]]:
    """What is promised by encoders of one kind alone."""
    from auricle.encoders.hear import HearEncoder, check_api  # which imports this module

    def hear(_: Encoder) -> str:
        assert isinstance(encoder, HearEncoder)
        try:
            return check_api(encoder)
        except ConfigError as error:
            raise _Broken(str(error)) from None

    return {"hear": hear} if isinstance(encoder, HearEncoder) else {}


def _identity(encoder: Encoder) -> str:
    first, second = encoder.fingerprint(), encoder.fingerprint()
    if first != second:
        raise _Broken("two fingerprints differ; make fingerprint() depend on weights and configuration alone")
    return f"fingerprint {first}"


def _hop(encoder: Encoder) -> str:
    short, long = (int(_run(encoder, [_noise(encoder, s)]).lengths[0]) for s in (2.0, 6.0))
    samples, frames = 4 * encoder.sample_rate, long - short
    if abs(frames * encoder.hop - samples) > 2 * encoder.hop:
        measured = f"set hop to about {round(samples / frames)}" if frames > 0 else "give longer clips more frames"
        raise _Broken(
            f"4 s more audio gave {frames} more frames, hop {encoder.hop} means {samples / encoder.hop:.0f}; {measured}"
        )
    return f"{encoder.sample_rate / encoder.hop:.6g} frames a second"


def _offset(encoder: Encoder) -> str:
    """Clicks at eight phases of the hop: the frames that feel one are centred, on average, where it is."""
    quiet = 0.1 * _noise(encoder, 2.0 + 48 * encoder.hop / encoder.sample_rate)
    clicks = [encoder.sample_rate + round((5 * step + (step + 0.5) / 8) * encoder.hop) for step in range(8)]
    clicked = [quiet.clone() for _ in clicks]
    for clip, at in zip(clicked, clicks, strict=True):
        clip[at] += 0.5
    out = _run(encoder, [quiet, *clicked], layers=[encoder.outputs.get("timestamp", 0)])
    states = out.hidden_states[0][:, : int(out.lengths[0])].double()
    change = (states[1:] - states[:1]).norm(dim=2)  # (8, T)
    centres = encoder.offset + encoder.hop * torch.arange(change.shape[1], dtype=torch.float64)
    felt = (change > change.amax(1, keepdim=True) / 2).double()
    places = (felt * centres).sum(1) / felt.sum(1)
    near = (centres - places[:, None]).abs() <= max(3 * encoder.hop, encoder.sample_rate // 4)
    if not bool(((near * change.square()).sum(1) > change.square().sum(1) / 2).all()):
        return "not measured: a click is felt everywhere in layer 0"
    measured = encoder.offset + float((torch.tensor(clicks) - places).mean())
    if abs(measured - encoder.offset) > encoder.hop / 2:
        raise _Broken(
            f"clicks put the centre of frame 0 at sample {measured:.0f}, `offset` at {encoder.offset:g}; mend it"
        )
    return f"frame 0 is centred on sample {encoder.offset:g} (clicks say {measured:.0f})"


def _repeats(encoder: Encoder) -> str:
    first, second = (_run(encoder, [_noise(encoder, 1.0)]).hidden_states[-1] for _ in range(2))
    if not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True):
        raise _Broken("the same clip twice gave different frames; switch dropout and dither off in evaluation mode")
    return "the same clip gives the same frames"


def _batch(encoder: Encoder) -> str:
    """A clip's frames do not depend on its neighbours; on those of other lengths only where it `pads_safely`."""
    clip = _noise(encoder, 1.3)
    if encoder.pads_safely:
        others, mend = [2.9, 0.4], "mask padding in attention, norms and convolutions, or set pads_safely = False"
    else:
        others, mend = [1.3], "use no statistics of the batch, as batch norm outside evaluation mode does"
    alone = _run(encoder, [clip])
    together = _run(encoder, [clip, *(_noise(encoder, seconds, seed=1) for seconds in others)])
    count, beside = int(alone.lengths[0]), int(together.lengths[0])
    if count != beside:
        raise _Broken(f"{count} frames alone, {beside} in a batch; count frames from each clip's own length")
    for layer, (one, many) in enumerate(zip(alone.hidden_states, together.hidden_states, strict=True)):
        if not _close(one[0, :count], many[0, :count]):
            worst = float((one[0, :count] - many[0, :count]).abs().max())
            raise _Broken(f"layer {layer} changes by {worst:.2g} when the clip stands in a batch; {mend}")
    fed = "" if encoder.pads_safely else " (of equal lengths: pads_safely is False)"
    return f"a clip alone and in a batch agree{fed}"


def _silence(encoder: Encoder) -> str:
    out = _run(encoder, [torch.zeros(2 * encoder.sample_rate)])
    return _finite(out, "silence", "bound logarithms and divisions from below")


def _loud(encoder: Encoder) -> str:
    return _finite(_run(encoder, [_noise(encoder, 2.0).sign()]), "full-scale noise", "look for overflow")


def _short(encoder: Encoder) -> str:
    for samples in (1, encoder.hop // 2 + 1, encoder.hop, 3 * encoder.hop):
        try:
            out = _run(encoder, [_noise(encoder, 1.0)[:samples]])
        except FAULTS as error:
            line = (str(error).strip().splitlines() or [""])[0]
            mend = "return 0 frames (a plain object: set min_samples to the shortest clip it takes)"
            raise _Broken(f"{samples} samples raised {type(error).__name__}: {line}; {mend}") from None
        _finite(out, f"a clip of {samples} samples", "return 0 frames for what is too short", least=0)
    return "clips shorter than a frame are taken"


def _long(encoder: Encoder) -> str:
    out = _run(encoder, [_noise(encoder, 60.0)])
    expected = 60 * encoder.sample_rate / encoder.hop
    count = int(out.lengths[0])
    if abs(count - expected) > 0.01 * expected + 2:
        raise _Broken(f"60 s gave {count} frames, hop {encoder.hop} means {expected:.0f}; do not cut or pad long audio")
    return _finite(out, "60 s", "look for sums that overflow")


PROMISES: dict[str, Callable[[Encoder], str]] = {
    "shapes": _shapes,
    "fingerprint": _identity,
    "hop": _hop,
    "offset": _offset,
    "determinism": _repeats,
    "batch": _batch,
    "silence": _silence,
    "loud": _loud,
    "short": _short,
    "long": _long,
}


@torch.inference_mode()
def _run(encoder: Encoder, clips: list[Tensor], layers: list[int] | None = None) -> Frames:
    """Frames, on the CPU, of clips (S,) padded to a common length."""
    lengths = torch.tensor([len(clip) for clip in clips])
    waveforms = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    out: Frames = encoder(waveforms.to(encoder.device), lengths.to(encoder.device), layers)
    return Frames([state.float().cpu() for state in out.hidden_states], out.lengths.cpu())


def _noise(encoder: Encoder, seconds: float, seed: int = 0) -> Tensor:
    """Noise (S,) of level 0.1 that swells three times a second."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * encoder.sample_rate)) / encoder.sample_rate
    return 0.1 * torch.randn(len(time), generator=generator).clamp(-3, 3) * (1 + 0.5 * torch.sin(6 * torch.pi * time))


def _finite(out: Frames, what: str, mend: str, least: int = 1) -> str:
    count = int(out.lengths[0])
    if count < least:
        raise _Broken(f"{what} gave no frame")
    for layer, state in enumerate(out.hidden_states):
        if not bool(state[0, :count].isfinite().all()):
            raise _Broken(f"{what} gave NaN or infinity in layer {layer}; {mend}")
    return f"{what}: finite"


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    gap = (one - other).masked_fill(one.isnan() & other.isnan(), 0.0)  # other promises speak of NaN
    return float(gap.abs().max()) <= TOLERANCE * max(1.0, float(one.nan_to_num().abs().max()))


def _range(dims: tuple[int, ...]) -> str:
    return str(dims[0]) if len(set(dims)) == 1 else ", ".join(map(str, dims))
