"""Which dtype a model is scored in: measured on real chunks, never silent.

`--dtype auto` tries the faster dtypes of the device first. One is taken if nothing in the network comes near the
largest number it can hold, every likelihood is finite, and chunks' losses are within CHUNK_ERROR of float32 (rms).
The choice is a function of the model, the chunks and the device; the stage stores it, so that resumed work, workers and
files added later are scored alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pplscape.engines.base import Ids, Nll

CHUNK_ERROR = 5e-3
"""Largest root-mean-square error of chunks' losses that a lower precision may have, nats/token. Losses of real chunks
spread by 0.43 nats (docs/results/scoring-accuracy.md), so this is about a hundredth of the spread: it widens the spread
by 0.01 %. bfloat16 is well below on the trained model there, and not one chunk of a selected half changes."""
HEADROOM = 4.0
"""Calibration is a small sample: its largest activation must stay this many times below the dtype's largest number."""
CPU_PARAMETERS = 20_000_000
"""Smaller models are scored in float32 on a CPU. bfloat16 would be twice as fast there, too (1.9 times at 2.6 M
parameters, 2.0 times at 60 M, two threads of an EPYC with AVX-512 BF16), but takes minutes either way, and the figures
of demos and small experiments should not depend on the kind of CPU."""
CHUNKS, TOKENS = 16, 8192
"""Calibration: so many chunks, fewer if they have more tokens than this."""


@dataclass(frozen=True)
class Choice:
    """A dtype, and in one sentence why."""

    dtype: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def candidates(device: str, n_params: int) -> tuple[str, ...]:
    """Dtypes worth trying, fastest first, of equally fast ones the more accurate; the last is always float32.

    float16 has three bits of precision more than bfloat16 and the same speed on a GPU; on a CPU it is emulated.
    """
    if device == "cuda":
        return "float16", "bfloat16", "float32"
    pays = n_params >= CPU_PARAMETERS and torch.cpu._is_avx512_bf16_supported()
    return ("bfloat16", "float32") if pays else ("float32",)


def calibration_rows(lengths: Sequence[int]) -> list[int]:
    """Evenly spaced rows of a table of chunks: at most CHUNKS, about TOKENS at most, one at least if there is any."""
    n = min(CHUNKS, len(lengths), max(1, TOKENS * len(lengths) // max(1, sum(lengths))))
    return sorted(set(np.linspace(0, len(lengths) - 1, n).round().astype(int).tolist()))


def choose_dtype(load: Callable[[str], Any], dtypes: Sequence[str], chunks: Sequence[Ids]) -> Choice:
    """The first of `dtypes` that is safe on `chunks`, else the last, float32. `load` gives the engine in a dtype."""
    *lower, last = dtypes
    if not lower:
        return Choice(last, f"{last}: no lower precision pays for this model on this device")
    if not chunks:
        return Choice(last, f"{last}: there is no chunk to try a lower precision on")
    try:
        reference, peak = _reference(load(last), chunks)
    except torch.OutOfMemoryError:
        return Choice("bfloat16", f"bfloat16: {last} does not fit in memory to compare with; bfloat16 cannot overflow")
    if not all(np.isfinite(r).all() for r in reference):
        return Choice(last, f"{last}: even there some likelihoods are not finite, so nothing could be compared")
    refused: list[str] = []
    for dtype in lower:
        verdict, safe = _verdict(dtype, load, chunks, reference, peak)
        if safe:
            return Choice(dtype, "; ".join([f"{dtype}: {verdict}", *refused]))
        refused.append(f"not {dtype}: {verdict}")
    return Choice(last, "; ".join([f"{last}: no lower precision is safe", *refused]))


def _verdict(
    dtype: str, load: Callable[[str], Any], chunks: Sequence[Ids], reference: Sequence[Nll], peak: float
) -> tuple[str, bool]:
    """(what was found on the chunks, whether it allows this dtype)"""
    largest = torch.finfo(getattr(torch, dtype)).max
    if peak * HEADROOM > largest:
        return f"activations reach {peak:.1e}, and {HEADROOM:g} times that overflows ({largest:.1e})", False
    found = load(dtype).nll(chunks)
    if not all(np.isfinite(f).all() for f in found):
        return "likelihoods are not finite", False
    error = chunk_error(found, reference)
    words = f"chunks differ from float32 by {error:.1e} nats/token (rms of {len(chunks)})"
    return f"{words}, {CHUNK_ERROR:g} is allowed", error <= CHUNK_ERROR


def chunk_error(found: Sequence[Nll], reference: Sequence[Nll]) -> float:
    """Root-mean-square difference of chunks' mean NLL, nats/token; chunks with nothing to score are left out."""
    pairs = [(f, r) for f, r in zip(found, reference, strict=True) if len(f)]
    errors = [float(f.mean(dtype=np.float64) - r.mean(dtype=np.float64)) for f, r in pairs]
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0


def _reference(engine: Any, chunks: Sequence[Ids]) -> tuple[list[Nll], float]:
    """(per-token NLL, largest absolute value that enters or leaves any module of the network)"""
    with _watched(engine.model) as peak:
        return engine.nll(chunks), peak()


@contextmanager
def _watched(model: torch.nn.Module) -> Iterator[Callable[[], float]]:
    """Gives a function that tells the largest absolute finite value seen by any module so far."""
    seen = [0.0]  # appended to, because forward passes may run beside one another

    def see(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        for value in (*inputs, *(outputs if isinstance(outputs, tuple) else (outputs,))):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                seen.append(float(value.detach().abs().nan_to_num(0, 0).max()))

    hooks = [m.register_forward_hook(see) for m in model.modules()]
    try:
        yield lambda: max(seen)
    finally:
        for hook in hooks:
            hook.remove()
