"""The corpus found on this machine: bounded, in an order fixed by relative paths, without caches or pplscape itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from pplscape.embedded.corpus import MAX_FILE_BYTES, python_corpus, python_roots
from pplscape.errors import UserError
from pplscape.text.inputs import name_of, resolve_inputs, source_of
from pplscape.text.read import Document, read_documents


def make(root: Path) -> Path:
    files = {
        "argparse.py": 10,
        "json/decoder.py": 10,
        "json/README.md": 10,
        "json/__pycache__/decoder.py": 10,
        "json/.hidden.py": 10,
        "big/table.py": MAX_FILE_BYTES + 1,
        "big/empty.py": 0,
        "pplscape/text/read.py": 10,
        "pplscape-0.1.0.dist-info/top.txt": 10,
        "site-packages/numpy/core.py": 10,
        "json/data.bin": 10,
    }
    for name, size in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x" * size)
    return root


def test_what_is_taken(tmp_path: Path) -> None:
    root = make(tmp_path / "stdlib")
    names = [name_of(p) for p in python_corpus(roots=[root, root / "site-packages"])]
    assert sorted(names) == ["argparse.py", "json/README.md", "json/decoder.py", "numpy/core.py"]
    paths = resolve_inputs(python_corpus(roots=[root, root / "site-packages"]))
    assert {source_of(p) for p in paths} == {"argparse", "json", "numpy"}
    assert [d.doc_id for d in read_documents(paths) if isinstance(d, Document)] == names


def test_the_order_depends_on_relative_paths_alone(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "elsewhere" / "two")
    names = [name_of(p) for p in python_corpus(roots=[one])]
    assert names == [name_of(p) for p in python_corpus(roots=[two])]
    assert names == [name_of(p) for p in python_corpus(roots=[one, two])]
    assert [name_of(p) for p in python_corpus(max_bytes=25, roots=[one])] == names[:2]


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give your own files"):
        python_corpus(roots=[tmp_path])


def test_this_environment_has_enough() -> None:
    assert python_roots()
    paths = python_corpus(max_bytes=2_000_000)
    assert 1_500_000 < sum(Path(p).stat().st_size for p in paths) <= 2_000_000
    assert len({source_of(p) for p in paths}) > 5
    assert paths == python_corpus(max_bytes=2_000_000)
