"""Progress with tokens/s and time left: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

INTERVAL = 10.0
"""Seconds between plain lines."""


class Progress:
    """Counts tokens of one job; writes to stderr only.

    >>> with Progress("score", total=0) as progress:
    ...     progress.add(0)
    """

    def __init__(self, label: str, total: int, quiet: bool = False):
        self.label, self.total, self.done, self.quiet = label, total, 0, quiet
        self._skipped = 0
        self._start = self._last = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def add(self, tokens: int) -> None:
        """`tokens` more are done."""
        self.done += tokens
        now = time.monotonic()
        if not self.quiet and now - self._last >= (0.2 if self._terminal else INTERVAL):
            self._last = now
            self._write(now)

    def skip(self, tokens: int) -> None:
        """`tokens` were done before this start; they count as done, not as speed."""
        self.done += tokens
        self._skipped = tokens

    def _write(self, now: float) -> None:
        rate = (self.done - self._skipped) / max(1e-9, now - self._start)
        left = (self.total - self.done) / rate if rate else 0.0
        share = 100 * self.done / self.total if self.total else 100
        done = f"{share:3.0f} %  {self.done:,} of {self.total:,} tokens"
        line = f"{self.label}: {done}  {rate:,.0f} tokens/s  {left:.0f} s left"
        print(
            f"\r{line:<78}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True
        )

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        if kind is None and self.done and not self.quiet:
            seconds = time.monotonic() - self._start
            new = self.done - self._skipped
            rate = new / max(1e-9, seconds)
            line = f"{self.label}: {new:,} tokens in {seconds:.1f} s ({rate:,.0f} tokens/s)"
            print(f"\r{line:<78}" if self._terminal else line, file=sys.stderr, flush=True)
