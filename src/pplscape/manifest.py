"""Stage folders: written under a temporary name, renamed when complete, described by manifest.json.

A stage opens its folder with what determines its result (inputs, configuration, seed, schema version).
    same fingerprint, finished   -> `folder.finished` is true, nothing to do
    same fingerprint, unfinished -> the finished files under `OUT.partial` are kept: the stage resumes
    only inputs were added       -> a stage that can `extends`: the old files are linked, the stage adds to them
    another fingerprint          -> StaleOutput: nothing of the user's is overwritten without being told to
A kill -9 at any moment leaves either the old folder or the new one, and what was finished of the new one.
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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pplscape.errors import StaleOutput, UserError

MANIFEST = "manifest.json"
LOCK, KEY = ".lock", "key"
SCRATCH = "spool"
"""Intermediate work of a stage: no part of its result, kept for resuming until the manifest is written."""


def is_own(name: str) -> bool:
    """True for files of a stage folder that are not data."""
    return name.startswith(LOCK) or name in (KEY, f"{KEY}.tmp", MANIFEST)


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
    except (FileNotFoundError, NotADirectoryError):
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
        with suppress(OSError):
            temporary.unlink()  # half a file must not take the space that is missing
        raise cannot_write(path, error) from error


def link_atomic(source: Path, target: Path) -> None:
    """The same file under a second name: a hard link, a copy where the file system has none."""
    temporary = target.with_name(target.name + ".tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copy2(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise cannot_write(target, error) from error


def table_bytes(table: pa.Table) -> bytes:
    """Parquet, zstd; same table, same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def take_lock(path: Path, shared: bool = False) -> IO[str] | None:
    """The open file, locked until it is closed or the process ends; None if another process holds it.

    Some network file systems have no locks: then a warning says that nothing guards the folder.
    """
    handle = open(path, "a+")  # noqa: SIM115 - the caller holds it
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    except OSError as error:
        warnings.warn(
            f"The file system of {path.parent} has no file locks ({error.strerror}): make sure that only one process "
            "writes there.",
            stacklevel=4,
        )
    return handle


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
        extends: Callable[[dict[str, Any]], bool] = lambda manifest: False,
    ):
        """`extends`: asked about a finished folder of the same configuration and other inputs: whether its files stay
        as they are and this run only adds to them (then `base` is its manifest). May raise StaleOutput to say why not.
        """
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
        self.base: dict[str, Any] | None = None
        self.finished = False
        self._extends = extends
        self._lock: IO[str] | None = None
        self._started = time.time()

    @property
    def path(self) -> Path:
        """Where to read and write now: the final folder once finished, the partial one before."""
        return self.out if self.finished else self.partial

    def __enter__(self) -> StageFolder:
        while not self._found_finished():
            self._make_partial()
            try:
                self._lock = take_lock(self.partial / LOCK)
            except FileNotFoundError:  # another process has just given the folder its final name
                continue
            except OSError as error:
                raise cannot_write(self.partial, error) from error
            if self._lock is None:
                raise self._busy()
            if self._lock_is_ours():
                try:
                    self._take_up()
                except BaseException:
                    self.__exit__()
                    raise
                return self
            self._lock.close()
        return self

    def _take_up(self) -> None:
        """With the lock held: what others left, finished or not."""
        if self._found_finished():  # while this process made its own folder
            return
        if self._is_complete():
            self._swap()
        else:
            self._adopt_partial()

    def _found_finished(self) -> bool:
        self.finished = self.out.exists() and self._matches()
        return self.finished

    def _lock_is_ours(self) -> bool:
        """Whether the locked file is still the folder's: another process may have renamed the folder meanwhile."""
        assert self._lock is not None
        try:
            return os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.partial / LOCK))
        except FileNotFoundError:
            return False

    def _make_partial(self) -> None:
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.partial, error) from error

    def _busy(self) -> UserError:
        return UserError(f"Another process is writing {self.out}; wait for it or choose another --out.")

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
        known = json.loads(json.dumps(self.identity, default=str))
        differing = [k for k in known if manifest.get(k) != known[k]]
        if differing == ["inputs"]:
            try:
                self.base = manifest if self._extends(manifest) else None
            except StaleOutput:
                if not self.overwrite:
                    raise
        if not self.overwrite and not self.base:
            raise StaleOutput(
                f"{self.out} holds the result of another configuration (different: {', '.join(differing)}); "
                "choose another --out or pass --overwrite."
            )
        return False

    def _is_complete(self) -> bool:
        """Whether a run was killed between the manifest and the rename."""
        return (self.partial / MANIFEST).exists() and read_manifest(self.partial).get("key") == self.key

    def _adopt_partial(self) -> None:
        key = fingerprint([self.key, self.base]) if self.base else self.key
        key_file = self.partial / KEY
        known = key_file.read_text() if key_file.exists() else None
        if known is None and (self.partial / MANIFEST).exists():
            known = read_manifest(self.partial)["key"]
        done = [p for p in self.partial.iterdir() if not is_own(p.name)]
        if done and known is not None and known != key:
            if not self.overwrite:
                raise StaleOutput(
                    f"{self.partial} holds unfinished work of another configuration; delete it or pass --overwrite."
                )
            for path in done:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.partial / MANIFEST).unlink(missing_ok=True)
        write_atomic(key_file, key.encode())
        for name in self.base["files"] if self.base else ():
            if not self.has(name):
                link_atomic(self.out / name, self.partial / name)

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            if self.partial.exists() and all(is_own(p.name) for p in self.partial.iterdir()):
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
        write_atomic(self.partial / name, table_bytes(table))

    def finish(self, counts: Mapping[str, Any], run: Mapping[str, Any] | None = None) -> None:
        """Record what was done and give the folder its final name. `run`: more volatile facts."""
        for path in self.partial.rglob("*.tmp"):  # of a run that was killed
            path.unlink()
        files = sorted(p for p in self._data() if p.is_file())
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
                **(run or {}),
            },
        }
        write_atomic(self.partial / MANIFEST, (json.dumps(manifest, indent=1, default=str) + "\n").encode())
        self._swap()

    def _data(self) -> Iterable[Path]:
        for path in self.partial.iterdir():
            if not is_own(path.name) and path.name != SCRATCH:
                yield path
                yield from path.rglob("*")

    def _swap(self) -> None:
        """The complete folder gets its final name; the one it replaces is renamed before it is removed."""
        shutil.rmtree(self.partial / SCRATCH, ignore_errors=True)
        replaced = self.out.with_name(self.out.name + ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        (self.partial / KEY).unlink(missing_ok=True)
        for path in self.partial.glob(f"{LOCK}*"):
            path.unlink()
        if self.out.exists():
            os.replace(self.out, replaced)
        os.replace(self.partial, self.out)
        shutil.rmtree(replaced, ignore_errors=True)
        self.finished = True
