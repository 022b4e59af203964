"""Hugging Face both ways: transformers' own models of random weights are the oracle."""

import json
import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from waveform_models import LARGE, SIZES, VARIANTS, agree, batch, built, clips, randomize, refused, saved, theirs

from auricle.config import edit
from auricle.encoders import huggingface
from auricle.encoders.check import check
from auricle.encoders.checkpoint import load
from auricle.encoders.waveform import WaveformConfig, WaveformEncoder
from auricle.encoders.wrapped import Wrapped
from auricle.errors import CheckpointError


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_hidden_states_of_every_variant_are_transformers(variant, normalize, tmp_path):
    model = built(*variant)
    encoder = load(f"hf:{saved(model, tmp_path, normalize)}")
    assert isinstance(encoder, WaveformEncoder)
    agree(encoder, theirs(tmp_path, model, clips()), clips())


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_padded_as_transformers_does(variant, tmp_path):
    model = built(*variant)
    exact = load(f"hf:{saved(model, tmp_path)}")
    encoder = WaveformEncoder(edit(exact.config, padding="transformers")).eval()
    encoder.load_state_dict(exact.state_dict())
    wanted = theirs(tmp_path, model, clips(), padded=True)
    agree(encoder, wanted, clips())
    if variant[1].get("feat_extract_norm") != "layer":  # the defect that exact mode does not have
        with pytest.raises(AssertionError):
            agree(exact, wanted, clips())


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_what_we_write_transformers_opens(variant, tmp_path):
    (first, second) = (tmp_path / "theirs", tmp_path / "ours")
    model = built(*variant)
    encoder = load(f"hf:{saved(model, first, normalize=False)}")
    extras = {"head.weight": torch.randn(3, 2), "head.transposed": torch.randn(2, 3).T}
    huggingface.write(encoder, second, extras, layerdrop=0.05, about={"method": "hubert"})

    kind = transformers.AutoConfig.from_pretrained(second)
    assert (kind.activation_dropout, kind.layerdrop, kind.apply_spec_augment) == (0.1, 0.05, True)
    opened, report = transformers.AutoModel.from_pretrained(second, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    agree(encoder, theirs(second, opened.eval(), clips()), clips())
    assert transformers.AutoFeatureExtractor.from_pretrained(second).do_normalize is False

    before, after = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = load(f"hf:{second}")
    assert again.config == encoder.config
    assert again.fingerprint() == encoder.fingerprint()
    kept = load_file(second / "objective.safetensors")
    assert kept.keys() == extras.keys()
    assert all(torch.equal(kept[name], extras[name]) for name in kept)
    assert json.loads((second / "config.json").read_text())["auricle"]["method"] == "hubert"


def test_options_of_ours_alone_survive(tmp_path):
    config = WaveformConfig(
        channels=8, dim=16, layers=1, heads=2, ffn=16, position_groups=2, position_kernel=8, sample_rate=24000,
        normalize=True, normalize_eps=1e-5, padding="transformers", chunk_frames=100, activation_dropout=0.3,
    )  # fmt: skip
    huggingface.write(WaveformEncoder(config), tmp_path)
    assert load(f"hf:{tmp_path}").config == config
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert (extractor.sampling_rate, extractor.do_normalize) == (24000, True)
    assert not (tmp_path / "objective.safetensors").exists()


def test_training_inside_transformers_masks_nothing_by_itself(tmp_path):
    config = WaveformConfig(
        channels=8, dim=16, layers=1, heads=2, ffn=16, position_groups=2, position_kernel=8, input_dropout=0, dropout=0,
        attention_dropout=0,
    )  # fmt: skip
    huggingface.write(WaveformEncoder(config), tmp_path)
    model = transformers.HubertModel.from_pretrained(tmp_path).train()
    waveform = clips([16000])[0][None]
    torch.testing.assert_close(model(waveform).last_hidden_state, model(waveform).last_hidden_state)
    mask = torch.zeros(1, 49, dtype=torch.bool)
    mask[0, 10:20] = True
    masked = model(waveform, mask_time_indices=mask).last_hidden_state  # one that is given is heeded
    assert not torch.allclose(masked, model(waveform).last_hidden_state)


@pytest.mark.parametrize(
    ("kind", "head"),
    [("Hubert", "ForCTC"), ("Data2VecAudio", "ForCTC"), ("Wav2Vec2", "ForPreTraining"), ("Wav2Vec2", "ForCTC")],
)
def test_models_with_a_head_load_without_it(kind, head, tmp_path):
    whole = built(kind, {"vocab_size": 9, "codevector_dim": 8, "proj_codevector_dim": 8}, head)
    body = getattr(whole, whole.base_model_prefix)
    agree(load(f"hf:{saved(whole, tmp_path)}"), theirs(tmp_path, body, clips()), clips())


@pytest.mark.parametrize("form", ["weight_g", "bin", "shards", "half", "diff"])
def test_older_and_other_files(form, tmp_path):
    model = built("Hubert", {"num_conv_pos_embeddings": 16})
    saved(model, tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    tolerance = 1e-4
    if form == "weight_g":
        old = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
        for new, legacy in old.items():
            weights["encoder.pos_conv_embed.conv" + legacy] = weights.pop("encoder.pos_conv_embed.conv" + new)
        save_file(weights, path)
    elif form == "bin":
        path.unlink()
        torch.save(weights, tmp_path / "pytorch_model.bin")
    elif form == "shards":
        path.unlink()
        places = {name: f"model-{place % 2}.safetensors" for place, name in enumerate(weights)}
        for file in set(places.values()):
            save_file({name: weights[name] for name, place in places.items() if place == file}, tmp_path / file)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    elif form == "half":
        model.half().float()
        save_file({name: value.half() for name, value in weights.items()}, path)
    else:  # a config.json that names no default
        config = json.loads((tmp_path / "config.json").read_text())
        kept = {key: config[key] for key in (*SIZES, "num_conv_pos_embeddings", "model_type")}
        (tmp_path / "config.json").write_text(json.dumps(kept))
    encoder = load(f"hf:{tmp_path}")
    assert encoder.device.type == "cpu"
    assert next(encoder.parameters()).dtype == torch.float32
    agree(encoder, theirs(tmp_path, model, clips()), clips(), tolerance)


def test_a_model_without_mask_vector_loads_alike_every_time(tmp_path):
    model = built("Hubert", {"mask_time_prob": 0.0})
    assert not hasattr(model, "masked_spec_embed")
    first, second = (load(f"hf:{saved(model, tmp_path)}") for _ in range(2))
    assert first.fingerprint() == second.fingerprint()


def test_loading_draws_nothing_from_the_callers_generator(tmp_path):
    saved(built("Hubert", {}), tmp_path)
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    load(f"hf:{tmp_path}")
    assert torch.equal(torch.rand(3), wanted)


def test_without_a_preprocessor_the_norms_tell(tmp_path, caplog):
    for kind, normalize in (("Hubert", False), ("Data2VecAudio", True)):
        built(kind, {}).save_pretrained(tmp_path / kind)
        with caplog.at_level(logging.WARNING, "auricle"):
            assert load(f"hf:{tmp_path / kind}").config.normalize is normalize
        assert "preprocessor_config.json" in caplog.text


def test_a_processor_with_a_tokenizer_tells_too(tmp_path):
    built("Hubert", {}).save_pretrained(tmp_path)
    options = {"feature_extractor": {"do_normalize": True, "sampling_rate": 24000}}
    (tmp_path / "processor_config.json").write_text(json.dumps(options))
    config = load(f"hf:{tmp_path}").config
    assert (config.normalize, config.sample_rate) == (True, 24000)


# Wrapped models


def small_wavlm(norm="layer"):
    options = SIZES | {"num_conv_pos_embeddings": 16, "num_buckets": 8, "feat_extract_norm": norm}
    return randomize(transformers.WavLMModel(transformers.WavLMConfig(**options)))


@pytest.mark.parametrize(("norm", "safe"), [("layer", True), ("group", False)])
def test_wavlm_is_wrapped_and_says_truly_whether_it_pads_safely(norm, safe, tmp_path):
    model = small_wavlm(norm)
    encoder = load(f"hf:{saved(model, tmp_path)}")
    assert isinstance(encoder, Wrapped)
    assert (encoder.pads_safely, encoder.hop, encoder.offset) == (safe, 320, 199.5)
    agree(encoder, theirs(tmp_path, model, clips()), clips())  # clips of unequal length, safe or not
    assert not safe or check(encoder).ok, check(encoder)


def test_a_clip_past_the_window_keeps_its_frames_number(tmp_path, monkeypatch):
    saved(small_wavlm(), tmp_path)
    encoder = load(f"hf:{tmp_path}")
    waveforms, lengths = batch(clips([40000, 16399, 16400, 100]))
    whole = encoder(waveforms, lengths)
    assert whole.lengths.tolist() == [124, 50, 51, 0]
    encoder.window = 50
    parts = encoder(waveforms, lengths)
    assert parts.lengths.tolist() == whole.lengths.tolist()
    alone = encoder(waveforms[:1, 16000 : 16000 + 49 * 320 + 400], torch.tensor([49 * 320 + 400]))
    torch.testing.assert_close(parts.hidden_states[-1][0, 50:100], alone.hidden_states[-1][0], atol=1e-4, rtol=1e-4)


def small_whisper():
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32)
    config = transformers.WhisperConfig(
        d_model=16, num_mel_bins=20, vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, max_source_positions=100, suppress_tokens=None, begin_suppress_tokens=None, **sizes,
    )  # fmt: skip
    extractor = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=2)
    return randomize(transformers.WhisperModel(config)), extractor


def test_whispers_encoder_gives_true_frames_only(tmp_path):
    model, extractor = small_whisper()
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    encoder = load(f"hf:{tmp_path}")
    assert (encoder.hop, encoder.offset, encoder.pads_safely, encoder.dims) == (320, 0.0, True, (16, 16, 16))
    assert not any("decoder" in name for name, _ in encoder.named_parameters())
    lengths = (16000, 32000, 70001, 1)
    wanted = []
    for clip in clips(lengths):
        windows = extractor([part.numpy() for part in clip.split(32000)], sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            states = model.get_encoder()(**windows, output_hidden_states=True).hidden_states
        wanted.append([state.flatten(0, 1)[: -(-len(clip) // 320)] for state in states])
    agree(encoder, wanted, clips(lengths))
    report = check(encoder)
    assert report.ok, report


def small_ast():
    config = transformers.ASTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_mel_bins=32,
        max_length=128,
    )  # fmt: skip
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128, mean=-6.0, std=3.0)
    return randomize(transformers.ASTModel(config)), extractor


def test_asts_patches_are_averaged_over_frequency(tmp_path):
    model, extractor = small_ast()
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    encoder = load(f"hf:{tmp_path}")
    assert (encoder.hop, encoder.offset, encoder.pads_safely) == (1600, 1399.5, True)
    waveforms = clips((20560, 12000))
    given = extractor([clip.numpy() for clip in waveforms], sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        out = model(**given, output_hidden_states=True)
    bands, frames = 2, 12  # patches of 16, 10 apart, of 32 bands and 128 frames
    states = [*out.hidden_states[:-1], out.last_hidden_state]
    patches = [state[:, 2:].reshape(2, bands, frames, 16).mean(1) for state in states]
    agree(encoder, [[state[0] for state in patches], [state[1, :7] for state in patches]], waveforms)
    report = check(encoder)
    assert report.ok, report


OTHERS = {
    "SEW": lambda: transformers.SEWModel(
        transformers.SEWConfig(**SIZES | {"conv_dim": [24] * 13, "num_conv_pos_embeddings": 16})
    ),
    "UniSpeech": lambda: transformers.UniSpeechModel(
        transformers.UniSpeechConfig(**SIZES, num_conv_pos_embeddings=16, **LARGE)
    ),
    "Wav2Vec2-Conformer": lambda: transformers.Wav2Vec2ConformerModel(
        transformers.Wav2Vec2ConformerConfig(**SIZES, num_conv_pos_embeddings=16, conv_depthwise_kernel_size=7)
    ),
    "adapters of MMS": lambda: transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(**SIZES, num_conv_pos_embeddings=16, adapter_attn_dim=4, **LARGE)
    ),
    "another activation": lambda: transformers.HubertModel(
        transformers.HubertConfig(**SIZES, num_conv_pos_embeddings=16, hidden_act="relu")
    ),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_models_keep_the_contract(make, tmp_path):
    model = randomize(make())
    encoder = load(f"hf:{saved(model, tmp_path)}")
    assert isinstance(encoder, Wrapped)
    assert encoder.hop == 320
    last = [states[-1:] for states in theirs(tmp_path, model, clips())]
    with torch.inference_mode():
        frames = encoder(*batch(clips()), layers=[-1])
    for row, (state,) in enumerate(last):
        torch.testing.assert_close(frames.hidden_states[0][row, : len(state)], state, atol=1e-4, rtol=1e-4)
    report = check(encoder)
    assert report.ok, report
    assert load(f"hf:{tmp_path}").fingerprint() == encoder.fingerprint()


def test_wav2vec2_bert_hears_stacked_spectra(tmp_path):
    config = transformers.Wav2Vec2BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        feature_projection_input_dim=40,
    )
    model, extractor = (
        randomize(transformers.Wav2Vec2BertModel(config)),
        transformers.SeamlessM4TFeatureExtractor(feature_size=20, num_mel_bins=20),
    )
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    encoder = load(f"hf:{tmp_path}")
    assert (encoder.hop, encoder.offset, encoder.pads_safely) == (320, 279.5, False)
    waveforms, lengths = batch(clips([40000, 40000]))
    whole = encoder(waveforms, lengths)
    encoder.window = 50
    parts = encoder(waveforms, lengths)
    assert parts.lengths.tolist() == whole.lengths.tolist() == [124, 124]
    encoder.window = 3000
    report = check(encoder)
    assert report.ok, report


# What is refused


def edited(folder, **options):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path):
    folder = saved(built("Hubert", {}), tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert "damaged" in refused(f"hf:{folder}")
    weights.write_bytes(whole)
    edited(folder, hidden_size=30)
    assert "heads" in refused(f"hf:{folder}")
    edited(folder, hidden_size=64)
    assert "shape" in refused(f"hf:{folder}")
    edited(folder, hidden_size="many")
    assert "dim" in refused(f"hf:{folder}")
    edited(folder, hidden_size=32, num_hidden_layers=4)
    assert "encoder.layers.3" in refused(f"hf:{folder}")
    edited(folder, num_hidden_layers=2)
    assert "encoder.layers.2" in refused(f"hf:{folder}")
    whole = (folder / "config.json").read_text()
    for wrong in ({"conv_dim": 5}, {"conv_dim": []}, {"conv_stride": [5, 2]}, {"auricle": 3}, {"layer_norm_eps": None}):
        edited(folder, **wrong)
        assert str(folder) in refused(f"hf:{folder}")
        (folder / "config.json").write_text(whole)
    edited(folder, model_type="bert")
    assert "hidden states of audio" in refused(f"hf:{folder}")
    edited(folder, model_type="not_a_model")
    assert "hidden states of audio" in refused(f"hf:{folder}")
    weights.unlink()
    edited(folder, model_type="hubert", num_hidden_layers=3)
    assert "model.safetensors" in refused(f"hf:{folder}")
    (folder / "config.json").write_text("[1]")
    assert "list" in refused(f"hf:{folder}")
    (folder / "config.json").write_text("{")
    assert "damaged" in refused(f"hf:{folder}")
    (folder / "config.json").unlink()
    assert "holds neither" in refused(f"hf:{folder}")
    assert "no such folder" in refused(f"hf:{tmp_path / 'nowhere'}")


def test_a_pickle_with_code_is_not_run(tmp_path):
    folder = saved(built("Hubert", {}), tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"x": pytest.raises}, folder / "pytorch_model.bin")
    assert "holds objects of" in refused(f"hf:{folder}")


def test_networks_that_transformers_has_no_model_for_are_not_written(tmp_path):
    config = WaveformConfig(channels=8, dim=16, layers=1, heads=2, ffn=16, position_groups=2, position_style="stacked")
    with pytest.raises(CheckpointError, match="conv_norm 'group'"):
        huggingface.write(WaveformEncoder(config), tmp_path)
    with pytest.raises(CheckpointError, match="family 'waveform'"):
        huggingface.write(load("fbank"), tmp_path)
    assert not any(tmp_path.iterdir())
