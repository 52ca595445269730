"""One drawing, three ways out: what the inline SVG keeps, replaces and escapes."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from pplscape.reporting.style import HALF, PALETTE, Drawing, styled

EVIL = "</svg><script>alert('x')</script> $\\frac{1}{2}$ \x00 _"


@pytest.fixture(scope="module")
def drawing():
    with styled():
        drawing = Drawing("one", "A label with <angles>", HALF, 200)
        axes = drawing.axes()
        dots = axes.scatter([0, 1], [0.0125, 0.034567], color=PALETTE["select"])
        drawing.tip(dots, ["first 0.0123456", EVIL])
        bars = drawing.blocks(axes, np.array([0.0, 1.0]), np.array([0.5, 1.5]), 0, 1, color=PALETTE["pool"])
        drawing.tip(bars, ["whole"])
        axes.text(0.5, 0.02, "0.034567")
        drawing.legend([dots], ["__init__"])
        drawing.frame = axes
    return drawing


@pytest.fixture(scope="module")
def svg(drawing):
    return drawing.inline("wide")


def test_it_is_well_formed_and_self_contained(svg):
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "A label with <angles>"
    assert not root.findall(".//{http://www.w3.org/2000/svg}style")
    assert not re.search(r'(href|src)="(?!#)', svg)


def test_palette_colours_become_custom_properties(svg):
    assert "var(--select)" in svg
    assert "var(--pool)" in svg
    assert "var(--ink)" in svg
    assert not any(colour in svg for colour in PALETTE.values())


def test_every_palette_colour_stands_for_one_role():
    assert len(set(PALETTE.values())) == len(PALETTE)


def test_texts_and_tips_keep_all_their_digits(svg):
    assert ">0.034567<" in svg
    assert "first 0.0123456" in svg


def test_each_mark_has_its_tip_and_nothing_can_execute(svg):
    root = ElementTree.fromstring(svg)
    tips = [e.get("data-tip") for e in root.iter() if e.get("data-tip")]
    assert "first 0.0123456" in tips
    assert "whole" in tips
    assert any(t.startswith("</svg><script>") for t in tips)
    assert "<script" not in svg


def test_ids_are_kept_only_where_used_and_made_unique(drawing, svg):
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert all(i.startswith("one-wide-") for i in ids)
    used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    assert set(ids) == used


def test_legend_names_may_begin_with_an_underscore(svg):
    assert ">__init__<" in svg


def test_frame_tells_where_data_lies(svg):
    import html
    import json

    facts = json.loads(html.unescape(re.search(r'data-frame="([^"]+)"', svg)[1]))
    assert 0 < facts["px"][0] < facts["px"][1] < HALF
    assert 0 < facts["py"][1] < facts["py"][0] < 200
    assert facts["x"][0] < 0 < 1 < facts["x"][1]


def test_files_are_reproducible(drawing):
    assert drawing.png() == drawing.png()
    assert drawing.png()[:4] == b"\x89PNG"
    assert drawing.svg_file() == drawing.svg_file()
