"""Do the training programs' own readers return exactly the chunks that were selected?

Exports a selection with repeats of this repository's own text, and text to replay beside it, in every format, then lets
each library read it, compares count and sum of token ids (or texts), and lists what was installed. The libraries need
environments of their own:

    python experiments/check_readers.py make DIR                          # with pplscape installed
    PYTHONPATH=src ENV/bin/python experiments/check_readers.py read DIR datasets megatron-core ...
    python experiments/check_readers.py table DIR > docs/results/readers.md
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import itertools
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.formats.content import text_sum, token_sum

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "src/pplscape/embedded/base-2.6m"
REPLAYED = "replay/selected/part-00000.parquet"
CHUNK_TOKENS, SHARD_TOKENS, REPLAY_SHARE = 128, 60_000, 0.1


# --- the export ---


def make(work: Path) -> None:
    """prepare, score (a bigram engine: only the tokenizer matters here), select with a tenth of experiments' text to
    replay, give every third chunk a repeat."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pplscape import export, prepare, score, select
    from pplscape.manifest import StageFolder
    from pplscape.training.schedule import Recipe

    model = str(MODEL)
    files = [str(p) for p in (*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "src").rglob("*.py")))]
    many_scripts = work / "scripts.jsonl"
    many_scripts.parent.mkdir(parents=True, exist_ok=True)
    words = ["añejo", "日本語", "🙂🙃", "e\u0301tude", "straße", "\u200dzwj", "קטן", "ࠀ", "12.5\r\n\t"]
    lines = (json.dumps({"id": f"s#{i}", "text": " ".join(words[(i * j) % 9] + str(j) for j in range(150))})
             for i in range(30))  # fmt: skip
    many_scripts.write_text("\n".join(lines))
    prepare(
        [*files, str(many_scripts)], model=model, out=work / "prepared", chunk_tokens=CHUNK_TOKENS, min_tokens=16,
        near_duplicates="keep", valid=2000, test=2000,
    )  # fmt: skip
    general = [str(p) for p in sorted((ROOT / "experiments").rglob("*.py"))]
    prepare(general, model=model, out=work / "general", chunk_tokens=CHUNK_TOKENS, min_tokens=16, valid=0, test=0)
    score(work / "prepared", model=model, out=work / "scores", engine="fake")
    drawn = select(
        work / "scores", strategy="random", budget="60%", out=work / "drawn", corpus=work / "prepared",
        replay=work / "general", replay_share=REPLAY_SHARE,
    )  # fmt: skip
    table = pa.concat_tables([pq.read_table(p) for p in sorted((drawn / "selected").iterdir())])
    repeats = [1 + (i % 3 == 0) + (i % 9 == 0) for i in range(table.num_rows)]
    at = table.schema.get_field_index("repeats")
    table = table.set_column(at, table.schema.field(at), pa.array(repeats, pa.int16()))
    tokens = sum(n * r for n, r in zip(table["length"].to_pylist(), repeats, strict=True))
    facts = json.loads((drawn / "selection.json").read_text()) | {"tokens": tokens}
    with StageFolder(work / "selection", stage="select", version=0, config={}, inputs={"drawn": drawn}) as folder:
        if not folder.finished:
            folder.write_table("selected/part-00000.parquet", table)
            folder.write_table(REPLAYED, pq.read_table(drawn / REPLAYED))
            folder.write_json("selection.json", facts)
            folder.finish({"in": len(table), "out": len(table), "rejected": {}})
    export(
        work / "selection", corpus=work / "prepared", replay=work / "general", out=work / "export", model=model,
        shard_tokens=SHARD_TOKENS,
        formats=["parquet", "jsonl", "hf", "megatron", "mds", "litdata"], recipe=Recipe(step_tokens=2048),
    )  # fmt: skip


# --- what was selected, from the prepared corpus and selected/ alone ---


def expect(work: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    chunks: list[dict[str, Any]] = []
    cut: list[str] = []
    for corpus, selected in (("prepared", "selected/part-00000.parquet"), ("general", REPLAYED)):
        texts = {}
        for file in sorted((work / corpus / "documents/pool").glob("*.parquet")):
            texts |= {r["doc_id"]: r["text"] for r in pq.read_table(file, columns=["doc_id", "text"]).to_pylist()}
        of = [r for r in pq.read_table(work / "selection" / selected).to_pylist() for _ in range(r["repeats"])]
        cut += [texts[r["doc_id"]][r["char_start"] : r["char_end"]] for r in of]
        chunks += of
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    ids = [tokenizer.encode(t, add_special_tokens=False).ids for t in cut]
    return {
        "chunks": len(chunks), "tokens": sum(r["length"] for r in chunks), "text_sum": text_sum(cut),
        "token_sum": token_sum(ids),
    }  # fmt: skip


def same(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise AssertionError(f"{what}: read {found}, selected {expected}")


def check_texts(rows: Iterator[dict[str, Any]], expected: dict[str, Any]) -> str:
    rows = list(rows)
    chunks = [r["text"][a:b] for r in rows for a, b in itertools.pairwise([0, *r["cuts"]])]
    same("chunks", len(chunks), expected["chunks"])
    same("texts", text_sum(chunks), expected["text_sum"])
    same("tokens", sum(r["tokens"] for r in rows), expected["tokens"])
    return f"{len(rows):,} rows"


def check_ids(chunks: Iterator[Any], expected: dict[str, Any]) -> str:
    ids = [np.asarray(c) for c in chunks]
    same("chunks", len(ids), expected["chunks"])
    same("tokens", sum(map(len, ids)), expected["tokens"])
    same("token ids", token_sum(ids), expected["token_sum"])
    return f"{len(ids):,} sequences"


# --- the readers ---


def read_datasets(out: Path, expected: dict[str, Any]) -> str:
    from datasets import load_dataset, load_from_disk

    ways = {
        "hf/ (load_from_disk)": load_from_disk(str(out / "hf")),
        "parquet/": load_dataset("parquet", data_files=str(out / "parquet/*.parquet"), split="train"),
        "jsonl/": load_dataset("json", data_files=str(out / "jsonl/*.jsonl"), split="train"),
        "the folder by its card": load_dataset(str(out), split="train"),
    }
    for rows in ways.values():
        read = check_texts(iter(rows), expected)
    return f"{', '.join(ways)}: {read} each, texts equal"


def read_megatron(out: Path, expected: dict[str, Any]) -> str:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    prefixes = (out / "megatron/data-path.txt").read_text().split()
    sets = [IndexedDataset(str(out / prefix), mmap=True) for prefix in prefixes]
    read = check_ids((s[i] for s in sets for i in range(len(s))), expected)
    documents = sum(len(s.document_indices) - 1 for s in sets)
    unmapped = [IndexedDataset(str(out / prefix), mmap=False) for prefix in prefixes]
    check_ids((s.get(i) for s in unmapped for i in range(len(s))), expected)
    kind = sets[0].index.dtype.__name__
    return f"IndexedDataset, mapped and not: {read} in {documents:,} documents, {kind}, ids equal"


def stand_in(*names: str, **attributes: Any) -> str:
    """Empty modules for a library of images or sound that is imported but not used for text; "" where it is there."""
    if importlib.util.find_spec(names[0]):
        return ""
    for name in names:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(sys.modules[name]).update(attributes)
    return f" (an empty {names[0]} stood in: imported, not used)"


def read_mds(out: Path, expected: dict[str, Any]) -> str:
    import transformers.tokenization_utils_base  # noqa: F401 - before the stand-in, which it would look at

    modules = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    stood_in = stand_in(*modules, VisionDataset=object, CIFAR10=object, to_tensor=None)
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    data = StreamingDataset(local=str(out / "mds"), shuffle=False, batch_size=1)
    return (
        f"StreamingDataset: {check_ids((data[i]['tokens'] for i in range(len(data))), expected)}, ids equal{stood_in}"
    )


def read_litgpt(out: Path, expected: dict[str, Any]) -> str:
    """litgpt's own data module on the configuration's arguments: whole blocks of every shard, in order."""
    import yaml
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import LitData

    config = yaml.safe_load((out / "configs/litgpt.yaml").read_text())
    TrainArgs(**config["train"]), EvalArgs(**config["eval"])
    same("data module", config["data"]["class_path"], "litgpt.data.LitData")
    os.chdir(out)
    module = LitData(**config["data"]["init_args"] | {"num_workers": 0})
    length = config["train"]["max_seq_length"]
    module.connect(batch_size=1, max_seq_length=length)
    blocks = [np.asarray(b[0]) for b in module.val_dataloader()]
    shards = [np.concatenate(ids) for ids in _shards(out)]
    whole = [s[i : i + length + 1] for s in shards for i in range(0, len(s) - length, length + 1)]
    same("tokens", sum(map(len, shards)), expected["tokens"])
    same("blocks", len(blocks), len(whole))
    if not all(np.array_equal(a, b) for a, b in zip(blocks, whole, strict=True)):
        raise AssertionError("the blocks are not those of the selected ids")
    lost = 1 - sum(map(len, blocks)) / expected["tokens"]
    return f"LitData: {len(blocks):,} blocks of {length + 1}, ids equal; {lost:.2%} at ends of shards left out"


def _shards(out: Path) -> Iterator[list[np.ndarray]]:
    """Ids shard by shard, through Megatron's layout."""
    for prefix in (out / "megatron/data-path.txt").read_text().split():
        index = (out / f"{prefix}.idx").read_bytes()
        n = int.from_bytes(index[18:26], "little")
        lengths = np.frombuffer(index, "<i4", n, 34)
        yield np.split(np.fromfile(out / f"{prefix}.bin", "<u2"), np.cumsum(lengths)[:-1])


def read_llamafactory(out: Path, expected: dict[str, Any]) -> str:
    """LLaMA-Factory's own parser and pre-training data pipeline on the configuration as it was written."""
    import yaml

    stood_in = stand_in("torchaudio")
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    os.chdir(out)
    config = yaml.safe_load(Path("configs/llamafactory/train.yaml").read_text())
    model_args, data_args, training_args, _, _ = get_train_args(config | {"bf16": False, "use_cpu": True})
    tools = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tools["tokenizer"], data_args)
    data = get_dataset(template, model_args, data_args, training_args, stage="pt", **tools)["train_dataset"]
    import pyarrow.parquet as pq

    rows = [r for name in os.listdir("parquet") for r in pq.read_table(f"parquet/{name}").to_pylist()]
    same("tokens of the rows", sum(r["tokens"] for r in rows), expected["tokens"])
    end, length = [tools["tokenizer"].eos_token_id], data_args.cutoff_len
    encoded = [tools["tokenizer"](r["text"], add_special_tokens=False)["input_ids"] + end for r in rows]
    blocks = []
    for start in range(0, len(rows), data_args.preprocessing_batch_size):  # it drops each batch's last, short block
        ids = list(itertools.chain(*encoded[start : start + data_args.preprocessing_batch_size]))
        blocks += [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    same("blocks", [list(b) for b in data["input_ids"]] == blocks, True)
    changed = sum(len(e) - 1 for e in encoded) / expected["tokens"] - 1
    return (
        f"get_train_args, get_dataset: {len(blocks):,} blocks of {length}, ids those of the rows, each with an end "
        f"token{stood_in}; rows encoded whole have {changed:+.2%} tokens"
    )


def read_axolotl(out: Path, expected: dict[str, Any]) -> str:
    """axolotl's own schema and data pipeline on the configuration as it was written, but for bfloat16."""
    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
    from axolotl.cli.args import PreprocessCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.loaders import load_tokenizer

    os.chdir(out)
    scratch = str(out.parent / "axolotl-prepared")
    config = load_cfg("configs/axolotl.yaml", bf16=False, dataset_prepared_path=scratch)
    data = load_datasets(cfg=config, cli_args=PreprocessCliArgs()).train_dataset
    tokenizer, length = load_tokenizer(config), config.sequence_len
    rows = [r for f in sorted((out / "jsonl").iterdir()) for r in map(json.loads, f.read_text("utf-8").splitlines())]
    same("tokens of the rows", sum(r["tokens"] for r in rows), expected["tokens"])
    plain = [tokenizer(r["text"], add_special_tokens=False)["input_ids"] for r in rows]
    encoded = [[*ids, tokenizer.eos_token_id] for ids in plain]
    blocks = [ids[i : i + length] for ids in encoded for i in range(0, len(ids), length)]
    alone = [b for b in blocks if len(b) == 1]  # the end token of a row that fills its last piece
    same("pieces of one token", {b[0] for b in alone} <= {tokenizer.eos_token_id}, True)
    read = sorted(map(list, data["input_ids"]))
    same("pieces", read == sorted(b for b in blocks if len(b) > 1), True)
    return (
        f"load_cfg, load_datasets: {len(read):,} pieces of at most {length}, ids those of the rows, each with an end "
        f"token but {len(alone):,} that fill their last piece; rows encoded whole have "
        f"{sum(map(len, plain)) / expected['tokens'] - 1:+.2%} tokens"
    )


READERS: dict[str, Callable[[Path, dict[str, Any]], str]] = {
    "datasets": read_datasets, "megatron-core": read_megatron, "mosaicml-streaming": read_mds, "litgpt": read_litgpt,
    "llamafactory": read_llamafactory, "axolotl": read_axolotl,
}  # fmt: skip


def read(work: Path, names: list[str]) -> None:
    """Run these readers; each leaves a result, also when it fails or is not installed."""
    expected = expect(work)
    for name in names:
        result = {
            "reader": name,
            "version": "",
            "result": "unchecked",
            "what": "not installed",
        }
        try:
            result["version"] = metadata.version(name)
            result |= {"result": "ok", "what": READERS[name]((work / "export").resolve(), expected)}
        except metadata.PackageNotFoundError:
            pass
        except ImportError as error:
            result["what"] = f"cannot be imported here: {error}"
        except Exception as error:  # noqa: BLE001 - whatever a foreign reader raises is the finding
            result |= {"result": "failed", "what": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        (work / "results").mkdir(exist_ok=True)
        (work / "results" / f"{name}.json").write_text(json.dumps(result | {"expected": expected}, indent=1))
        print(result, file=sys.stderr)


def table(work: Path) -> str:
    """Markdown of all results so far."""
    results = [json.loads((work / "results" / f"{n}.json").read_text()) for n in READERS
               if (work / "results" / f"{n}.json").exists()]  # fmt: skip
    expected = results[0]["expected"]
    lines = [
        "# Exports read back by the training programs' own readers", "",
        "One selection of this repository's own text and of rows in many scripts, exported in every format and read by "
        f"the libraries themselves: {expected['chunks']:,} chunks with repeats and replayed ones (a tenth of the "
        f"tokens without repeats), {expected['tokens']:,} tokens (embedded"
        " model's tokenizer). *ok*: count and sum of texts or token ids equal those computed from the prepared corpus "
        "and `selected/` alone. Made by `experiments/check_readers.py`.", "",
        "| reader | version | result | what was read |", "|---|---|---|---|",
        *(f"| {r['reader']} | {r['version']} | {r['result']} | {r['what'].replace('|', '/')} |" for r in results),
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["make", "read", "table"])
    parser.add_argument("dir", type=Path)
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(READERS)}")
    asked = parser.parse_args()
    if asked.do == "make":
        make(asked.dir)
    elif asked.do == "read":
        read(asked.dir, asked.readers or list(READERS))
    else:
        print(table(asked.dir))


if __name__ == "__main__":
    main()
