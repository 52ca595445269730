"""The verdict follows the files: measured before predicted, and no claim without pilots."""

import json

import pytest
from synthetic_run import edit_json, edit_runs

from pplscape.reporting.costs import costs_of
from pplscape.reporting.folder import RunFolder
from pplscape.reporting.verdict import verdict_of
from pplscape.reporting.words import GLUE


def verdict(run):
    return verdict_of(RunFolder.read(run))


def test_measured_gain_is_worth_it(run):
    found = verdict(run)
    comparison = json.loads((run / "comparison/comparison.json").read_text())
    d = next(s for s in comparison["strategies"] if s["strategy"] == "allocate")["difference"]
    assert found.light == "worth it"
    assert found.measured
    assert found.title == "Worth it"
    assert f"{-d['mean']:.4f} nats/token lower" in found.sentence
    assert "4 paired seeds" in found.sentence


def test_changing_the_difference_changes_the_verdict(run):
    before = verdict(run)

    def spoil(comparison):
        for s in comparison["strategies"]:
            if s["difference"]:
                s["difference"] |= {"mean": 0.0011, "low": -0.01, "high": 0.0122}

    edit_json(run / "comparison/comparison.json", spoil)
    after = verdict(run)
    assert after.light == "inside the noise"
    assert after.title == "Inside the noise: use random"
    assert "0.0011 nats/token higher" in after.sentence
    assert "cannot be told apart" in after.sentence
    assert before.sentence != after.sentence


def test_one_pair_cannot_tell(run):
    def single(comparison):
        for s in comparison["strategies"]:
            if s["difference"]:
                s["difference"] |= {"low": None, "high": None, "n": 1}

    edit_json(run / "comparison/comparison.json", single)
    found = verdict(run)
    assert found.light == "not enough pilots"
    assert "single pair" in found.sentence


def without_comparison(run):
    (run / "comparison/comparison.json").unlink()
    return run / "selection/selection.json"


@pytest.mark.parametrize(
    ("gate", "light"),
    [
        ({"passes": True, "p10": 0.01, "resamples": 20, "reason": "All predict a gain."}, "worth it"),
        ({"passes": False, "p10": -0.01, "resamples": 20, "reason": "Only half do"}, "inside the noise"),
        ({"passes": False, "p10": None, "resamples": 0, "reason": "The gate needs pilots."}, "not enough pilots"),
        (None, "not enough pilots"),
    ],
)
def test_before_arms_the_gate_speaks(run, gate, light):
    edit_json(without_comparison(run), lambda s: s.update(gate=gate))
    found = verdict(run)
    assert found.light == light
    assert not found.measured
    if gate:
        assert gate["reason"].rstrip(".") + "." in found.sentence
        assert "prediction" in found.sentence


def test_two_random_seeds_are_not_enough(run):
    edit_json(
        without_comparison(run), lambda s: s["gate"].update(passes=False, p10=0.02, reason="Only 2 random seeds.")
    )
    edit_runs(
        run / "pilots/runs.jsonl", lambda rows: [r.update(regime="tilt-9") for r in rows if r["group"] == "random-2"]
    )
    assert verdict(run).light == "not enough pilots"


def test_no_selection_no_verdict(run):
    without_comparison(run).unlink()
    found = verdict(run)
    assert found.light is None
    assert found.title == "No verdict yet"


def test_the_next_step_is_the_first_missing_stage(run):
    import shutil

    without_comparison(run)
    steps = []
    for stage in ("selection", "law", "pilots", "plan", "landscape"):
        shutil.rmtree(run / stage)
        steps.append(RunFolder.read(run).next_stage)
    assert steps == ["select", "fit", "pilot", "plan", "landscape"]


def test_noise_floor_is_the_spread_of_random_pilots(run):
    rows = [r for r in RunFolder.read(run).ok if r["regime"] == "random"]
    largest = sorted(rows, key=lambda r: r["tokens"])[-3:]
    before = verdict(run).noise
    mean = sum(r["loss"] for r in largest) / 3
    assert "3 random pilots" in before
    assert f"mean {mean:.4f}" in before

    def worse(rows):
        next(r for r in rows if r["run_id"] == largest[0]["run_id"])["loss"] += 0.3

    edit_runs(run / "pilots/runs.jsonl", worse)
    assert f"mean {mean + 0.1:.4f}" in verdict(run).noise


def test_four_numbers(run):
    selection = json.loads((run / "selection/selection.json").read_text())
    loss, random, saved, cost = verdict(run).numbers
    assert loss.value == f"{selection['predicted']['selection']['loss']:.3f}"
    assert loss.measured.startswith("measured 3.9")
    assert random.value == f"{selection['predicted']['random']['loss']:.3f}"
    factor = selection["predicted"]["efficiency"]["factor"]
    assert saved.value == f"{factor:.2f}×"
    assert "would save" in saved.detail
    assert cost.value.endswith(("×", f"{GLUE}%"))


def test_a_choice_the_gate_held_back_is_shown_as_such(run):
    def abstain(s):
        s.update(used="random", candidate="allocate", candidate_predicted=s["predicted"], predicted=None)
        s["gate"].update(passes=False, reason="Inside the noise.")

    edit_json(without_comparison(run), abstain)
    found = verdict(run)
    assert found.numbers[0].label == "Loss with the law’s choice ‘allocate’, not taken"
    assert found.numbers[0].value != "–"
    assert "Predicted gain" in found.sentence


def test_censored_efficiency_is_a_bound(run):
    edit_json(
        run / "selection/selection.json", lambda s: s["predicted"]["efficiency"].update(factor=8.0, censored="above")
    )
    assert verdict(run).numbers[2].value == "at least 8.00×"


def test_without_tokens_in_the_law_none_are_saved(run):
    edit_json(run / "selection/selection.json", lambda s: s["predicted"].update(efficiency=None, form="constant"))
    saved = verdict(run).numbers[2]
    assert (saved.value, saved.detail) == ("–", "by the constant law tokens change nothing")


def test_costs_in_tokens_of_training(run):
    folder = RunFolder.read(run)
    costs = costs_of(folder)
    assert costs.overhead == pytest.approx(folder.landscape["tokens"] / 3 + folder.plan["cost"]["tokens"])
    assert costs.share == pytest.approx(costs.overhead / folder.selection["budget"])
    assert costs.break_even(1.5) == pytest.approx(2 * costs.overhead)
    assert costs.break_even(0.9) is None
    assert costs.break_even(None) is None


def test_costs_without_a_plan_count_each_trunk_once(run):
    (run / "plan/plan.json").unlink()
    folder = RunFolder.read(run)
    trunks = {r["group"]: max(q["tokens"] for q in folder.ok if q["group"] == r["group"]) for r in folder.ok}
    assert costs_of(folder).piloted == sum(trunks.values())
