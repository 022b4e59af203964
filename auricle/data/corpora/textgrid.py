"""Praat's TextGrid in its long text format, as forced aligners write it."""

from __future__ import annotations

import re
from pathlib import Path

from auricle.data.corpora.layout import Interval
from auricle.errors import ManifestError

TIER = re.compile(r'class\s*=\s*"(\w+)"\s*name\s*=\s*"((?:[^"]|"")*)"')
NUMBER = r"([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"
INTERVAL = re.compile(rf'xmin\s*=\s*{NUMBER}\s*xmax\s*=\s*{NUMBER}\s*text\s*=\s*"((?:[^"]|"")*)"')


def read_textgrid(path: Path) -> dict[str, list[Interval]]:
    """Tier name to its intervals (start, end, text) in seconds, those without text included; point tiers are left out.

    Format: Praat manual, "TextGrid file formats"; a quotation mark in a text is written twice.
    Raises `ManifestError` when the file is missing, not in this format, or holds fewer intervals than it says.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    tiers = list(TIER.finditer(text))
    if not tiers:
        raise ManifestError(f"{path}: not a TextGrid in Praat's long text format")
    found = {}
    for tier, end in zip(tiers, [tier.start() for tier in tiers[1:]] + [len(text)], strict=True):
        if tier[1] != "IntervalTier":
            continue
        body = text[tier.end() : end]
        intervals = [(float(start), float(stop), _plain(label)) for start, stop, label in INTERVAL.findall(body)]
        size = re.search(r"intervals:\s*size\s*=\s*(\d+)", body)
        if size is None or int(size[1]) != len(intervals):
            raise ManifestError(f"{path}: tier '{tier[2]}' is damaged, or not in Praat's long text format")
        found[_plain(tier[2])] = intervals
    return found


def _plain(text: str) -> str:
    return text.replace('""', '"').strip()
