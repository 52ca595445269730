"""A corpus that was prepared before, as if it had just been read: files are added to it, nothing of it is cut again.

`spool_known` spools the documents that stayed, in the order in which they were decided on, with the chunks whose text
must not come again. `Sieve.recall` then brings the sieve into the state in which the earlier run left it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pplscape.errors import StaleOutput
from pplscape.manifest import StageFolder
from pplscape.text.chunk import Chunk, Chunker
from pplscape.text.ingest import write_spool
from pplscape.text.prepared import Prepared
from pplscape.text.read import Document
from pplscape.text.split import POOL, SPLITS

INPUTS = "inputs.parquet"
"""The files that a corpus was prepared from, in reading order."""
DECIDED = frozenset(
    {"tokenizer_failed", "too_short", "near_duplicate", "overlap_heldout", "overlap_eval", "duplicate_chunk"}
)
"""Why documents are left out whose ids were given nevertheless."""
_INPUTS = pa.schema([("role", pa.string()), ("name", pa.string()), ("key", pa.string())])
Given = Sequence[tuple[str, str, str]]
"""(role, name, content key) of every input file, in reading order."""


def write_inputs(folder: StageFolder, given: Given) -> None:
    columns = zip(*given, strict=True) if given else [[], [], []]
    folder.write_table(INPUTS, pa.table([pa.array(list(c), pa.string()) for c in columns], schema=_INPUTS))


def read_inputs(path: Path) -> list[tuple[str, str, str]]:
    table = pq.read_table(path / INPUTS)
    return list(zip(*(table[c].to_pylist() for c in _INPUTS.names), strict=True))


def only_added(out: Path, given: Given) -> Callable[[dict[str, Any]], bool]:
    """Whether `given` are the inputs of the corpus in `out`, in their order, and more files of its kind.

    StaleOutput, saying what else has changed, if not.
    """

    def check(manifest: dict[str, Any]) -> bool:
        again = "Pass --overwrite to prepare everything again, or choose another --out."
        if manifest["config"]["limit"] or manifest["config"]["limit_tokens"]:
            raise StaleOutput(f"{out} was read up to a limit: no files can be added to it. {again}")
        known = read_inputs(out)
        now = {(role, name): key for role, name, key in given}
        for role, name, key in known:
            if (role, name) not in now:
                renamed = next((n for r, n, k in given if (r, k) == (role, key)), None)
                raise StaleOutput(
                    f"{name} was prepared into {out} and is "
                    + (f"called {renamed} now: write FOLDER/./{name}." if renamed else "not among the inputs now.")
                    + f" {again}"
                )
            if now[role, name] != key:
                raise StaleOutput(f"{name} has changed since it was prepared into {out}. {again}")
        old = {(role, name) for role, name, _ in known}
        if [g for g in given if g[:2] in old] != known:
            raise StaleOutput(f"The files in {out} were prepared in another order. {again}")
        if any(role != "input" for role, name, _ in given if (role, name) not in old):
            raise StaleOutput(f"{out} was prepared with other held-out or evaluation text. {again}")
        return True

    return check


def known_ids(prepared: Prepared) -> Iterator[str]:
    """Ids that were given before."""
    for split in SPLITS:
        for k in prepared.parts(split):
            yield from prepared.documents(split, k, ["doc_id"])["doc_id"].to_pylist()
    for path in sorted((prepared.path / "rejected").glob("part-*.parquet")):
        table = pq.read_table(path, columns=["doc_id", "chunk_index", "reason"])
        for doc_id, chunk, reason in zip(*(c.to_pylist() for c in table.columns), strict=True):
            if chunk is None and reason in DECIDED:
                yield doc_id


def spool_known(folder: StageFolder, prepared: Prepared, chunker: Chunker) -> tuple[list[str], list[int]]:
    """(names of the spooled parts, split of each): held-out documents first, as they were decided on."""
    names, splits = [], []
    for which in sorted(range(len(SPLITS)), key=lambda s: s == POOL):
        for k in prepared.parts(SPLITS[which]):
            name = f"spool/known-{SPLITS[which]}-{k:05d}"
            if not folder.has(f"{name}.parquet"):
                documents, chunks = _part(prepared, which, k, chunker)
                write_spool(folder, name, documents, chunks, chunker.min_tokens, {})
            names.append(name)
            splits.append(which)
    return names, splits


def _part(prepared: Prepared, which: int, k: int, chunker: Chunker) -> tuple[list[Document], list[list[Chunk]]]:
    columns = ("doc_id", "text", "source", "path", "row")
    table = prepared.documents(SPLITS[which], k)
    documents = [Document(*values) for values in zip(*(table[c].to_pylist() for c in columns), strict=True)]
    if which != POOL:  # chunks beyond the number wanted were left out, but their text must not be in the pool either
        cut = chunker.cut([d.text for d in documents])
        return documents, [[c for c in found if c.length >= chunker.min_tokens] for found in cut]
    found: dict[str, list[Chunk]] = {d.doc_id: [] for d in documents}
    rows = pq.read_table(prepared.file("chunks", SPLITS[which], k))
    fields = ("doc_id", "chunk_index", "char_start", "char_end", "length", "n_bytes")
    for doc_id, *values in zip(*(rows[c].to_pylist() for c in fields), strict=True):
        found[doc_id].append(Chunk(*values))
    return documents, list(found.values())
