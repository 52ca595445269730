"""Expected log-importance weights from the package data-selection 1.0.3, for test_dsir.py.

In an environment of its own: pip install data-selection==1.0.3 nltk==3.10.4; python tests/reference/make_dsir.py
"""

import json
import random
import tempfile
from pathlib import Path

from data_selection import HashedNgramDSIR, __version__

PLAIN = "the of patients court was treated with beta-blocker appeal dismissed don't 12.5 mg/kg Fox"
WORDS = [*PLAIN.split(), "naïve", "ﬁne", "straße", "x_1", "=", "f(y)", ";", "日本", "語", "--", "§", "3", "İstanbul"]


def texts(n, words, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(0, 60))) for _ in range(n)]


def main():
    found = {"version": __version__, "pool": texts(24, WORDS, 0), "target": texts(6, WORDS[2:9], 1)}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("pool", "target"):
            lines = "".join(json.dumps({"text": t}) + "\n" for t in found[name])
            (Path(folder) / f"{name}.jsonl").write_text(lines)
        paths = [f"{folder}/{name}.jsonl" for name in ("pool", "target")]
        dsir = HashedNgramDSIR(paths[:1], paths[1:], cache_dir=folder, num_proc=1)
        dsir.fit_importance_estimator(num_tokens_to_fit="all")
        found["log_weights"] = [float(dsir.importance_estimator(dsir.featurizer(t))) for t in found["pool"]]
    Path(__file__).with_name("dsir.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
