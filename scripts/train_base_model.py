"""Train the embedded base model (2.6 M parameters, Llama shape, 4,096 byte-level BPE) from scratch.

    PPLSCAPE_DATA=... python scripts/train_base_model.py --work work/base --tokens 36M
    PPLSCAPE_DATA=... python scripts/train_base_model.py --work work/large --size 10.4m --tokens 21M
    PPLSCAPE_DATA=... python scripts/train_base_model.py --work work/small --size 0.7m --tokens 10M

The others are of four times its size, which the experiments compare with, and of about a quarter, the proxy of
`experiments/proxy.py` (same text, same tokenizer).

One constant-learning-rate trunk, from which cooled-down branches are cut: the trunk is checkpointed every
`CHECKPOINT_TOKENS`, so a killed run resumes, and `--branch-at 10M` exports an early model without
disturbing it. The trunk runs at 256 tokens of context (14 % faster on a CPU than 512); the cooldown at 512.

Documents whose sha256(id) is 0 mod 100 are held out and never trained on.
"""

from __future__ import annotations

import argparse
import glob
import gzip
import hashlib
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB, BOS = 4096, "<|endoftext|>"
BATCH_TOKENS, WARMUP_STEPS = 8192, 100
TRUNK_CONTEXT, COOLDOWN_CONTEXT, COOLDOWN_SHARE = 256, 512, 0.05
CHECKPOINT_TOKENS, EVAL_TOKENS = 1_000_000, 65_536
SIZES = {"0.7m": (96, 256, 3, 3, 3e-3), "2.6m": (192, 512, 4, 3, 2e-3), "10.4m": (384, 1024, 5, 6, 1.4e-3)}
"""Width, width of the feed-forward layer, layers, heads, learning rate."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def parse_count(text: str) -> int:
    """`36M` -> 36_000_000."""
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    return int(float(text[:-1]) * units[text[-1]]) if text[-1] in units else int(float(text))


def read_general(data: Path):
    """Yield (id, text) of every document under `general/`, in file order."""
    for path in sorted(glob.glob(str(data / "general" / "*.jsonl.gz"))):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield row["id"], row["text"]


def is_heldout(doc_id: str) -> bool:
    return int(hashlib.sha256(doc_id.encode()).hexdigest()[:8], 16) % 100 == 0


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; digits stand alone, so that numbers cost the same everywhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((t[:4000] for t in texts), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS)


def encode_all(work: Path, data: Path) -> PreTrainedTokenizerFast:
    """Write tokenizer/ and {train,heldout}.npz (flat ids and document lengths) once."""
    if (work / "heldout.npz").exists():
        return PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    documents = list(read_general(data))
    np.random.default_rng(0).shuffle(documents)
    training = [t for i, t in documents if not is_heldout(i)]
    heldout = [t for i, t in documents if is_heldout(i)]
    tokenizer = train_tokenizer(training)
    tokenizer.save_pretrained(work / "tokenizer")
    for name, texts in (("train", training), ("heldout", heldout)):
        ids, lengths = [], []
        for start in range(0, len(texts), 64):
            for ids_doc in tokenizer(texts[start : start + 64], add_special_tokens=False)["input_ids"]:
                ids.append(np.array(ids_doc, dtype=np.uint16))
                lengths.append(len(ids_doc))
        n_bytes = sum(len(t.encode()) for t in texts)
        np.savez(work / f"{name}.npz", ids=np.concatenate(ids), lengths=lengths, n_bytes=n_bytes)
        print(f"{name}: {len(texts)} documents, {sum(lengths):,} tokens, {n_bytes:,} bytes", flush=True)
    return tokenizer


def windows(path: Path, context: int, bos: int, seed: int) -> np.ndarray:
    """[n, context + 1] windows of the stream `BOS piece BOS piece ...`, pieces cut within a document, shuffled."""
    table = np.load(path)
    ids, lengths = table["ids"], table["lengths"]
    pieces, start = [], 0
    for length in lengths:
        for offset in range(0, length, context - 1):
            pieces.append((start + offset, min(context - 1, length - offset)))
        start += length
    np.random.default_rng(seed).shuffle(pieces)
    stream = np.concatenate([np.concatenate([[bos], ids[a : a + n]]) for a, n in pieces]).astype(np.int64)
    n_windows = (len(stream) - 1) // context
    return np.stack([stream[i * context : i * context + context + 1] for i in range(n_windows)])


def loss_of(model: LlamaForCausalLM, body, batch: np.ndarray) -> torch.Tensor:
    ids = torch.from_numpy(batch).to(DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        hidden = body(input_ids=ids[:, :-1]).last_hidden_state
        logits = model.lm_head(hidden)
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def evaluate(model: LlamaForCausalLM, heldout: np.ndarray) -> float:
    """Mean nats/token over the first EVAL_TOKENS held-out tokens, context of the given windows."""
    rows = heldout[: EVAL_TOKENS // (heldout.shape[1] - 1)]
    with torch.no_grad():
        losses = [
            loss_of(model, model.model, rows[i : i + 16]).item() * len(rows[i : i + 16])
            for i in range(0, len(rows), 16)
        ]
    return sum(losses) / len(rows)


def new_model(bos: int, size: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    width, inner, layers, heads, _ = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=bos, eos_token_id=bos,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(DEVICE)


class Run:
    """A model, its optimiser and how far it is; one JSON line per evaluation in `log`."""

    def __init__(self, work: Path, bos: int, size: str):
        self.work, self.bos, self.tokens = work, bos, 0
        self.model, self.learning_rate = new_model(bos, size), SIZES[size][-1]
        decay = [p for p in self.model.parameters() if p.dim() > 1]
        rest = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.95), fused=True)
        self.log = work / "curve.jsonl"

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "tokens": self.tokens}
        torch.save(state, self.work / "trunk.tmp")
        os.replace(self.work / "trunk.tmp", self.work / "trunk.pt")

    def load(self) -> None:
        state = torch.load(self.work / "trunk.pt", weights_only=True, map_location=DEVICE)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.tokens = state["tokens"]

    def step(self, body, batch: np.ndarray, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = loss_of(self.model, body, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tokens += batch[:, 1:].size
        return loss.item()

    def record(self, phase: str, heldout: np.ndarray, loss: float) -> None:
        row = {"phase": phase, "tokens": self.tokens, "train_loss": loss, "heldout_loss": evaluate(self.model, heldout)}
        row["time"] = round(time.time())
        print(json.dumps(row), flush=True)
        with self.log.open("a") as out:
            out.write(json.dumps(row) + "\n")


def trunk(run: Run, until: int) -> None:
    """Constant learning rate to `until` tokens; every pass over the data is reshuffled."""
    heldout = windows(run.work / "heldout.npz", TRUNK_CONTEXT, run.bos, 1)
    rows_per_step = BATCH_TOKENS // TRUNK_CONTEXT
    body = torch.compile(run.model.model)
    data, epoch = windows(run.work / "train.npz", TRUNK_CONTEXT, run.bos, 100), 0
    steps_per_epoch = len(data) // rows_per_step
    while run.tokens < until:
        if epoch != run.tokens // BATCH_TOKENS // steps_per_epoch:
            epoch = run.tokens // BATCH_TOKENS // steps_per_epoch
            data = windows(run.work / "train.npz", TRUNK_CONTEXT, run.bos, 100 + epoch)
        step = run.tokens // BATCH_TOKENS
        row = step % steps_per_epoch * rows_per_step
        loss = run.step(body, data[row : row + rows_per_step], run.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS))
        if run.tokens % CHECKPOINT_TOKENS < BATCH_TOKENS:
            run.save()
            run.record("trunk", heldout, loss)
    run.save()


def cooldown(run: Run, tokens: int) -> None:
    """1-sqrt decay to zero over `tokens`, at the longer context, on the data after the trunk's."""
    heldout = windows(run.work / "heldout.npz", COOLDOWN_CONTEXT, run.bos, 1)
    data = windows(run.work / "train.npz", COOLDOWN_CONTEXT, run.bos, 7)
    rows_per_step, steps = BATCH_TOKENS // COOLDOWN_CONTEXT, tokens // BATCH_TOKENS
    body = torch.compile(run.model.model)
    loss = math.nan
    for step in range(steps):
        rows = data[step * rows_per_step : (step + 1) * rows_per_step]
        loss = run.step(body, rows, run.learning_rate * (1 - math.sqrt(step / steps)))
        if step % 122 == 121:
            run.record("cooldown", heldout, loss)
    run.record("final", heldout, loss)


def export(run: Run, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    run.model.to(torch.float16).save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    print(f"exported {out}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, token files, curve")
    parser.add_argument("--tokens", type=parse_count, default=36_000_000, help="trunk + cooldown")
    parser.add_argument("--size", choices=list(SIZES), default="2.6m", help="parameters")
    parser.add_argument("--branch-at", type=parse_count, help="stop the trunk here and export an early model")
    parser.add_argument("--export", type=Path, help="folder for the model (default WORK/model)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = encode_all(args.work, Path(os.environ["PPLSCAPE_DATA"]))
    run = Run(args.work, tokenizer.bos_token_id, args.size)
    if (args.work / "trunk.pt").exists():
        run.load()
    total = args.branch_at or args.tokens
    cooldown_tokens = int(total * COOLDOWN_SHARE)
    trunk(run, total - cooldown_tokens)
    cooldown(run, cooldown_tokens)
    export(run, tokenizer, args.export or args.work / "model")


if __name__ == "__main__":
    main()
