"""Pilots named as cures: closed forms of linear models, and refits with the pilots added."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import worlds

from pplscape.laws import cures
from pplscape.laws.build import build, design_numbers
from pplscape.laws.cures import cure, menu_of, pick, say, separate
from pplscape.laws.fit import Fit, fit_form
from pplscape.laws.forms import get_form
from pplscape.laws.forms.base import Data, Frame
from pplscape.laws.forms.d_only import DOnly
from pplscape.laws.information import Knowledge
from pplscape.laws.noise import Noise
from pplscape.laws.uncertainty import uncertainty
from pplscape.runs import Compositions, RunTable

NOISE = Noise(trunk=0.0, run=0.01, freedom=20.0)
SIZES = (256_000.0, 512_000.0)


def test_the_slope_of_a_line_is_narrowed_as_the_textbook_says() -> None:
    """One run at x beside n at x_i: Sxx grows by n / (n + 1) (x - mean)^2."""
    ran, asked = np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.1, -0.2, 0.9])
    lines = np.array([[0.0, 1.0]])

    def design(x: np.ndarray) -> np.ndarray:
        return np.stack([np.ones_like(x), x], axis=-1)

    known = Knowledge.of(1e-9 * np.eye(2), design(ran)[None], np.arange(4).astype(str), NOISE)
    assert pick(known, design(asked), lines) == [2, 2]
    after = known.after(design(asked)[None, 2:])
    spread = [np.sum((x - x.mean()) ** 2) for x in (ran, np.append(ran, 0.9))]
    assert spread == pytest.approx([0.05, 0.50])
    assert after.variance(lines[None]) / known.variance(lines[None]) == pytest.approx(0.05 / 0.50)


def test_pilots_are_said_as_far_as_they_help() -> None:
    words, names = ["at 1", "at 2"], ["E", "aD"]
    first, second = np.array([0.3, 0.6]), np.array([0.4, 0.62])
    assert say([1, 0], [first, second], names, words) == (
        "A pilot at 2 would narrow the interval of aD by 60% and E by 30%; "
        "a second at 1, in all, aD by 62% and E by 40%."
    )
    assert say([0, 0], [first, second], names, words).endswith(
        "a second with another seed, in all, aD by 62% and E by 40%."
    )
    assert say([0, 0], [first, first + 0.01], names, words) == (
        "A pilot at 1 would narrow the interval of aD by 60% and E by 30%."
    )
    assert say([0], [np.array([0.0, 0.04])], names, words) is None


def test_what_no_run_moves_is_not_asked_for() -> None:
    known = Knowledge.of(np.eye(1), np.ones((1, 4, 1)), np.arange(4).astype(str), NOISE)
    assert pick(known, np.ones((3, 1)), np.zeros((1, 1))) == []


@pytest.fixture(scope="module")
def tied() -> RunTable:
    """Pilots whose spread follows their mean."""
    runs = worlds.table("quadratic", trunks=8)
    assert runs.nll_mean is not None
    wiggle = np.random.default_rng(0).normal(0, 0.02, len(runs))
    return replace(runs, nll_std=0.1 * runs.nll_mean**1.2 * np.exp(wiggle), ppl_mean=None, ppl_std=None)


def pilots_in(sentence: str) -> list[tuple[float, float, float]]:
    found = re.findall(r"at mean ([\d.]+), spread ([\d.]+), D = ([\d,]+)", sentence)
    return [(float(m), float(s), float(d.replace(",", ""))) for m, s, d in found]


def test_pilots_that_part_mean_and_spread_are_named(tied: RunTable) -> None:
    """The narrowing that is promised is that of ordinary least squares on the pilots named."""
    sentence = separate(tied, "nll", NOISE)
    assert sentence
    named = pilots_in(sentence)
    assert len(named) == 2

    def table(extra: list[tuple[float, float, float]]) -> np.ndarray:
        mean, std, tokens = (np.append(a, [e[i] for e in extra]) for i, a in enumerate(
            (tied.nll_mean, tied.nll_std, tied.tokens)))  # fmt: skip
        return np.stack([np.ones_like(mean), np.log(tokens), np.log(mean), np.log(std)], axis=-1)

    def error(extra: list[tuple[float, float, float]]) -> float:
        rows = table(extra)
        same = np.append(np.asarray(tied.group), [f"new{i}" for i in range(len(extra))])
        v = NOISE.covariance(same)
        return float(np.sqrt(np.linalg.inv(rows.T @ np.linalg.solve(v, rows))[3, 3]))

    promised = [float(p) / 100 for p in re.findall(r"(\d+)%", sentence)]
    assert promised == pytest.approx([1 - error(named[:1]) / error([]), 1 - error(named) / error([])], abs=0.015)
    assert promised[1] > 0.7
    mean, std, tokens = (np.append(a, [e[i] for e in named]) for i, a in enumerate(
        (tied.nll_mean, tied.nll_std, tied.tokens)))  # fmt: skip
    cured = RunTable(tokens=tokens, nll_mean=mean, nll_std=std)
    before, after = (design_numbers(r, "nll")[1] for r in (tied, cured))
    assert before
    assert after
    assert before["ln spread"] > 20
    assert after["ln spread"] < 5


def test_named_pilots_can_be_drawn(tied: RunTable) -> None:
    """Where the feasible set is known, pilots stay inside it."""
    assert tied.nll_mean is not None
    feasible = np.array([[4.0, 0.4], [4.0, 0.8], [5.5, 0.9], [5.5, 0.4]])
    for place in pilots_in(separate(tied, "nll", NOISE, feasible) or ""):
        assert 4.0 <= place[0] <= 5.5
        assert 0.4 <= place[1] <= 0.95
    menu = menu_of(get_form("quadratic"), tied, feasible)
    assert menu
    assert menu.pilots.nll_mean is not None
    assert menu.pilots.nll_mean.max() <= 5.51


def scattered(fit: Fit) -> np.ndarray:
    """Refits whose parameters vary by a factor of e."""
    return np.outer(np.exp([-1.0, 1.0]), list(fit.params.values()))


def power_world(seed: int, sizes: tuple[float, ...] = SIZES, noise: float = 0.004) -> RunTable:
    """Six runs a size of L = 2.2 + 1.4 (D / 512k)^-0.3, relative noise."""
    tokens = np.repeat(sizes, [6, 6, 1][: len(sizes)])
    clean = 2.2 + 1.4 * (tokens / 512e3) ** -0.3
    return RunTable(tokens=tokens, loss=clean * np.exp(np.random.default_rng(seed).normal(0, noise, len(tokens))))


POWER = np.array([2.2, np.log(1.4 * 512e3**0.3), 0.3])


def promise(base: RunTable, noise: Noise, n: int = 100) -> tuple[float, float]:
    """(size of the pilot named for E, share by which it is said to narrow E's interval); 0 where none is named."""
    fit = replace(fit_form("d-only", base), theta=POWER)
    refits = fit.form.params(uncertainty(fit, base, n, noise=noise).draws, fit.frame)
    sentence = cure(fit, base, noise, ["E"], refits) or "A pilot of D = 0 would narrow the interval of E by 0%"
    found = re.match(r"A pilot of D = ([\d,]+) would narrow the interval of E by (\d+)%", sentence)
    assert found, sentence
    return float(found[1].replace(",", "")), int(found[2]) / 100


def test_the_promise_is_the_covariance_where_the_law_is_all_but_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact losses, little noise (constant in nats): the variance of E is that of least squares."""
    monkeypatch.setattr(cures, "REFITS", 2000)
    base = power_world(0, (64e3, *SIZES), noise=0.0)
    size, promised = promise(base, Noise(0.0, 1e-4, 10.0), 2000)

    def error(tokens: np.ndarray) -> float:
        gap = 1.4 * (tokens / 512e3) ** -0.3
        loss = 2.2 + gap
        slopes = np.stack([np.ones_like(gap), gap, -gap * np.log(tokens)], axis=-1) / loss[:, None]
        solver = np.linalg.pinv(slopes)[0]
        return float(np.sqrt(np.sum((solver * np.exp(np.log(loss).mean()) / loss) ** 2)))

    expected = 1 - error(np.append(base.tokens, size)) / error(base.tokens)
    assert expected > 0.2
    assert promised == pytest.approx(expected, abs=0.06 * (1 - expected))


def test_promises_are_right_in_the_middle_where_little_is_known() -> None:
    """Two close sizes do not tell E. Promises for single tables lie between 0 and 40 % and what pilots then bring
    between -10 and 60 %: a table says little of its own luck. Their medians over tables agree."""
    noise = Noise(0.0, 0.004, 10.0)
    promised, brought = [], []
    for seed in range(6):
        promised.append(promise(power_world(seed), noise, 60)[1])
        tables = [power_world(seed, sizes) for sizes in (SIZES, (*SIZES, 64_000.0))]
        before, after = (uncertainty(fit_form("d-only", t), t, 60, 100 + seed, noise).draws[:, 0].std() for t in tables)
        brought.append(1 - after / before)
    assert np.median(promised) == pytest.approx(np.median(brought), abs=0.08)
    assert np.median(promised) > 0.2


def test_every_form_names_its_own_columns() -> None:
    runs = worlds.table("utility", trunks=8, noise=0.01)
    cases = {
        "monotone": ("a", r"at mean [\d.]+, spread"),
        "utility": ("u_2", r"with half its text from bin \d|of random text"),
    }
    for form, (name, words) in cases.items():
        fit = fit_form(form, runs)
        sentence = cure(fit, runs, Noise(0.01, 0.01, 8.0), [name], scattered(fit))
        assert sentence
        assert re.search(words, sentence)
    n_params = np.tile([1e6, 1e7, 1e8], 8)
    models = replace(runs, n_params=n_params, loss=1.8 + 400 / n_params**0.34 + 400 / runs.tokens**0.28)
    fit = fit_form("chinchilla", models)
    noise = Noise(0.0, 0.003, 8.0)
    refits = fit.form.params(uncertainty(fit, models, 60, noise=noise).draws, fit.frame)
    sentence = cure(fit, models, noise, ["A"], refits)
    assert sentence
    assert "of N = 2.5e+05" in sentence


class OtherColumn(DOnly):
    columns = ("tokens", "unique_tokens")


def test_a_form_with_columns_of_its_own_is_left_alone() -> None:
    runs = replace(power_world(0), unique_tokens=np.ones(12))
    fit: Fit = fit_form(OtherColumn(), runs)
    assert cure(fit, runs, NOISE, ["E"], scattered(fit)) is None


class Relative(DOnly):
    """A form whose parameters are relative to the mean size of the table it is fitted to."""

    def reframe(self, compositions: Compositions, frame: Frame) -> Frame:
        return replace(frame, centre=(float(np.log(compositions.tokens).mean()), 0.0))

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        size = np.log(compositions.tokens) - frame.centre[0]
        return {"X": np.stack([np.ones_like(size), -size], axis=-1)}


def test_parameters_that_depend_on_the_table_are_left_alone() -> None:
    runs = power_world(0)
    fit = fit_form(Relative(), runs)
    assert cure(fit, runs, NOISE, ["E"], scattered(fit)) is None
    assert cure(fit_form("d-only", runs), runs, NOISE, ["E"], scattered(fit)) is not None


def test_the_warning_of_an_unidentified_floor_names_a_pilot() -> None:
    runs = worlds.table("flat", trunks=6, sizes=SIZES, noise=0.03)
    law, _ = build(runs, ["d-only"], bootstrap=60)
    warning = next(w for w in law.warnings if "cannot be identified" in w)
    assert "A pilot of D = 64,000 would narrow the interval of" in warning
