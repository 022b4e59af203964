"""transformers' waveform models of random weights, small, and what they make of clips: the oracle of several tests."""

import re

import pytest
import torch
import transformers

from auricle.encoders.checkpoint import load
from auricle.errors import CheckpointError

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [24] * 7,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
VARIANTS = {
    "hubert base": ("Hubert", {"num_conv_pos_embeddings": 16}),
    "hubert large": ("Hubert", LARGE | {"num_conv_pos_embeddings": 16}),
    "hubert with batch norm": ("Hubert", {"num_conv_pos_embeddings": 16, "conv_pos_batch_norm": True}),
    "hubert, layer norms after": ("Hubert", {"feat_extract_norm": "layer", "num_conv_pos_embeddings": 15}),
    "data2vec": ("Data2VecAudio", {}),
    "data2vec with bias": (
        "Data2VecAudio",
        {"conv_bias": True, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 8},
    ),
    "wav2vec2 base": ("Wav2Vec2", {"num_conv_pos_embeddings": 16}),
    "wav2vec2 large": ("Wav2Vec2", LARGE | {"num_conv_pos_embeddings": 16}),
    "wav2vec2, group norm and bias": ("Wav2Vec2", {"num_conv_pos_embeddings": 16, "conv_bias": True}),
}
LENGTHS = (16000, 9001, 5000)
transformers.logging.disable_progress_bar()


def randomize(module, seed=0):
    """Every weight and statistic at random, so that no mapping can be wrong unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            centre = 1.0 if "norm" in name and name.endswith(("weight", "var")) else 0.0
            scale = 0.2 if value.dim() < 2 or "original0" in name else value[0].numel() ** -0.5
            value.copy_(centre + scale * torch.randn(value.shape, generator=generator).clamp(-3, 3))
        if name.endswith("original0"):
            value.abs_().add_(0.1)
    return module.eval()


def built(kind, options, head="Model"):
    config = getattr(transformers, f"{kind}Config")(**SIZES | options)
    return randomize(getattr(transformers, kind + head)(config))


def saved(model, folder, normalize=True, rate=16000):
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize, sampling_rate=rate).save_pretrained(folder)
    return folder


def clips(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [0.3 * torch.randn(length, generator=generator) + 0.05 for length in lengths]


def batch(clips):
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), torch.tensor([len(clip) for clip in clips])


@torch.inference_mode()
def theirs(folder, model, clips, padded=False):
    """Hidden states of each clip by transformers: alone, or in a padded batch, true frames only."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    groups = [clips] if padded else [[clip] for clip in clips]
    found = []
    for group in groups:
        given = extractor(
            [clip.numpy() for clip in group],
            sampling_rate=extractor.sampling_rate,
            return_tensors="pt",
            padding=True,
            return_attention_mask=True,
        )
        out = model(**given, output_hidden_states=True)
        states = [*out.hidden_states[:-1], out.last_hidden_state]  # of pre-norm models the last lacks the final norm
        counts = model._get_feat_extract_output_lengths(torch.tensor([len(clip) for clip in group])).tolist()
        found += [[state[row, :count] for state in states] for row, count in enumerate(counts)]
    return found


@torch.inference_mode()
def agree(encoder, wanted, clips, tolerance=1e-4):
    frames = encoder(*batch(clips))
    assert frames.lengths.tolist() == [len(states[0]) for states in wanted]
    for row, states in enumerate(wanted):
        assert len(states) == len(frames.hidden_states) == len(encoder.dims)
        for state, found in zip(states, frames.hidden_states, strict=True):
            torch.testing.assert_close(found[row, : len(state)], state, atol=tolerance, rtol=tolerance)


def refused(name):
    with pytest.raises(CheckpointError) as error:
        load(name)
    assert "\n" not in str(error.value)
    return str(error.value)


_TO_FAIRSEQ = [
    (r"^masked_spec_embed$", "mask_emb"),
    (r"^feature_projection\.projection", "post_extract_proj"),
    (r"^feature_projection\.layer_norm", "layer_norm"),
    (r"(conv_layers\.\d+)\.conv\.", r"\1.0."),
    (r"pos_conv_embed\.layers\.(\d+)\.conv\.", r"pos_conv.\1.0."),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv\.", "pos_conv.0."),
    (r"\.attention\.", ".self_attn."),
    (r"(encoder\.layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
]
NAMESPACE = {"encoder_attention_heads": 4, "layer_norm_first": False, "normalize": True, "sample_rate": 16000}


def fairseq(model, path, extra=None, prefix="", **entries):
    """A checkpoint of `model` in fairseq's naming."""
    inner = "2.1" if model.config.to_dict().get("feat_extract_norm", "layer") == "layer" else "2"
    weights = {}
    for name, value in model.state_dict().items():
        for pattern, new in [*_TO_FAIRSEQ, (r"(conv_layers\.\d+)\.layer_norm", rf"\1.{inner}")]:
            name = re.sub(pattern, new, name)
        weights[prefix + name] = value
    torch.save({"model": weights | (extra or {}), **entries}, path)
    return path
