"""How every figure looks, and how one drawing becomes a PNG, a paper's SVG and a themed SVG inside the page.

A figure is drawn once by matplotlib. Inside the page its palette colours become CSS custom properties, so that the
same markup serves light, dark and print, and its marks carry `data-tip` texts that the page shows on hover.
Lengths are CSS pixels (one matplotlib point each).
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from pplscape.reporting.words import visible

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

PALETTE = {
    "ink": "#1c2127",
    "muted": "#5c6670",
    "line": "#d9dee3",
    "surface": "#fdfdfc",
    "select": "#c4540a",
    "random": "#2a6f9e",
    "pool": "#9aa5b1",
    "measured": "#3b3f8f",
    "band": "#e9edf1",
    "s1": "#1f5f8b",
    "s2": "#e0a43a",
    "s3": "#6fb1d6",
    "s4": "#b07aa1",
    "s5": "#8a6d3b",
    "s6": "#b9c0c7",
}
"""Light theme by role, each colour used once; style.css holds the dark counterparts. No red-green pair."""
SOURCE_COLOURS = [PALETTE[f"s{i}"] for i in range(1, 7)]
COLOUR_MAP = "cividis"
FULL, HALF, NARROW = 1000, 420, 350
"""Widths in pixels: across the page, beside another figure (and, the same drawing, on a phone), on a phone."""
LARGEST = 490
"""Half-width figures grow up to this width."""

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_DRAWABLE = (f"{{{_SVG}}}path", f"{{{_SVG}}}use")


def plain(text: str) -> str:
    """Text that matplotlib will not read as mathematics and that XML permits."""
    return visible(text).replace("$", r"\$")


def shorten(text: str, most: int) -> str:
    """A label of at most `most` characters."""
    return plain(text if len(text) <= most else text[: most - 1] + "…")


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2, 5 and their tens) between two positive numbers, thinned to about `most`."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [m * 10.0**k for k in decades for m in (1, 2, 5) if low * 0.999 <= m * 10.0**k <= high * 1.001]
    if len(ticks) < 2:
        ticks = [float(f"{t:.2g}") for t in np.geomspace(low, high, 4)]
    return ticks[:: 1 + (len(ticks) - 1) // most]


def _rc(fonttype: str) -> Any:
    ink, muted, line = PALETTE["ink"], PALETTE["muted"], PALETTE["line"]
    return {
        "font.size": 12,
        "axes.titlesize": 12.5,
        "axes.labelsize": 12,
        "xtick.labelsize": 11.5,
        "ytick.labelsize": 11.5,
        "legend.fontsize": 11.5,
        "legend.frameon": False,
        "legend.handlelength": 1.4,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.titlecolor": ink,
        "axes.titlelocation": "left",
        "axes.edgecolor": muted,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": False,
        "grid.color": line,
        "grid.linewidth": 0.8,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "lines.linewidth": 2,
        "hatch.linewidth": 0.8,
        "savefig.facecolor": "none",
        "svg.fonttype": fonttype,
        "svg.hashsalt": "pplscape",
    }


@contextmanager
def styled(fonttype: str = "none") -> Iterator[None]:
    """matplotlib's settings for drawing and saving; the caller's own are untouched afterwards."""
    import matplotlib

    with matplotlib.rc_context(_rc(fonttype)):
        yield


class Drawing:
    """One figure: `figure` to draw on, and its ways out. Draw inside `with styled():`."""

    def __init__(self, name: str, label: str, width: float, height: float):
        from matplotlib.figure import Figure

        self.name, self.label, self.width, self.height = name, label, width, height
        self.figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        self.tips: dict[str, list[str]] = {}
        self.frame: Axes | None = None
        """Axes whose scale the page needs to know: logarithmic x, linear y."""

    @property
    def narrow(self) -> bool:
        """Too narrow for two things side by side."""
        return self.width < 420

    def legend(
        self, handles: Sequence[Any], labels: Sequence[str], loc: str = "outside lower left", **look: Any
    ) -> None:
        """A legend outside the axes. Labels are given: matplotlib drops those of artists that begin with `_`."""
        options: dict[str, Any] = {"loc": loc, "handlelength": 0.8} | look
        self.figure.legend(handles, [plain(t) for t in labels], **options)

    def axes(self, *, grid: str | None = "y") -> Axes:
        """The figure's single axes, with light grid lines across `grid`."""
        axes = self.figure.subplots()
        if grid:
            axes.grid(axis=grid)  # type: ignore[arg-type]
        return axes

    def tip(self, artist: Artist, texts: Sequence[str]) -> None:
        """Texts shown on hover: one for each mark of the artist, or one for the whole of it."""
        key = f"tip{len(self.tips)}"
        artist.set_gid(key)
        self.tips[key] = list(texts)

    def blocks(self, axes: Axes, left: Any, right: Any, low: Any, high: Any, **look: Any) -> Artist:
        """Rectangles as one artist (hundreds of patches are slow); arrays [n], or numbers for all."""
        from matplotlib.collections import PolyCollection

        left, right, low, high = np.broadcast_arrays(left, right, low, high)
        corners: Any = np.stack([left, low, left, high, right, high, right, low], axis=-1).reshape(-1, 4, 2)
        collection = PolyCollection(corners, **({"linewidths": 0} | look))
        axes.add_collection(collection)
        return collection

    def _save(self, kind: str, fonttype: str, **options: Any) -> bytes:
        """The first save does the layout; further ones keep it."""
        sink = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        with styled(fonttype), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in any script are allowed
            self.figure.savefig(sink, format=kind, metadata=metadata, **options)
        self.figure.set_layout_engine("none")
        return sink.getvalue()

    def png(self, scale: float = 2) -> bytes:
        """The figure on white for papers and slides."""
        return self._save("png", "path", dpi=72 * scale, facecolor="white")

    def svg_file(self) -> bytes:
        """A stand-alone SVG on white, glyphs as paths: looks the same everywhere."""
        return self._save("svg", "path", facecolor="white")

    def inline(self, class_: str = "") -> str:
        """An `<svg>` element for the page: text as text, colours as CSS variables, marks with `data-tip`."""
        root = ElementTree.fromstring(self._save("svg", "none"))
        for metadata in root.findall(f"{{{_SVG}}}metadata"):
            root.remove(metadata)
        for defs in root.findall(f"{{{_SVG}}}defs"):
            for sheet in defs.findall(f"{{{_SVG}}}style"):  # would apply to the whole page
                defs.remove(sheet)
        self._attach_tips(root)
        _localise_ids(root, f"{self.name}-{class_ or 'x'}-")
        if self.frame is not None:
            root.set("data-frame", json.dumps(self._frame_facts(self.frame)))
        attributes = {"role": "img", "aria-label": self.label, "class": f"figure {class_}".strip()}
        for name in ("width", "height", "version"):
            root.attrib.pop(name, None)
        root.attrib.update(attributes, style=f"max-width:{LARGEST if self.width == HALF else self.width:g}px")
        _shorten_numbers(root)
        ElementTree.register_namespace("", _SVG)
        ElementTree.register_namespace("xlink", _XLINK)
        return _theme(ElementTree.tostring(root, encoding="unicode"))

    def _frame_facts(self, axes: Axes) -> dict[str, list[float]]:
        """Pixels and data at the ends of both axes, once the layout is done."""
        box = axes.get_position()
        return {
            "px": [box.x0 * self.width, box.x1 * self.width],
            "py": [(1 - box.y0) * self.height, (1 - box.y1) * self.height],
            "x": [float(v) for v in axes.get_xlim()],
            "y": [float(v) for v in axes.get_ylim()],
        }

    def _attach_tips(self, root: ElementTree.Element) -> None:
        groups = {g.get("id"): g for g in root.iter(f"{{{_SVG}}}g")}
        for key, texts in self.tips.items():
            group = groups.get(key)
            if group is None:
                continue
            marks = list(_marks(group))
            targets = marks if len(marks) == len(texts) else [group]
            for mark, text in zip(targets, texts if targets is marks else ["\n".join(texts)], strict=True):
                mark.set("data-tip", visible(text))


def _marks(element: ElementTree.Element) -> Iterator[ElementTree.Element]:
    for child in element:
        if child.tag in _DRAWABLE:
            yield child
        elif child.tag != f"{{{_SVG}}}defs":
            yield from _marks(child)


def _localise_ids(root: ElementTree.Element, prefix: str) -> None:
    """Keep only ids something refers to, made unique on the page."""
    href = f"{{{_XLINK}}}href"
    used = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            used.update(re.findall(r"url\(#([^)]+)\)", value))
            if key == href and value.startswith("#"):
                used.add(value[1:])
    for element in root.iter():
        if (own := element.get("id")) is not None:
            if own in used:
                element.set("id", prefix + own)
            else:
                del element.attrib["id"]
        for key, value in list(element.attrib.items()):
            if key == href and value.startswith("#"):
                element.set(key, f"#{prefix}{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{prefix}"))


def _shorten_numbers(root: ElementTree.Element) -> None:
    """A tenth of a pixel is enough for paths. Texts and tips are left alone."""
    for element in root.iter():
        for key, keep in (("d", r"\1"), ("x", r"\1\2"), ("y", r"\1\2"), ("transform", r"\1\2")):
            if (value := element.get(key)) is not None:
                element.set(key, re.sub(r"\s+", " ", re.sub(r"(\.\d)(\d?)\d*", keep, value)))
        if (style := element.get("style")) and "font-family" in style:
            element.set("style", re.sub(r"font-family: [^;]*;? ?", "", style))


def _theme(svg: str) -> str:
    names = {hex_: name for name, hex_ in PALETTE.items()}
    pattern = re.compile("|".join(names))
    svg = pattern.sub(lambda m: f"var(--{names[m.group()]})", svg)
    return re.sub(r">\s+<", "><", svg)
