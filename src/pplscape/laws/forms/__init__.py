"""The forms a law can take, by name. A new form is one class: see `base.Form` and docs/new-form.md."""

from __future__ import annotations

from pplscape.errors import UserError
from pplscape.laws.forms.base import Form, Frame
from pplscape.laws.forms.chinchilla import Chinchilla
from pplscape.laws.forms.constant import Constant
from pplscape.laws.forms.d_only import DOnly, DOnlyAnchored, DOnlyRectified
from pplscape.laws.forms.data_constrained import DataConstrained, DataConstrainedOneModel
from pplscape.laws.forms.dcpt import DCPT, DCPTOneModel
from pplscape.laws.forms.gp import GaussianProcess, GaussianProcessBins
from pplscape.laws.forms.moments import Extended, Monotone, Paper
from pplscape.laws.forms.own import own_class
from pplscape.laws.forms.quadratic import Quadratic
from pplscape.laws.forms.utility import Utility

FORMS: dict[str, type[Form]] = {
    "constant": Constant,
    "d-only": DOnly,
    "d-only:anchored": DOnlyAnchored,
    "d-only:rectified": DOnlyRectified,
    "monotone": Monotone,
    "chinchilla": Chinchilla,
    "data-constrained": DataConstrained,
    "data-constrained:one-model": DataConstrainedOneModel,
    "dcpt": DCPT,
    "dcpt:one-model": DCPTOneModel,
    "paper": Paper,
    "extended": Extended,
    "quadratic": Quadratic,
    "utility": Utility,
    "gp": GaussianProcess,
    "gp:bins": GaussianProcessBins,
}
"""Name, or name:variant where a variant has a class of its own."""

AUTO = (
    "constant", "d-only", "d-only:anchored", "monotone", "chinchilla", "data-constrained", "dcpt", "paper", "extended",
    "quadratic", "utility", "utility:power", "gp",
)  # fmt: skip
"""What is tried when nothing is asked for; forms whose columns are missing are skipped with the reason."""


def get_form(spec: str, scale: str | None = None, run_files: bool = True) -> Form:
    """`name`, `name:variant`, or a user's own `module:Class` or `path.py:Class` (with `:variant`) -> a form.

    Names of pplscape come first. `scale` (`ppl` or `nll`) replaces the form's default scale; without `run_files` a
    form's file must have been loaded before.
    """
    name, _, variant = spec.partition(":")
    if name in FORMS:
        return FORMS.get(spec, FORMS[name])(variant, scale)
    if not variant:
        raise UserError(
            f"No form is called '{spec}'; there are: {', '.join(FORMS)}, and your own as module:Class or path.py:Class."
        )
    kind, _, variant = variant.partition(":")
    form = own_class(name, kind, run_files)(variant, scale)
    form.origin = f"{name}:{kind}"
    return form


__all__ = ["AUTO", "FORMS", "Form", "Frame", "get_form"]
