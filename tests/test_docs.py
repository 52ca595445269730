"""The documentation does what it shows: tutorials run, their output is what really comes out, links lead somewhere.

In a tutorial, and in scoring.md, a code block that follows `<!-- run -->` is executed, in order, in a folder with
docs/examples/runs.csv; a block that follows `<!-- output -->` must be what the last executed block printed, numbers to
2 %.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pplscape.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXECUTED = [*sorted(DOCS.glob("tutorial-*.md")), DOCS / "scoring.md"]
BLOCK = re.compile(r"<!-- (run|output) -->\n```(\w*)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def printed_by(language: str, code: str, names: dict) -> str:
    """What a block prints; Python blocks share `names`, shell blocks are `pplscape` commands."""
    if language == "python":
        sink = io.StringIO()
        with contextlib.redirect_stdout(sink):
            exec(compile(code, "tutorial", "exec"), names)
        return sink.getvalue()
    found = ""
    for line in code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        assert program == "pplscape", line
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        found += result.output
    return found


def assert_same(found: str, shown: str) -> None:
    """Equal words, numbers within 2 % (libraries differ in the last digits); `...` stands for anything left out."""
    for part in filter(None, (p.strip() for p in shown.split("..."))):
        words = NUMBER.sub("\0", " ".join(part.split()))
        flat = " ".join(found.split())
        at = NUMBER.sub("\0", flat).find(words)
        assert at >= 0, f"not printed: {part}"
        first = NUMBER.sub("\0", flat)[:at].count("\0")
        ours = [float(n) for n in NUMBER.findall(flat)[first : first + words.count("\0")]]
        assert ours == pytest.approx([float(n) for n in NUMBER.findall(part)], rel=0.02, abs=1e-3), part


@pytest.mark.usefixtures("unsaved_figures")
@pytest.mark.parametrize("page", EXECUTED, ids=lambda p: p.stem)
def test_tutorials_run_and_show_what_comes_out(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DOCS / "examples/runs.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(page.read_text())
    assert any(kind == "run" for kind, _, _ in blocks)
    names: dict = {}
    printed = ""
    for kind, language, code in blocks:
        if kind == "run":
            printed = printed_by(language, code, names)
        else:
            assert_same(printed, code)


def test_the_example_table_is_what_its_script_writes() -> None:
    rows = runpy.run_path(str(DOCS / "examples/make_runs.py"))["rows"]()
    assert (DOCS / "examples/runs.csv").read_text() == "\n".join(rows) + "\n"


def test_the_checker_notices_a_wrong_number() -> None:
    assert_same("loss 3.500 nats\nand more", "loss 3.51 nats")
    assert_same("a 1\nb 2\nc 3", "a 1\n...\nc 3")
    for wrong in ("loss 3.6 nats", "loss 3.5 bits"):
        with pytest.raises(AssertionError):
            assert_same("loss 3.500 nats", wrong)


PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
        if "://" not in link and not link.startswith("mailto:"):
            target = page.parent / link if link else page
            assert os.path.exists(target), link
            assert not anchor or anchor in anchors(target), f"{link}#{anchor}"
    for test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        path, name = test
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(), test
