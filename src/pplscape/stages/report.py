"""Stage `report`: one HTML page about a run, its tables as Markdown, its figures as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

from pplscape.errors import StaleOutput
from pplscape.manifest import cannot_write, write_atomic
from pplscape.reporting.folder import RunFolder
from pplscape.reporting.gallery import Gallery
from pplscape.reporting.html import render
from pplscape.reporting.markdown import markdown

PAGE = "report.html"


def report(run_dir: Path | str, *, out: Path | str | None = None, overwrite: bool = False) -> Path:
    """Write OUT/report.html, OUT/summary.md and OUT/figures/*.png, *.svg (OUT: RUN_DIR/report); returns the folder.

    Made anew each time from whatever stages have finished; a missing one is named with the command that makes it.
    UserError if `run_dir` holds no stage of a run, StaleOutput if OUT holds anything but a report.
    """
    run_dir = Path(run_dir)
    out = Path(out) if out is not None else run_dir / "report"
    run, gallery = RunFolder.read(run_dir), Gallery()
    if out.is_dir() and any(out.iterdir()) and not (out / PAGE).exists() and not overwrite:
        raise StaleOutput(f"{out} exists and holds no report; choose another --out or pass --overwrite.")
    page = render(run, out / PAGE, gallery)
    figures = out / "figures"
    try:
        figures.mkdir(parents=True, exist_ok=True)
        for old in (*figures.glob("*.png"), *figures.glob("*.svg")):
            if old.stem not in gallery.kept:
                old.unlink()
    except OSError as error:
        raise cannot_write(figures, error) from error
    for name, drawing in gallery.kept.items():
        write_atomic(figures / f"{name}.png", drawing.png())
        write_atomic(figures / f"{name}.svg", drawing.svg_file())
    write_atomic(out / "summary.md", markdown(run).encode())
    write_atomic(out / PAGE, page.encode())
    return out
