"""The n-gram model: closed forms, sums to one, a slow definition, independence of how text is cut into parts."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplscape.engines.kneser_ney import DISCOUNTS, KneserNey, Tally, discount, most_orders, ngrams, tally

V = 5
chunks_of_ids = st.lists(st.lists(st.integers(0, V - 1), min_size=0, max_size=9), min_size=0, max_size=8)


def arrays(chunks: list[list[int]]) -> list[np.ndarray]:
    return [np.array(c, dtype=np.int32) for c in chunks]


def model(chunks: list[list[int]], order: int, vocabulary: int = V) -> KneserNey:
    return KneserNey(tally([ngrams(arrays(chunks), None, vocabulary, order)]), vocabulary, order)


def probability(m: KneserNey, context: tuple[int, ...], w: int) -> float:
    """p(w | the ids before it); a context may hold V, the start of a chunk."""
    key = 0
    for digit in (*context[len(context) - m.order + 1 :], w):
        key = key * (m.vocabulary + 1) + digit
    return float(np.exp(-np.float64(m.nll(np.array([key], dtype=np.uint64))[0])))


class Slow:
    """The definition, with dictionaries of tuples."""

    def __init__(self, chunks: list[list[int]], order: int, vocabulary: int):
        self.order, self.v = order, vocabulary
        self.c: dict[int, Counter[tuple[int, ...]]] = {order: Counter()}
        for chunk in chunks:
            padded = [vocabulary] * (order - 1) + list(chunk)
            for i in range(len(chunk)):
                self.c[order][tuple(padded[i : i + order])] += 1
        for k in range(order, 1, -1):
            lower: Counter[tuple[int, ...]] = Counter()
            for gram, n in self.c[k].items():
                lower[gram[1:]] += n if gram[1:][0] == vocabulary and k > 2 else 1
            self.c[k - 1] = lower
        self.after: dict[int, dict[tuple[int, ...], list[int]]] = {}
        for k, counts in self.c.items():
            self.after[k] = defaultdict(list)
            for gram, n in counts.items():
                self.after[k][gram[:-1]].append(n)

    def d(self, k: int) -> float:
        n1, n2 = (sum(n == i for n in self.c[k].values()) for i in (1, 2))
        return min(max(n1 / (n1 + 2 * n2), DISCOUNTS[0]), DISCOUNTS[1]) if n1 + n2 else 0.5

    def p(self, context: tuple[int, ...], w: int, k: int | None = None) -> float:
        k = self.order if k is None else k
        if k == 0:
            return 1 / self.v
        u = context[len(context) - k + 1 :]
        lower = self.p(context, w, k - 1)
        after = self.after[k].get(u)
        if not after:
            return lower
        n = self.c[k].get((*u, w), 0)
        return (max(n - self.d(k), 0) + self.d(k) * len(after) * lower) / sum(after)


def test_unigram_by_hand() -> None:
    """0 three times, 1 twice, 2 once of 4 ids: n1 = n2 = 1, so d = 1/3; the rest 3 d / 6 = 1/6 is shared by four."""
    m = model([[0, 0, 1], [2, 1, 0]], order=1, vocabulary=4)
    expected = [(3 - 1 / 3) / 6 + 1 / 24, (2 - 1 / 3) / 6 + 1 / 24, (1 - 1 / 3) / 6 + 1 / 24, 1 / 24]
    assert [probability(m, (), w) for w in range(4)] == pytest.approx(expected, rel=1e-6)


def test_bigram_by_hand() -> None:
    """`a b a b`: bigrams (start, a), (a, b) twice, (b, a); n1 = 2, n2 = 1, d = 1/2. Each id was seen after
    (start, b) and after (a): continuation counts 2 and 1, n1 = n2 = 1, d = 1/3, rest 2/9."""
    a, b, start = 0, 1, V
    m = model([[a, b, a, b]], order=2)
    lower = [(2 - 1 / 3) / 3 + 2 / 9 / V, (1 - 1 / 3) / 3 + 2 / 9 / V, 2 / 9 / V]
    assert probability(m, (a,), b) == pytest.approx((2 - 0.5) / 2 + 0.5 / 2 * lower[b], rel=1e-6)
    assert probability(m, (a,), a) == pytest.approx(0.25 * lower[a], rel=1e-6)
    assert probability(m, (start,), a) == pytest.approx(0.5 + 0.5 * lower[a], rel=1e-6)
    assert probability(m, (4,), 2) == pytest.approx(lower[2], rel=1e-6)


@settings(max_examples=60)
@given(chunks=chunks_of_ids, order=st.integers(1, 3), data=st.data())
def test_probabilities_sum_to_one_and_follow_the_definition(
    chunks: list[list[int]], order: int, data: st.DataObject
) -> None:
    m, slow = model(chunks, order), Slow(chunks, order, V)
    contexts = list(product(range(V + 1), repeat=order - 1))
    context = data.draw(st.sampled_from(contexts))
    found = [probability(m, context, w) for w in range(V)]
    assert sum(found) == pytest.approx(1, abs=1e-6)
    assert found == pytest.approx([slow.p(context, w) for w in range(V)], rel=1e-5)


@settings(max_examples=30)
@given(chunks=chunks_of_ids, order=st.integers(1, 3), cut=st.integers(0, 8), data=st.data())
def test_parts_and_order_of_chunks_change_nothing(
    chunks: list[list[int]], order: int, cut: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(chunks))
    parts = [ngrams(arrays(c), None, V, order) for c in (shuffled[:cut], shuffled[cut:])]
    one, several = tally([ngrams(arrays(chunks), None, V, order)]), tally(parts)
    np.testing.assert_array_equal(one.keys, several.keys)
    np.testing.assert_array_equal(one.counts, several.counts)


def test_a_context_stands_before_the_chunk_and_is_not_scored() -> None:
    whole = ngrams(arrays([[1, 2, 3, 4]]), None, V, 3)
    after = ngrams(arrays([[3, 4]]), arrays([[0, 1, 2]]), V, 3)
    np.testing.assert_array_equal(after, whole[2:])
    short = ngrams(arrays([[2, 3, 4]]), arrays([[1]]), V, 3)
    np.testing.assert_array_equal(short, whole[1:])


def test_counting_nothing_leaves_the_uniform_distribution() -> None:
    m = model([], order=2)
    assert probability(m, (0,), 3) == pytest.approx(1 / V)
    assert isinstance(m.counted, Tally)


def test_discounts_keep_something_for_the_unseen() -> None:
    assert discount(np.array([1, 1, 2])) == pytest.approx(2 / 4)
    assert discount(np.array([2, 2])) == DISCOUNTS[0]
    assert discount(np.array([1, 1])) == DISCOUNTS[1]
    assert discount(np.array([7])) == 0.5


def test_the_longest_ngram_fits_into_64_bits() -> None:
    for vocabulary in (400, 4096, 50_257, 152_000, 262_144):
        n = most_orders(vocabulary)
        assert (vocabulary + 1) ** n < 2**64 <= (vocabulary + 1) ** (n + 1)
