"""First pass over the input: read, chunk and hash every document once, spooled in parts.

Nothing is decided here that needs the whole corpus. A part holds about PART_CHARS characters of text or PART_ROWS rows,
in three files
    NAME.chunks.parquet    all chunks, short ones too, with the hash of their text
    NAME.rejected.parquet  rows that could not be read, documents that are too short
    NAME.parquet           the other documents with word hashes and MinHash signature; written last: the part is whole
Parts depend on the input alone, so a killed run skips the parts it finds and ends with the same bytes: it reads the
input again, but no text is tokenised or hashed twice, save the part it was at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.manifest import StageFolder
from pplscape.schema import DOCUMENTS, REJECTED
from pplscape.text.chunk import Chunk, Chunker
from pplscape.text.clean import PERMUTATIONS, HashSet, hash64, hash_words, shingles, signatures, text_key
from pplscape.text.read import Document, Rejected
from pplscape.text.split import uniform
from pplscape.text.tokenizer import Failed, attempt

PART_CHARS, PART_ROWS = 8_000_000, 20_000
BATCH_CHARS = 1_000_000
"""Text tokenised at a time: bounds the memory of encodings (about 100 bytes a token)."""

_CHUNKS = pa.schema(
    [
        ("document", pa.int32()),
        ("chunk_index", pa.int32()),
        ("char_start", pa.int64()),
        ("char_end", pa.int64()),
        ("length", pa.int32()),
        ("n_bytes", pa.int32()),
        ("key", pa.uint64()),
    ]
)
_SPOOLED = pa.schema(
    [*DOCUMENTS, ("tokens", pa.int64()), ("words", pa.large_binary()), ("signature", pa.binary(4 * PERMUTATIONS))]
)


class Ids:
    """Makes document ids unique: a repeated id gets `~2`, `~3` ... in reading order. Holds hashes, not ids."""

    def __init__(self) -> None:
        self._seen = HashSet()
        self._times: dict[str, int] = {}

    def unique(self, doc_id: str) -> str:
        if self.add(doc_id):
            return doc_id
        n = self._times.get(doc_id, 1) + 1
        while not self.add(f"{doc_id}~{n}"):
            n += 1
        self._times[doc_id] = n
        return f"{doc_id}~{n}"

    def add(self, doc_id: str) -> bool:
        """Whether the id is new."""
        key = hash64(doc_id)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


@dataclass
class Part:
    """Rows read together: the unit of work and of resuming."""

    rows: list[Document | Rejected] = field(default_factory=list)
    chars: int = 0

    def add(self, row: Document | Rejected) -> None:
        self.rows.append(row)
        if isinstance(row, Document):
            self.chars += len(row.text)


def parts_of(rows: Iterable[Document | Rejected], ids: Ids, limit: int | None) -> Iterator[Part]:
    """Cut the stream of rows into parts; stop after `limit` rows."""
    part = Part()
    for n, row in enumerate(rows):
        if limit is not None and n >= limit:
            break
        if isinstance(row, Document):
            row = Document(ids.unique(row.doc_id), row.text, row.source, row.path, row.row)
        part.add(row)
        if part.chars >= PART_CHARS or len(part.rows) >= PART_ROWS:
            yield part
            part = Part()
    if part.rows:
        yield part


def ingest(
    folder: StageFolder,
    prefix: str,
    rows: Iterable[Document | Rejected],
    chunker: Chunker,
    *,
    ids: Ids,
    limit: int | None = None,
    limit_tokens: int | None = None,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> list[str]:
    """Spool all rows; the names of the parts. Stops before the document that would exceed `limit_tokens` in total.

    `on_tokens` is told the tokens of every part.
    """
    names: list[str] = []
    tokens = 0
    for k, part in enumerate(parts_of(rows, ids, limit)):
        name = f"spool/{prefix}-{k:05d}"
        left = None if limit_tokens is None else limit_tokens - tokens
        if not folder.has(f"{name}.parquet"):
            _spool(folder, name, part, chunker, left, first=k == 0)
        names.append(name)
        metadata = pq.read_schema(folder.path / f"{name}.parquet").metadata
        tokens += int(metadata[b"tokens"])
        on_tokens(int(metadata[b"tokens"]))
        if metadata[b"complete"] == b"no":
            break
    return names


def _spool(folder: StageFolder, name: str, part: Part, chunker: Chunker, left: int | None, first: bool) -> None:
    documents: list[Document] = []
    chunks: list[list[Chunk]] = []
    rejected: list[Rejected] = []
    tokens, n_rows, all_tokens, complete = 0, 0, 0, True
    for row, cut in _with_chunks(part.rows, chunker):
        if isinstance(row, Rejected):
            rejected.append(row)
            n_rows += 1
            continue
        total = sum(c.length for c in cut)
        kept = sum(c.length for c in cut if c.length >= chunker.min_tokens)
        if left is not None and tokens + kept > left and (documents or not first):
            complete = False
            break
        n_rows, all_tokens = n_rows + 1, all_tokens + total
        if kept:
            documents.append(row)
            chunks.append(cut)
            tokens += kept
        else:
            rejected.append(too_short(row, total, chunker.min_tokens))
    folder.write_table(f"{name}.rejected.parquet", rejected_table(rejected))
    facts = {"rows": str(n_rows), "all_tokens": str(all_tokens), "complete": "yes" if complete else "no"}
    write_spool(folder, name, documents, chunks, chunker.min_tokens, {**facts, "tokens": str(tokens)})


def write_spool(
    folder: StageFolder, name: str, documents: list[Document], chunks: list[list[Chunk]], min_tokens: int,
    facts: dict[str, str],
) -> None:  # fmt: skip
    """The chunks, then the documents: with them the part is whole."""
    folder.write_table(f"{name}.chunks.parquet", _chunk_table(documents, chunks))
    tokens = [sum(c.length for c in found if c.length >= min_tokens) for found in chunks]
    folder.write_table(f"{name}.parquet", _document_table(documents, tokens).replace_schema_metadata(facts))


def too_short(document: Document, tokens: int, min_tokens: int) -> Rejected:
    detail = f"{tokens} tokens, fewer than {min_tokens}"
    return Rejected(document.doc_id, document.path, document.row, "too_short", detail, None, tokens)


def _with_chunks(
    rows: Sequence[Document | Rejected], chunker: Chunker
) -> Iterator[tuple[Document | Rejected, list[Chunk]]]:
    """Every row with its chunks (none for a rejected one), tokenised in batches.

    A document that the tokenizer fails on becomes a rejected row.
    """
    start = 0
    while start < len(rows):
        stop, chars = start, 0
        while stop < len(rows) and chars < BATCH_CHARS:
            row = rows[stop]
            chars += len(row.text) if isinstance(row, Document) else 0
            stop += 1
        batch = rows[start:stop]
        cuts = attempt(chunker.cut, _texts(batch))
        cut = iter(cuts)
        for row in batch:
            found = next(cut) if isinstance(row, Document) else []
            if isinstance(row, Document) and isinstance(found, Failed):
                yield Rejected(row.doc_id, row.path, row.row, "tokenizer_failed", found.detail), []
            elif not isinstance(found, Failed):
                yield row, found
        start = stop


def _texts(rows: Sequence[Document | Rejected]) -> list[str]:
    return [r.text for r in rows if isinstance(r, Document)]


def _chunk_table(documents: list[Document], chunks: list[list[Chunk]]) -> pa.Table:
    flat = [(i, c) for i, found in enumerate(chunks) for c in found]
    keys = [text_key(documents[i].text[c.char_start : c.char_end]) for i, c in flat]
    columns = [
        [i for i, _ in flat],
        [c.chunk_index for _, c in flat],
        [c.char_start for _, c in flat],
        [c.char_end for _, c in flat],
        [c.length for _, c in flat],
        [c.n_bytes for _, c in flat],
        keys,
    ]
    return pa.table([pa.array(v, f.type) for v, f in zip(columns, _CHUNKS, strict=True)], schema=_CHUNKS)


def _document_table(documents: list[Document], tokens: list[int]) -> pa.Table:
    words = [hash_words(d.text) for d in documents]
    signature = signatures([shingles(w, d.text) for w, d in zip(words, documents, strict=True)])
    columns = [
        [d.doc_id for d in documents],
        [d.source for d in documents],
        [d.path for d in documents],
        [d.row for d in documents],
        [d.text for d in documents],
        tokens,
        [w.astype("<u4").tobytes() for w in words],
        [s.astype("<u4").tobytes() for s in signature],
    ]
    return pa.table([pa.array(v, f.type) for v, f in zip(columns, _SPOOLED, strict=True)], schema=_SPOOLED)


def rejected_table(rows: Sequence[Rejected]) -> pa.Table:
    """Rejected rows as schema.REJECTED."""
    columns = [
        [r.doc_id for r in rows],
        [r.chunk_index for r in rows],
        [r.path for r in rows],
        [r.row for r in rows],
        [r.reason for r in rows],
        [r.detail for r in rows],
        [r.length for r in rows],
    ]
    return pa.table([pa.array(v, f.type) for v, f in zip(columns, REJECTED, strict=True)], schema=REJECTED)


@dataclass(frozen=True)
class SpooledDocument:
    """A document of the spool with all that was learned about it in the first pass."""

    document: Document
    words: NDArray[np.uint32]
    chunks: list[tuple[Chunk, int]]
    """With the hash of their text."""


def read_part(folder: StageFolder, name: str, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, SpooledDocument]]:
    """(position in the part, document) of the wanted [n] documents of a part."""
    if not wanted.any():
        return
    at = np.flatnonzero(wanted)
    table = pq.read_table(folder.path / f"{name}.parquet", columns=[*DOCUMENTS.names, "words"])
    documents = table.select(DOCUMENTS.names).take(pa.array(at))
    fields = zip(*(documents[c].to_pylist() for c in ("doc_id", "text", "source", "path", "row")), strict=True)
    words = table["words"].take(pa.array(at)).to_pylist()
    chunks = pq.read_table(folder.path / f"{name}.chunks.parquet")
    owner = chunks["document"].to_numpy()
    bounds = np.searchsorted(owner, np.arange(table.num_rows + 1)).tolist()
    columns = [chunks[c].to_numpy() for c in _CHUNKS.names[1:]]
    for i, document, raw in zip(at.tolist(), fields, words, strict=True):
        values = zip(*(c[bounds[i] : bounds[i + 1]].tolist() for c in columns), strict=True)
        hashes = np.frombuffer(raw, "<u4").astype(np.uint32)
        yield i, SpooledDocument(Document(*document), hashes, [(Chunk(*v[:-1]), v[-1]) for v in values])


@dataclass(frozen=True)
class Index:
    """What decisions about the whole corpus need: [n] documents in reading order; some 60 bytes each."""

    doc_id: pa.ChunkedArray
    hashes: NDArray[np.float64]
    """`split.uniform` of the ids."""
    source: NDArray[np.int32]
    """The number of each one's source."""
    tokens: NDArray[np.int64]
    part_sizes: list[int]


def read_index(folder: StageFolder, names: Sequence[str], seed: int) -> Index:
    """Ids, sources and token counts of all documents of the given parts; no text."""
    tables = [pq.read_table(folder.path / f"{n}.parquet", columns=["doc_id", "source", "tokens"]) for n in names]
    table = pa.concat_tables(t.replace_schema_metadata() for t in tables) if tables else _SPOOLED.empty_table()
    ids = (doc_id for chunk in table["doc_id"].chunks for doc_id in chunk.to_pylist())
    return Index(
        doc_id=table["doc_id"],
        hashes=np.fromiter((uniform(seed, d) for d in ids), np.float64, table.num_rows),
        source=table["source"].combine_chunks().dictionary_encode().indices.to_numpy(),
        tokens=table["tokens"].to_numpy(),
        part_sizes=[t.num_rows for t in tables],
    )


def read_signatures(folder: StageFolder, names: Sequence[str]) -> Iterator[NDArray[np.uint32]]:
    """Signatures [?, PERMUTATIONS] of the documents of one part after the other."""
    for name in names:
        raw = b"".join(pq.read_table(folder.path / f"{name}.parquet", columns=["signature"])["signature"].to_pylist())
        yield np.frombuffer(raw, "<u4").reshape(-1, PERMUTATIONS).astype(np.uint32)


def read_facts(folder: StageFolder, name: str) -> dict[str, int]:
    """Rows read for a part, and the tokens of all of them."""
    metadata = pq.read_schema(folder.path / f"{name}.parquet").metadata
    return {"rows": int(metadata[b"rows"]), "tokens": int(metadata[b"all_tokens"])}
