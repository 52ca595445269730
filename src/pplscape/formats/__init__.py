"""Formats that training programs read: a selection becomes bounded shards, each written in every format asked for.

A format is two pure functions: the files of one shard, and the files over all of them. All writers are small and ours
(the formats are fixed and short, the libraries heavy); `experiments/check_readers.py` holds them against the libraries'
own readers.
"""

from __future__ import annotations

from pplscape.errors import UserError
from pplscape.formats import huggingface, litdata, mds, megatron, text
from pplscape.formats.content import Format

FORMATS: dict[str, Format] = {
    f.name: f for f in (text.PARQUET, text.JSONL, huggingface.HF, megatron.MEGATRON, mds.MDS, litdata.LITDATA)
}


def formats_of(names: list[str]) -> list[Format]:
    """The formats with these names, each once. UserError for an unknown one, or none at all."""
    for name in names:
        if name not in FORMATS:
            raise UserError(f"Unknown format {name!r}; there are {', '.join(FORMATS)}.")
    if not names:
        raise UserError(f"No format was asked for; there are {', '.join(FORMATS)}.")
    return [FORMATS[name] for name in dict.fromkeys(names)]
