"""The contestants of scoring.py, one in a process: texts in, NLL of every text out, tokenising included.

python scoring_peers.py CONTESTANT MODEL WORKLOAD.json      # then a line on stdin: a run, a line of JSON on stdout
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

WINDOW = 512
Run = Callable[[list[str], int], tuple[list[float], int]]
"""(texts, batch size) -> (NLL of every text in nats, tokens scored)."""
FACTS: dict[str, float] = {}
"""What else a contestant tells with each answer. `padding`: share of the computed positions."""


def ours(model: str, dtype: str = "float32", bos: str = "auto") -> Run:
    """The core of `pplscape score` as users get it: nothing is tuned."""
    import pyarrow as pa

    from pplscape import schema
    from pplscape.engines.transformers import TransformersEngine, Work
    from pplscape.scoring import score_part

    engine = TransformersEngine(model, dtype=dtype, bos=bos)
    tables: dict[str, pa.Table] = {}  # of chunks, as `prepare` leaves them; made in the first run, which does not count

    def table(texts: list[str]) -> pa.Table:
        rows = [
            {"doc_id": str(i), "chunk_index": 0, "char_start": 0, "char_end": len(t), "length": len(ids),
             "n_bytes": len(t.encode()), "source": "benchmark"}
            for i, (t, ids) in enumerate(zip(texts, engine.encode(texts), strict=True))
        ]  # fmt: skip
        return pa.Table.from_pylist(rows, schema=schema.CHUNKS)

    def run(texts: list[str], batch: int) -> tuple[list[float], int]:
        if texts[0] not in tables:
            tables[texts[0]] = table(texts)
        engine.work = work = Work()
        scores, rejected = score_part(engine, tables[texts[0]], texts)
        assert rejected.num_rows == 0
        FACTS["padding"] = work.padding / (work.padding + work.inputs)
        return scores["nll_sum"].to_pylist(), sum(scores["n_tokens"].to_pylist())

    return run


def _plain(model: str, dtype: str) -> tuple[Any, Any, Any]:
    import torch
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    return torch, network, transformers.AutoTokenizer.from_pretrained(model)


def loop(model: str, dtype: str = "float32") -> Run:
    """One document a forward pass, as in every tutorial, under inference_mode."""
    torch, network, tokenizer = _plain(model, dtype)

    def run(texts: list[str], batch: int) -> tuple[list[float], int]:
        found, n = [], 0
        with torch.inference_mode():
            for text in texts:
                ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
                logits = network(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
                found.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item())
                n += ids.shape[1] - 1
        return found, n

    return run


def padded(model: str, dtype: str = "float32") -> Run:
    """What an expert writes: all texts tokenised at once, longest first, padded to the longest of the batch, no mask
    (padding on the right cannot be seen), labels shifted instead of logits, `batch` texts a forward pass."""
    torch, network, tokenizer = _plain(model, dtype)

    def run(texts: list[str], batch: int) -> tuple[list[float], int]:
        rows = [[tokenizer.bos_token_id, *ids] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        found = [0.0] * len(rows)
        with torch.inference_mode():
            for start in range(0, len(rows), batch):
                taken = order[start : start + batch]
                width = len(rows[taken[0]]) - 1
                inputs = torch.zeros(len(taken), width, dtype=torch.long)
                labels = torch.full((len(taken), width), -100)
                for k, i in enumerate(taken):
                    inputs[k, : len(rows[i]) - 1] = torch.tensor(rows[i][:-1])
                    labels[k, : len(rows[i]) - 1] = torch.tensor(rows[i][1:])
                logits = network(input_ids=inputs, use_cache=False).logits.float()
                nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
                for i, total in zip(taken, nll.view(labels.shape).double().sum(1).tolist(), strict=True):
                    found[i] = total
        return found, sum(len(r) - 1 for r in rows)

    return run


def lm_eval(model: str) -> Run:
    """`loglikelihood_rolling` of lm-evaluation-harness; its prefix token is BOS."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, backend="causal", device="cpu", dtype="float32", max_length=WINDOW, batch_size=1)

    def run(texts: list[str], batch: int) -> tuple[list[float], int]:
        harness.batch_size_per_gpu = batch
        requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
        found = [-x for x in harness.loglikelihood_rolling(requests, disable_tqdm=True)]
        return found, sum(len(harness.tok_encode(t)) for t in texts)

    return run


def data_juicer(model: str) -> Run:
    """`llm_perplexity_filter`: one document a forward pass, no BOS, so the first token of each is not scored."""
    from data_juicer.ops.filter.llm_perplexity_filter import LLMPerplexityFilter
    from data_juicer.utils.constant import Fields, StatsKeys
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    operator = LLMPerplexityFilter(hf_model=model, model_params={"dtype": "float32"}, accelerator="cpu")

    def run(texts: list[str], batch: int) -> tuple[list[float], int]:
        found, n = [], 0
        for text in texts:
            stats = operator.compute_stats_single({"text": text, Fields.stats: {}})[Fields.stats]
            found.append(float(np.log(stats[StatsKeys.llm_perplexity])))
        lengths = [len(ids) - 1 for ids in tokenizer(texts)["input_ids"]]
        n = sum(lengths)
        return [mean * length for mean, length in zip(found, lengths, strict=True)], n

    return run


def matmul(model: str, dtype: str = "float32") -> Run:
    """The faster of torch.matmul and oneDNN's product of packed weights for each shape of the model's layers, 2,048
    positions; gives seconds for one token instead."""
    import torch
    from transformers import AutoConfig

    from pplscape.engines.packed import PackedLinear

    config, n = AutoConfig.from_pretrained(model), 2048
    kind = getattr(torch, dtype)
    d, ff, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    shapes = [(d, d, 4 * config.num_hidden_layers), (d, ff, 2 * config.num_hidden_layers),
              (ff, d, config.num_hidden_layers), (d, vocabulary, 1)]  # fmt: skip
    inputs = {k: torch.randn(n, k).to(kind) for k in (d, ff)}
    weights = [torch.randn(out, k).to(kind) for k, out, _ in shapes]
    products = [(lambda x, w=w: torch.matmul(x, w.t()), PackedLinear(w, None, kind)) for w in weights]

    def middle(product: Callable[[Any], Any], x: Any) -> float:
        product(x)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            product(x)
            times.append(time.perf_counter() - started)
        return sorted(times)[1]

    def run(texts: list[str], batch: int) -> tuple[list[float], int]:
        with torch.inference_mode():
            seconds = sum(
                count * min(middle(product, inputs[k]) for product in both) / n
                for (k, _, count), both in zip(shapes, products, strict=True)
            )
        return [seconds], sum(2 * k * out * count for k, out, count in shapes)

    return run


CONTESTANTS: dict[str, Callable[[str], Run]] = {
    "pplscape": ours,
    "loop": loop,
    "padded": padded,
    "lm-eval": lm_eval,
    "data-juicer": data_juicer,
    "matmul": matmul,
    "pplscape, no BOS": lambda m: ours(m, bos="none"),
    "pplscape bf16": lambda m: ours(m, "bfloat16"),
    "loop bf16": lambda m: loop(m, "bfloat16"),
    "padded bf16": lambda m: padded(m, "bfloat16"),
    "matmul bf16": lambda m: matmul(m, "bfloat16"),
}


@contextlib.contextmanager
def _stdout_for_answers() -> Iterator[Any]:
    """What peers print goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        yield sys.__stdout__


def main() -> None:
    name, model = sys.argv[1:3]
    with _stdout_for_answers() as answers:
        run = CONTESTANTS[name](model)
        print(json.dumps({"ready": name}), file=answers, flush=True)
        for line in sys.stdin:
            batch, path = line.rstrip("\n").split(" ", 1)
            texts = json.loads(Path(path).read_text())
            started = time.perf_counter()
            nll, tokens = run(texts, int(batch))
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            answer = {"seconds": seconds, "tokens": tokens, "nll": nll, "peak_mib": round(peak), **FACTS}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
