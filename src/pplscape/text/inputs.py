"""Which files an input pattern means, what they are called, and what identifies their content.

A pattern is a file, a folder, a glob, any fsspec URL of these, or `hf:DATASET`. Each input has a *name* that does
not depend on the machine: its path relative to the folder or to the fixed part of the glob it was found by, else
relative to the folder that all explicitly named files share. The root is marked in the path itself, rsync's way:
`/data/corpus/./books/a.txt` is the file `books/a.txt` of the root `/data/corpus`.
"""

from __future__ import annotations

import difflib
import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, cast
from urllib.parse import parse_qsl

from pplscape.errors import UserError
from pplscape.manifest import fingerprint, sha256_file

ROOT = "/./"
"""Marks where the machine-independent name of an input begins."""
Kind = Literal["jsonl", "parquet", "text", "hf"]
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
TEXT_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("txt", "text", "md", "markdown", "rst", "tex", "org", "adoc", "html", "htm", "py", "pyi", "pyx", "c", "h"),
        *("cc", "cpp", "hpp", "cu", "rs", "go", "java", "kt", "scala", "js", "jsx", "ts", "tsx", "rb", "php", "pl"),
        *("r", "jl", "lua", "sh", "sql", "swift", "hs", "ml", "lean"),
    )
)
COMPRESSIONS = frozenset({".gz", ".zst"})


@dataclass(frozen=True)
class Form:
    """How a file is laid out: its kind, its compression suffix ("" for none), and its name without either suffix."""

    kind: Kind
    compression: str
    stem: str


def is_url(path: str) -> bool:
    return "://" in path


def is_dataset(path: str) -> bool:
    """`hf:NAME` (a dataset of the Hugging Face hub); `hf://...` is an ordinary fsspec URL."""
    return path.startswith("hf:") and not path.startswith("hf://")


def form_of(path: str) -> Form:
    """The layout of a file, read off its suffixes. UserError for a suffix that is not known."""
    if is_dataset(path):
        return Form("hf", "", PurePosixPath(dataset_query(path)[0]).name)
    found = _form(path)
    if found is None:
        raise UserError(
            f"Cannot tell the format of {path} from its suffix: give .jsonl, .parquet or a text file "
            "(.txt .md .rst .py ...), each plain or with .gz or .zst."
        )
    return found


def _form(path: str) -> Form | None:
    name = PurePosixPath(path).name
    stem, suffix = os.path.splitext(name)
    compression = ""
    if suffix.lower() in COMPRESSIONS:
        compression = suffix.lower()
        stem, suffix = os.path.splitext(stem)
    suffix = suffix.lower()
    if suffix in JSONL_SUFFIXES:
        return Form("jsonl", compression, stem)
    if suffix == ".parquet" and not compression:
        return Form("parquet", "", stem)
    if suffix in TEXT_SUFFIXES:
        return Form("text", compression, stem)
    return None


def dataset_query(path: str) -> tuple[str, dict[str, str]]:
    """`hf:org/name?split=train&name=config&revision=abc` -> ("org/name", arguments of `datasets.load_dataset`)."""
    name, _, query = path.removeprefix("hf:").partition("?")
    return name, {"split": "train", **dict(parse_qsl(query))}


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL and the path in it. UserError if its protocol is unknown or not installed."""
    import fsspec

    try:
        fs, inner = fsspec.core.url_to_fs(url)
        return fs, str(inner)
    except ImportError as error:
        raise UserError(f"Reading {url} needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise UserError(f"Cannot read {url}: {error}") from None


def open_input(path: str) -> BinaryIO:
    """The raw bytes of a local file or a URL. UserError if it cannot be opened, or reading fails on the way."""
    try:
        if not is_url(path):
            return cast(BinaryIO, _Guarded(open(location(path), "rb"), path))
        fs, inner = filesystem(location(path))
        return cast(BinaryIO, _Guarded(fs.open(inner, "rb"), path))
    except FileNotFoundError:
        raise _missing(path) from None
    except failures(path) as error:
        raise cannot_read(path, error) from None


class _Guarded:
    """A file whose failing reads are UserErrors, so that they are never taken for damage of its content."""

    def __init__(self, file: Any, path: str):
        self._file, self._path = file, path

    def read(self, n: int = -1) -> bytes:
        try:
            return self._file.read(n)  # type: ignore[no-any-return]
        except failures(self._path) as error:
            raise cannot_read(self._path, error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Guarded:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def failures(path: str) -> type[Exception]:
    """What reading may raise: remote file systems have errors of their own."""
    return Exception if is_url(path) or is_dataset(path) else OSError


def cannot_read(path: str, error: Exception) -> UserError:
    """What is done so far is kept, which only matters where the failure may pass."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    again = " What is finished is kept: run the same command again." if is_url(path) or is_dataset(path) else ""
    return UserError(f"Cannot read {location(path)}: {reason}.{again}")


def location(path: str) -> str:
    """The path without the mark of its root: what a file system understands."""
    return path.replace(ROOT, "/")


def name_of(path: str) -> str:
    """The machine-independent name of a resolved input."""
    if is_dataset(path):
        return path.removeprefix("hf:").replace("?", "/")
    return path.rsplit(ROOT, 1)[1] if ROOT in path else PurePosixPath(path).name


def resolve_inputs(patterns: Sequence[str]) -> list[str]:
    """The files that patterns mean: in the given order, sorted within a folder or glob, no file twice, names distinct.

    Folders are searched recursively for known suffixes; hidden files and `__pycache__` are left out.
    UserError if a pattern matches nothing (with the names that come nearest), or a file's format is unknown.
    """
    if isinstance(patterns, str | Path):
        patterns = [str(patterns)]
    paths: dict[str, str] = {}
    for pattern in map(str, patterns):
        for path in _resolve(pattern):
            form_of(path)
            paths.setdefault(path if is_url(path) or is_dataset(path) else os.path.abspath(path), path)
    if not paths:
        raise UserError("No input was given: name a file, a folder, a glob or a URL.")
    return _distinct(_with_common_root(list(paths.values())))


def _with_common_root(paths: list[str]) -> list[str]:
    """Mark the folder that all files without a marked root share as their root."""
    plain = [p for p in paths if ROOT not in p and not is_url(p) and not is_dataset(p)]
    if not plain:
        return paths
    common = os.path.commonpath([os.path.dirname(os.path.abspath(p)) for p in plain])
    marked = {p: _marked(p, os.path.relpath(os.path.abspath(p), common)) for p in plain}
    return [marked.get(p, p) for p in paths]


def _marked(path: str, name: str) -> str:
    root = path.removesuffix(name) if path.endswith(name) else os.path.abspath(path).removesuffix(name)
    return f"{root.rstrip('/') or ('/.' if root.startswith('/') else '.')}{ROOT}{name}"


def _distinct(paths: list[str]) -> list[str]:
    """Where two names are equal, move both roots up until they differ."""
    for _ in range(64):
        counts = Counter(map(name_of, paths))
        if max(counts.values()) == 1:
            return paths
        paths = [_root_up(p) if counts[name_of(p)] > 1 else p for p in paths]
    raise UserError(f"Two inputs have the same name: {counts.most_common(1)[0][0]}. Rename one or leave one out.")


def _root_up(path: str) -> str:
    root, name = path.rsplit(ROOT, 1) if ROOT in path else path.rsplit("/", 1)
    head, _, tail = root.rpartition("/")
    if tail in ("", ".", "..") or head.endswith(":/"):
        head, _, tail = os.path.abspath(root).rpartition("/") if not is_url(path) else (head, "", tail)
    return f"{head}{ROOT}{tail}/{name}"


def _resolve(pattern: str) -> list[str]:
    if is_dataset(pattern):
        return [pattern]
    return _resolve_url(pattern) if is_url(pattern) else _resolve_local(pattern)


def _resolve_local(pattern: str) -> list[str]:
    path = os.path.expanduser(pattern)
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        root = os.path.normpath(path)
        names = (os.path.relpath(os.path.join(d, f), root) for d, _, files in os.walk(root) for f in files)
        return _under(root, _wanted(n.replace(os.sep, "/") for n in names), pattern)
    if glob.has_magic(path):
        root = _fixed_part(path)
        found = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
        if not found:
            raise UserError(f"Nothing matches {pattern}.")
        return _under(root, sorted(os.path.relpath(p, root or ".").replace(os.sep, "/") for p in found), pattern)
    raise _missing(pattern)


def _resolve_url(url: str) -> list[str]:
    fs, inner = filesystem(url)
    scheme = url.split("://")[0]
    try:
        if glob.has_magic(inner):
            root = _fixed_part(inner)
            found = sorted(str(p) for p in fs.glob(inner) if fs.isfile(p))
        elif fs.isdir(inner):
            root = inner.rstrip("/")
            names = [str(p)[len(root) :].lstrip("/") for p in fs.find(root)]
            return _under(fs.unstrip_protocol(root), _wanted(names), url)
        elif fs.exists(inner):
            return [url]
        else:
            raise _missing(url)
    except UserError:
        raise
    except failures(url) as error:
        raise UserError(f"Cannot list {url}: {error}.") from None
    if not found:
        raise UserError(f"Nothing matches {url}.")
    prefix = fs.unstrip_protocol(root) if root else f"{scheme}://"
    return [f"{prefix.rstrip('/')}{ROOT}{p[len(root) :].lstrip('/')}" for p in found]


def _fixed_part(pattern: str) -> str:
    """The folder above the first component with a wildcard."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else "")


def _wanted(names: Iterable[str]) -> list[str]:
    def visible(name: str) -> bool:
        return not any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))

    return sorted(n for n in names if visible(n) and _form(n) is not None)


def _under(root: str, names: list[str], pattern: str) -> list[str]:
    if not names:
        raise UserError(f"{pattern} holds no file with a known suffix (.jsonl, .parquet, .txt, .md, .py ...).")
    prefix = root.rstrip("/") if root else "."
    return [f"{prefix}{ROOT}{name}" for name in names]


def _missing(path: str) -> UserError:
    """`No such file`, with what there is instead."""
    if is_url(path):
        return UserError(f"No such file: {path}.")
    folder, name = os.path.split(os.path.normpath(path))
    try:
        there = sorted(e for e in os.listdir(folder or ".") if not e.startswith("."))
    except OSError:
        return UserError(f"No such file: {path} (its folder {folder or '.'} does not exist).")
    near = difflib.get_close_matches(name, there, n=3, cutoff=0.5) or there[:5]
    listed = f"; there are: {', '.join(near)}" if near else " and its folder is empty"
    return UserError(f"No such file: {path}{listed}.")


def source_of(path: str) -> str:
    """The file's name without suffixes; for a text file in a folder, the topmost folder of its name."""
    form, name = form_of(path), name_of(path)
    return name.split("/")[0] if form.kind == "text" and "/" in name else form.stem


def content_keys(paths: Sequence[str]) -> dict[str, str]:
    """What identifies each input's content, by name: sha256 of a local file; ETag or checksum and size of a URL."""
    return {name_of(path): _content_key(path) for path in paths}


def summed_up(keys: dict[str, str]) -> dict[str, str]:
    """More than 100 content keys as one, so that manifests stay readable."""
    return keys if len(keys) <= 100 else {f"{len(keys)} files": fingerprint(keys)}


def _content_key(path: str) -> str:
    if is_dataset(path):
        return path
    if not is_url(path):
        try:
            return sha256_file(Path(location(path)))
        except OSError as error:
            raise cannot_read(path, error) from None
    info = _info(path)
    tag = next((info[k] for k in ("ETag", "etag", "md5Hash", "sha256", "created", "mtime") if info.get(k)), "")
    return f"{tag}:{info.get('size')}"


def _info(url: str) -> dict[str, Any]:
    """What the file system of a URL says of the file."""
    fs, inner = filesystem(location(url))
    try:
        return dict(fs.info(inner))
    except FileNotFoundError:
        raise _missing(url) from None
    except failures(url) as error:
        raise cannot_read(url, error) from None


def size_of(path: str) -> int:
    """Bytes of the stored (compressed) file; 0 where unknown before reading."""
    if is_dataset(path):
        return 0
    return int(_info(path).get("size") or 0) if is_url(path) else os.path.getsize(location(path))


def identities(role: str, patterns: Sequence[str] | None) -> dict[str, str]:
    """`role/name` -> content key of every file that the patterns mean, for a stage's fingerprint."""
    if not patterns:
        return {}
    return {f"{role}/{n}": k for n, k in summed_up(content_keys(resolve_inputs(patterns))).items()}
