"""Read a prepared corpus: its manifest, its chunk tables, the text of any chunks. Holds at most one part of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pplscape.errors import UserError
from pplscape.manifest import fingerprint, read_manifest
from pplscape.schema import CHUNKS
from pplscape.text.context import Encode, Ids, left_contexts
from pplscape.text.index import DocumentIndex
from pplscape.text.split import SPLITS
from pplscape.text.tokenizer import Failed


class Prepared:
    """The output folder of `prepare`. UserError if it is not one.

    >>> corpus = Prepared(Path("run/prepared"))
    >>> corpus.chunks("pool").num_rows, corpus.facts["chunk_tokens"]
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_manifest(self.path)
        if self.manifest.get("stage") != "prepare":
            raise UserError(f"{self.path} is the output of {self.manifest.get('stage')}, not of prepare.")

    @property
    def facts(self) -> dict[str, Any]:
        """Model, tokenizer hash, chunk length: what later stages must agree with."""
        return dict(self.manifest["counts"]["facts"])

    def check_tokenizer(self, tokenizer_hash: str, model: str) -> None:
        """UserError if the corpus was cut with another tokenizer than that of `model`."""
        if self.facts["tokenizer_hash"] != tokenizer_hash:
            raise UserError(
                f"{self.path} was cut with the tokenizer of {self.facts['model']}, which differs from that of {model}: "
                "prepare the corpus again with the model you use."
            )

    def parts(self, split: str) -> list[int]:
        """Numbers of the parts of a split, in order."""
        if split not in SPLITS:
            raise UserError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
        return sorted(int(p.stem.removeprefix("part-")) for p in (self.path / "chunks" / split).glob("part-*.parquet"))

    def part_keys(self, split: str) -> dict[str, str]:
        """What a result for one part alone depends on, by part: the sha256 of its chunks and documents."""
        names = [f"{split}/part-{k:05d}.parquet" for k in self.parts(split)]
        files = self.manifest["files"]
        return {n: fingerprint([files[f"chunks/{n}"], files[f"documents/{n}"]]) for n in names}

    def file(self, table: str, split: str, k: int) -> Path:
        """File of part k; `table` is `documents` or `chunks`."""
        return self.path / table / split / f"part-{k:05d}.parquet"

    def chunks(self, split: str) -> pa.Table:
        """All chunks of a split, schema.CHUNKS, in corpus order."""
        tables = [self._chunks(split, k) for k in self.parts(split)]
        return pa.concat_tables(tables) if tables else CHUNKS.empty_table()

    def _chunks(self, split: str, k: int) -> pa.Table:
        return pq.read_table(self.file("chunks", split, k)).cast(CHUNKS)

    def documents(self, split: str, k: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Documents of part k, schema.DOCUMENTS or some of its columns."""
        return pq.read_table(self.file("documents", split, k), columns=list(columns) if columns else None)

    def part(self, split: str, k: int) -> tuple[pa.Table, list[str]]:
        """Chunks of part k (schema.CHUNKS) and their texts."""
        chunks = self._chunks(split, k)
        return chunks, self._slice(split, k, chunks)

    def contexts(self, split: str, k: int, chunks: pa.Table, n: int, encode: Encode) -> list[Ids | Failed]:
        """The up to `n` token ids that stand before each chunk of part k in its document; see `left_contexts`."""
        documents = self.documents(split, k, ["doc_id", "text"])
        text_of = dict(zip(documents["doc_id"].to_pylist(), documents["text"].to_pylist(), strict=True))
        places = zip(chunks["doc_id"].to_pylist(), chunks["char_start"].to_pylist(), strict=True)
        return left_contexts([(text_of[doc_id], start) for doc_id, start in places], n, encode)

    def texts(self, split: str, chunks: pa.Table) -> list[str]:
        """Texts of chunks given by (doc_id, char_start, char_end), in their order; rows may repeat.

        UserError if a document is not in the split.
        """
        doc_ids = chunks["doc_id"].to_pylist()
        rows: dict[int, list[int]] = {}
        parts = self.parts(split)
        for i, at in enumerate(self.index(split).locate(doc_ids).tolist()):
            if at < 0:
                raise UserError(f"{self.path} has no document {doc_ids[i]!r} in its {split} split.")
            rows.setdefault(parts[at], []).append(i)
        texts = [""] * len(doc_ids)
        for k, wanted in sorted(rows.items()):
            for i, text in zip(wanted, self._slice(split, k, chunks.take(pa.array(wanted))), strict=True):
                texts[i] = text
        return texts

    @cached_property
    def _indices(self) -> dict[str, DocumentIndex]:
        return {}

    def index(self, split: str) -> DocumentIndex:
        """Which of `parts` holds a document, read once."""
        if split not in self._indices:
            ids = (self.documents(split, k, ["doc_id"])["doc_id"].to_pylist() for k in self.parts(split))
            self._indices[split] = DocumentIndex(ids)
        return self._indices[split]

    def _slice(self, split: str, k: int, chunks: pa.Table) -> list[str]:
        documents = self.documents(split, k, ["doc_id", "text"])
        at = {d: i for i, d in enumerate(documents["doc_id"].to_pylist())}
        texts: dict[str, str] = {}
        sliced = []
        for doc_id, start, end in zip(
            *(chunks[c].to_pylist() for c in ("doc_id", "char_start", "char_end")), strict=True
        ):
            if doc_id not in texts:
                texts = {doc_id: documents["text"][at[doc_id]].as_py()}  # chunks of a document stand together
            sliced.append(texts[doc_id][start:end])
        return sliced


def check_corpus(scores: Mapping[str, Any], prepared: str, corpus: Path) -> None:
    """UserError if scores with this manifest (empty for a bare table) were made of another prepared corpus than that
    with this fingerprint."""
    inputs = scores.get("inputs", {})
    scored = inputs.get("prepared", inputs.get("corpus"))  # of `score` and `probe`; of `liken`
    if scored is not None and scored != prepared:
        raise UserError(
            f"{corpus} is not the corpus these scores were made of, or has been prepared again since: "
            "pass the prepared folder that was scored, or score it again."
        )
