"""Methods of pre-training, one file a paper, and their presets. Listing names imports no method."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from auricle.errors import ConfigError, unknown

if TYPE_CHECKING:
    from auricle.methods.base import RunConfig

FORMAT = 1
"""Layout of a run's YAML that this package writes; it reads no newer one."""

METHODS = {
    "mockingjay": "auricle.methods.mockingjay:MockingjayRun",
    "cpc": "auricle.methods.cpc:CpcRun",
    "audio_mae": "auricle.methods.audio_mae:AudioMaeRun",
    "mae_ast": "auricle.methods.mae_ast:MaeAstRun",
    "apc": "auricle.methods.apc:ApcRun",
    "trill": "auricle.methods.trill:TrillRun",
    "trill_distilled": "auricle.methods.trill_distilled:TrillDistilledRun",
    "best_rq": "auricle.methods.best_rq:BestRqRun",
    "data2vec2": "auricle.methods.data2vec2:Data2Vec2Run",
    "hubert": "auricle.methods.hubert:HubertRun",
    "data2vec": "auricle.methods.data2vec:Data2VecRun",
    "csc": "auricle.methods.csc:CscRun",
}
"""Method → its run config."""

PRESETS = {
    "mockingjay_tiny": "auricle.methods.mockingjay:mockingjay_tiny",
    "mockingjay_base": "auricle.methods.mockingjay:mockingjay_base",
    "mockingjay_large": "auricle.methods.mockingjay:mockingjay_large",
    "mockingjay_paper_base": "auricle.methods.mockingjay:mockingjay_paper_base",
    "mockingjay_paper_large": "auricle.methods.mockingjay:mockingjay_paper_large",
    "tera_tiny": "auricle.methods.mockingjay:tera_tiny",
    "tera_base": "auricle.methods.mockingjay:tera_base",
    "audio_albert_base": "auricle.methods.mockingjay:audio_albert_base",
    "cpc_tiny": "auricle.methods.cpc:cpc_tiny",
    "cpc_base": "auricle.methods.cpc:cpc_base",
    "cpc_paper": "auricle.methods.cpc:cpc_paper",
    "audio_mae_tiny": "auricle.methods.audio_mae:audio_mae_tiny",
    "audio_mae_small": "auricle.methods.audio_mae:audio_mae_small",
    "audio_mae_base": "auricle.methods.audio_mae:audio_mae_base",
    "audio_mae_large": "auricle.methods.audio_mae:audio_mae_large",
    "audio_mae_base_global": "auricle.methods.audio_mae:audio_mae_base_global",
    "audio_mae_released": "auricle.methods.audio_mae:audio_mae_released",
    "mae_ast_tiny": "auricle.methods.mae_ast:mae_ast_tiny",
    "mae_ast_patch_base": "auricle.methods.mae_ast:mae_ast_patch_base",
    "mae_ast_frame_base": "auricle.methods.mae_ast:mae_ast_frame_base",
    "mae_ast_patch_small": "auricle.methods.mae_ast:mae_ast_patch_small",
    "mae_ast_frame_small": "auricle.methods.mae_ast:mae_ast_frame_small",
    "apc_tiny": "auricle.methods.apc:apc_tiny",
    "apc_base": "auricle.methods.apc:apc_base",
    "apc_s3prl": "auricle.methods.apc:apc_s3prl",
    "apc_mockingjay_paper": "auricle.methods.apc:apc_mockingjay_paper",
    "trill_tiny": "auricle.methods.trill:trill_tiny",
    "trill_base": "auricle.methods.trill:trill_base",
    "trill_distilled_tiny": "auricle.methods.trill_distilled:trill_distilled_tiny",
    "trill_distilled": "auricle.methods.trill_distilled:trill_distilled",
    "best_rq_tiny": "auricle.methods.best_rq:best_rq_tiny",
    "best_rq_music_tiny": "auricle.methods.best_rq:best_rq_music_tiny",
    "best_rq_base": "auricle.methods.best_rq:best_rq_base",
    "data2vec2_base": "auricle.methods.data2vec2:data2vec2_base",
    "data2vec2_music_tiny": "auricle.methods.data2vec2:data2vec2_music_tiny",
    "hubert_tiny": "auricle.methods.hubert:hubert_tiny",
    "hubert_base": "auricle.methods.hubert:hubert_base",
    "hubert_base_iter2": "auricle.methods.hubert:hubert_base_iter2",
    "musichubert_tiny": "auricle.methods.hubert:musichubert_tiny",
    "musichubert_tiny_iter2": "auricle.methods.hubert:musichubert_tiny_iter2",
    "musichubert_k500": "auricle.methods.hubert:musichubert_k500",
    "musichubert_k500_mfcc60": "auricle.methods.hubert:musichubert_k500_mfcc60",
    "musichubert_k2000_iter1": "auricle.methods.hubert:musichubert_k2000_iter1",
    "musichubert_k2000_iter2": "auricle.methods.hubert:musichubert_k2000_iter2",
    "data2vec_base": "auricle.methods.data2vec:data2vec_base",
    "music2vec_tiny": "auricle.methods.music2vec:music2vec_tiny",
    "music2vec_vanilla": "auricle.methods.music2vec:music2vec_vanilla",
    "music2vec_800k": "auricle.methods.music2vec:music2vec_800k",
    "music2vec_crop5s": "auricle.methods.music2vec:music2vec_crop5s",
    "music2vec_prob50": "auricle.methods.music2vec:music2vec_prob50",
    "music2vec_prob80": "auricle.methods.music2vec:music2vec_prob80",
    "music2vec_span5": "auricle.methods.music2vec:music2vec_span5",
    "music2vec_span15": "auricle.methods.music2vec:music2vec_span15",
    "music2vec_target12": "auricle.methods.music2vec:music2vec_target12",
    "csc_tiny": "auricle.methods.csc:csc_tiny",
    "csc_galr_base": "auricle.methods.csc:csc_galr_base",
    "csc_mel_base": "auricle.methods.csc:csc_mel_base",
}
"""Preset → the function that makes its run config."""


def preset_names() -> list[str]:
    """Every preset, as the command line spells it (`mockingjay-base`)."""
    return [name.replace("_", "-") for name in PRESETS]


def preset(name: str) -> RunConfig:
    """The run config of a preset, spelled with dashes or underscores. Raises `ConfigError` for an unknown name."""
    key = name.replace("-", "_")
    if key not in PRESETS:
        raise ConfigError(unknown("preset", name, preset_names()))
    run: RunConfig = _find(PRESETS[key])()
    return run


def about(name: str) -> str:
    """One line on a preset: the first of its function's docstring."""
    return str(_find(PRESETS[name.replace("-", "_")]).__doc__).partition("\n")[0]


def run_from_yaml(values: Mapping[str, Any], where: str = "config") -> RunConfig:
    """The run config in a run's `config.yaml`, already read; `where` names it in errors.

    Options left out take the method's defaults. Raises `ConfigError` for a missing or unknown method, a newer format,
    and for anything that the method's config refuses.
    """
    options = dict(values)
    written = options.pop("format", FORMAT)
    version = options.pop("auricle", None)
    if not isinstance(written, int) or written > FORMAT:
        by = f"auricle {version}" if version else "a newer auricle"
        raise ConfigError(f"{where}: format {written}, written by {by}, is newer than this one reads; upgrade auricle")
    method = options.pop("method", None)
    if method is None:
        raise ConfigError(f"{where}: method: missing; known: {', '.join(METHODS)}")
    if method not in METHODS:
        raise ConfigError(f"{where}: {unknown('method', str(method), METHODS)}")
    run_class: type[RunConfig] = _find(METHODS[method])
    return run_class.parse(options, where)


def _find(address: str) -> Any:
    module, _, attribute = address.partition(":")
    return getattr(importlib.import_module(module), attribute)
