"""A user's own form: found, fitted, recorded in law.json, and refused clearly where something is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import worlds

from pplscape.errors import UserError
from pplscape.laws.build import build
from pplscape.laws.forms import get_form
from pplscape.laws.law import Law

SOURCE = '''
import numpy as np
from pplscape.laws.forms.gap import GapForm

class Spread(GapForm):
    """L = E + Dc D^-aD exp(-b ln s)."""
    name = "spread"
    variants = ("std", "var")
    default_scale = "nll"
    coefficient_names = ("b",)
    composition_terms = 2

    def columns_of(self, compositions):
        return [-np.log(compositions.moments(self.scale, self.reading)[1])]

class Half(GapForm):
    pass

class Unfinished(__import__("pplscape").laws.forms.Form):
    name = "unfinished"

NUMBER = 3
'''


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "spread_form.py").write_text(SOURCE)
    (tmp_path / "wrong_form.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "spread_form.py"
    sys.modules.pop("spread_form", None)


@pytest.mark.parametrize("kind", ["module", "file"])
def test_an_own_form_is_fitted_and_read_back(source: Path, kind: str) -> None:
    spec = f"{source}:Spread" if kind == "file" else "spread_form:Spread"
    runs = worlds.table("quadratic")
    law, choice = build(runs, ["constant", spec], bootstrap=5)
    assert law.form == spec
    assert choice.chosen == spec
    again = Law.from_json(law.to_json())
    np.testing.assert_array_equal(again.predict(runs), law.predict(runs))
    assert get_form(f"{spec}:var", "ppl").spec == f"{spec}:var"
    assert get_form(f"{spec}:var", "ppl").scale == "ppl"


def test_names_of_pplscape_come_first(source: Path) -> None:
    assert get_form("paper:var").variant == "var"
    with pytest.raises(UserError, match="Form paper has no variant 'Spread'"):
        get_form("paper:Spread")


def test_a_form_given_as_an_object_knows_its_module(source: Path) -> None:
    import spread_form  # type: ignore[import-not-found]

    law, _ = build(worlds.table("quadratic"), [spread_form.Spread()], bootstrap=0)
    assert law.form == "spread_form:Spread"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module_here:Mine", "no module no_such_module_here can be imported; put it on sys.path"),
        ("wrong_form:Mine", "importing it fails with ZeroDivisionError: division by zero"),
        ("spread_form:Spred", "there is no class Spred; its forms are: GapForm, Spread, Half, Unfinished"),
        ("spread_form:NUMBER", "NUMBER is no subclass of pplscape.laws.forms.Form"),
        ("spread_form:Unfinished", "Unfinished lacks bounds, data, evaluate, names, starts"),
        ("nowhere/mine.py:Mine", "there is no file nowhere/mine.py"),
    ],
)
def test_what_is_missing_is_said(source: Path, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_form(spec)


def test_a_law_runs_no_file_by_itself(source: Path, tmp_path: Path) -> None:
    """law.json is data: in a new process its form's file must be asked for."""
    runs = worlds.table("quadratic")
    law, _ = build(runs, [f"{source}:Spread"], bootstrap=0)
    (tmp_path / "law.json").write_text(json.dumps(law.to_json()))
    code = (
        "import sys; from pplscape.laws.law import Law; from pplscape.laws.forms import get_form\n"
        "law = Law.from_json(sys.argv[1])\n"
        "try: law.shape\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "get_form(law.form); print(law.shape.spec)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    refused, found = done.stdout.splitlines()
    assert refused.startswith("UserError This law's form Spread is your own")
    assert "Pass --form" in refused
    assert found == f"{source}:Spread"


def test_the_recipe_in_the_docs_works(tmp_path: Path) -> None:
    recipe = (Path(__file__).parents[2] / "docs/new-form.md").read_text()
    path = tmp_path / "spread_form.py"
    path.write_text(recipe.split("```python\n")[1].split("```")[0])
    runs = worlds.table("quadratic")
    law, _ = build(runs, [f"{path}:Spread", "constant"], bootstrap=5)
    assert list(law.params) == ["E", "Dc", "b", "aD"]
    p = law.params
    expected = p["E"] + p["Dc"] * runs.tokens ** -p["aD"] * runs.nll_std ** -p["b"]
    np.testing.assert_allclose(law.predict(runs), expected, rtol=1e-9)
