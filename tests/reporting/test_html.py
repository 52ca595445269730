"""The page: complete, self-contained, safe, and nothing in it typed by hand."""

import json
import re
from html.parser import HTMLParser

import pytest
from synthetic_run import EVIL, edit_json, edit_runs

from pplscape.errors import UserError
from pplscape.reporting.folder import RunFolder
from pplscape.reporting.gallery import Gallery
from pplscape.reporting.html import render, view_of


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; scripts and styles apart."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.open = [], [], [], []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in attributes]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag]
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data


def page(run):
    return render(RunFolder.read(run), run / "report" / "report.html")


@pytest.fixture(scope="module")
def complete(finished_run):
    with pytest.MonkeyPatch.context() as patch:
        from pplscape.reporting.style import Drawing

        patch.setattr(Drawing, "inline", lambda drawing, class_="": f'<svg data-name="{drawing.name}"></svg>')
        return page(finished_run)


def test_all_seven_sections_are_there_and_full(complete):
    found = Page(complete)
    assert not found.open
    headings = re.findall(r"<h2><span>(\d)</span>([^<]+)</h2>", complete)
    assert [h[0] for h in headings] == list("123456")
    assert 'class="missing"' not in complete
    names = set(re.findall(r'data-name="([^"]+)"', complete))
    assert {"landscape", "utilities", "predicted-measured", "bin-shares", "source-shares", "budget-curve",
            "paired-differences"} <= names  # fmt: skip
    assert sum(n.startswith("plane-") for n in names) == 3


def test_nothing_is_fetched(complete):
    found = Page(complete)
    fetched = [v for _, k, v in found.attributes if k in ("src", "srcset", "data", "action", "poster") and v]
    assert not fetched
    links = [v for t, k, v in found.attributes if k == "href" and t != "use"]
    assert links
    assert all(v.startswith(("#", "data:,", "../")) for v in links)
    assert "@import" not in complete
    assert "url(" not in complete
    assert "default-src 'none'" in complete


def test_corpus_text_cannot_execute(complete, finished_run):
    assert "window.injected = true</script>" not in complete.replace("&lt;/script&gt;", "")
    found = Page(complete)
    assert "window.injected" in found.text
    assert "img" not in found.tags
    assert not [a for a in found.attributes if a[1].startswith("on")]
    assert not any("window.injected" in s and "\\u003c" not in s for s in found.scripts)
    assert "\x00" not in complete
    assert "\x07" not in complete


def test_json_in_the_page_cannot_close_its_script(sketched, run):
    edit_json(run / "selection/selection.json", lambda s: s["budget_curve"][0].update(tokens=9000))
    edit_json(run / "selection/selection.json", lambda s: s.update(budget_curve_of=EVIL, used=EVIL, warnings=[EVIL]))
    edit_runs(run / "pilots/runs.jsonl", lambda rows: rows[0].update(regime=EVIL, run_id=EVIL))
    edit_json(run / "comparison/comparison.json", lambda c: c["strategies"][1].update(strategy=EVIL))
    text = page(run)
    found = Page(text)
    assert "img" not in found.tags
    assert not found.open
    for script in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL):
        json.loads(script)


def test_a_law_without_tokens_tells_of_no_other_budgets(undrawn, run):
    edit_json(run / "selection/selection.json", lambda s: s["predicted"].update(efficiency=None, form="constant"))
    text = page(run)
    for untold in ("would waste", "would save", "tokens random needs for it", 'id="calculator"'):
        assert untold not in text
    assert "There is nothing to tell of other budgets: by the constant law tokens change nothing." in text
    assert "There are no tokens to save" in text or "No gain over random was measured" in text


def test_samples_of_the_selection_stay_text(sketched, run):
    sample = {"doc_id": "d", "chunk_index": 0, "nll": 4.0, "source": EVIL, "bin": 1, "taken": False, "text": EVIL * 9}
    edit_json(run / "selection/selection.json", lambda s: s.update(samples=[sample]))
    text = page(run)
    found = Page(text)
    assert "img" not in found.tags
    assert not found.open
    assert "<b>bin 2, left</b>" in text
    assert "perplexity 54.6" in text


def test_changing_one_loss_changes_table_and_figures(sketched, run):
    before = page(run)
    rows = RunFolder.read(run).ok
    size = max(r["tokens"] for r in rows)
    victim = next(r for r in rows if r["tokens"] > 0.9 * size and r["regime"] != "random")
    assert "7.7777" not in before[before.index('<table id="runs">') :]

    def change(rows):
        next(r for r in rows if r["run_id"] == victim["run_id"])["loss"] = 7.7777

    edit_runs(run / "pilots/runs.jsonl", change)
    after = page(run)
    table = after[after.index('<table id="runs">') :]
    assert "7.7777 ± 0.0110" in table
    figures = dict(re.findall(r'data-name="([^"]+)">(.*?)</svg>', after, re.DOTALL))
    assert "loss 7.7777" in figures["predicted-measured"]
    assert any("loss 7.7777" in t for n, t in figures.items() if n.startswith("plane-"))
    assert "7.7777" in after[after.index('id="surface-data"') : after.index('id="trust"')]


def test_changing_the_comparison_changes_verdict_table_and_figure(sketched, run):
    def change(comparison):
        for s in comparison["strategies"]:
            if s["strategy"] == "allocate":
                s["difference"] |= {"mean": -0.07777, "low": -0.08, "high": -0.07}

    edit_json(run / "comparison/comparison.json", change)
    text = page(run)
    assert "0.0778 nats/token lower" in text
    assert "−0.0778 [−0.0800, −0.0700]" in text
    assert "allocate: −0.0778" in re.search(r'data-name="paired-differences">(.*?)</svg>', text, re.DOTALL)[1]


@pytest.mark.parametrize(
    ("folder", "sentence", "command"),
    [
        ("landscape", "not been surveyed", "pplscape landscape"),
        ("pilots", "No pilot has finished", "pplscape pilot"),
        ("law", "No law has been fitted", "pplscape fit"),
        ("selection", "Nothing has been selected", "pplscape select"),
        ("comparison", "No arm has been trained", "pplscape compare"),
    ],
)
def test_a_missing_stage_is_named_with_its_command(undrawn, run, folder, sentence, command):
    for path in (run / folder).glob("*.json*"):
        path.unlink()
    text = page(run)
    assert sentence in text
    assert f"<code>{command} " in text


@pytest.mark.parametrize("kept", ["scores", "landscape", "pilots", "law", "selection", "comparison"])
def test_any_single_stage_makes_a_page(sketched, run, kept):
    import shutil

    for path in run.iterdir():
        if path.name != kept:
            shutil.rmtree(path)
    found = Page(page(run))
    assert not found.open
    assert "Reproduce" in found.text


def test_a_law_that_ignores_perplexity_has_no_contours(undrawn, run):
    law = json.loads((run / "law/law.json").read_text())
    plain = next(other for other in law["alternatives"] if other["form"] == "d-only")
    (run / "law/law.json").write_text(json.dumps({**plain, "choice": law["choice"], "verdict": "Only D matters."}))
    text = page(run)
    assert "does not look at perplexity" in text
    assert "surface-data" not in text
    assert "Only D matters." in text


@pytest.mark.parametrize("form", ["paper", "quadratic"])
def test_moment_laws_show_their_optimum(undrawn, run, form):
    law = json.loads((run / "law/law.json").read_text())
    other = next(a for a in law["alternatives"] if a["form"] == form)
    others = [a for a in law["alternatives"] if a is not other]
    (run / "law/law.json").write_text(json.dumps({**other, "alternatives": others, "choice": law["choice"]}))
    view = view_of(RunFolder.read(run), run / "report/report.html", Gallery())
    assert view["pilots"]["optimum"].startswith(f"The chosen law is ‘{form}’.")
    assert view["pilots"]["surface"] is not None


def test_links_lead_to_files(complete, finished_run):
    links = [v for t, k, v in Page(complete).attributes if t == "a" and k == "href" and v.startswith("../")]
    assert len(links) >= 6
    for link in links:
        assert (finished_run / "report" / link).resolve().exists(), link


def test_skipped_forms_and_failed_runs_are_listed(complete):
    assert "not fitted: needs at least 3 different values of n_params" in complete
    assert "failed: FloatingPointError: loss is nan" in complete


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("law/law.json", "{", "not valid JSON"),
        ("pilots/runs.jsonl", '{"a": 1}\n{', "line 2"),
        ("plan/plan.json", "[]", "object"),
    ],
)
def test_broken_files_are_named(undrawn, run, name, content, message):
    (run / name).write_text(content)
    with pytest.raises(UserError, match=message):
        page(run)


def test_a_folder_without_any_stage(tmp_path):
    with pytest.raises(UserError, match="holds no stage"):
        RunFolder.read(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        RunFolder.read(tmp_path / "nowhere")
