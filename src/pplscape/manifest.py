"""Stage folders: written under a temporary name, renamed when complete, described by manifest.json.

A stage opens its folder with what determines its result (inputs, configuration, seed, schema version).
    same fingerprint, finished   -> `folder.finished` is true, nothing to do
    same fingerprint, unfinished -> the finished files under `OUT.partial` are kept: the stage resumes
    another fingerprint          -> StaleOutput: nothing of the user's is overwritten without being told to
Volatile facts (time, host, versions) are kept apart under `run` and never enter a fingerprint.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pplscape.errors import StaleOutput, UserError

MANIFEST = "manifest.json"
OWN = (".lock", "key", "key.tmp", MANIFEST)
"""Files of a stage folder that are not data."""
_LIBRARIES = ("pplscape", "torch", "transformers", "tokenizers", "numpy", "scipy", "pyarrow")


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, read once."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """sha256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint_input(path: Path) -> str:
    """What a later stage depends on: a stage folder's manifest without `run`, else the file's or folder's bytes."""
    if (path / MANIFEST).exists():
        manifest = read_manifest(path)
        return fingerprint({k: v for k, v in manifest.items() if k != "run"})
    if not path.exists():
        raise UserError(f"There is no file or folder {path}.")
    if path.is_dir():
        return fingerprint({str(p.relative_to(path)): sha256_file(p) for p in sorted(path.rglob("*")) if p.is_file()})
    return sha256_file(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished stage folder; UserError if there is none."""
    try:
        return json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} is not the output of a finished stage: it has no {MANIFEST}.") from None


def read_json(path: Path, made_by: str) -> Any:
    """A stage's JSON file. UserError, with the command that makes it, if it is not there or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"There is no {path}; make it with: pplscape {made_by}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a result, without importing them."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes under a temporary name and rename: a reader sees all or nothing. UserError when the disk is full."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """Translate an operating-system error into what the user should do."""
    return UserError(f"Cannot write {path}: {error.strerror or error}. Free some space or choose another --out.")


class StageFolder:
    """Context manager around one stage's output folder; see the module's docstring.

    >>> with StageFolder(out, stage="landscape", version=1, config={...}, inputs={"scores": path}) as folder:
    ...     if not folder.finished:
    ...         folder.write_json("landscape.json", {...})
    ...         folder.finish(counts={"in": 10, "out": 9, "rejected": {"empty": 1}})
    """

    def __init__(
        self,
        out: Path,
        *,
        stage: str,
        version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, Path | str],
        seed: int = 0,
        overwrite: bool = False,
    ):
        self.out, self.overwrite = Path(out).resolve(), overwrite
        self.partial = self.out.with_name(self.out.name + ".partial")
        self.inputs = {k: fingerprint_input(v) if isinstance(v, Path) else v for k, v in inputs.items()}
        self.identity = {
            "stage": stage,
            "version": version,
            "config": dict(config),
            "inputs": self.inputs,
            "seed": seed,
        }
        self.key = fingerprint(self.identity)
        self.finished = False
        self._started = time.time()

    @property
    def path(self) -> Path:
        """Where to read and write now: the final folder once finished, the partial one before."""
        return self.out if self.finished else self.partial

    def __enter__(self) -> StageFolder:
        if self.out.exists() and self._matches():
            self.finished = True
            return self
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.partial, error) from error
        self._lock = open(self.partial / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(f"Another process is writing {self.out}; wait for it or choose another --out.") from None
        self._adopt_partial()
        return self

    def _matches(self) -> bool:
        if not (self.out / MANIFEST).exists():
            if not self.out.is_dir() or any(self.out.iterdir()):  # not ours: never removed, not even with --overwrite
                raise StaleOutput(f"{self.out} exists and is not a finished stage folder; choose another --out.")
            return False
        manifest = read_manifest(self.out)
        if "key" not in manifest or "stage" not in manifest:
            raise StaleOutput(f"{self.out} holds a {MANIFEST} of something else; choose another --out.")
        if manifest["key"] == self.key:
            changed = {k: v for k, v in library_versions().items() if manifest["run"]["versions"].get(k, v) != v}
            if changed:
                warnings.warn(f"{self.out} was written with other library versions than {changed}.", stacklevel=3)
            return True
        if not self.overwrite:
            differing = [
                k for k in self.identity if manifest.get(k) != json.loads(json.dumps(self.identity[k], default=str))
            ]
            raise StaleOutput(
                f"{self.out} holds the result of another configuration (different: {', '.join(differing)}); "
                "choose another --out or pass --overwrite."
            )
        return False

    def _adopt_partial(self) -> None:
        key_file = self.partial / "key"
        known = key_file.read_text() if key_file.exists() else None
        if known is None and (self.partial / MANIFEST).exists():  # killed between the manifest and the rename
            known = read_manifest(self.partial)["key"]
        done = [p for p in self.partial.iterdir() if p.name not in OWN]
        if done and known is not None and known != self.key:
            if not self.overwrite:
                raise StaleOutput(
                    f"{self.partial} holds unfinished work of another configuration; delete it or pass --overwrite."
                )
            for path in done:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_atomic(key_file, self.key.encode())

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_lock"):
            if self.partial.exists() and all(p.name in OWN for p in self.partial.iterdir()):
                shutil.rmtree(self.partial)  # a stage that failed before it wrote anything leaves nothing behind
            self._lock.close()

    def has(self, name: str) -> bool:
        """True if this file was already written whole (files appear under their name only when complete)."""
        return (self.path / name).exists()

    def write_bytes(self, name: str, data: bytes) -> None:
        write_atomic(self.partial / name, data)

    def write_text(self, name: str, text: str) -> None:
        write_atomic(self.partial / name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        write_atomic(self.partial / name, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def write_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        write_atomic(self.partial / name, "".join(json.dumps(r, allow_nan=False) + "\n" for r in rows).encode())

    def write_table(self, name: str, table: pa.Table) -> None:
        """Parquet, zstd; same table, same bytes."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_atomic(self.partial / name, sink.getvalue().to_pybytes())

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Record what was done and give the folder its final name."""
        files = sorted(p for p in self.partial.rglob("*") if p.is_file() and p.name not in OWN)
        manifest = {
            **self.identity,
            "key": self.key,
            "counts": dict(counts),
            "files": {str(p.relative_to(self.partial)): sha256_file(p) for p in files},
            "run": {
                "seconds": round(time.time() - self._started, 3),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "host": platform.node(),
                "versions": library_versions(),
            },
        }
        write_atomic(self.partial / MANIFEST, (json.dumps(manifest, indent=1, default=str) + "\n").encode())
        (self.partial / "key").unlink()
        (self.partial / ".lock").unlink()
        if self.out.exists():
            shutil.rmtree(self.out)
        os.replace(self.partial, self.out)
        self.finished = True
