"""The model's tokenizer, and what identifies it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers.decoders import ByteLevel

from pplscape.errors import UserError

T = TypeVar("T")


def load_tokenizer(model: str, revision: str | None = None) -> Any:
    """The fast tokenizer of a model (hub id or local folder), code of the repository never executed.

    UserError if there is none, or only a slow one (which has no offsets to cut text by).
    """
    # Spawned workers and our own batches share the cores; the library's warning about forks is beside the point.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if (os.cpu_count() or 1) > 1 else "false")
    from transformers import AutoTokenizer
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # "sequence longer than the model's maximum" is not news: we cut
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"Cannot load the tokenizer of {model}: {reason}") from None
    finally:
        logging.set_verbosity(level)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{model} has no fast tokenizer (tokenizer.json): text cannot be cut by its offsets.")
    tokenizer.backend_tokenizer.no_truncation()  # a tokenizer.json may hold either; both would falsify counts
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def first_token_bytes(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """UTF-8 bytes of each text that its first token stands for; 0 where there is no token.

    A token can be a part of a character: then byte-level tokenizers write one sign a byte, byte fallback writes
    `<0xE2>`, and what is left is a sign put before the text.
    """
    byte_level = isinstance(tokenizer.backend_tokenizer.decoder, ByteLevel)
    encodings = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [_first_bytes(t, e, byte_level) for t, e in zip(texts, encodings, strict=True)]


def _first_bytes(text: str, encoding: Any, byte_level: bool) -> int:
    if not encoding.tokens:
        return 0
    token, end = encoding.tokens[0], encoding.offsets[0][1]
    following = encoding.offsets[1][0] if len(encoding.tokens) > 1 else len(text)
    if following >= end:
        return len(text[:end].encode())
    return len(token) if byte_level else int(token.startswith("<0x"))


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 of the tokenizer's serialised form (vocabulary, merges, normaliser, pre-tokenizer, added tokens)."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def model_name(model: str) -> str:
    """A hub id as it is; of a local folder only the last part, so that results do not depend on where it lies."""
    path = Path(model)
    return path.resolve().name if path.exists() else model


@dataclass(frozen=True)
class Failed:
    """A text that the tokenizer fails on."""

    detail: str


def attempt(work: Callable[[list[str]], list[T]], texts: list[str]) -> list[T | Failed]:
    """`work(texts)`, one result a text; where it raises, the texts to blame give `Failed`, the others their result."""
    try:
        return list(work(texts))
    except BaseException as error:
        if not _is_the_texts(error):
            raise
        if len(texts) <= 1:
            return [Failed(f"{type(error).__name__}: {error}") for _ in texts]
    half = len(texts) // 2
    return attempt(work, texts[:half]) + attempt(work, texts[half:])


def _is_the_texts(error: BaseException) -> bool:
    """A panic of Rust code is no Exception; a lack of memory is nobody's fault."""
    return type(error).__name__ == "PanicException" or (
        isinstance(error, Exception) and not isinstance(error, MemoryError)
    )
