"""Clips of one frame and of minutes: the same alone, in any batch and window by window; memory that stays bounded."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence

from auricle.config import edit
from auricle.encoders import BASELINES
from auricle.encoders.base import join_stretches, pool_frames, pool_stretches
from auricle.encoders.checkpoint import load
from auricle.encoders.mel_transformer import MelTransformer
from auricle.methods import preset

SMALL = {"dim": 32, "heads": 4, "ffn": 64, "layers": 2}
"""Presets keep their front ends and windows, in a network that tests can afford."""
PRESETS = ("mockingjay-tiny", "mockingjay-base", "mockingjay-paper-base", "mockingjay-paper-large")


def build(name):
    if name in BASELINES:
        return load(name)
    torch.manual_seed(0)
    return MelTransformer(edit(preset(name).encoder, **SMALL)).eval()


def noise(samples, seed):
    """Noise that swells, louder and louder, with a clip-wide offset: what a normalisation must see as a whole."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16_000
    return 0.05 * torch.randn(samples, generator=generator) * (1.1 + torch.sin(time)) + 0.01 * seed


@pytest.mark.parametrize("name", [*BASELINES, *PRESETS])
def test_from_one_frame_to_minutes_a_clip_is_the_same_alone_and_in_a_batch(name, monkeypatch):
    monkeypatch.setattr("auricle.features.frontend.STRETCH", 3000)  # crossed by the longest, as by hours otherwise
    encoder = build(name)
    chunk = getattr(encoder.config, "chunk_frames", 500) * encoder.hop
    first = encoder.hop if name.startswith("mockingjay") else 400  # samples of one frame
    samples = [75 * 16_000 + 7, first, chunk - 1, first + encoder.hop, chunk + 3 * encoder.hop, 5_001]
    clips = [noise(count, seed) for seed, count in enumerate(samples)]
    with torch.inference_mode():
        together = encoder(pad_sequence(clips, batch_first=True), torch.tensor(samples))
        for row, clip in enumerate(clips):
            one = (clip[None], torch.tensor([len(clip)]))
            alone = encoder(*one)
            count = int(alone.lengths[0])
            assert count == int(together.lengths[row]) >= 1
            joined, _ = join_stretches(encoder.stretches(*one), 1)
            pooled, _ = pool_stretches(encoder.stretches(*one), 1, "meanstd")
            for layer, state in enumerate(alone.hidden_states):
                tolerance = 1e-4 * max(1.0, float(state.abs().max()))
                torch.testing.assert_close(
                    together.hidden_states[layer][row, :count], state[0, :count], atol=tolerance, rtol=0
                )
                np.testing.assert_allclose(joined[layer][0], state[0, :count].numpy(), atol=tolerance)
                expected = pool_frames(state, alone.lengths, "meanstd")
                torch.testing.assert_close(pooled[layer], expected, atol=tolerance, rtol=0)


def test_long_clips_in_one_batch_are_pooled_each_for_itself():
    torch.manual_seed(0)
    encoder = MelTransformer(edit(preset("mockingjay-base").encoder, **SMALL, chunk_frames=50)).eval()
    samples = [20 * 16_000, 100, 0, 6 * 16_000]
    waveforms, lengths = pad_sequence([noise(count, 1) for count in samples], batch_first=True), torch.tensor(samples)
    with torch.inference_mode():
        frames = encoder(waveforms, lengths)
        stretches = list(encoder.stretches(waveforms, lengths, layers=[2]))
        assert max(state.shape[1] for _, part in stretches for state in part.hidden_states) < 300  # never the whole
        (pooled,), counts = pool_stretches(stretches, 4)
    assert counts.tolist() == frames.lengths.tolist() == [2001, 1, 0, 601]
    torch.testing.assert_close(pooled, pool_frames(frames.hidden_states[2], frames.lengths), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_memory_grows_with_the_waveform_and_features_alone(tmp_path):
    """Forty minutes: 154 MB of samples, 77 MB of features, 123 MB of frames a layer, of which only the mean is kept."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 16_000, 1) as file:
        for _ in range(40):
            file.write(0.1 * rng.standard_normal(60 * 16_000))
    program = f"""
        import resource, torch
        torch.set_num_threads(1)
        from auricle.config import edit
        from auricle.embedding.extract import embed
        from auricle.encoders.mel_transformer import MelTransformer
        from auricle.methods import preset
        small = dict(dim=128, heads=2, ffn=128, layers=3, chunk_frames=500)
        encoder = MelTransformer(edit(preset("mockingjay-base").encoder, **small))
        encoder.name = "small"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        embed(encoder, "{tmp_path / "long.flac"}", "{tmp_path / "out"}", layers="all", progress=False)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < 154 + 3 * 77 + 200
