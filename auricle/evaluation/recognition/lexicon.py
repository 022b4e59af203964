"""Pronunciations: words to phones, from the lexicon of LibriSpeech (https://www.openslr.org/11) or one written like it.

A line is a word and its phones, separated by blanks or tabs; a word with several pronunciations has several lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from auricle.data.corpora.layout import read_lines
from auricle.errors import ManifestError

FILES = "librispeech-lexicon*.txt"
URL = "https://www.openslr.org/resources/11/librispeech-lexicon.txt"
NAMED = 20
"""Most words outside the lexicon that are told by name."""

Lexicon = Mapping[str, tuple[str, ...]]
"""Words in capitals to phones."""


def find_lexicons(folder: Path | str | None) -> list[Path]:
    """The files `librispeech-lexicon*.txt` in a folder, by name. Raises `ManifestError` where there are none."""
    found = sorted(Path(folder).glob(FILES)) if folder is not None else []
    if not found:
        raise ManifestError(f"{folder or 'corpora'}: no {FILES} there, which tells the phones of words; get {URL}")
    return found


def read_lexicon(paths: Iterable[Path]) -> Lexicon:
    """Words to phones, stress marks kept. The first pronunciation of a word counts, as in SUPERB.

    Raises `ManifestError` for a file that cannot be read, and for a word without phones.
    """
    lexicon: dict[str, tuple[str, ...]] = {}
    for path in paths:
        for line in read_lines(path):
            word, *phones = line.split()
            if not phones:
                raise ManifestError(f"{path}: word '{word}' has no phones; get {URL}")
            lexicon.setdefault(word.upper(), tuple(phones))
    return lexicon


def pronounce(text: str, lexicon: Lexicon) -> tuple[str, ...] | None:
    """The phones of a text; None where it holds a word that the lexicon does not."""
    words = [lexicon.get(word) for word in text.upper().split()]
    return None if None in words else tuple(phone for word in words for phone in word or ())


def unknown_words(texts: Sequence[str], lexicon: Lexicon) -> str:
    """The words of texts that the lexicon does not hold, counted and named, the commonest first; empty if none."""
    counts = Counter(word for text in texts for word in text.upper().split() if word not in lexicon)
    named = ", ".join(word for word, _ in counts.most_common(NAMED)) + (", ..." if len(counts) > NAMED else "")
    return f"words outside the lexicon ({len(counts)}): {named}" if counts else ""
