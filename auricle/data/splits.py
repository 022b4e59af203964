"""Train, dev and test: the corpus's own split where it has one, else made by recording (or a named group)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from auricle.data.manifest import Manifest
from auricle.data.sources import INTERVALS
from auricle.errors import ManifestError, unknown

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val", "development"), "dev"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Names of the parts as manifests write them, and as we do."""
QUANTILES = 10
Kind: TypeAlias = Literal["classes", "labels", "values"]
"""What a column's values are to a task: one class a clip, any number of labels, or a quantity."""


@dataclass(frozen=True, eq=False)
class Splits:
    """Which clips are learned from, chosen on, and scored."""

    assignment: NDArray[np.str_]
    """(N,) of "train", "dev", "test", or "unused"."""
    rule: str
    """How it was made, in a sentence."""
    hash: str
    """Sixteen hex digits over clip ids and assignment, whatever the order of the clips."""

    def rows(self, part: str) -> NDArray[np.int64]:
        """Row numbers of "train", "dev" or "test"."""
        return np.flatnonzero(self.assignment == part)


def split(
    manifest: Manifest,
    target: str | None = None,
    group: str | None = None,
    seed: int = 0,
    *,
    column: str = "split",
    kind: Kind | None = None,
) -> Splits:
    """The manifest's own split in `column`, or else a made one of 60/20/20.

    A made split keeps each recording (each value of the column `group`) on one side and spreads the values of `target`
    evenly: of `kind` "classes"; of "labels" (lists, or text with `;` between) each clip's rarest; of "values" the
    quantiles. By default, lists are labels, floats values, and all else classes; intervals are not spread. Classes of
    too few groups to be in both test and train stay in train. An own split without a dev part has one cut from its
    train part in this way; one that breaks up a `group` asked for is not used. A `column` named must be a split.

    Raises `ManifestError` if grouped by the target itself, if the target has but one value, if there are too few groups
    or clips of a class, or if an own split tests a class that it does not train.
    """
    goal, groups = _target(manifest, target, kind), _groups(manifest, target, group)
    kept_whole = f"grouped by {'recording' if group is None else repr(group)}"
    how = f"{kept_whole}{f', stratified by {target!r}' if goal.spread else ''}, seed {seed}"
    own = _own_parts(manifest, column)
    if own is None and column != "split":
        raise ManifestError(f"column '{column}' has no train and test; its values must be train, dev and test")
    note = "" if own is None else f"; column '{column}' was left aside, as it breaks up groups"
    if own is None and column in manifest.table.column_names:
        note = f"; column '{column}' was left aside, as it has no train and test"
    if own is None or (group is not None and _breaks_up(own, groups)):
        number = _fold_numbers(goal.strata, groups, 5, seed)
        parts = np.array(["test", "dev", "train"])[np.minimum(number, 2)]
        return _finished(manifest, parts, goal, groups, ("dev", "test"), f"made, {how}{note}")
    rule = f"the manifest's column '{column}'"
    if "dev" not in own:
        train = np.flatnonzero(own == "train")
        own[train[_fold_numbers(goal.strata[train], groups[train], 5, seed) == 0]] = "dev"
        return _finished(manifest, own, goal, groups, ("dev",), f"{rule}; dev cut out of train, {how}")
    return _finished(manifest, own, goal, groups, (), rule)


def folds(
    manifest: Manifest,
    target: str | None = None,
    group: str | None = None,
    column: str | None = None,
    n: int = 5,
    seed: int = 0,
    *,
    kind: Kind | None = None,
) -> list[Splits]:
    """Cross-validation: each fold is tested on once, the next one being dev and the others train.

    The folds are the values of `column` (by default `fold`, if there is one and it breaks up no `group` asked for), or
    `n` made ones, under the rules of `split`. Raises `ManifestError` as it does, and for fewer than three folds.
    """
    goal, groups = _target(manifest, target, kind), _groups(manifest, target, group)
    own = column or ("fold" if "fold" in manifest.table.column_names else None)
    if own is not None:
        values, number = np.unique(np.array([str(value) for value in _complete(manifest, own)]), return_inverse=True)
        if column is None and group is not None and _breaks_up(number, groups):
            own = None
    if own is None:
        number = _fold_numbers(goal.strata, groups, n, seed)
        values = np.array([str(value) for value in range(number.max() + 1)])
    if len(values) < 3:
        raise ManifestError(f"column '{own}' has {len(values)} folds; train, dev and test need at least 3")
    made = f"made, grouped by {'recording' if group is None else repr(group)}, seed {seed}"
    rule = f"the manifest's column '{own}'" if own else made
    splits = []
    for test in range(len(values)):
        dev = (test + 1) % len(values)
        parts = np.where(number == test, "test", np.where(number == dev, "dev", "train"))
        words = f"fold {values[test]} of {len(values)} ({rule}) as test, fold {values[dev]} as dev"
        splits.append(_finished(manifest, parts, goal, groups, () if own else ("dev", "test"), words))
    return splits


def group_shuffle(
    groups: Sequence[str], fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), seed: int = 0
) -> list[str]:
    """NOSS's rule for corpora without an official split (Shor et al. 2020): a part for each clip, groups kept whole.

    `groups` names each clip's group (its speaker), `fractions` the shares of groups in train, dev and test. The
    distinct groups are sorted as text, shuffled by numpy's legacy generator, and cut where TensorFlow Datasets cuts
    them; nothing is stratified. Raises `ManifestError` for fewer groups than parts.
    """
    names = sorted(set(groups))
    if len(names) < len(fractions):
        raise ManifestError(f"{len(names)} speakers are too few for train, dev and test: each needs one of its own")
    np.random.RandomState(seed).shuffle(names)
    train, dev, _ = (int(share * len(names)) for share in accumulate(fractions))  # sums of floats, rounding included
    part = {name: "train" if place < train else "dev" if place < dev else "test" for place, name in enumerate(names)}
    return [part[group] for group in groups]


def personal(manifest: Manifest, target: str, speaker: str, seed: int = 0, repeats: int = 5) -> list[Splits]:
    """One speaker at a time: of each class a fifth of the speaker's clips (one at least) is test, as many are dev.

    Each speaker with three clips or more of every class of `target` is split `repeats` times; all other clips have the
    part "unused". Raises `ManifestError` if there is no such speaker.
    """
    classes, code = np.unique(np.array([str(value) for value in manifest.column(target)]), return_inverse=True)
    names, who = np.unique(np.array([str(value) for value in _complete(manifest, speaker)]), return_inverse=True)
    counts = np.bincount(who * len(classes) + code, minlength=len(names) * len(classes)).reshape(len(names), -1)
    kept = np.flatnonzero(counts.min(1) >= 3)
    if not len(kept):
        raise ManifestError(
            f"column '{speaker}': nobody has three clips of each of the {len(classes)} classes of '{target}'"
        )
    rule = f"one of {len(kept)} speakers at a time ({len(names)} in '{speaker}'), {repeats} draws, seed {seed}"
    splits = []
    for person in kept.tolist():
        for repeat in range(repeats):
            rng, parts = np.random.default_rng([seed, person, repeat]), np.full(len(manifest), "unused")
            for one in range(len(classes)):
                clips = rng.permutation(np.flatnonzero((who == person) & (code == one)))
                some = max(1, round(len(clips) / 5))
                parts[clips] = "train"
                parts[clips[:some]], parts[clips[some : 2 * some]] = "test", "dev"
            splits.append(Splits(parts, rule, _hash(manifest, parts)))
    return splits


class _Target(NamedTuple):
    """What is to be spread over the parts."""

    name: str
    strata: NDArray[np.int64]
    """(N,) to spread evenly."""
    rows: NDArray[np.int64]
    """(M,) rows of the classes below; none for quantities."""
    codes: NDArray[np.int64]
    """(M,) classes, each of which must be learned before it is tested."""
    classes: list[str]

    @property
    def spread(self) -> bool:
        return bool(len(self.strata)) and bool((self.strata != self.strata[0]).any())


def _target(manifest: Manifest, name: str | None, kind: Kind | None) -> _Target:
    none = np.zeros(0, np.int64)
    if name is None:
        return _Target("", np.zeros(len(manifest), np.int64), none, none, [])
    values = manifest.column(name)
    column_type = manifest.table.schema.field(name).type
    if column_type == INTERVALS:
        return _Target(name, np.zeros(len(manifest), np.int64), none, none, [])
    if kind == "values" or (kind is None and pa.types.is_floating(column_type)):
        try:
            quantities = np.array([np.nan if value is None else float(value) for value in values])
        except (TypeError, ValueError):
            raise ManifestError(f"column '{name}' must hold numbers to be a quantity, not {column_type}") from None
        known = quantities[np.isfinite(quantities)]
        _refuse_constant(name, set(known.tolist()))
        edges = np.unique(np.quantile(known, np.linspace(0, 1, QUANTILES + 1)[1:-1]))
        return _Target(name, np.searchsorted(edges, quantities, side="right"), none, none, [])
    if kind == "labels":
        values = [value.split(";") if isinstance(value, str) else value for value in values]
    lists = [value if isinstance(value, list) else [value] for value in values]
    pairs = [(row, str(label)) for row, labels in enumerate(lists) for label in labels if label is not None]
    classes, codes = np.unique(np.array([label for _, label in pairs], object), return_inverse=True)
    _refuse_constant(name, set(classes.tolist()))
    rows = np.array([row for row, _ in pairs], np.int64)
    strata = np.full(len(manifest), len(classes), np.int64)  # unlabelled clips among themselves
    commonest_first = np.argsort(-np.bincount(codes)[codes], kind="stable")
    strata[rows[commonest_first]] = codes[commonest_first]  # a row's rarest label comes last, and stays
    return _Target(name, strata, rows, codes, classes.tolist())


def _refuse_constant(name: str, values: set[Any]) -> None:
    if len(values) < 2:
        found = f"one value only ({values.pop()!r})" if values else "no values"
        raise ManifestError(f"target '{name}' has {found}: there is nothing to tell apart")


def _groups(manifest: Manifest, target: str | None, group: str | None) -> NDArray[np.int64]:
    """(N,) codes of what must stay on one side."""
    if group is not None and group == target:
        raise ManifestError(
            f"clips cannot be grouped by the target '{target}' itself: no class would be trained and tested"
        )
    values = manifest.column("path") if group is None else _complete(manifest, group)
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(str(value), len(codes)) for value in values], np.int64)


def _complete(manifest: Manifest, column: str) -> list[Any]:
    values = manifest.column(column)
    if None in values:
        raise ManifestError(f"column '{column}': row {values.index(None) + 1} is empty")
    return values


def is_split(manifest: Manifest, column: str) -> bool:
    """Whether a column says train and test, rather than numbers of folds."""
    return {"train", "test"} <= {PARTS.get(str(value).lower()) for value in manifest.column(column)}


def _own_parts(manifest: Manifest, column: str) -> NDArray[np.str_] | None:
    """The manifest's own assignment, if it has train and test."""
    if column not in manifest.table.column_names and column == "split":
        return None
    if not is_split(manifest, column):
        return None
    values = [str(value).lower() for value in manifest.column(column)]
    for row, value in enumerate(values, start=1):
        if value not in PARTS:
            raise ManifestError(f"column '{column}', row {row}: {unknown('part', value, ('train', 'dev', 'test'))}")
    return np.array([PARTS[value] for value in values])


def _breaks_up(parts: NDArray[Any], groups: NDArray[np.int64]) -> bool:
    return len(set(zip(groups.tolist(), parts.tolist(), strict=True))) > len(np.unique(groups))


def _fold_numbers(strata: NDArray[np.int64], groups: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """(N,) fold of each clip, groups kept whole, strata spread evenly; fewer than `n` folds if there is too little."""
    count = len(np.unique(groups))
    n = min(n, count, int(np.bincount(strata).max()))
    if n < 3:
        raise ManifestError(
            f"{len(groups)} clips in {count} groups are too few for train, dev and test: "
            "each needs a group of its own, and some class at least 3 clips"
        )
    # the second keeps groups together, but takes a second for every few thousand of them
    splitter = StratifiedKFold if count == len(groups) else StratifiedGroupKFold
    number = np.zeros(len(groups), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rare classes: `_finished` sees to them
        parts = splitter(n, shuffle=True, random_state=seed).split(strata, strata, groups)
        for fold, (_, test) in enumerate(parts):
            number[test] = fold
    return number


def _finished(
    manifest: Manifest,
    parts: NDArray[np.str_],
    goal: _Target,
    groups: NDArray[np.int64],
    movable: tuple[str, ...],
    rule: str,
) -> Splits:
    """Checked: every class tested is trained, if need be by moving groups from the `movable` parts into train."""
    moved = 0
    for code in _untrained(parts, goal):
        rows = goal.rows[goal.codes == code]
        found = set(parts[rows].tolist())
        if "train" in found:  # brought along by an earlier class's group
            continue
        can_move = np.isin(parts, movable)
        if can_move[rows].any():
            parts[can_move & (groups == groups[rows[can_move[rows]][0]])] = "train"
            moved += 1
        elif "test" in found:
            message = (
                f"class '{goal.classes[code]}' of '{goal.name}' is in test but not in train; drop it, or split anew"
            )
            raise ManifestError(f"{rule}: {message}")
    if moved:
        rule += f"; groups of {moved} rare classes moved into train"
    tested = goal.codes[parts[goal.rows] == "test"]
    if not {"train", "dev", "test"} <= set(parts.tolist()) or (goal.classes and len(np.unique(tested)) < 2):
        raise ManifestError(
            f"{rule}: train, dev and test cannot all be filled with two classes or more; "
            "too few groups hold each class, so group by another column or add recordings"
        )
    sizes = ", ".join(f"{np.sum(parts == part)} {part}" for part in ("train", "dev", "test"))
    return Splits(parts, f"{rule} ({sizes})", _hash(manifest, parts))


def _hash(manifest: Manifest, parts: NDArray[np.str_]) -> str:
    lines = sorted(f"{clip_id}\t{part}\n" for clip_id, part in zip(manifest.column("clip_id"), parts, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _untrained(parts: NDArray[np.str_], goal: _Target) -> NDArray[np.int64]:
    """Classes that are in dev or test but not in train."""
    trained = parts[goal.rows] == "train"
    return np.setdiff1d(goal.codes[~trained], goal.codes[trained])
