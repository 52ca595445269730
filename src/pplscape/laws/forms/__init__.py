"""The forms a law can take, by name. A new form is one class: see `base.Form`."""

from __future__ import annotations

from pplscape.errors import UserError
from pplscape.laws.forms.base import Form, Frame
from pplscape.laws.forms.chinchilla import Chinchilla
from pplscape.laws.forms.constant import Constant
from pplscape.laws.forms.d_only import DOnly, DOnlyAnchored, DOnlyRectified
from pplscape.laws.forms.moments import Extended, Monotone, Paper
from pplscape.laws.forms.quadratic import Quadratic
from pplscape.laws.forms.utility import Utility

FORMS: dict[str, type[Form]] = {
    "constant": Constant,
    "d-only": DOnly,
    "d-only:anchored": DOnlyAnchored,
    "d-only:rectified": DOnlyRectified,
    "monotone": Monotone,
    "chinchilla": Chinchilla,
    "paper": Paper,
    "extended": Extended,
    "quadratic": Quadratic,
    "utility": Utility,
}
"""Name, or name:variant where a variant has a class of its own."""

AUTO = ("constant", "d-only", "d-only:anchored", "monotone", "chinchilla", "paper", "extended", "quadratic", "utility")
"""What is tried when nothing is asked for; forms whose columns are missing are skipped with the reason."""


def get_form(spec: str, scale: str | None = None) -> Form:
    """`name` or `name:variant` -> a form; `scale` (`ppl` or `nll`) replaces the form's default scale."""
    name, _, variant = spec.partition(":")
    if name not in FORMS:
        raise UserError(f"No form is called '{spec}'; there are: {', '.join(FORMS)}.")
    return FORMS.get(spec, FORMS[name])(variant, scale)


__all__ = ["AUTO", "FORMS", "Form", "Frame", "get_form"]
