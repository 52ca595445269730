"""What further runs would tell of a law: information, and the runs that answer a question best. Pure numpy.

Near theta a law is linear, ln L = f(theta) + noise, and after some runs theta is known with the precision

    M = P + sum over trunks of J' V^-1 J,      V = run^2 diag(1 / weight) + trunk^2 1 1'

with J [k, p] the derivatives of ln L at a trunk's k runs and P what was believed before (generalised least squares;
trunks are independent, branches of one share its noise). A question is a set of lines q, linear functions of theta: a
difference between two predicted losses, a parameter. V-optimality takes the runs that lower the mean of q' M^-1 q most,
D-optimality those that raise ln det M most (Atkinson, Donev and Tobias 2007, Optimum Experimental Designs, chapters
10 and 17). J depends on theta, so everything is averaged over S draws of it.

Shapes: S draws of theta, p parameters, C candidates of k runs each, m lines of a question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pplscape.laws.fit import Setting, belief
from pplscape.laws.forms.base import Floats
from pplscape.laws.noise import Noise
from pplscape.runs import Compositions

VAGUE = 10.0
"""Prior spread of every step of a form's `basis`, about a factor of e^10 in the loss: keeps M invertible, decides
nothing that runs tell."""
LEAST_NOISE = 1e-4
"""Relative noise of a run at least: exact tables would make any further run worthless."""


@dataclass(frozen=True)
class Knowledge:
    """How well theta is known, in coordinates of the form's `basis`."""

    covariance: Floats
    """[S, p, p]"""
    noise: Noise

    @classmethod
    def of(
        cls, believed: Floats, jacobian: Floats, groups: NDArray[np.str_], noise: Noise, weight: Floats | None = None
    ) -> Knowledge:
        """From a precision [p, p] or [S, p, p] believed before and runs with derivatives [S, n, p] of ln L.

        `groups` [n] names the trunks; `weight` [n] or [S, n] divides a run's own variance, 0 leaves the run out.
        """
        trunk, run = noise.trunk, max(noise.run, LEAST_NOISE)
        precise = np.broadcast_to(np.ones(len(groups)) if weight is None else weight, jacobian.shape[:2]) / run**2
        _, members = np.unique(groups, return_inverse=True)
        trunks = np.eye(members.max() + 1)[members].T
        information = np.swapaxes(jacobian, -1, -2) @ (jacobian * precise[..., None])
        common = trunks @ (jacobian * precise[..., None])  # [S, G, p]: 1' D^-1 J of each trunk
        shrink = trunk**2 / (1 + trunk**2 * (precise @ trunks.T))
        information = information - np.swapaxes(common, -1, -2) @ (common * shrink[..., None])
        return cls(np.asarray(np.linalg.inv(believed + information)), noise)

    def variance(self, question: Floats) -> Floats:
        """Variance [S, m] of a question's lines [S, m, p]."""
        return np.einsum("smp,spq,smq->sm", question, self.covariance, question, optimize=True)

    def reduction(self, candidates: Floats, question: Floats) -> Floats:
        """How much each candidate [C, S, k, p], a trunk of its own, lowers the variance of each line: [C, S, m]."""
        spread = candidates @ self.covariance
        cross = spread @ np.swapaxes(question, -1, -2)
        return np.sum(cross * np.linalg.solve(self._measured(spread, candidates), cross), axis=-2)

    def surprise(self, candidates: Floats) -> Floats:
        """Gain in ln det M [C, S] of each candidate [C, S, k, p]."""
        measured = self._measured(candidates @ self.covariance, candidates)
        return np.linalg.slogdet(measured)[1] - np.linalg.slogdet(self._noise_of(candidates.shape[-2]))[1]

    def after(self, trunk: Floats) -> Knowledge:
        """Knowledge with one more trunk [S, k, p]."""
        spread = trunk @ self.covariance
        gain = np.swapaxes(spread, -1, -2) @ np.linalg.solve(self._measured(spread, trunk), spread)
        covariance = self.covariance - gain
        return Knowledge((covariance + np.swapaxes(covariance, -1, -2)) / 2, self.noise)

    def _noise_of(self, k: int) -> Floats:
        return max(self.noise.run, LEAST_NOISE) ** 2 * np.eye(k) + self.noise.trunk**2

    def _measured(self, spread: Floats, candidates: Floats) -> Floats:
        return self._noise_of(candidates.shape[-2]) + spread @ np.swapaxes(candidates, -1, -2)


Score = Callable[[Knowledge, Floats], Floats]
"""(knowledge, candidates [C, S, k, p]) -> worth [C] of each."""


def v_optimal(question: Floats, weight: Floats) -> Score:
    """Relative gain in precision: variance before over variance after, less 1; weighted over lines [m].

    Precision adds up over runs, so that worth per cost is fair to cheap and dear runs alike. Draws are averaged in the
    logarithm: one with a huge variance does not decide alone.
    """

    def score(known: Knowledge, candidates: Floats) -> Floats:
        before = known.variance(question) @ weight
        left = 1 - known.reduction(candidates, question) @ weight / before
        return np.asarray(np.expm1(-np.log(np.maximum(left, 1e-12)).mean(-1)))

    return score


def d_optimal(known: Knowledge, candidates: Floats) -> Floats:
    """Relative gain in (det M)^(1/p), the precision of a typical direction; draws averaged in the logarithm."""
    return np.asarray(np.expm1(known.surprise(candidates).mean(-1) / known.covariance.shape[-1]))


def greedy(
    known: Knowledge, candidates: Floats, cost: Floats, budget: float, score: Score, most: int | None = None,
    again: bool = True,
) -> tuple[list[int], Knowledge]:  # fmt: skip
    """(candidates in the order taken, what is known then): each time the most worth per cost that is still affordable.

    `cost` [C] in the unit of `budget`; at most `most` are taken; with `again` a candidate may be taken repeatedly, as
    a trunk of another seed.
    """
    taken: list[int] = []
    able = np.ones(len(cost), bool)
    while most is None or len(taken) < most:
        able &= cost <= budget * (1 + 1e-12)
        if not able.any():
            break
        worth = np.where(able, score(known, candidates) / cost, -np.inf)
        best = int(np.argmax(worth))
        taken.append(best)
        budget -= float(cost[best])
        known = known.after(candidates[best])
        able[best] &= again
    return taken, known


def derivatives(setting: Setting, theta: Floats, asked: Compositions | None = None) -> tuple[Floats, Floats]:
    """(ln L [S, n], its derivatives [S, n, p] in coordinates of the basis) at theta [S, p]; `asked` None: the runs."""
    data = setting.data if asked is None else setting.form.data(asked, setting.frame)
    log_loss, jacobian = setting.form.evaluate(theta, data, setting.frame)
    assert jacobian is not None
    return log_loss, jacobian @ setting.form.basis(setting.data, setting.frame)


def believed(setting: Setting, strength: float) -> Floats:
    """Precision [p, p], in coordinates of the basis, of what a form believes of theta, and of next to nothing."""
    basis = setting.form.basis(setting.data, setting.frame)
    precision = belief(setting, np.array([strength]))[0][0]
    return basis.T @ precision @ basis + np.eye(basis.shape[-1]) / VAGUE**2
