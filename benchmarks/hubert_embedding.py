"""HuBERT of base size: clips to vectors, auricle against transformers' HubertModel with the same random weights.

    python benchmarks/hubert_embedding.py --clips 12 --seconds 10 10 --rounds 5 --threads 2 [--compile]
    python benchmarks/hubert_embedding.py --clips 12 --seconds 2 15 --rounds 5 --threads 2

Waveforms in memory become means over frames of the last layer. The rows take turns on the same batches, clips sorted by
length. With clips of one length:

    T  transformers as it comes: fp32, SDPA
    U  transformers in bf16, under autocast
    V  transformers with weights in bf16
    C  auricle fp32
    D  auricle bf16 (`embed(..., precision="bf16")`)
    E  auricle bf16, compiled at dynamic shapes (with --compile)

With clips of several, T, U and V pad with zeros and pass no mask, as is documented for this model: the group norm sees
the padding, so a clip's vector depends on its batch. S is T clip by clip, R is U clip by clip: exact. Errors are set
against transformers' fp32, clip by clip: of frames |x - y| / |y|, of vectors the same and 1 - cosine.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import CLOCKS, Times, machine, matrix_peak, measure, ratio, show_ratio, show_times, wait_for, write_json
from peers._waveform import context_operations, convolution_operations, frames_of
from torch import Tensor
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor, logging

import auricle
from auricle.encoders.base import Encoder, Frames, pool_frames

RATE = 16_000
NAMES = {
    "T": "transformers fp32",
    "U": "transformers bf16 autocast",
    "V": "transformers bf16 weights",
    "S": "transformers fp32, clip by clip",
    "R": "transformers bf16 autocast, clip by clip",
    "C": "auricle fp32",
    "D": "auricle bf16",
    "E": "auricle bf16 compiled",
}
BF16 = "URDE"
"""Rows under autocast."""
TARGETS = {"D over T": "5", "D over U": "1.5", "C over T": "1.5", "D over V": "", "E over U": "", "E over D": ""}
TARGETS |= {"D over S": "", "D over R": "", "C over S": ""}

Batch = tuple[Tensor, Tensor]
"""Waveforms (B, S) and lengths (B,) in samples."""
Row = Callable[[Tensor, Tensor], Frames]
"""Waveforms (B, S) and lengths (B,) to the last layer's frames."""


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    device, ragged = torch.device(args.device), args.seconds[0] < args.seconds[1]
    peer, encoder = twins(HubertConfig(attn_implementation="sdpa"), args.seed)
    peer, encoder = peer.to(device), encoder.to(device)
    letters = "TUV" + "SR" * ragged + "CD" + "E" * args.compile
    rows = {letter: build(letter, peer, encoder) for letter in args.rows or letters}
    batches = draw(args.clips, args.batch, tuple(args.seconds), args.seed, device)
    times = measure(
        {f"{letter}  {NAMES[letter]}": lambda row=row: embed(row, batches) for letter, row in rows.items()},
        args.rounds,
        clock=args.clock,
    )
    errors = {letter: errors_of(row, build("S", peer, encoder), batches) for letter, row in rows.items()}
    report(args, encoder, batches, times, errors)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4, help="clips in a batch")
    parser.add_argument("--seconds", type=float, nargs=2, default=[10.0, 10.0], help="shortest and longest clip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", help="which of them to run, e.g. TCD")
    parser.add_argument("--compile", action="store_true", help="also row E")
    parser.add_argument("--seed", type=int, default=0, help="of weights and audio")
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU as torch names it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, on a busy machine")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args()


def twins(config: HubertConfig, seed: int) -> tuple[HubertModel, Encoder]:
    """transformers' model with random weights, and ours with the same."""
    torch.manual_seed(seed)
    peer = HubertModel(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)  # as HuBERT's base has it
        return peer, auricle.load(f"hf:{folder}").eval()


def draw(clips: int, size: int, seconds: tuple[float, float], seed: int, device: torch.device) -> list[Batch]:
    """Noise of uniform lengths, sorted, padded with zeros."""
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.uniform(*seconds, clips) * RATE).astype(np.int64)
    batches = []
    for first in range(0, clips, size):
        group = lengths[first : first + size]
        waveforms = torch.zeros(len(group), group.max())
        for waveform, length in zip(waveforms, group, strict=True):
            waveform[:length] = torch.from_numpy(0.1 * rng.standard_normal(length, np.float32))
        batches.append((waveforms.to(device), torch.from_numpy(group).to(device)))
    return batches


def build(letter: str, peer: HubertModel, encoder: Encoder) -> Row:
    last = [len(encoder.dims) - 1]
    if letter == "V":
        peer = copy.deepcopy(peer).bfloat16()
    run = torch.compile(encoder, dynamic=True) if letter == "E" else encoder

    def theirs(waveforms: Tensor, lengths: Tensor) -> Frames:
        x = peer(waveforms.to(peer.dtype)).last_hidden_state
        return Frames([x.float()], peer._get_feat_extract_output_lengths(lengths))

    def one_by_one(waveforms: Tensor, lengths: Tensor) -> Frames:
        clips = zip(waveforms, lengths.tolist(), strict=True)
        found = [theirs(clip[None, :length], lengths[:1]).hidden_states[0][0] for clip, length in clips]
        x = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        return Frames([x], peer._get_feat_extract_output_lengths(lengths))

    def ours(waveforms: Tensor, lengths: Tensor) -> Frames:
        frames = run(waveforms, lengths, last)
        return Frames([state.float() for state in frames.hidden_states], frames.lengths)

    row = ours if letter in "CDE" else one_by_one if letter in "SR" else theirs

    def under(waveforms: Tensor, lengths: Tensor) -> Frames:
        autocast = torch.autocast(waveforms.device.type, torch.bfloat16, enabled=letter in BF16)
        with torch.inference_mode(), autocast:
            return row(waveforms, lengths)

    return under


def embed(row: Row, batches: list[Batch]) -> list[Tensor]:
    """Vectors of all clips, each batch's (B, D)."""
    vectors = []
    for waveforms, lengths in batches:
        frames = row(waveforms, lengths)
        vectors.append(pool_frames(frames.hidden_states[0], frames.lengths))
    wait_for(batches[0][0].device)
    return vectors


def errors_of(row: Row, reference: Row, batches: list[Batch]) -> dict[str, float]:
    """Mean relative error of frames and of vectors, and the largest 1 - cosine of a clip's vectors."""
    frames, vectors, cosines = [], [], []
    for batch in batches:
        found, exact = row(*batch), reference(*batch)
        for x, y, length in zip(found.hidden_states[0], exact.hidden_states[0], exact.lengths.tolist(), strict=True):
            x, y = x[:length].double(), y[:length].double()
            frames.append(((x - y).norm(dim=1) / y.norm(dim=1)).mean())
            x, y = x.mean(0), y.mean(0)
            vectors.append((x - y).norm() / y.norm())
            cosines.append(torch.cosine_similarity(x, y, dim=0))
    return {
        "frames": float(torch.stack(frames).mean()),
        "vectors": float(torch.stack(vectors).mean()),
        "cosine": 1 - float(torch.stack(cosines).min()),
    }


def operations(encoder: Encoder, lengths: np.ndarray) -> float:
    """Of one pass over clips of these samples."""
    size = encoder.config
    return convolution_operations(size, lengths) + context_operations(size, frames_of(size, lengths))


def report(
    args: argparse.Namespace,
    encoder: Encoder,
    batches: list[Batch],
    times: Times,
    errors: dict[str, dict[str, float]],
) -> None:
    lengths = torch.cat([lengths for _, lengths in batches]).cpu().numpy()
    padding = 1 - lengths.sum() / sum(waveforms.numel() for waveforms, _ in batches)
    teraflops, audio_s = operations(encoder, lengths) / 1e12, lengths.sum() / RATE
    device = torch.device(args.device)
    peaks = {dtype: matrix_peak(dtype, device, args.clock) for dtype in (torch.float32, torch.bfloat16)}
    print(f"{args.clips} clips, {audio_s:.0f} s, {padding:.0%} padding, {teraflops:.3f} Tflop", end="; ")
    print("matrix peak, Tflop/s: " + ", ".join(f"{str(dtype)[6:]} {peak:.3g}" for dtype, peak in peaks.items()))
    columns: dict[str, dict[str, str]] = {"of_peak": {}, "frame_error": {}, "vector_error": {}, "1_-_cosine": {}}
    for name, seconds in times.items():
        peak = peaks[torch.bfloat16 if name[0] in f"{BF16}V" else torch.float32]
        error = errors[name[0]]
        columns["of_peak"][name] = f"{teraflops / np.median(seconds) / peak:.0%}"
        columns["frame_error"][name] = f"{error['frames']:.2g}"
        columns["vector_error"][name] = f"{error['vectors']:.2g}"
        columns["1_-_cosine"][name] = f"{error['cosine']:.2g}"
    show_times(times, "s", **columns)
    print()
    by_letter, ratios = {name[0]: name for name in times}, {}
    for label, target in TARGETS.items():
        fast, slow = by_letter.get(label[0]), by_letter.get(label[-1])
        if fast and slow:
            ratios[label] = ratio(times, slow, fast)
            show_ratio(label, ratios[label], target)
    settings = ("clips", "batch", "seconds", "rounds", "seed", "device", "clock")
    figures = {"padding": padding, "teraflops": teraflops, "times_s": times, "ratios": ratios, "errors": errors}
    figures["peak_tflops"] = {str(dtype): peak for dtype, peak in peaks.items()}
    write_json(
        args.json,
        "hubert_embedding",
        **machine(args.threads),
        **{name: getattr(args, name) for name in settings},
        **figures,
    )


if __name__ == "__main__":
    main()
