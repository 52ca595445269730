"""Files as streams: decompressed blocks, lines of bounded size, texts and their pieces.

Nothing is held but the line or the piece being read, and of a line no more than the limit.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pplscape.text.inputs import form_of, open_input

READ_BYTES, SLICE = 1 << 20, 4096
"""Bytes read at a time, and of a compressed stream fed at a time: what they grow to (zstd: up to 32,000x) is held."""
MAX_ROW_BYTES = 256_000_000
WHOLE_TEXT, TEXT_PIECE = 8_000_000, 16_384
"""Bytes of the largest text that is one document, and of the documents that a larger one is cut into."""


@dataclass(frozen=True)
class Broken:
    """A row, or the rest of a file, that could not be decoded."""

    reason: str
    detail: str


class _StreamError(Exception):
    """The compressed stream ended early or is damaged."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.broken = Broken(reason, detail)


def too_large(size: int, limit: int) -> Broken:
    return Broken("too_large", f"at least {size:,} bytes, above the {limit:,} of --max-row-bytes")


def read_lines(path: str, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[tuple[int, bytes | Broken]]:
    """(line number from 0, bytes without the line end); blank lines are passed over but numbered.

    A longer line than `max_row_bytes` is a `Broken`. A stream that breaks off ends with one `Broken` in place of the
    unfinished line and all that would have followed.
    """
    row, line = 0, _Line(max_row_bytes)
    try:
        for block in _blocks(path):
            *ends, rest = block.split(b"\n")
            for end in ends:
                found = line.end(end)
                if isinstance(found, Broken) or found.strip():
                    yield row, found
                row += 1
            line.add(rest)
    except _StreamError as error:
        yield row, error.broken
        return
    found = line.end(b"")
    if isinstance(found, Broken) or found.strip():
        yield row, found


class _Line:
    """The line being read: its pieces, or only its size once it is too long."""

    def __init__(self, limit: int):
        self._limit, self._pieces, self._size = limit, list[bytes](), 0

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._limit:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def end(self, piece: bytes) -> bytes | Broken:
        """The line that ends with this piece."""
        self.add(piece)
        size, pieces = self._size, self._pieces
        self._pieces, self._size = [], 0
        if size > self._limit:
            return too_large(size, self._limit)
        return b"".join(pieces).removesuffix(b"\r")


def read_texts(path: str) -> Iterator[tuple[int | None, bytes | Broken]]:
    """A text file: (None, all of it); a collection: (number from 0, piece) of the pieces that tile it.

    A stream that breaks off ends with one `Broken` in place of all that was not yielded yet.
    """
    row: int | None = None
    held = bytearray()
    try:
        for block in _blocks(path):
            held += block
            if row is None and len(held) <= WHOLE_TEXT:
                continue
            row = row or 0
            while len(held) > TEXT_PIECE:
                end = _text_end(held)
                yield row, bytes(held[:end])
                del held[:end]
                row += 1
    except _StreamError as error:
        yield row, error.broken
        return
    if held or row is None:
        yield row, bytes(held)


def _text_end(text: bytearray) -> int:
    """Where to cut a piece: after a paragraph, a line or a word in its upper half, else between two characters."""
    for separator in (b"\n\n", b"\n\r\n", b"\n", b" "):
        if (found := text.rfind(separator, TEXT_PIECE // 2, TEXT_PIECE)) >= 0:
            return found + len(separator)
    end = TEXT_PIECE
    while end > TEXT_PIECE - 3 and text[end] & 0xC0 == 0x80:  # inside a character of UTF-8
        end -= 1
    return end


def _blocks(path: str) -> Iterator[bytes]:
    """A file, decompressed, in blocks."""
    compression = form_of(path).compression
    with open_input(path) as file:
        raw = iter(lambda: file.read(READ_BYTES), b"")
        if compression == ".gz":
            yield from _decompress(raw, lambda: zlib.decompressobj(wbits=31), path)
        elif compression == ".zst":
            import zstandard

            yield from _decompress(raw, lambda: zstandard.ZstdDecompressor().decompressobj(), path)
        else:
            yield from raw


def _decompress(raw: Iterator[bytes], new: Any, path: str) -> Iterator[bytes]:
    """Decompress concatenated members; zero padding after a member is allowed. _StreamError at the first defect."""
    stream: Any = None
    for block in (large[i : i + SLICE] for large in raw for i in range(0, len(large), SLICE)):
        while block:
            if stream is None:
                block = block.lstrip(b"\0")
                if not block:
                    break
                stream = new()
            try:
                out = stream.decompress(block)
            except Exception as error:
                # zlib.error and zstandard.ZstdError share no base class but Exception
                if not isinstance(error, zlib.error) and type(error).__name__ != "ZstdError":
                    raise
                raise _StreamError("corrupt", f"{path}: {error}; the rest of the file is lost") from None
            if out:
                yield out
            block, stream = (stream.unused_data, None) if stream.eof else (b"", stream)
    if stream is not None:
        raise _StreamError("truncated", f"{path} ends before its compressed stream does; the rest is lost")
