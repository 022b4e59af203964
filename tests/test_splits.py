"""Splits: whole groups, all classes trained, the manifest's own first, and refusal where it cannot be."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from auricle.data.manifest import Manifest
from auricle.data.sources import INTERVALS
from auricle.data.splits import folds, group_shuffle, split
from auricle.errors import ManifestError


def clips(n, **columns):
    """A manifest of `n` clips, each a recording of its own unless `path` says otherwise."""
    core = {
        "clip_id": [f"c{index}" for index in range(n)],
        "path": [f"/c{index}.wav" for index in range(n)],
        "start_s": np.zeros(n),
        "duration_s": np.ones(n),
        "sample_rate": np.full(n, 16_000),
    }
    return Manifest(pa.table(core | columns))


def parts_of(splits, values):
    return {part: [values[row] for row in splits.rows(part)] for part in ("train", "dev", "test")}


def test_the_default_is_stratified_sixty_twenty_twenty():
    species = ["owl"] * 50 + ["wren"] * 30 + ["crow"] * 20
    splits = split(clips(100, species=species), "species")
    for part, share in (("train", 0.6), ("dev", 0.2), ("test", 0.2)):
        found = parts_of(splits, species)[part]
        assert {name: found.count(name) for name in ("owl", "wren", "crow")} == {
            "owl": 50 * share,
            "wren": 30 * share,
            "crow": 20 * share,
        }
    assert "grouped by recording, stratified by 'species', seed 0 (60 train, 20 dev, 20 test)" in splits.rule


def test_it_depends_on_the_seed_and_is_told_by_the_hash():
    manifest = clips(100, species=["owl", "wren"] * 50)
    first, again, other = (split(manifest, "species", seed=seed) for seed in (0, 0, 1))
    assert (first.assignment == again.assignment).all()
    assert first.hash == again.hash != other.hash
    # the hash is of who is where, not of the order of rows
    official = manifest.with_column("split", list(first.assignment))
    order = np.random.default_rng(0).permutation(100)
    assert split(official.select(order), "species").hash == first.hash


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 14)), min_size=30, max_size=80),
    st.integers(0, 3),
    st.booleans(),
)
def test_groups_stay_whole_and_every_class_tested_is_trained(pairs, seed, by_recording):
    classes, groups = [str(pair[0]) for pair in pairs], [f"/r{pair[1]}.wav" for pair in pairs]
    manifest = clips(len(pairs), **{"label": classes, "path" if by_recording else "voice": groups})
    try:
        made = [split(manifest, "label", None if by_recording else "voice", seed)]
        made += folds(manifest, "label", None if by_recording else "voice", seed=seed)
    except ManifestError:
        assume(False)
    for splits in made:
        by_part = parts_of(splits, groups)
        assert all(by_part.values())
        for one, two in (("train", "dev"), ("train", "test"), ("dev", "test")):
            assert not set(by_part[one]) & set(by_part[two])
        labels = parts_of(splits, classes)
        assert set(labels["test"]) | set(labels["dev"]) <= set(labels["train"])


def test_rare_classes_stay_in_train():
    species = ["owl"] * 30 + ["wren"] * 30 + [f"rare{index}" for index in range(4)]
    for seed in range(5):
        splits = split(clips(64, species=species), "species", seed=seed)
        assert set(species[60:]) <= set(parts_of(splits, species)["train"])
        found = {name for part in ("dev", "test") for name in parts_of(splits, species)[part]}
        assert found == {"owl", "wren"}


def test_quantities_are_spread_by_quantile():
    tempo = np.random.default_rng(0).lognormal(4.5, 1, 500)
    assert split(clips(500, tempo=tempo.astype(int)), "tempo", kind="values").rule
    splits = split(clips(500, tempo=tempo), "tempo")
    deciles = np.digitize(tempo, np.quantile(tempo, np.linspace(0, 1, 11)[1:-1]))
    for part, count in (("train", 30), ("dev", 10), ("test", 10)):
        assert np.abs(np.bincount(deciles[splits.rows(part)], minlength=10) - count).max() <= 1


@pytest.mark.filterwarnings("error")
def test_quantities_that_are_none_are_spread_among_themselves():
    tempo = np.random.default_rng(0).lognormal(4.5, 1, 200)
    tempo[:20], tempo[20] = np.nan, np.inf
    splits = split(clips(200, tempo=tempo), "tempo")
    assert np.sum(np.isnan(tempo[splits.rows("train")])) in (11, 12, 13)
    with pytest.raises(ManifestError, match="'tempo' has no values"):
        split(clips(20, tempo=np.full(20, np.nan)), "tempo")


@pytest.mark.parametrize("joined", [False, True])
def test_labels_are_spread_by_the_rarest(joined):
    instruments = [["drums", "bass"] if row % 10 else ["drums", "harp"] for row in range(100)]
    column = [";".join(names) for names in instruments] if joined else instruments
    splits = split(clips(100, instruments=column), "instruments", kind="labels" if joined else None)
    harps = {part: sum("harp" in names for names in found) for part, found in parts_of(splits, instruments).items()}
    assert harps == {"train": 6, "dev": 2, "test": 2}


def test_intervals_are_split_by_recording():
    words = pa.array([[{"start_s": 0.0, "end_s": 1.0, "label": f"word{row}"}] for row in range(20)], INTERVALS)
    assert [len(split(clips(20, words=words), "words").rows(part)) for part in ("train", "dev", "test")] == [12, 4, 4]


def test_the_manifests_own_split_is_taken():
    own = ["Train", "train", "validation", "test"] * 5
    splits = split(clips(20, split=own, label=["a", "b", "a", "b", "b"] * 4), "label")
    assert list(splits.assignment) == ["train", "train", "dev", "test"] * 5
    assert splits.rule == "the manifest's column 'split' (10 train, 5 dev, 5 test)"
    other = split(clips(20, by_speaker=own[::-1], split=own), column="by_speaker")
    assert list(other.assignment) == ["test", "dev", "train", "train"] * 5
    with pytest.raises(ManifestError, match="did you mean 'by_speaker'"):
        split(clips(20, by_speaker=own), column="by_speakers")


def test_dev_is_cut_out_of_train_by_the_same_rule():
    own = ["train"] * 40 + ["test"] * 10
    voice = [f"v{row // 4}" for row in range(40)] + ["w"] * 10
    label = ["a", "b"] * 25
    splits = split(clips(50, split=own, voice=voice, label=label), "label", "voice")
    assert (splits.assignment[40:] == "test").all()
    by_part = parts_of(splits, voice)
    assert len(by_part["dev"]) == 8
    assert not set(by_part["dev"]) & set(by_part["train"])
    assert "dev cut out of train, grouped by 'voice'" in splits.rule
    once = ["rare"] + ["b", "c"] * 24 + ["rare"]  # trained once, tested once: must not end up in dev
    for seed in range(5):
        assert split(clips(50, split=own, label=once), "label", seed=seed).assignment[0] == "train"


def test_an_own_split_that_breaks_up_the_group_asked_for_is_left_aside():
    voice = [f"v{row % 10}" for row in range(60)]
    manifest = clips(60, split=["train", "train", "dev", "test"] * 15, voice=voice, fold=[1, 2, 3] * 20)
    splits = split(manifest, group="voice")
    by_part = parts_of(splits, voice)
    assert not set(by_part["train"]) & set(by_part["test"])
    assert "column 'split' was left aside" in splits.rule
    assert "made" in folds(manifest, group="voice")[0].rule


def test_an_own_split_without_test_is_left_aside_and_told():
    splits = split(clips(60, split=["train", "dev", "dev"] * 20))
    assert set(splits.assignment) == {"train", "dev", "test"}
    assert "column 'split' was left aside, as it has no train and test" in splits.rule
    assert "left aside" not in split(clips(60)).rule


def test_what_cannot_be_split_is_refused():
    label = ["a", "b"] * 20
    cases = [
        (clips(40, label=label), {"group": "label"}, "cannot be grouped by the target"),
        (clips(40, label=["a"] * 40), {}, r"one value only \('a'\)"),
        (clips(40, label=[2.5] * 40), {}, r"one value only \(2.5\)"),
        (clips(40, label=pa.nulls(40)), {}, "no values"),
        (clips(40, label=[f"x{row}" for row in range(40)]), {}, "too few"),
        (clips(40, label=label, path=["/a.wav", "/b.wav"] * 20), {}, "40 clips in 2 groups are too few"),
        (clips(40, label=label, voice=["x", "y"] * 20), {"group": "voice"}, "40 clips in 2 groups"),
        (clips(40, label=list("abcdefgh") * 5, voice=list("ABCDEFGH") * 5), {"group": "voice"}, "too few groups hold"),
        (clips(40, label=label, voice=["x", None] * 20), {"group": "voice"}, "'voice': row 2 is empty"),
        (clips(40, label=label), {"group": "voise"}, "unknown column"),
        (clips(40, label=label, split=["train", "test"] * 20), {}, "class 'b' of 'label' is in test but not in train"),
        (clips(40, label=label, split=["train", "tset", "test", "dev"] * 10), {}, "row 2: unknown part 'tset'"),
        (clips(40, label=["loud"] * 40), {"kind": "values"}, "must hold numbers"),
    ]
    for manifest, options, reason in cases:
        with pytest.raises(ManifestError, match=reason) as caught:
            split(manifest, "label", **options)
        assert "\n" not in str(caught.value)


def test_folds_of_the_manifest_are_each_tested_once():
    fold = [1, 2, 3, 10] * 10
    manifest = clips(40, fold=fold, label=["a", "a", "a", "a", "b", "b", "b", "b"] * 5)
    every = folds(manifest, "label")
    tested = [sorted({fold[row] for row in splits.rows("test")}) for splits in every]
    assert tested == [[1], [10], [2], [3]]
    chosen_on = [sorted({fold[row] for row in splits.rows("dev")}) for splits in every]
    assert chosen_on == tested[1:] + tested[:1]
    assert len({splits.hash for splits in every}) == 4
    with pytest.raises(ManifestError, match="has 2 folds"):
        folds(clips(4, half=[1, 2, 1, 2]), column="half")


def test_made_folds_test_every_clip_once():
    every = folds(clips(50, label=["a", "b"] * 25), "label")
    assert len(every) == 5
    assert sorted(row for splits in every for row in splits.rows("test")) == list(range(50))
    assert [len(splits.rows("dev")) for splits in every] == [10] * 5


def test_the_rule_of_noss_replays_the_published_splits():
    """CREMA-D's 91 speakers and SAVEE's 4, as the builders of TensorFlow Datasets split them."""
    dev = [1015, 1079, 1020, 1030, 1050, 1089, 1090, 1070, 1021]
    test = [
        1086,
        1073,
        1026,
        1038,
        1047,
        1040,
        1066,
        1059,
        1013,
        1071,
        1037,
        1022,
        1084,
        1010,
        1088,
        1068,
        1065,
        1048,
        1045,
    ]
    speakers = [str(1001 + clip % 91) for clip in range(300)]  # several clips each, in an order of their own
    parts = group_shuffle(speakers[::-1])[::-1]
    for part, published in (("dev", dev), ("test", test)):
        assert {speaker for speaker, found in zip(speakers, parts, strict=True) if found == part} == set(
            map(str, published)
        )
    assert parts.count("train") == sum(int(speaker) not in {*dev, *test} for speaker in speakers)
    assert group_shuffle(["DC", "JE", "JK", "KL", "JE"], (0.6, 0.2, 0.2)) == ["test", "dev", "train", "train", "dev"]


@given(st.lists(st.text(max_size=3), min_size=10, max_size=60), st.integers(0, 3))
def test_the_rule_of_noss_keeps_groups_whole(groups, seed):
    assume(len(set(groups)) >= 5)
    parts = group_shuffle(groups, (0.6, 0.2, 0.2), seed)
    assert len(set(zip(groups, parts, strict=True))) == len(set(groups))
    assert set(parts) == {"train", "dev", "test"}
    assert dict(zip(groups, parts, strict=True)) == dict(
        zip(groups[::-1], group_shuffle(groups[::-1], (0.6, 0.2, 0.2), seed), strict=True)
    )


def test_the_rule_of_noss_refuses_too_few_speakers():
    with pytest.raises(ManifestError, match="2 speakers are too few"):
        group_shuffle(["a", "b", "a"])
