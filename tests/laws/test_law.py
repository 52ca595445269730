"""law.json: complete, unrounded, data only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import worlds

from pplscape.errors import UserError
from pplscape.laws.build import build
from pplscape.laws.fit import fit_form
from pplscape.laws.law import Law, law_of
from pplscape.laws.uncertainty import uncertainty
from pplscape.laws.words import noise_words
from pplscape.runs import Compositions, RunTable


@pytest.fixture(scope="module")
def runs() -> RunTable:
    return worlds.table("utility", trunks=10)


@pytest.fixture(scope="module")
def law(runs: RunTable) -> Law:
    return build(runs, ["d-only", "monotone", "paper:var", "quadratic", "utility"], bootstrap=30)[0]


def test_json_round_trip_is_exact(law: Law, runs: RunTable, tmp_path: Path) -> None:
    path = tmp_path / "law.json"
    path.write_text(json.dumps(law.to_json(), allow_nan=False))
    again = Law.from_json(path)
    assert again == law
    assert Law.from_json(tmp_path) == law
    for form in ("utility", "quadratic", "paper", "monotone", "d-only"):
        one, other = law.alternative(form), again.alternative(form)
        np.testing.assert_array_equal(one.predict(runs), other.predict(runs))
        np.testing.assert_array_equal(one.predict_interval(runs), other.predict_interval(runs))


def test_the_contract_is_kept(law: Law) -> None:
    value = law.to_json()
    assert set(value) >= {
        "form", "scale", "reading", "params", "intervals", "covered", "resamples", "diagnostics", "optimum",
        "base_loss", "noise", "bins", "winsor", "tokenizer", "chunk_tokens", "model", "verdict", "choice",
        "alternatives",
    }  # fmt: skip
    assert set(value["diagnostics"]) >= {
        "cv_mae", "mae_over_gain", "spearman", "top1_regret", "coverage", "condition_number", "vif", "d_span",
        "n_runs", "n_trunks", "d_variance_share",
    }  # fmt: skip
    assert value["optimum"]["kind"] == "none"
    kinds = {a["form"]: a["optimum"]["kind"] for a in value["alternatives"]}
    assert kinds["quadratic"] in ("interior", "saddle", "unbounded", "edge")
    assert value["params"].keys() == value["intervals"].keys()
    assert len(value["resamples"]["params"]) == 30
    assert value["base_loss"] == 4.8


def test_alternatives_are_found_by_family(law: Law) -> None:
    assert law.alternative("paper").form == "paper:var"
    assert law.alternative("paper").reading == "var"
    assert law.alternative(law.form) is law
    with pytest.raises(UserError, match="has no extended law; it has: utility"):
        law.alternative("extended")


def test_predictions_outside_the_pilots_are_flagged(law: Law, runs: RunTable) -> None:
    for form in ("quadratic", "paper", "monotone", "utility"):
        assert not law.alternative(form).extrapolates(runs).any()
    assert runs.bin_tokens is not None
    columns = {k: getattr(runs, k).copy() for k in ("nll_mean", "ppl_mean", "bin_tokens")}
    columns["nll_mean"][0] += 3
    columns["ppl_mean"][0] *= 30
    columns["bin_tokens"][0, 0] = 10 * runs.bin_tokens.max()
    moved = replace(runs, **columns)
    for form in ("quadratic", "paper", "monotone", "utility"):
        flags = law.alternative(form).extrapolates(moved)
        assert flags[0]
        assert not flags[1:].any()
    assert not law.alternative("d-only").extrapolates(moved).any()
    np.testing.assert_allclose(law.size_ratio(runs).max(), 1.0)


def test_what_is_not_a_law_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no law at"):
        Law.from_json(tmp_path / "law.json")
    (tmp_path / "law.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        Law.from_json(tmp_path)
    (tmp_path / "law.json").write_text('{"form": "paper"}')
    with pytest.raises(UserError, match=r"not a law\.json"):
        Law.from_json(tmp_path)


def test_a_law_says_which_columns_it_lacks(law: Law) -> None:
    with pytest.raises(UserError, match="needs bin_tokens to predict"):
        law.alternative("utility").predict(Compositions(tokens=np.array([1e5])))


def test_predict_takes_columns_a_mapping_and_a_table(law: Law, runs: RunTable, tmp_path: Path) -> None:
    paper = law.alternative("paper")
    columns = {"D": [64e3, 512e3], "mu": runs.ppl_mean[:2], "sigma": float(runs.ppl_std[0])}
    loss, low, high = paper.predict(**columns)
    at = Compositions(tokens=np.array([64e3, 512e3]), ppl_mean=runs.ppl_mean[:2], ppl_std=runs.ppl_std[[0, 0]])
    np.testing.assert_array_equal(loss, paper.predict(at))
    np.testing.assert_array_equal((low, high), paper.predict_interval(at))
    assert (low < loss).all()
    assert (loss < high).all()
    np.testing.assert_array_equal(paper.predict(columns), (loss, low, high))
    rows = [
        f"{d},{m!r},{float(runs.ppl_std[0])!r},x" for d, m in zip(columns["D"], columns["mu"].tolist(), strict=True)
    ]
    (tmp_path / "asked.csv").write_text("\n".join(["D,mu,sigma,remark", *rows]) + "\n")
    np.testing.assert_allclose(paper.predict(tmp_path / "asked.csv").loss, loss, rtol=1e-12)
    wide = paper.predict(**columns, level=0.99)
    assert (wide.high - wide.low >= high - low).all()


def test_predict_takes_bins_and_one_size(law: Law, runs: RunTable) -> None:
    utility = law.alternative("utility")
    found = utility.predict(D=runs.tokens[:3], bins=runs.bin_tokens[:3])
    np.testing.assert_array_equal(found.loss, utility.predict(runs)[:3])
    assert utility.predict(D=64e3, bins=runs.bin_tokens[0]).loss.shape == (1,)


def test_predict_says_what_is_wrong(law: Law) -> None:
    paper = law.alternative("paper")
    with pytest.raises(UserError, match="cannot be asked about colour"):
        paper.predict(D=1e5, colour=3)
    with pytest.raises(UserError, match="give D"):
        paper.predict(mu=30.0, sigma=10.0)
    with pytest.raises(UserError, match="different lengths"):
        paper.predict(D=[1e5, 2e5, 3e5], mu=[30.0, 40.0], sigma=10.0)
    with pytest.raises(UserError, match="needs ppl_std"):
        paper.predict(D=1e5, mu=30.0)
    with pytest.raises(UserError, match="not a number"):
        paper.predict(D="many")


def test_a_law_without_resamples_predicts_without_intervals(runs: RunTable) -> None:
    law = build(runs, ["d-only"], bootstrap=0)[0]
    loss, low, high = law.predict(D=[1e5, 2e5])
    assert loss[0] > loss[1]
    assert np.isnan([low, high]).all()


def test_the_audit_is_in_the_diagnostics(law: Law) -> None:
    for one in (law, *law.alternatives):
        assert one.diagnostics["audit"]["starts"] >= 20
        assert 0 <= one.diagnostics["audit"]["agree"] <= 1


def test_a_bowl_that_is_well_known_is_not_called_unidentified() -> None:
    runs = worlds.table("quadratic", trunks=16, noise=0.001)
    fit = fit_form("quadratic", runs)
    intervals = law_of(fit, runs, uncertainty(fit, runs, 99)).intervals
    assert not [name for name, found in intervals.items() if isinstance(found, dict)]
    assert intervals["q_xx"][0] < 0.6 < intervals["q_xx"][1]  # the world's own curvature


def test_the_noise_is_told_with_its_degrees_of_freedom(law: Law) -> None:
    """3 and 4 of a thousand are 5 of a thousand together, 9 of 25 parts of the variance shared."""
    known = replace(law, resamples=law.resamples | {"noise_trunk": 0.003, "noise_run": 0.004, "freedom": 17.2})
    assert noise_words(known) == [
        f"Noise of a run around the {law.form} law: 0.50% of the loss, 36% of its variance shared by the branches of a "
        "trunk; known from about 17 degrees of freedom."
    ]
    few = replace(law, resamples=law.resamples | {"freedom": 2.0})
    assert "taken to be known from 2 degrees of freedom, though there are fewer" in noise_words(few)[0]
    assert noise_words(replace(law, resamples={})) == []
