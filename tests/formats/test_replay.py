"""Replayed text in an export: exactly what was drawn, beside exactly what was selected, in every shard its share."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import readers
import yaml
from conftest import World, facts_of, selected_table, text, write_selection

from pplscape.draw.replay import draw_replay, replay_tokens
from pplscape.errors import UserError
from pplscape.formats import FORMATS
from pplscape.formats.content import text_sum, token_sum
from pplscape.formats.trainers import TrainingRun
from pplscape.manifest import StageFolder, read_manifest
from pplscape.stages.export import export
from pplscape.stages.prepare import prepare
from pplscape.text.prepared import Prepared
from pplscape.training.schedule import Recipe

SHARE = 0.2
OPTIONS: dict[str, Any] = {"formats": list(FORMATS), "shard_tokens": 2_500}


class Replayed(NamedTuple):
    selection: Path
    general: Path
    chunks: Counter[str]
    """Texts that are replayed, cut from the general documents as they were put in."""
    tokens: int


@pytest.fixture(scope="module")
def replayed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    """The world's selection with a fifth of all tokens general text, in several parts."""
    folder = tmp_path_factory.mktemp("general")
    texts = {f"g{i}": text(500 + i, 20 + 31 * (i % 5)) for i in range(40)}
    lines = (json.dumps({"id": k, "text": t}) + "\n" for k, t in texts.items())
    (folder / "general.jsonl").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pplscape.text.write.PART_BYTES", 8_000)
        prepare(
            [str(folder / "general.jsonl")], model=str(world.tokenizer), out=folder / "prepared", chunk_tokens=96,
            min_tokens=8,
        )  # fmt: skip
    general = Prepared(folder / "prepared")
    assert len(general.parts("pool")) > 1
    table, _ = draw_replay(general, replay_tokens(world.tokens, SHARE), 3)
    tokens = sum(table["length"].to_pylist())
    chunks = Prepared(world.prepared).chunks("pool").to_pylist()
    selection = write_selection(
        folder / "selection", selected_table(chunks, world.repeats),
        facts_of(world.tokens, replay={"share": SHARE, "tokens": tokens}),
        replay=table,
    )  # fmt: skip
    cut = Counter(texts[r["doc_id"]][r["char_start"] : r["char_end"]] for r in table.to_pylist())
    return Replayed(selection, general.path, cut, tokens)


@pytest.fixture(scope="module")
def exported(world: World, replayed: Replayed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(
        replayed.selection, corpus=world.prepared, replay=replayed.general, model=str(world.tokenizer),
        out=tmp_path_factory.mktemp("e") / "out", **OPTIONS,
    )  # fmt: skip


def chunks_of(rows: list[dict[str, Any]], replay: bool) -> Counter[str]:
    cut = [(r["text"], [0, *r["cuts"]]) for r in rows if r["replay"] == replay]
    return Counter(t[a:b] for t, ends in cut for a, b in itertools.pairwise(ends))


def test_nothing_is_lost_and_nothing_mixed_up(world: World, replayed: Replayed, exported: Path) -> None:
    counts = read_manifest(exported)["counts"]
    assert 0 <= replay_tokens(world.tokens, SHARE) - replayed.tokens < 96
    assert (counts["tokens"], counts["replay_tokens"]) == (world.tokens + replayed.tokens, replayed.tokens)
    for read in (readers.parquet, readers.jsonl, readers.hf):
        rows = read(exported)
        assert chunks_of(rows, False) == world.chunks()
        assert chunks_of(rows, True) == replayed.chunks
        assert sum(r["tokens"] for r in rows if r["replay"]) == replayed.tokens
    both = world.chunks() + replayed.chunks
    assert counts["facts"]["text_sum"] == text_sum(both.elements())
    for read in (readers.megatron, readers.mds, readers.litdata):
        ids = list(read(exported))
        assert sum(map(len, ids)) == counts["tokens"]
        assert token_sum(ids) == counts["facts"]["token_sum"]


def test_every_shard_holds_its_share(world: World, replayed: Replayed, exported: Path) -> None:
    shards = [json.loads(line) for line in (exported / "shards.jsonl").read_text().splitlines()]
    longest = max(r["tokens"] for r in readers.parquet(exported) if r["replay"])
    selected = general = 0
    assert len(shards) > 3
    for shard in shards:
        selected, general = selected + shard["tokens"] - shard["replay_tokens"], general + shard["replay_tokens"]
        assert -1 < general - replayed.tokens * selected / world.tokens < longest
    assert (selected, general) == (world.tokens, replayed.tokens)


@pytest.mark.parametrize("at", [8, 24])
def test_killed_it_resumes_to_the_same_bytes(
    world: World, replayed: Replayed, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    written: list[str] = []
    real = StageFolder.write_bytes

    def write(self: StageFolder, name: str, data: bytes) -> None:
        if len(written) == at:
            raise KeyboardInterrupt
        written.append(name)
        real(self, name, data)

    told = OPTIONS | {
        "corpus": world.prepared, "replay": replayed.general, "model": str(world.tokenizer), "out": tmp_path / "out"
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(StageFolder, "write_bytes", write)
        with pytest.raises(KeyboardInterrupt):
            export(replayed.selection, **told)
    out = export(replayed.selection, **told)
    mine, whole = (
        {p.relative_to(o): p.read_bytes() for p in o.rglob("*") if p.is_file() and p.suffix not in (".png", ".json")}
        for o in (out, exported)
    )
    assert mine == whole


def test_configurations_and_card_count_it(world: World, replayed: Replayed, exported: Path) -> None:
    total = world.tokens + replayed.tokens
    litgpt = yaml.safe_load((exported / "configs/litgpt.yaml").read_text())
    assert litgpt["train"]["max_tokens"] == total
    for name in ("axolotl.yaml", "litgpt.yaml", "llamafactory/train.yaml"):
        told = f"{world.tokens} selected and {replayed.tokens} replayed tokens, one epoch"
        assert told in (exported / "configs" / name).read_text()
    assert f"With them stand {replayed.tokens:,} tokens of general text" in (exported / "README.md").read_text()


def test_a_step_holds_what_our_own_trainer_gives_it() -> None:
    """The recipe counts domain tokens; the same number of steps, warm-up and cooldown, each step larger."""
    recipe = Recipe(warmup_tokens=40_960, cooldown_share=0.2, step_tokens=8192)
    alone, beside = TrainingRun("m", 800_000, 512, recipe), TrainingRun("m", 1_000_000, 512, recipe, 200_000)
    assert (alone.sequences, beside.sequences) == (16, 20)
    for name in ("steps", "warmup_steps", "decay_steps"):
        assert getattr(alone, name) == getattr(beside, name)


def test_one_side_only_is_refused(world: World, replayed: Replayed, tmp_path: Path) -> None:
    told: dict[str, Any] = {"corpus": world.prepared, "out": tmp_path / "o"}
    with pytest.raises(UserError, match=r"tokens to replay: pass --replay"):
        export(replayed.selection, **told)
    with pytest.raises(UserError, match="holds nothing to replay"):
        export(world.selection, replay=replayed.general, **told)
    with pytest.raises(UserError, match="does not hold the selected chunks of document"):
        export(replayed.selection, replay=world.prepared, **told | {"out": tmp_path / "p"})
    other = tmp_path / "other"
    with StageFolder(other, stage="prepare", version=1, config={}, inputs={}) as stage:
        facts = Prepared(replayed.general).facts | {"tokenizer_hash": "another"}
        stage.finish({"in": 0, "out": 0, "rejected": {}, "facts": facts})
    with pytest.raises(UserError, match=r"differs from that of .*other"):
        export(replayed.selection, replay=other, **told)
    nothing = facts_of(world.tokens, replay={"share": 1e-9, "tokens": 0})
    table = selected_table(Prepared(world.prepared).chunks("pool").to_pylist(), world.repeats)
    selection = write_selection(tmp_path / "s", table, nothing, replay=table.slice(0, 0))
    assert read_manifest(export(selection, replay=replayed.general, **told))["counts"]["replay_tokens"] == 0
