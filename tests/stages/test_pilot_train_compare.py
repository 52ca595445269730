"""pilot, train, evaluate, compare on the fake engine: exact tokens, recorded failures, refusals in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pplscape import pilots
from pplscape.engines.fake import FakeEngine
from pplscape.errors import UserError
from pplscape.manifest import read_manifest
from pplscape.reporting.about_outcome import FORGETTING, forgetting_rows
from pplscape.stages.compare import compare
from pplscape.stages.evaluate import evaluate, read_evaluation
from pplscape.stages.landscape import landscape
from pplscape.stages.pilot import pilot
from pplscape.stages.plan import plan
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score
from pplscape.stages.select import select
from pplscape.stages.train import train
from pplscape.training.schedule import Recipe

pytestmark = pytest.mark.usefixtures("figures_never_saved")
RECIPE = Recipe(learning_rate=1e-3, warmup_tokens=64, step_tokens=64)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> dict[str, Path]:
    """A prepared, scored and planned corpus."""
    folder = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    words = ["patients", "court", "fox", "the", "treated", "1998", "dog", "loss", "twelve", "brown"]
    texts = [" ".join(rng.choice(words[: rng.integers(2, 11)], 120)) for _ in range(150)]
    (folder / "c.jsonl").write_text("".join(json.dumps({"id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(texts)))
    base = FakeEngine(str(tiny_tokenizer_dir))
    base.step(base.encode(["the fox the dog " * 100]), 1e-3)
    base.save(folder / "base")
    found = {"model": folder / "base", "text": folder / "c.jsonl"}
    found["prepared"] = prepare(
        [str(folder / "c.jsonl")], model=str(folder / "base"), out=folder / "prepared", chunk_tokens=64, min_tokens=16,
        valid=1500, test=1500, near_duplicates="keep", overlap_share=1.0,
    )  # fmt: skip
    found["scores"] = score(found["prepared"], model=str(folder / "base"), engine="fake", out=folder / "scores")
    found["landscape"] = landscape(found["scores"], budget="20%", out=folder / "landscape", n_bins=3)
    found["plan"] = plan(
        found["landscape"], budget="20%", pilot_tokens=12_000, out=folder / "plan", designed=2, random_seeds=2,
        recipe=RECIPE,
    )  # fmt: skip
    return found


def _pilot(bench: dict[str, Path], out: Path) -> list[dict[str, Any]]:
    folder = pilot(
        bench["plan"], model=str(bench["model"]), scores=bench["scores"], corpus=bench["prepared"], out=out,
        general=[str(bench["text"])], engine="fake",
    )  # fmt: skip
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def test_a_failed_run_is_recorded_and_the_others_go_on(
    bench: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = FakeEngine.step, [0]

    def breaks(self: FakeEngine, chunks: Any, learning_rate: float) -> float:
        calls[0] += 1
        if calls[0] == 5:
            raise FloatingPointError("training loss is nan")
        return real(self, chunks, learning_rate)

    monkeypatch.setattr(FakeEngine, "step", breaks)
    rows = _pilot(bench, tmp_path / "pilots")
    failed = [r for r in rows if r["status"] == "failed"]
    assert failed
    assert {r["group"] for r in failed} == {"random-0"}
    assert all(r["loss"] is None and "loss is nan" in r["reason"] for r in failed)
    assert len(rows) == 16
    assert read_manifest(tmp_path / "pilots")["counts"] == {
        "in": 16, "out": 16 - len(failed), "rejected": {"failed": len(failed)},
    }  # fmt: skip


def test_what_fails_once_is_tried_again_from_the_last_size(
    bench: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = _pilot(bench, tmp_path / "undisturbed")
    real, calls = FakeEngine.step, [0]

    def breaks_once(self: FakeEngine, chunks: Any, learning_rate: float) -> dict[str, float]:
        calls[0] += 1
        if calls[0] == 25:
            raise RuntimeError("a device was lost")
        return real(self, chunks, learning_rate)

    monkeypatch.setattr(FakeEngine, "step", breaks_once)
    with pytest.warns(UserWarning, match="tried once more"):
        assert _pilot(bench, tmp_path / "disturbed") == undisturbed
    monkeypatch.setattr(FakeEngine, "step", lambda *_: (_ for _ in ()).throw(RuntimeError("a device is lost")))
    with pytest.warns(UserWarning, match="tried once more"):
        rows = _pilot(bench, tmp_path / "lost")
    assert {(r["status"], r["reason"]) for r in rows} == {("failed", "RuntimeError: a device is lost")}


def test_a_killed_pilot_goes_on_after_its_last_size(
    bench: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = _pilot(bench, tmp_path / "undisturbed")
    real, steps = FakeEngine.step, [0]

    def killed(self: FakeEngine, chunks: Any, learning_rate: float) -> dict[str, float]:
        steps[0] += 1
        if steps[0] == 25:
            raise KeyboardInterrupt
        return real(self, chunks, learning_rate)

    monkeypatch.setattr(FakeEngine, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        _pilot(bench, tmp_path / "killed")
    (state,) = (tmp_path / "killed.partial/checkpoints").iterdir()
    (newest,) = state.glob("step-*")
    assert json.loads((newest / "progress.json").read_text())["rows"]
    assert _pilot(bench, tmp_path / "killed") == undisturbed
    assert not (tmp_path / "killed/checkpoints").exists()


def test_a_bug_is_not_taken_for_a_failed_run(
    bench: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(pilots, "train_steps", broken)
    with pytest.raises(KeyError):
        _pilot(bench, tmp_path / "pilots")


def test_pilots_record_forgetting(bench: dict[str, Path], tmp_path: Path) -> None:
    rows = _pilot(bench, tmp_path / "pilots")
    assert all(r["loss_general"] is not None and r["base_loss_general"] > 0 for r in rows)


def test_pilots_are_measured_on_the_text_that_is_given(bench: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("the fox the dog " * 40)
    arguments: Any = {"model": str(bench["model"]), "scores": bench["scores"], "corpus": bench["prepared"]}
    folder = pilot(
        bench["plan"], **arguments, out=tmp_path / "pilots", engine="fake", heldout=[str(tmp_path / "other.txt")]
    )
    row = json.loads((folder / "runs.jsonl").read_text().splitlines()[0])
    engine = FakeEngine(str(bench["model"]))
    ids = engine.encode(["the fox the dog " * 40])[0]
    expected = np.concatenate(engine.nll([ids[i : i + 64] for i in range(0, len(ids), 64)])).mean()
    assert row["base_loss"] == pytest.approx(expected, rel=1e-6)


def test_pilots_refuse_scores_of_another_kind(bench: dict[str, Path], tmp_path: Path) -> None:
    other = FakeEngine(str(bench["model"]))
    other.step(other.encode(["the court the loss " * 100]), 1e-3)
    other.save(tmp_path / "other")
    with pytest.raises(UserError, match="scored with other weights"):
        pilot(
            bench["plan"], model=str(tmp_path / "other"), scores=bench["scores"], corpus=bench["prepared"],
            out=tmp_path / "pilots", engine="fake",
        )  # fmt: skip
    assert not (tmp_path / "pilots.partial").exists()


def test_train_from_text_stops_before_the_limit(bench: dict[str, Path], tmp_path: Path) -> None:
    out = train(
        bench["text"], model=str(bench["model"]), out=tmp_path / "t", tokens=1000, recipe=RECIPE, engine="fake",
        chunk_tokens=64,
    )  # fmt: skip
    counts = read_manifest(out)["counts"]
    assert 1000 - 64 < counts["tokens"] <= 1000
    assert (out / "model/counts.npy").exists()


def test_train_selection_equals_its_tokens(bench: dict[str, Path], tmp_path: Path) -> None:
    chosen = select(bench["scores"], strategy="random", budget="20%", out=tmp_path / "s", seed=3)
    tokens = json.loads((chosen / "selection.json").read_text())["tokens"]
    trained = train(
        chosen, model=str(bench["model"]), corpus=bench["prepared"], out=tmp_path / "t", recipe=RECIPE, engine="fake",
        seed=3,
    )  # fmt: skip
    assert read_manifest(trained)["counts"]["facts"] == {"strategy": "random", "seed": 3, "tokens": tokens}
    with pytest.raises(UserError, match="--corpus"):
        train(chosen, model=str(bench["model"]), out=tmp_path / "t2", engine="fake")


def test_evaluate_and_compare(bench: dict[str, Path], tmp_path: Path) -> None:
    base = evaluate(str(bench["model"]), heldout=bench["prepared"], out=tmp_path / "base", engine="fake")
    rows = read_evaluation(base)
    assert {r["split"] for r in rows} == {"valid", "test"}
    other = evaluate(str(bench["model"]), heldout=bench["text"], out=tmp_path / "other", engine="fake")
    with pytest.raises(UserError, match="other documents"):
        compare([base, other], out=tmp_path / "c")
    with pytest.raises(UserError, match="give every arm once"):
        compare([base, base], out=tmp_path / "c")
    with pytest.raises(UserError, match="no file or folder"):
        compare([tmp_path / "nowhere"], out=tmp_path / "d")


def test_forgetting_is_told_before_and_after(bench: dict[str, Path], tmp_path: Path) -> None:
    """Two seeds of one strategy and one of random: means over seeds, pairs of documents, and the report's table."""
    folders = []
    for strategy, seed in (("base", 0), ("random", 0), ("low", 0), ("low", 1)):
        model = bench["model"]
        if strategy != "base":
            chosen = select(bench["scores"], strategy=strategy, budget="20%", out=tmp_path / f"s{strategy}{seed}")
            model = train(
                chosen, model=str(bench["model"]), corpus=bench["prepared"], out=tmp_path / f"t{strategy}{seed}",
                recipe=RECIPE, engine="fake", seed=seed,
            )  # fmt: skip
        out = tmp_path / f"e{strategy}{seed}"
        folders.append(
            evaluate(str(model), heldout=bench["prepared"], general=[str(bench["text"])], out=out, engine="fake")
        )
    content = json.loads((compare(folders, out=tmp_path / "c") / "comparison.json").read_text())
    general = [
        sum(r["nll_sum"] for r in rows) / sum(r["n_tokens"] for r in rows)
        for f in folders
        for rows in [[r for r in read_evaluation(f) if r["split"] == "general"]]
    ]
    found = {row["strategy"]: row for row in content["forgetting"]}
    assert list(found) == ["random", "low"]
    assert found["low"]["before"] == pytest.approx(general[0])
    assert found["low"]["after"] == pytest.approx((general[2] + general[3]) / 2)
    assert found["random"]["change"]["mean"] == pytest.approx(general[1] - general[0])
    assert found["low"]["change"]["low"] < found["low"]["change"]["mean"] < found["low"]["change"]["high"]
    (low,) = (s for s in content["strategies"] if s["strategy"] == "low")
    assert low["difference_general"]["mean"] == pytest.approx(general[2] - general[1])
    rows = forgetting_rows(content)
    assert {row[0] for row in rows} == {"random", "low"}
    assert all(len(row) == len(FORGETTING) for row in rows)


def test_too_little_text_is_said(bench: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        train(bench["text"], model=str(bench["model"]), out=tmp_path / "t", tokens=3, engine="fake")


def test_rejected_text_is_counted(bench: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": 1, "text": "the dog the fox"}\n{"id": 2, "text": ""}\nbroken\n')
    out = train(tmp_path / "t.jsonl", model=str(bench["model"]), out=tmp_path / "o", recipe=RECIPE, engine="fake")
    assert sum(read_manifest(out)["counts"]["rejected"].values()) == 2


def test_another_seed_draws_other_chunks(bench: dict[str, Path], tmp_path: Path) -> None:
    def means(seed: int) -> list[float]:
        folder = pilot(
            bench["plan"], model=str(bench["model"]), scores=bench["scores"], corpus=bench["prepared"],
            out=tmp_path / f"p{seed}", engine="fake", seed=seed,
        )  # fmt: skip
        return [json.loads(line)["nll_mean"] for line in (folder / "runs.jsonl").read_text().splitlines()]

    assert means(0) != means(1)
