"""Whole networks from waveform to hidden states, one file a family; `base` is the contract, `checkpoint` loads them.

The tables below are plain text, so that listing names imports no network.
"""

from __future__ import annotations

FAMILIES = {
    "mel_transformer": "auricle.encoders.mel_transformer:MelTransformer",
    "cpc": "auricle.encoders.cpc:CpcEncoder",
    "csc": "auricle.encoders.csc:CscEncoder",
    "vit": "auricle.encoders.vit:Vit",
    "mae_ast": "auricle.encoders.mae_ast:MaeAstEncoder",
    "apc": "auricle.encoders.apc:ApcEncoder",
    "trill": "auricle.encoders.trill:Trill",
    "waveform": "auricle.encoders.waveform:WaveformEncoder",
    "fbank": "auricle.encoders.baselines:Fbank",
    "fbank-context": "auricle.encoders.baselines:FbankContext",
    "mfcc": "auricle.encoders.baselines:Mfcc",
    "chroma": "auricle.encoders.baselines:Chroma",
}
"""Encoder family → its class, which is built from its config alone and annotates that config's type as `config`."""

BASELINES = ("fbank", "fbank-context", "mfcc", "chroma")
"""Families that need no checkpoint: their defaults are loaded by name."""

ENCODER_FORMS = {
    "RUN": "a run folder: its newest complete checkpoint",
    "CHECKPOINT": "a checkpoint folder: config.json and model.safetensors",
    "fbank": "log-mel filter bank, one frame",
    "fbank-context": "log-mel filter bank with 10 frames to either side stacked",
    "mfcc": "cepstral coefficients with deltas",
    "chroma": "energies of the twelve pitch classes, for music",
    "untrained:RUN": "the network of a run or checkpoint with the weights it began with",
    "s3prl:FILE": "a checkpoint of S3PRL: Mockingjay, TERA, AudioALBERT, APC; or of APC's authors",
    "cpc:FILE": "a checkpoint of CPC_audio",
    "audiomae:FILE": "a checkpoint of Audio-MAE, pre-trained or fine-tuned",
    "mae-ast:FILE": "a checkpoint of MAE-AST",
    "fairseq:FILE": "a checkpoint of fairseq: HuBERT, data2vec, wav2vec 2.0",
    "hf:NAME": "a folder of Hugging Face's layout, or user/name on the Hub: any audio model with hidden states",
    "hear:MODULE[:FILE]": "a module of the HEAR API, with its model file",
    "module:attribute": "a Python class, factory or object of your own (auricle check module:attribute tests it)",
}
"""What `auricle.load` takes, and what it is."""
