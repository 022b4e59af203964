"""Checkpoints in fairseq's naming, against transformers' models of the same weights."""

import argparse

import pytest
import torch
from waveform_models import NAMESPACE, VARIANTS, agree, built, clips, fairseq, refused, saved, theirs

from auricle.encoders.checkpoint import load

FAIRSEQ = {
    "hubert base": {"label_embs_concat": torch.ones(504, 8), "final_proj.weight": torch.ones(8, 32)},
    "hubert large": {"final_proj.weight": torch.ones(8, 32)},
    "data2vec": {"final_proj.0.weight": torch.ones(32, 32), "_ema": {"layers.0.fc1.weight": torch.ones(2)}},
    "wav2vec2 base": {"quantizer.vars": torch.ones(1, 2, 3), "project_q.weight": torch.ones(2, 2)},
}


@pytest.mark.parametrize("options", ["args", "cfg"])
@pytest.mark.parametrize("variant", FAIRSEQ)
def test_fairseq_checkpoints_are_the_same_networks(variant, options, tmp_path):
    model = built(*VARIANTS[variant])
    pre = variant == "hubert large"
    told = NAMESPACE | {"layer_norm_first": pre}
    entries = {"args": argparse.Namespace(**told)} if options == "args" else {"cfg": {"model": told, "task": told}}
    path = fairseq(model, tmp_path / "model.pt", FAIRSEQ[variant], **entries)
    encoder = load(f"fairseq:{path}")
    assert encoder.config.normalize_eps == 1e-5
    agree(encoder, theirs(saved(model, tmp_path / "hf"), model, clips()), clips(), 1e-3)  # epsilons differ


@pytest.mark.parametrize("variant", FAIRSEQ)
def test_without_options_fairseqs_weights_tell_the_network(variant, tmp_path):
    kind, options = VARIANTS[variant]
    model = built(kind, options | {"hidden_size": 128, "num_attention_heads": 2})
    normalize = variant in ("hubert large", "data2vec")
    encoder = load(f"fairseq:{fairseq(model, tmp_path / 'model.pt')}")
    wanted = theirs(saved(model, tmp_path / "hf", normalize), model, clips())
    assert encoder.config.normalize is normalize
    agree(encoder, wanted, clips(), 1e-3)


def test_fairseqs_fine_tuned_models_load_without_their_head(tmp_path):
    model = built(*VARIANTS["hubert base"])
    inner = {"model": {"encoder_attention_heads": 4}, "task": {"normalize": False}}
    extra = {"w2v_encoder.proj.weight": torch.ones(5, 32)}
    outer = {"model": {"w2v_args": inner}, "task": {"normalize": True}}
    path = fairseq(model, tmp_path / "ctc.pt", extra, prefix="w2v_encoder.w2v_model.", cfg=outer)
    agree(load(f"fairseq:{path}"), theirs(saved(model, tmp_path / "hf", False), model, clips()), clips(), 1e-3)


def test_fairseqs_strides_are_read_from_its_options(tmp_path):
    sizes = {"conv_dim": [24] * 4, "conv_kernel": [10, 8, 4, 4], "conv_stride": [5, 4, 2, 2]}
    model = built("Hubert", sizes | {"num_conv_pos_embeddings": 16})
    told = {"encoder_attention_heads": 4, "conv_feature_layers": "[(24, 10, 5)] + [(24, 8, 4)] + [(24,4,2)] * 2"}
    path = fairseq(model, tmp_path / "model.pt", cfg={"model": told})
    encoder = load(f"fairseq:{path}")
    assert encoder.config.strides == (5, 4, 2, 2)
    agree(encoder, theirs(saved(model, tmp_path / "hf", False), model, clips()), clips(), 1e-3)
    assert "conv_feature_layers" in refused(f"fairseq:{fairseq(model, path)}")


def test_fairseq_files_of_another_layout_are_refused_in_one_line(tmp_path):
    model = built(*VARIANTS["hubert base"])
    path = fairseq(model, tmp_path / "model.pt", {"encoder.rotary.weight": torch.ones(2)}, cfg={"model": NAMESPACE})
    assert "encoder.rotary.weight" in refused(f"fairseq:{path}")
    torch.save({"model": 3}, path)
    assert "'model'" in refused(f"fairseq:{path}")
    torch.save({"other": 3}, path)
    assert "lacks 'model'" in refused(f"fairseq:{path}")
    torch.save({"model": {"encoder.layer_norm.weight": torch.ones(2)}}, path)
    assert "feature_extractor.conv_layers" in refused(f"fairseq:{path}")
    torch.save({"model": {}, "cfg": pytest.raises}, path)
    assert "holds objects of" in refused(f"fairseq:{path}")
