"""Figures on their way into the page: each drawn wide and narrow, the wide one kept for the PNG and SVG files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from markupsafe import Markup

from pplscape.reporting.style import HALF, NARROW, Drawing


@dataclass
class Gallery:
    """Collects the figures of one report."""

    kept: dict[str, Drawing] = field(default_factory=dict)

    def hang(self, draw: Callable[[float], Drawing], width: float = HALF, name: str | None = None) -> Markup:
        """A figure as markup: across the page it is drawn wide and narrow and CSS shows one.

        `name` is that of its files, by default the drawing's own; empty for none.
        """
        drawing = draw(width)
        if name != "":
            self.kept[name or drawing.name] = drawing
        variants = [drawing.inline("wide"), draw(NARROW).inline("narrow")] if width > HALF else [drawing.inline()]
        return Markup("".join(variants))
