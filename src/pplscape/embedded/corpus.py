"""Real text on every machine: the Python sources and documentation of the running environment.

Standard library and site-packages hold code, prose, licence texts, generated tables, vendored copies and tests: a
natural dirty pool. Ids are paths relative to their root, so that the same environment gives the same corpus anywhere.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path

from pplscape.errors import UserError
from pplscape.text.inputs import ROOT

SUFFIXES = frozenset({".py", ".pyi", ".rst", ".md", ".txt"})
MAX_FILE_BYTES = 200_000
"""Larger files (generated tables, mostly) are left out: one of them would outweigh hundreds of others."""
EXCLUDED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "pplscape"})


def python_roots() -> list[Path]:
    """Folders of the standard library and of the installed packages, without repeats."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    roots = [Path(os.path.realpath(sysconfig.get_path(name))) for name in names]
    return [root for root in dict.fromkeys(roots) if root.is_dir()]


def python_corpus(
    max_bytes: int | None = None, *, max_file_bytes: int = MAX_FILE_BYTES, roots: list[Path] | None = None
) -> list[str]:
    """Input files for `prepare`, ordered by the hash of their relative path; at most `max_bytes` of text if given.

    Give `max_bytes` where only a part is used (some 6 bytes per token wanted): `prepare` hashes all its input files.
    Left out: files above `max_file_bytes`, empty files, pplscape itself, caches and hidden folders. A relative path
    that occurs under two roots counts once. UserError if there is nothing.
    """
    found: dict[str, tuple[str, int]] = {}
    for root in python_roots() if roots is None else roots:
        for name, size in _files(root, max_file_bytes):
            found.setdefault(name, (f"{root}{ROOT}{name}", size))
    chosen: list[str] = []
    total = 0
    for name in sorted(found, key=_order):
        path, size = found[name]
        if max_bytes is not None and total + size > max_bytes:
            break
        chosen.append(path)
        total += size
    if not chosen:
        raise UserError("No Python source or documentation was found in this environment: give your own files.")
    return chosen


def _order(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _files(root: Path, max_file_bytes: int) -> list[tuple[str, int]]:
    """(path relative to root, bytes) of the wanted files below one root."""
    found: list[tuple[str, int]] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(d for d in subfolders if d not in EXCLUDED_FOLDERS and _visible(d))
        for file in files:
            path = os.path.join(folder, file)
            if os.path.splitext(file)[1].lower() not in SUFFIXES or not _visible(file) or os.path.islink(path):
                continue
            size = os.path.getsize(path)
            if 0 < size <= max_file_bytes:
                found.append((os.path.relpath(path, root).replace(os.sep, "/"), size))
    return found


def _visible(name: str) -> bool:
    """Neither hidden nor installed by pplscape, nor undecodable."""
    return not name.startswith((".", "pplscape-", "_editable_impl_pplscape")) and name.isprintable()
