"""Every strategy with all at once: quotas, forced and forbidden documents, an earlier selection, whole documents."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from pools import score_table

from pplscape.draw.census import take_census
from pplscape.draw.describe import frame_of
from pplscape.draw.documents import write_documents
from pplscape.draw.keys import Keys
from pplscape.draw.options import Options, Target
from pplscape.draw.permanent import hash_documents, names_of
from pplscape.draw.pool import Pool
from pplscape.draw.program import Utility
from pplscape.draw.scores import Scores
from pplscape.draw.strategies import BY_TEXT, STRATEGIES
from pplscape.draw.stream import carry_out, carry_out_whole, read_contained, read_selected
from pplscape.statistics import make_bins

N, LONGEST = 2000, 256
TABLE = score_table(N)
POOL = Pool.from_table(TABLE)
LENGTH = {(r["doc_id"], r["chunk_index"]): r["length"] for r in TABLE.to_pylist()}
IDS = POOL.doc_names.to_pylist()
FORCED, FORBIDDEN = frozenset(IDS[3:9]), frozenset(IDS[100:140])
QUOTAS = {"a": 0.45, "b": 0.2}


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    for i in range(4):
        pq.write_table(TABLE.slice(i * 500, 500), folder / f"part-{i:05d}.parquet", row_group_size=300)
    return replace(Scores.read(folder, 2, 700), reads_ids=True)


@pytest.fixture(scope="module")
def keyed(scores, tmp_path_factory):
    names = names_of(hash_documents(TABLE["doc_id"].combine_chunks()), TABLE["chunk_index"].to_numpy())
    key = np.random.default_rng(4).normal(0, 20, N)
    return scores.keyed(Keys.write(tmp_path_factory.mktemp("keys"), N, [(names, key)]))


def options(**asked):
    bins = make_bins(POOL.x, POOL.length, 5)
    utility = Utility(np.array([1.0, 2, 3, 2, 1]), np.asarray(bins.share), "saturating", 0.5, POOL.tokens / 4)
    return Options(
        scale="nll", target=Target(3.2, 0.7), band=(0.02, 0.98), temperature=-0.6, bins=bins, utility=utility,
        toward=np.array([0.1, 0.2, 0.3, 0.3, 0.1]), **asked,
    )  # fmt: skip


def taken(scores, name, budget, seed, told, out, whole):
    census, scratch = take_census(scores, told.bins.edges), out / "documents"
    if whole:
        documents = write_documents(scores, scratch)
        inside = take_census(documents, told.bins.edges)
        carry_out_whole(scores, census, documents, inside, name, budget, seed, told, frame_of(census), out, scratch)
    else:
        carry_out(scores, census, name, budget, seed, told, frame_of(census), out)
    return {(r["doc_id"], r["chunk_index"]): r["repeats"] for r in read_selected(out).to_pylist()}


CASES = [(s, True) for s in STRATEGIES if s not in ("full", "learnable")]
CASES += [(s, False) for s in ("high", "learnable", *BY_TEXT)]
"""Whole documents or not: `test_groups` and `test_nesting` have the other strategies' chunks; `learnable` ranks chunks
only."""


@pytest.mark.parametrize(("name", "whole"), CASES)
def test_all_at_once(name, whole, scores, keyed, tmp_path):
    source = keyed if name in BY_TEXT else scores
    unit = 8 * LONGEST if whole else LONGEST
    told = options(quotas=QUOTAS, forced=FORCED, forbidden=FORBIDDEN)
    small, large = POOL.tokens // 10, POOL.tokens // 5
    first = taken(source, name, small, 1, told, tmp_path / "first", whole)
    told = replace(told, contained=read_contained(tmp_path / "first", whole))
    second = taken(source, name, large, 2, told, tmp_path / "second", whole)
    for drawn, budget in ((first, small), (second, large)):
        tokens = sum(LENGTH[key] * times for key, times in drawn.items())
        assert 0 <= budget - tokens < unit
        assert {key for key in LENGTH if key[0] in FORCED} <= drawn.keys()
        assert not any(doc in FORBIDDEN for doc, _ in drawn)
        for source_name, share in QUOTAS.items():
            of = sum(LENGTH[key] * t for key, t in drawn.items() if IDS.index(key[0]) % 3 == "abc".index(source_name))
            forced = 8 * LONGEST * len(FORCED)
            assert share * budget - unit < of < share * budget + unit + forced
        if whole:
            chosen = {doc for doc, _ in drawn}
            assert drawn.keys() == {key for key in LENGTH if key[0] in chosen}
    assert all(second[key] >= times for key, times in first.items())
