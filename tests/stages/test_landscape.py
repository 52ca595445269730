"""The landscape stage: known answers on a tiny pool, properties on random ones, bad input."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pplscape.errors import StaleOutput, UserError
from pplscape.landscape_facts import feasible_boundary
from pplscape.reporting.about_data import second_axis_words
from pplscape.schema import LIKENED, SCORES
from pplscape.stages.landscape import landscape
from pplscape.statistics import Bins, moments, winsor_limits


def write_scores(folder: Path, x: np.ndarray, length: np.ndarray, source: list[str], parts: int = 1) -> Path:
    """A score folder without a manifest, as a user's own: log-perplexities x [n] and lengths [n]."""
    n = len(x)
    table = pa.table(
        {
            "doc_id": [f"d{i}" for i in range(n)],
            "chunk_index": np.zeros(n, np.int32),
            "char_start": np.zeros(n, np.int64),
            "char_end": np.full(n, 10),
            "length": length.astype(np.int32),
            "n_tokens": length.astype(np.int32),
            "n_bytes": (4 * length).astype(np.int32),
            "nll_sum": x * length,
            "source": source,
        },
        schema=SCORES,
    )
    folder.mkdir(parents=True)
    for k, rows in enumerate(np.array_split(np.arange(n), parts)):
        pq.write_table(table.take(rows), folder / f"part-{k:05d}.parquet")
    return folder


def with_likeness(scores: Path, likeness: np.ndarray, out: Path) -> Path:
    """The scores [n] of one part with likeness [n]."""
    table = pq.read_table(scores / "part-00000.parquet")
    columns = {name: table[name] for name in table.column_names} | {"likeness": pa.array(likeness)}
    out.mkdir(parents=True)
    pq.write_table(pa.table([columns[f.name] for f in LIKENED], schema=LIKENED), out / "part-00000.parquet")
    return out


@pytest.fixture
def pool(tmp_path):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(4.5, 0.6, 900), rng.normal(8, 0.2, 60)])
    length = rng.integers(64, 257, len(x))
    source = [f"s{i % 9}" for i in range(len(x))]
    return write_scores(tmp_path / "scores", x, length, source, parts=3), x, length


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Drawing takes most of the time; only tests that ask for `drawn` do it."""
    monkeypatch.setattr("pplscape.stages.landscape._write_histogram", lambda folder, facts: None)


@pytest.fixture
def drawn(undrawn, monkeypatch):
    monkeypatch.undo()


def read(folder: Path) -> dict:
    return json.loads((folder / "landscape.json").read_text())


def test_known_answers_on_four_chunks(tmp_path):
    x, length = np.log([2.0, 4.0, 8.0, 16.0]), np.array([100, 100, 100, 300])
    scores = write_scores(tmp_path / "scores", x, length, ["a", "a", "b", "b"])
    facts = read(landscape(scores, budget=300, n_bins=2, out=tmp_path / "out"))
    nats = float(np.sum(x * length))
    assert facts["tokens"] == 600
    assert facts["n_chunks"] == 4
    assert facts["n_bytes"] == 2400
    assert facts["corpus_ppl"] == pytest.approx(np.exp(nats / 600))
    assert facts["mean_chunk_ppl"] == pytest.approx(7.5)
    assert facts["bits_per_byte"] == pytest.approx(nats / np.log(2) / 2400)
    assert facts["scale"]["ppl"]["raw"] == pytest.approx({"mean": 7.5, "std": np.std([2, 4, 8, 16])})
    assert [(s["source"], s["tokens"], s["n_chunks"]) for s in facts["by_source"]] == [("b", 400, 2), ("a", 200, 2)]
    assert facts["by_source"][1]["nll"] == pytest.approx(np.log(8) / 2)
    assert facts["by_source"][1]["bits_per_byte"] == pytest.approx(3 / 2 / 4)
    assert sum(facts["bins"]["share"]) == pytest.approx(1)


def test_everything_adds_up(pool, tmp_path):
    scores, x, length = pool
    facts = read(landscape(scores, budget="10%", out=tmp_path / "out"))
    assert facts["budget"] == length.sum() // 10
    for rows in (facts["bins"]["by_bin"], facts["by_source"]):
        assert sum(r["tokens"] for r in rows) == length.sum()
        assert sum(r["n_chunks"] for r in rows) == len(x)
    cells = facts["histogram"]
    assert np.sum(cells["counts"]) == len(x)
    assert np.sum(cells["tokens"]) == length.sum()
    assert len(cells["edges"]) == 61
    assert len(cells["sources"]) == 6
    for scale, values in (("nll", x), ("ppl", np.exp(x))):
        limits = winsor_limits(values)
        expected = moments(values, limits)
        assert facts["winsor"][scale] == pytest.approx(limits)
        assert facts["scale"][scale]["mean"] == pytest.approx(expected.mean)
        assert facts["scale"][scale]["std"] == pytest.approx(expected.std)


@pytest.mark.parametrize(("n_bins", "n_fine"), [(4, 16), (10, 40), (12, 36), (25, 25), (60, 60)])
def test_fine_bins_refine_the_bins(pool, tmp_path, n_bins, n_fine):
    facts = read(landscape(pool[0], budget=5000, n_bins=n_bins, out=tmp_path / "out"))
    assert len(facts["fine_bins"]["share"]) == n_fine
    assert set(facts["bins"]["edges"]) <= set(facts["fine_bins"]["edges"])


def test_fine_bins_carry_the_moments_of_the_pool(pool, tmp_path):
    facts = read(landscape(pool[0], budget=5000, out=tmp_path / "out"))
    fine = facts["fine_bins"]
    weight = np.asarray(fine["chunks"]) / facts["n_chunks"]
    for scale in ("nll", "ppl"):
        mean, variance = (np.asarray(fine["winsorised"][scale][k]) for k in ("mean", "variance"))
        assert weight @ mean == pytest.approx(facts["scale"][scale]["mean"])
        total = weight @ (variance + mean**2) - (weight @ mean) ** 2
        assert total**0.5 == pytest.approx(facts["scale"][scale]["std"])


@pytest.mark.parametrize("scale", ["nll", "ppl"])
def test_every_subset_lies_within_the_feasible_boundary(scale):
    from matplotlib.path import Path as Polygon

    rng = np.random.default_rng(1)
    x, n = rng.gamma(9, 0.5, 400), 40
    values = x if scale == "nll" else np.exp(x)
    values = np.clip(values, *winsor_limits(values))
    ring = np.asarray(feasible_boundary(x, scale, n))
    assert np.allclose(ring[0], ring[-1])
    inside = Polygon(np.stack([ring[:, 0], ring[:, 1] ** 2 + ring[:, 0] ** 2], 1))
    span = np.ptp(values)
    for _ in range(100):
        subset = rng.choice(values, n, replace=False)
        assert inside.contains_point((subset.mean(), np.mean(subset**2)), radius=-1e-9 * span)
    assert ring[:, 0].min() == pytest.approx(np.sort(values)[:n].mean())
    assert ring[:, 0].max() == pytest.approx(np.sort(values)[-n:].mean())


@pytest.mark.parametrize("share", [0.01, 0.3])
@pytest.mark.parametrize("scale", ["nll", "ppl"])
def test_narrowest_and_widest_subsets_lie_on_the_boundary(scale, share):
    x = np.random.default_rng(2).gamma(9, 0.5, 3000)
    n = int(share * len(x))
    values = x if scale == "nll" else np.exp(x)
    values = np.sort(np.clip(values, *winsor_limits(values)))
    ring = np.asarray(feasible_boundary(x, scale, n))
    apart = np.concatenate([values[: n // 2], values[n // 2 - n :]])
    assert ring[:, 1].max() >= apart.std() * 0.999
    for start in (100, 1000, 1900):
        window = values[start : start + n]
        near = np.interp(window.mean(), *ring[: ring[:, 0].argmax()].T)
        assert near == pytest.approx(window.std(), rel=0.02 if share > 0.02 else 0.1)


def test_far_outliers_do_not_flatten_the_histogram(tmp_path):
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(4, 0.3, 5000), [60.0]])
    scores = write_scores(tmp_path / "scores", x, np.full(len(x), 100), ["a"] * len(x))
    cells = read(landscape(scores, budget="10%", out=tmp_path / "out"))["histogram"]
    assert cells["edges"][-1] < 10
    assert cells["outside"] == {"below": 0, "above": 1}
    assert np.sum(cells["counts"]) == 5000


def test_rows_without_a_loss_are_counted_not_lost(tmp_path):
    x = np.array([1.0, np.nan, np.inf, 2.0, 800.0])
    scores = write_scores(tmp_path / "scores", x, np.array([100] * 5), ["a"] * 5)
    out = landscape(scores, budget=100, out=tmp_path / "out")
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts == {"in": 5, "out": 2, "rejected": {"score_not_finite": 3}}


def test_files_and_resume(drawn, pool, tmp_path):
    out = landscape(pool[0], budget="5e4", out=tmp_path / "out")
    assert {p.name for p in out.iterdir()} == {
        "landscape.json", "landscape.png", "landscape.svg", "summary.md", "manifest.json"
    }  # fmt: skip
    before = (out / "manifest.json").read_bytes()
    assert landscape(pool[0], budget=50_000, out=out) == out
    assert (out / "manifest.json").read_bytes() == before
    with pytest.raises(StaleOutput, match="config"):
        landscape(pool[0], budget=60_000, out=out)
    landscape(pool[0], budget=60_000, out=out, overwrite=True)
    assert read(out)["budget"] == 60_000


def test_same_input_same_bytes(drawn, pool, tmp_path):
    one, two = (landscape(pool[0], budget="5e4", out=tmp_path / name) for name in "ab")
    for name in ("landscape.json", "landscape.svg", "landscape.png", "summary.md"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_samples_come_from_their_bin(pool, tmp_path, monkeypatch):
    scores, x, _ = pool

    class Corpus:
        def __init__(self, path):
            self.path = path

        def texts(self, split, chunks):
            assert split == "pool"
            return [f"{i} " * 500 for i in chunks["doc_id"].to_pylist()]

    import sys
    import types

    monkeypatch.setitem(sys.modules, "pplscape.text.prepared", types.SimpleNamespace(Prepared=Corpus))
    (tmp_path / "prepared").mkdir()
    facts = read(landscape(scores, budget="10%", out=tmp_path / "out", corpus=tmp_path / "prepared"))
    assert [len(s) for s in facts["samples"]] == [3] * 10
    for row, samples in zip(facts["bins"]["by_bin"], facts["samples"], strict=True):
        for s in samples:
            assert row["low"] <= s["nll"] <= row["high"]
            assert s["nll"] == pytest.approx(x[int(s["doc_id"][1:])])
            assert len(s["text"]) == 300
            assert s["text"].startswith(s["doc_id"])


def test_one_chunk_pool(tmp_path):
    scores = write_scores(tmp_path / "scores", np.array([3.0]), np.array([100]), ["a"])
    facts = read(landscape(scores, budget=100, out=tmp_path / "out"))
    assert facts["bins"]["share"] == [1.0]
    assert facts["scale"]["nll"]["std"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part.unlink(), "no scores at"),
        (lambda part: pq.write_table(pa.table({"length": [300], "nope": [1]}), part), "it has length, nope"),
        (lambda part: part.write_bytes(b"PAR1 broken"), "cannot be read as Parquet"),
    ],
)
def test_bad_input_gets_one_clear_sentence(tmp_path, change, message):
    scores = write_scores(tmp_path / "scores", np.array([3.0, 4.0]), np.array([100, 100]), ["a", "b"])
    change(scores / "part-00000.parquet")
    with pytest.raises(UserError, match=message):
        landscape(scores, budget=100, out=tmp_path / "out")


def test_budget_larger_than_the_pool(pool, tmp_path):
    with pytest.raises(UserError, match="larger than the pool"):
        landscape(pool[0], budget="1e9", out=tmp_path / "out")


@pytest.mark.parametrize(("tied", "levels"), [(0.2, 3), (0.42, 2), (0.6, 1)])
def test_levels_that_ties_forbid_become_fewer_where_that_is_allowed(tmp_path, tied, levels):
    """This share of every bin has the lowest likeness: it may not fill the lowest level of three, or of two."""
    rng, n = np.random.default_rng(0), 2000
    x = rng.permutation(np.linspace(2, 6, n))
    likeness = np.where(np.argsort(np.argsort(x)) * 0.618 % 1 < tied, -1.0, rng.random(n))
    plain = write_scores(tmp_path / "plain", x, np.full(n, 64), ["s"] * n)
    scores, asked = with_likeness(plain, likeness, tmp_path / "likened"), {"budget": "10%", "levels": 3}
    if levels == 3:
        facts = read(landscape(scores, out=tmp_path / "out", fewer=True, **asked))
        assert "second_axis" not in facts
    else:
        with pytest.raises(UserError, match="too few different values of likeness for 3 levels"):
            landscape(scores, out=tmp_path / "out", **asked)
        with pytest.warns(UserWarning, match="Likeness has too few different values for 3 levels"):
            facts = read(landscape(scores, out=tmp_path / "out", fewer=True, **asked))
        assert (facts["second_axis"]["asked"], facts["second_axis"]["levels"]) == (3, levels)
        assert facts["second_axis"]["sentence"] in (tmp_path / "out" / "summary.md").read_text()
        assert second_axis_words(facts).strip() == facts["second_axis"]["sentence"]
    bins = Bins.from_json(facts["bins"])
    assert (bins.coarse.n, bins.n_levels) == (10, levels)


def test_a_second_axis_does_not_cost_the_first(tmp_path):
    """All but one of ten bins hold one likeness: explicit levels leave one bin, `fewer` ten without levels."""
    x = np.linspace(2, 6, 1000)
    plain = write_scores(tmp_path / "plain", x, np.full(1000, 64), ["s"] * 1000)
    likeness = np.where(np.arange(1000) < 900, 5.0, np.random.default_rng(0).normal(0, 1, 1000))
    scores = with_likeness(plain, likeness, tmp_path / "likened")
    with pytest.warns(UserWarning, match="log-perplexity alone"):
        facts = read(landscape(scores, budget="10%", levels=2, fewer=True, out=tmp_path / "out"))
    assert len(facts["bins"]["by_bin"]) == 10
    assert "levels" not in facts["bins"]
