"""Where a target text lies: its mix of bins, shrunk to the pool's; closed forms and draws of known origin."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplscape.draw.mix import LEAST_DOCUMENTS, Located, target_mix
from pplscape.errors import UserError
from pplscape.schema import LIKENED
from pplscape.statistics import Bins

TEN = Bins(tuple(float(e) for e in range(1, 10)), (0.1,) * 10)
CUT = Bins((1.0,), (0.25,) * 4, ((0.0,), (0.0,)), "likeness")


def located(bins_of_chunks, level=None, documents=None, axis=None) -> Located:
    of = np.asarray(bins_of_chunks)
    documents = np.arange(len(of)) if documents is None else np.asarray(documents)
    second = np.empty(0) if level is None else np.asarray(level, dtype=float)
    return Located(of + 0.5, second, np.full(len(of), 100), documents, axis)


def draw(shares, n, seed=0):
    return np.random.default_rng(seed).choice(len(shares), size=n, p=shares)


def test_a_bin_that_the_target_avoids_keeps_little():
    shares = np.array([0.125] * 8 + [0.0, 0.0])
    mix = target_mix(located(draw(shares, 200)), TEN, np.full(10, 1000.0))
    assert mix[8:].max() < 0.01
    assert mix[8:].min() > 0
    assert np.isclose(mix.sum(), 1)


def test_the_closed_form():
    # 20 documents of two chunks: 15 in bin 0, 5 in bin 1 of two equal ones. p = 3/4, var(p) = p (1 - p) / 19: n = 19.
    two = Bins((1.0,), (0.5, 0.5))
    pairs = np.arange(40) // 2
    mix = target_mix(located([0] * 30 + [1] * 10, documents=pairs), two, np.array([5.0, 5.0]))
    q = 0.5 + 0.25 * (1 - 1 / 4 / 19 / 0.25**2)
    assert np.allclose(mix, [q, 1 - q])
    # 40 documents of one chunk: var(p) = p (1 - p) / 39, n = 39; more than chunks they are never worth.
    mix = target_mix(located([0] * 30 + [1] * 10), two, np.array([5.0, 5.0]))
    q = 0.5 + 0.25 * (1 - 1 / 4 / 39 / 0.25**2)
    assert np.allclose(mix, [q, 1 - q])


def test_documents_that_are_all_alike_are_worth_one_chunk_each():
    mix = target_mix(located([0] * 40, documents=np.arange(40) // 4), TEN, np.ones(10))
    q = 0.1 + 0.9 * (1 - 0.1 * 0.9 / 10 / 0.9**2)  # ten documents, n = 10
    rest = 0.1 - 0.1 * max(0, 1 - 0.1 * 0.9 / 10 / 0.1**2)
    assert np.allclose(mix, np.array([q, *[rest] * 9]) / (q + 9 * rest))


def test_documents_are_the_unit_and_not_chunks():
    few = target_mix(located([0] * 60 + [1] * 30, documents=np.arange(90) // 10), Bins((1.0,), (0.5, 0.5)), np.ones(2))
    many = target_mix(located([0] * 60 + [1] * 30), Bins((1.0,), (0.5, 0.5)), np.ones(2))
    assert np.allclose(few, 0.5)  # nine documents, six of them in bin 0, may be chance
    assert many[0] > 0.6


def test_a_target_of_the_pool_is_nearly_the_pool():
    gone = [
        np.abs(target_mix(located(draw([0.1] * 10, 200, seed)), TEN, np.ones(10)) - 0.1).sum() for seed in range(40)
    ]
    raw = [np.abs(np.bincount(draw([0.1] * 10, 200, seed), minlength=10) / 200 - 0.1).sum() for seed in range(40)]
    assert np.mean(gone) < 0.5 * np.mean(raw)


def test_few_documents_say_nothing():
    for documents in (1, LEAST_DOCUMENTS - 1):
        target = located([3] * 50, documents=np.arange(50) % documents)
        assert np.allclose(target_mix(target, TEN, np.full(10, 7.0)), 0.1)
    assert target_mix(located([3] * 50, documents=np.arange(50) % LEAST_DOCUMENTS), TEN, np.full(10, 7.0))[3] > 0.5


@pytest.mark.filterwarnings("error")
def test_a_pool_of_one_bin():
    assert target_mix(located([3] * 50), TEN, np.eye(10)[3]).tolist() == np.eye(10)[3].tolist()


def test_levels_and_bins_count_alone():
    # All chunks in the upper level, bins as in the pool.
    target = located([0, 1] * 50, level=[1.0] * 100, axis="likeness")
    mix = target_mix(target, CUT, np.full(4, 10.0)).reshape(2, 2)
    assert np.allclose(mix.sum(1), 0.5)
    assert (mix[:, 1] > 0.49).all()


def test_a_target_without_the_axis_leaves_the_levels():
    mix = target_mix(located([0] * 90 + [1] * 10), CUT, np.full(4, 10.0)).reshape(2, 2)
    assert np.allclose(mix[:, 0], mix[:, 1])
    assert mix[0, 0] > 0.4


def test_what_the_pool_lacks_is_not_asked_for():
    mix = target_mix(located(draw([0.1] * 10, 100)), TEN, np.array([0.0] + [1.0] * 9))
    assert mix[0] == 0
    assert np.isclose(mix.sum(), 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.lists(st.integers(0, 5), min_size=60, max_size=60),
    st.lists(st.floats(0.01, 1e6), min_size=10, max_size=10),
)
def test_always_a_mix_that_every_bin_of_the_pool_has_a_part_in(bins, documents, pool):
    mix = target_mix(located(bins, documents=documents[: len(bins)]), TEN, np.array(pool))
    assert np.isclose(mix.sum(), 1)
    assert (mix > 0).all()


def write(folder, nll, likeness):
    n = len(nll)
    columns = {
        "doc_id": [f"d{i // 2}" for i in range(n)], "chunk_index": [i % 2 for i in range(n)], "char_start": [0] * n,
        "char_end": [9] * n, "length": [10] * n, "n_tokens": [10] * n, "n_bytes": [9] * n, "nll_sum": nll,
        "likeness": likeness, "source": ["s"] * n,
    }  # fmt: skip
    pq.write_table(pa.table(columns, schema=LIKENED), folder / "part-00000.parquet")


def test_reading_keeps_documents_and_leaves_out_what_has_no_score(tmp_path):
    write(tmp_path, [10.0, 20.0, float("nan"), 40.0], [0.1, 0.2, 0.3, 0.4])
    found = Located.read(tmp_path)
    assert found.x.tolist() == [1.0, 2.0, 4.0]
    assert found.second.tolist() == [0.1, 0.2, 0.4]
    assert found.document.tolist() == [0, 0, 1]
    assert found.axis == "likeness"


def test_nothing_to_read_is_said(tmp_path):
    write(tmp_path, [float("nan")], [0.1])
    with pytest.raises(UserError, match="no chunk with a score"):
        Located.read(tmp_path)
