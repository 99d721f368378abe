"""Pairing: compared with a brute-force oracle, and its seeded properties."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.errors import UsageError
from ft2.nsq.pairing import NUM_PATTERNS, Pairs, Rule, mine_pairs, pair_id
from ft2.pairs import STORES, preference_probability


def clip(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def world(
    num_conditions: int, candidates: int, seed: int
) -> tuple[list[str], list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    conditions = [f"c{i}" for i in range(num_conditions) for _ in range(candidates)]
    clips = [clip(f"{seed}-{i}") for i in range(len(conditions))]
    return conditions, clips, rng.random((len(clips), 3)).round(2)


def as_set(pairs: Pairs, clips: list[str]) -> set[tuple[object, ...]]:
    """Rows without their order in the table and with the winner spelled out."""
    rows = set()
    for a, b, labels, stores in zip(pairs.a, pairs.b, pairs.labels, pairs.stores, strict=True):
        winners = tuple({0: clips[a], 1: clips[b], 2: "tie"}[int(x)] for x in labels)
        rows.add((frozenset({clips[a], clips[b]}), winners, tuple(stores.tolist())))
    return rows


def brute_force(
    conditions: list[str], clips: list[str], scores: np.ndarray, threshold: float, margin: float
) -> set[tuple[object, ...]]:
    rows = set()
    for i, j in itertools.combinations(range(len(clips)), 2):
        if conditions[i] != conditions[j]:
            continue
        yes_i = [s >= threshold for s in scores[i]]
        yes_j = [s >= threshold for s in scores[j]]
        winners, stores = [], []
        for d in range(3):
            decided = yes_i[d] != yes_j[d]
            winners.append((clips[i] if yes_i[d] else clips[j]) if decided else "tie")
            stores.append(decided and abs(scores[i, d] - scores[j, d]) >= margin)
        opposed = {sum(yes_i), sum(yes_j)} == {0, 3}
        stores.append(opposed and all(stores))
        if any(stores):
            rows.add((frozenset({clips[i], clips[j]}), tuple(winners), tuple(map(bool, stores))))
    return rows


@given(st.integers(1, 6), st.integers(2, 6), st.integers(0, 999), st.sampled_from([0.0, 0.3]))
@settings(max_examples=40, deadline=None)
def test_pairs_without_a_cap_are_those_of_the_definition(
    num_conditions: int, candidates: int, seed: int, margin: float
) -> None:
    conditions, clips, scores = world(num_conditions, candidates, seed)
    pairs = mine_pairs(
        conditions,
        clips,
        scores,
        Rule(thresholds=(0.6,) * 3, min_margin=margin, max_per_condition=99),
    )
    assert as_set(pairs, clips) == brute_force(conditions, clips, scores, 0.6, margin)


@given(st.integers(0, 999), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_result_does_not_depend_on_the_order_of_the_input(seed: int, random: object) -> None:
    conditions, clips, scores = world(4, 5, seed)
    order = list(range(len(clips)))
    random.shuffle(order)  # type: ignore[attr-defined]
    first = mine_pairs(conditions, clips, scores, Rule(max_per_condition=2, seed=seed))
    second = mine_pairs(
        [conditions[i] for i in order],
        [clips[i] for i in order],
        scores[order],
        Rule(max_per_condition=2, seed=seed),
    )
    assert as_set(first, clips) == as_set(second, [clips[i] for i in order])
    ids = {pair_id(clips[a], clips[b]) for a, b in zip(first.a, first.b, strict=True)}
    shuffled = [clips[i] for i in order]
    assert ids == {
        pair_id(shuffled[a], shuffled[b]) for a, b in zip(second.a, second.b, strict=True)
    }


def test_thresholds_per_dimension_decide_the_answers() -> None:
    scores = np.array([[0.6, 0.6, 0.6], [0.4, 0.4, 0.4]])
    for index, threshold in itertools.product(range(3), (0.3, 0.5, 0.7)):
        thresholds = [0.5, 0.5, 0.5]
        thresholds[index] = threshold
        pairs = mine_pairs(
            ["c", "c"], [clip("x"), clip("y")], scores, Rule(thresholds=tuple(thresholds))
        )
        assert bool(pairs.stores[0, index]) == (threshold == 0.5)
        assert (pairs.labels[0, index] == 2) == (threshold != 0.5)


def test_score_equal_to_the_threshold_is_yes() -> None:
    pairs = mine_pairs(["c"] * 2, [clip("x"), clip("y")], np.array([[0.5] * 3, [0.49] * 3]))
    assert len(pairs) == 1
    winner = pairs.a[0] if pairs.labels[0, 0] == 0 else pairs.b[0]
    assert winner == 0


def test_cap_holds_in_every_store_and_by_margin_keeps_the_widest() -> None:
    conditions, clips, scores = world(30, 8, 1)
    pairs = mine_pairs(conditions, clips, scores, Rule(max_per_condition=3, widest=True))
    where = np.array(conditions)[pairs.a]
    for column in range(len(STORES)):
        counts = np.unique(where[pairs.stores[:, column]], return_counts=True)[1]
        assert counts.max() <= 3
    every = mine_pairs(conditions, clips, scores, Rule(max_per_condition=99))
    for condition in set(conditions):
        for d in range(3):
            gaps = [
                sorted(abs(scores[p.a, d] - scores[p.b, d])[mask], reverse=True)
                for p in (pairs, every)
                for mask in [p.stores[:, d] & (np.array(conditions)[p.a] == condition)]
            ]
            assert gaps[0] == gaps[1][:3]


def test_a_wins_half_of_every_dimension() -> None:
    conditions, clips, scores = world(200, 6, 2)
    pairs = mine_pairs(conditions, clips, scores, Rule(max_per_condition=99))
    for d in range(3):
        decided = pairs.labels[pairs.labels[:, d] != 2, d]
        assert abs((decided == 0).sum() - (decided == 1).sum()) <= 13
    other = mine_pairs(conditions, clips, scores, Rule(max_per_condition=99, seed=1))
    assert not np.array_equal(pairs.a, other.a)
    assert as_set(pairs, clips) == as_set(other, clips)


def test_fusion_store_is_three_yes_against_three_no() -> None:
    scores = np.array([[0.9, 0.9, 0.9], [0.1, 0.1, 0.1], [0.9, 0.9, 0.1]])
    pairs = mine_pairs(["c"] * 3, [clip(x) for x in "xyz"], scores)
    both = [{int(a), int(b)} for a, b in zip(pairs.a, pairs.b, strict=True)]
    inside = [p for p, s in zip(both, pairs.stores, strict=True) if s[3]]
    assert inside == [{0, 1}]


def test_uneven_candidate_counts_and_empty_input() -> None:
    conditions = ["a", "b", "b", "c", "c", "c"]
    scores = np.array([[0.9] * 3, [0.9] * 3, [0.1] * 3, [0.9] * 3, [0.1] * 3, [0.2] * 3])
    pairs = mine_pairs(conditions, [clip(str(i)) for i in range(6)], scores)
    assert len(pairs) == 3
    assert len(mine_pairs([], [], np.zeros((0, 3)))) == 0


@pytest.mark.parametrize(
    ("scores", "clips", "message"),
    [
        (np.array([[np.nan, 0, 0], [0, 0, 0]]), ["a" * 64, "b" * 64], "outside"),
        (np.array([[1.1, 0, 0], [0, 0, 0]]), ["a" * 64, "b" * 64], "outside"),
        (np.zeros((2, 2)), ["a" * 64, "b" * 64], "shape"),
        (np.zeros((2, 3)), ["a" * 64, "a" * 64], "twice"),
    ],
)
def test_bad_input_is_refused(scores: np.ndarray, clips: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mine_pairs(["c", "c"], clips, scores)


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_preference_probability_is_bradley_terry_on_the_log_odds(a: float, b: float) -> None:
    p = preference_probability(a, b)
    assert p + preference_probability(b, a) == pytest.approx(1.0)
    if 1e-6 < a < 1 - 1e-6 and 1e-6 < b < 1 - 1e-6:
        logit = np.log(a / (1 - a)) - np.log(b / (1 - b))
        assert p == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)


@given(st.integers(0, 999), st.lists(st.integers(0, 12), max_size=4), st.booleans())
@settings(max_examples=25, deadline=None)
def test_blocks_of_conditions_give_what_one_call_gives(
    seed: int, cuts: list[int], widest: bool
) -> None:
    conditions, clips, scores = world(12, 4, seed)
    conditions = [f"c{int(c[1:]):02d}" for c in conditions]
    rule = Rule(max_per_condition=2, widest=widest, seed=seed)
    whole = mine_pairs(conditions, clips, scores, rule)
    turns = np.zeros(NUM_PATTERNS, np.int64)
    parts = []
    edges = [0, *sorted(4 * c for c in cuts), len(clips)]
    for start, stop in itertools.pairwise(edges):
        rows = slice(start, stop)
        part = mine_pairs(conditions[rows], clips[rows], scores[rows], rule, turns)
        parts.append((part.a + start, part.b + start, part.labels, part.stores))
    for column, merged in zip(
        (whole.a, whole.b, whole.labels, whole.stores), zip(*parts, strict=True), strict=True
    ):
        assert np.array_equal(column, np.concatenate(merged))


@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 999), st.sampled_from([0.05, 0.3]))
@settings(max_examples=30, deadline=None)
def test_by_margin_the_higher_score_wins_whatever_the_answers(
    num_conditions: int, candidates: int, seed: int, margin: float
) -> None:
    conditions, clips, scores = world(num_conditions, candidates, seed)
    rule = Rule(by="margin", min_margin=margin, max_per_condition=99)
    expected = set()
    for i, j in itertools.combinations(range(len(clips)), 2):
        gap = scores[i] - scores[j]
        wins = [0 if abs(g) < margin or g == 0 else 1 if g > 0 else -1 for g in gap]
        stores = (*(w != 0 for w in wins), abs(sum(wins)) == 3)
        if conditions[i] == conditions[j] and any(stores):
            winners = tuple({1: clips[i], -1: clips[j], 0: "tie"}[w] for w in wins)
            expected.add((frozenset({clips[i], clips[j]}), winners, stores))
    assert as_set(mine_pairs(conditions, clips, scores, rule), clips) == expected


@given(st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_widest_pair_of_one_is_best_against_worst(seed: int) -> None:
    conditions, clips, scores = world(5, 6, seed)
    pairs = mine_pairs(conditions, clips, scores, Rule(max_per_condition=1, widest=True))
    for d, condition in itertools.product(range(3), set(conditions)):
        rows = [i for i, c in enumerate(conditions) if c == condition]
        best, worst = max(scores[rows, d]), min(scores[rows, d])
        found = [p for p in range(len(pairs)) if pairs.stores[p, d] and pairs.a[p] in rows]
        assert len(found) == int(best >= 0.5 > worst)
        for p in found:
            assert {scores[pairs.a[p], d], scores[pairs.b[p], d]} == {best, worst}
