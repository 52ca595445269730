"""liken: how much every chunk's words are those of a target text: what perplexity cannot tell, without a model.

    likeness of a chunk = mean over its words and pairs of words of  ln p_target - ln p_pool        nats per n-gram

The importance weight of DSIR (Xie et al. 2302.03169) per n-gram, so that a chunk's length does not matter, and from
counts + 1/2, so that what a short target lacks by chance costs little (`dsir.smoothed_log_ratio`). Text of
another domain and boilerplate have the perplexity of good text, but not its words.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pplscape.draw.columns import LIKENESS, axis_of_files
from pplscape.draw.keys import Keys
from pplscape.draw.permanent import hash_documents
from pplscape.draw.scores import score_files
from pplscape.draw.textual import FOLDER, likeness_keys
from pplscape.errors import UserError
from pplscape.manifest import StageFolder, read_manifest
from pplscape.schema import LIKENED
from pplscape.text.inputs import identities
from pplscape.text.prepared import Prepared, check_corpus

VERSION = 2


def liken(
    scores: Path | str, *, corpus: Path | str, out: Path | str, target: Sequence[str] = (), overwrite: bool = False
) -> Path:
    """Write OUT/part-*.parquet (`schema.LIKENED`): the scores with `likeness`; every stage takes them as scores.

    `corpus`: the prepared folder that was scored; `target`: text files, by default the corpus' valid text. A killed run
    finds the parts of text that it has counted. UserError: a target without words; a table that `score` did not write;
    scores of another corpus, or that hold a second axis.
    """
    files, scored = score_files(Path(scores)), read_manifest(Path(scores))
    if axis_of_files(files) is not None:
        raise UserError(f"{scores} holds a second axis already, and bins have one: give the scores of `score`.")
    inputs: dict[str, Path | str] = {"scores": Path(scores), "corpus": Path(corpus), **identities("target", target)}
    stage = StageFolder(Path(out), stage="liken", version=VERSION, config={}, inputs=inputs, overwrite=overwrite)
    with stage as folder:
        if not folder.finished:
            check_corpus(scored, folder.inputs["corpus"], Path(corpus))
            keys, facts = likeness_keys(Prepared(Path(corpus)), folder.partial / FOLDER, target)
            rows = sum(_join(folder, file, keys) for file in files)
            shutil.rmtree(folder.partial / FOLDER)
            counts = scored["counts"]  # what scoring left out stays in the ledger
            folder.finish({**counts, "out": rows, "facts": {**counts["facts"], "liken": facts}})
    return Path(out)


def _join(folder: StageFolder, file: Path, keys: Keys) -> int:
    """Write one part of the scores with its likeness; its rows."""
    table = pq.read_table(file)
    found = keys.of(hash_documents(table["doc_id"].combine_chunks()), np.asarray(table["chunk_index"]))
    if missing := int(np.isnan(found).sum()):
        raise UserError(f"{missing} chunks of {file.name} are not in the corpus; give the folder that was scored.")
    columns = {name: table[name] for name in table.column_names} | {LIKENESS: pa.array(found)}
    folder.write_table(file.name, pa.table([columns[f.name] for f in LIKENED], schema=LIKENED))
    return len(table)


def summary(folder: Path) -> str:
    """Spread of likeness, for the terminal."""
    parts = sorted(folder.glob("part-*.parquet"))
    values = pa.concat_tables([pq.read_table(p, columns=[LIKENESS]) for p in parts])[LIKENESS].to_numpy()
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    facts = read_manifest(folder)["counts"]["facts"]["liken"]
    return (
        f"Likeness {middle:.3f} nats/n-gram (5 % below {low:.3f}, 5 % above {high:.3f}), to a target of "
        f"{facts['target_ngrams']:,} n-grams against {facts['pool_ngrams']:,} of the pool."
    )
