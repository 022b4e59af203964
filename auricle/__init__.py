"""Learn representations of speech, sound and music without labels, and measure how good they are.

    encoder = auricle.load("runs/mockingjay")
    frames = encoder.frames("dog.flac")     # (T, D), a row every encoder.hop samples
    vector = encoder.clip("dog.flac")       # (D,)

Names are imported when first used, so that `import auricle` is quick and works without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from auricle.data.manifest import Manifest
    from auricle.embedding.extract import embed
    from auricle.encoders.base import Encoder, Frames
    from auricle.encoders.check import check
    from auricle.encoders.checkpoint import load
    from auricle.errors import AuricleError
    from auricle.evaluation.finetuning.loop import finetune
    from auricle.evaluation.finetuning.predict import predict
    from auricle.evaluation.run import evaluate
    from auricle.exporting.run import export
    from auricle.methods import preset
    from auricle.report.build import build_report
    from auricle.training.loop import pretrain, resume

_HOMES = {
    "AuricleError": "auricle.errors",
    "Encoder": "auricle.encoders.base",
    "Frames": "auricle.encoders.base",
    "Manifest": "auricle.data.manifest",
    "build_report": "auricle.report.build",
    "check": "auricle.encoders.check",
    "embed": "auricle.embedding.extract",
    "evaluate": "auricle.evaluation.run",
    "export": "auricle.exporting.run",
    "finetune": "auricle.evaluation.finetuning.loop",
    "load": "auricle.encoders.checkpoint",
    "predict": "auricle.evaluation.finetuning.predict",
    "preset": "auricle.methods",
    "pretrain": "auricle.training.loop",
    "resume": "auricle.training.loop",
}

__all__ = [  # noqa: RUF022 -- in the order of the flow
    "__version__",
    "load",
    "pretrain",
    "resume",
    "preset",
    "embed",
    "evaluate",
    "finetune",
    "predict",
    "export",
    "check",
    "build_report",
    "Encoder",
    "Frames",
    "Manifest",
    "AuricleError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'auricle' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
