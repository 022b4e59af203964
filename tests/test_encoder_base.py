"""The encoder contract: layers, pooling, fingerprints, and one recording in Python."""

import numpy as np
import pytest
import torch
from torch import nn

from auricle.config import Config
from auricle.encoders.base import Encoder, Frames, choose_layers, join_stretches, pool_frames, pool_stretches
from auricle.errors import AudioError, ConfigError


class BlockConfig(Config):
    width: int = 4


class Blocks(Encoder):
    """Frames of 100 samples; layer l multiplies them by a weight l + 1 times."""

    family = "blocks"
    config: BlockConfig

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.config, self.sample_rate, self.hop, self.offset = config, 1000, 100, 50.0
        self.dims = (config.width,) * 3
        self.weight = nn.Parameter(torch.arange(1.0, config.width + 1))
        self.dropout = nn.Dropout(0.5)

    def features(self, waveforms, lengths):
        frames = waveforms[:, : waveforms.shape[1] // 100 * 100].unflatten(1, (-1, 100)).mean(2)
        return frames[:, :, None], lengths // 100

    def encode(self, x, lengths, *, layers=None):
        states = [self.dropout(x * self.weight**power) for power in (1, 2, 3)]
        return Frames(states if layers is None else [states[layer] for layer in layers], lengths)


@pytest.fixture
def encoder():
    return Blocks(BlockConfig())


@pytest.mark.parametrize(
    ("layers", "chosen"), [("last", [3]), ("all", [0, 1, 2, 3]), ("mean", [0, 1, 2, 3]), ([-1, 0, 2], [3, 0, 2])]
)
def test_layers_are_chosen_by_word_or_number(layers, chosen):
    assert choose_layers(layers, (8, 8, 8, 8)) == chosen


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(ConfigError, match=f"{layer} is not among this encoder's layers 0 to 3"):
        choose_layers([layer], (8, 8, 8, 8))


def test_a_layer_may_have_a_name(encoder):
    encoder.outputs = {"middle": 1}
    waveform = np.linspace(-1, 1, 1000, dtype=np.float32)
    assert choose_layers("middle", (8, 4, 2), encoder.outputs) == [1]
    torch.testing.assert_close(encoder.frames(waveform, 1000, "middle"), encoder.frames(waveform, 1000, [1])[0])
    torch.testing.assert_close(encoder.clip(waveform, 1000, "middle"), encoder.clip(waveform, 1000, [1])[0])
    with pytest.raises(ConfigError, match="unknown output 'midle'; did you mean 'middle'"):
        encoder.frames(waveform, 1000, "midle")
    with pytest.raises(ConfigError, match="known: all, last, mean, or layer numbers"):
        choose_layers("layer19", (8, 8))


def test_layers_of_several_widths_neither_stack_nor_average(encoder):
    waveform = np.linspace(-1, 1, 1000, dtype=np.float32)
    encoder.dims = (4, 4, 2)
    with pytest.raises(ConfigError, match=r"widths \[4, 4, 2\], which have no mean"):
        encoder.clip(waveform, 1000, "mean")
    states = [torch.ones(1, 3, width) for width in encoder.dims]
    encoder.encode = lambda *_, **__: Frames(states, torch.tensor([3]))
    with pytest.raises(ConfigError, match=r"widths \[4, 4, 2\]"):
        encoder.frames(waveform, 1000, "all")


def test_pooling_equals_numpy_over_true_frames_and_ignores_the_rest():
    hidden, lengths = torch.randn(4, 9, 5, generator=torch.Generator().manual_seed(0)), [9, 1, 4, 6]
    for clip, length in enumerate(lengths):
        hidden[clip, length:] = torch.nan  # frames past a clip's end are undefined
    pooled = pool_frames(hidden, torch.tensor(lengths), "meanstd").numpy()
    for clip, length in enumerate(lengths):
        frames = hidden[clip, :length].double().numpy()
        np.testing.assert_allclose(pooled[clip], np.concatenate([frames.mean(0), frames.std(0)]), atol=1e-6)
    np.testing.assert_array_equal(pool_frames(hidden, torch.tensor(lengths), "mean").numpy(), pooled[:, :5])


def test_stretches_join_and_pool_to_what_the_whole_does():
    """Three clips in pieces of any size, in any order of clips, far from 0 so that a sum of squares would drown."""
    lengths, order = [7, 0, 12], [(2, 5), (0, 3), (2, 1), (0, 4), (2, 6)]
    whole = 1e4 + torch.randn(2, 3, 12, 4, generator=torch.Generator().manual_seed(0))
    stretches, filled = [], [0, 0, 0]
    for row, size in order:
        part = whole[:, row : row + 1, filled[row] : filled[row] + size]
        part = torch.cat([part, torch.full((2, 1, 2, 4), torch.nan)], dim=2)  # padding
        stretches.append((torch.tensor([row]), Frames(list(part), torch.tensor([size]))))
        filled[row] += size
    joined, counts = join_stretches(stretches, 3)
    assert counts.tolist() == lengths
    for how in ("mean", "meanstd"):
        pooled, counts = pool_stretches(stretches, 3, how)
        assert counts.tolist() == lengths
        for layer in range(2):
            for row in (0, 2):
                frames = whole[layer, row, : lengths[row]]
                np.testing.assert_array_equal(joined[layer][row], frames)
                frames = frames.double().numpy()
                expected = frames.mean(0) if how == "mean" else np.concatenate([frames.mean(0), frames.std(0)])
                np.testing.assert_allclose(pooled[layer][row], expected, rtol=2e-3 if how == "meanstd" else 2e-7)


def test_one_recording(encoder):
    audio = np.repeat(np.arange(1, 7, dtype=np.float32) / 10, 100)  # six frames: .1, .2, ...
    weight = np.arange(1.0, 5.0)
    expected = np.arange(1, 7)[:, None] / 10 * weight**3
    np.testing.assert_allclose(encoder.frames(audio, 1000), expected, rtol=1e-5)
    np.testing.assert_allclose(encoder.frames(audio, 1000, layers=[0])[0], expected / weight**2, rtol=1e-5)
    assert encoder.frames(audio, 1000, layers="all").shape == (3, 6, 4)
    np.testing.assert_allclose(
        encoder.frames(audio, 1000, layers="mean"), expected * (1 / weight**2 + 1 / weight + 1) / 3, rtol=1e-5
    )
    np.testing.assert_allclose(
        encoder.clip(audio, 1000, layers="mean"), encoder.frames(audio, 1000, layers="mean").mean(0), rtol=1e-5
    )
    np.testing.assert_allclose(encoder.clip(audio, 1000), expected.mean(0), rtol=1e-5)
    both = encoder.clip(audio, 1000, layers="all", pool="meanstd")
    np.testing.assert_allclose(both[2], np.concatenate([expected.mean(0), expected.std(0)]), rtol=1e-4)
    assert encoder.training  # dropout was off for it, and is on again


def test_audio_shorter_than_a_frame_is_refused(encoder):
    with pytest.raises(AudioError, match="shorter than one frame"):
        encoder.frames(np.full(99, 0.1, np.float32), 1000)


def test_fingerprint_follows_weights_and_config_but_not_the_name(encoder):
    twin = Blocks(BlockConfig())
    twin.name = "elsewhere"
    assert twin.fingerprint() == encoder.fingerprint()
    with torch.no_grad():
        twin.weight[2] += 1e-6
    assert twin.fingerprint() != encoder.fingerprint()
    assert Blocks(BlockConfig(width=5)).fingerprint() != encoder.fingerprint()


def test_fingerprint_reads_scalars_and_half_precision():
    first, second = Blocks(BlockConfig()), Blocks(BlockConfig())
    for encoder, count in ((first, 1), (second, 2)):
        encoder.register_buffer("count", torch.tensor(count))
        encoder.to(torch.bfloat16)
    assert first.fingerprint() != second.fingerprint()
