"""The report stage: files, size, atomic re-writing, the terminal's summary."""

import shutil

import pytest

from pplscape.errors import StaleOutput, UserError
from pplscape.reporting.terminal import summary
from pplscape.stages.report import report


@pytest.fixture(scope="module")
def written(finished_run, tmp_path_factory):
    return report(finished_run, out=tmp_path_factory.mktemp("out") / "report")


def test_page_and_figures(written):
    names = {p.name for p in (written / "figures").iterdir()}
    figures = {"landscape", "pilots-plane", "utilities", "predicted-measured", "bin-shares", "source-shares",
               "budget-curve", "paired-differences", "residuals", "profiles", "clouds"}  # fmt: skip
    assert names == {f"{f}.{kind}" for f in figures for kind in ("png", "svg")}
    page = (written / "report.html").read_text()
    assert len(page.encode()) < 600_000
    assert page.count("<svg") == 6 + 3 + 2 * 4, "six half-width figures, three planes, two of each full-width one"
    assert "<img" not in page


def test_same_run_same_bytes(run, tmp_path):
    for stage in ("pilots", "law", "selection"):  # the quick figures are enough
        shutil.rmtree(run / stage)
    one, two = (report(run, out=tmp_path / name) for name in "ab")
    names = sorted(p.relative_to(one) for p in one.rglob("*.*"))
    assert len(names) == 6  # the page, its tables, two figures as PNG and SVG
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.usefixtures("sketched")
def test_made_again_in_place_and_old_figures_go(run):
    out = report(run)
    assert out == run / "report"
    (run / "comparison/comparison.json").unlink()
    assert report(run) == out
    assert not (out / "figures/paired-differences.png").exists()
    assert (out / "figures/landscape.png").exists()


@pytest.mark.usefixtures("sketched")
def test_a_foreign_folder_is_not_written_into(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    with pytest.raises(StaleOutput, match="holds no report"):
        report(run, out=tmp_path / "mine")
    report(run, out=tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine/thesis.tex").exists()


def test_not_a_run(tmp_path):
    with pytest.raises(UserError, match="holds no stage"):
        report(tmp_path)


def test_terminal_summary(finished_run):
    text = summary(finished_run)
    assert text.splitlines()[0] == "Worth it (measured)"
    assert "predicted loss, ‘allocate’" in text
    assert "before training" in text
    assert "allocate" in text
    assert "−0.0" in text
    assert "\x1b" not in text
    assert "\x1b[" in summary(finished_run, color=True)
    assert max(map(len, text.splitlines())) <= 100


def test_terminal_summary_of_a_run_in_progress(run):
    (run / "comparison/comparison.json").unlink()
    (run / "selection/selection.json").unlink()
    assert summary(run).startswith("No verdict yet")
