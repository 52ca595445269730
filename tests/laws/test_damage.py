"""Runs that rise above the base's loss before they fall below it."""

from dataclasses import replace

import numpy as np
import pytest
import worlds

from pplscape.laws.damage import REASON, without_first_damage
from pplscape.laws.fit import fit_form
from pplscape.laws.forms import get_form
from pplscape.laws.uncertainty import uncertainty
from pplscape.runs import RunTable


def runs(loss: list[float], group: list[str] | None) -> RunTable:
    n = len(loss)
    return RunTable(
        tokens=np.tile([1e5, 2e5, 4e5], n // 3), loss=np.array(loss), base_loss=np.full(n, 4.0),
        bin_tokens=np.outer(np.tile([1e5, 2e5, 4e5], n // 3), [0.5, 0.5]),
        group=None if group is None else np.repeat(group, 3), meta={"run_id": [f"r{i}" for i in range(n)]},
    )  # fmt: skip


def test_only_what_is_mended_later_is_left_out() -> None:
    good = [3.9, 3.8, 3.7]
    table = runs([4.5, 4.2, 3.9, 4.5, 4.4, 4.3, *good, *good], ["mended", "harmed", "good", "another"])
    kept, left_out = without_first_damage(table)
    assert [r["run"] for r in left_out] == ["r0", "r1"]
    assert {r["reason"] for r in left_out} == {REASON}
    assert kept.meta["run_id"] == [f"r{i}" for i in range(2, 12)]
    assert kept.loss.tolist() == table.loss[2:].tolist()


def test_harm_of_many_trunks_is_the_trainings() -> None:
    table = runs([4.5, 4.2, 3.9, 4.4, 3.9, 3.8, 3.9, 3.8, 3.7, 3.9, 3.8, 3.7], ["a", "b", "c", "d"])
    assert without_first_damage(table)[0] is table


def test_seed_noise_above_the_base_stays() -> None:
    table = runs([4.02, 3.95, 3.9], ["a"])
    assert without_first_damage(table)[0] is table


@pytest.mark.parametrize("group", [None, ["a"]])
def test_a_table_without_trunks_or_without_damage_is_as_it_was(group: list[str] | None) -> None:
    table = runs([4.5, 3.95, 3.9] if group is None else [3.99, 3.95, 3.9], group)
    assert without_first_damage(table)[0] is table


def test_a_table_without_bins_is_as_it_was() -> None:
    """Laws of moments are not anchored at the base's loss."""
    table = replace(runs([4.5, 4.2, 3.9], ["a"]), bin_tokens=None)
    assert without_first_damage(table)[0] is table


def test_one_damaged_trunk_is_not_taken_for_noise() -> None:
    """Planted noise of 0.003: with the damaged runs the estimate is several times as large."""
    table = worlds.table("utility", trunks=12, noise=0.003, seed=3)
    group = np.asarray(table.group).astype(str)
    hurt = np.flatnonzero(group == group[-1])
    loss = table.loss.copy()
    loss[hurt[np.argsort(table.tokens[hurt])[:-1]]] = 1.08 * float(np.nanmedian(table.base_loss))
    damaged = RunTable(**{**vars(table), "loss": loss})
    kept, left_out = without_first_damage(damaged)
    assert len(left_out) == len(hurt) - 1

    def noise(runs: RunTable) -> float:
        return uncertainty(fit_form(get_form("utility"), runs), runs, 20).noise.total

    assert noise(kept) < 0.006
    assert noise(damaged) > 0.012
