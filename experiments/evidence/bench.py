"""One pool with its law and a model in memory: draws, trains and measures an arm as the stages do.

A cell is what `select`, `train` and `evaluate` would give (tested); the model is loaded once instead of twice a cell.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import pplscape as ps
from pplscape.design import CAP_SAFETY, capped, draw_shares
from pplscape.draw.columns import LIKENESS, log_perplexity, second
from pplscape.draw.permanent import uniforms
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.stream import read_selected
from pplscape.engines import load_engine
from pplscape.engines.base import Ids, Learner
from pplscape.manifest import MANIFEST, read_json, read_manifest, write_atomic
from pplscape.stages.train import ORDER_STREAM
from pplscape.statistics import Bins, cut_levels, make_bins, moments, on_scale
from pplscape.text.prepared import Prepared
from pplscape.training.evaluate import TextLoss
from pplscape.training.loop import Progressed, Replay, run_steps, train_steps
from pplscape.training.texts import HeldOut, chunk_ids, heldout_from_files, with_repeats

from .cells import (
    BY_BYTE,
    LIKENED,
    MATCHED,
    PROBED,
    ROUNDS,
    RUN,
    TOWARD,
    VARIANCE,
    WIDE,
    Cell,
    arguments,
    unchanged,
)
from .pools import Builder, read_jsonl, write_jsonl
from .setting import Setting
from .shapes import band_with_moments

COMPOSITION_STREAM = 11_001
DIRICHLET = 0.7
"""Concentration of random compositions over ten bins, as that of the pilots' mixtures."""
SHAPE_MEAN, SHAPE_STD = 0.5, 0.35
"""F1: mean at this quantile of the pool, spread as a share of the distance between its 10 % and 90 % quantiles."""
TILT_STD = 0.15
TARGETED = ("shape", "tilt", "corner")
"""Kinds of cells with a mean and a spread of their own."""
RESTORED = Path("pilots-restored", "runs.jsonl")
"""Pilots of a committed table, all rounds, below a law's folder: they are not trained again."""
REPLAY_TOKENS = 120_000
"""Text to replay: more than a fifth of what is trained, so that nothing comes twice."""
PROBE_SHARE = 4
"""A probe sees this part of D."""


class Bench:
    """`folder`: a pool of `pools.Builder`, with law/ and pilots/ once `fit_law` ran; held-out text beside it."""

    def __init__(self, setting: Setting, folder: Path):
        self.setting, self.folder, self.heldout = setting, folder, folder.parent / "heldout"
        self.corpus = Prepared(folder / "prepared")
        self.facts = read_json(folder / "landscape" / "landscape.json", "landscape")

    # ---- the model -------------------------------------------------------------------------------------------------

    @cached_property
    def learner(self) -> Learner:
        return load_engine(self.setting.engine, self.setting.model_path, train=True)

    @cached_property
    def scorer(self) -> Any:
        """What `evaluate` measures with: float32 on a CPU, whatever the training's precision."""
        if self.setting.engine == "fake":
            return self.learner
        engine = load_engine(self.setting.engine, self.setting.model_path)
        engine.packs = False  # it takes the learner's weights, cell after cell
        return engine

    def _texts(self, split: str) -> HeldOut:
        """Held-out chunks, added up by document."""
        path = self.heldout / split
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        text = heldout_from_files([str(f) for f in files], self.learner, self.setting.chunk_tokens)
        return replace(text, doc_id=[d.rpartition("#")[0] or d for d in text.doc_id])

    @cached_property
    def valid(self) -> HeldOut:
        return self._texts("valid")

    @cached_property
    def test(self) -> HeldOut:
        return self._texts("test")

    @cached_property
    def general(self) -> HeldOut:
        return self._texts("general.jsonl")

    def measure(self, on_test: bool) -> dict[str, TextLoss]:
        """Losses of the learner as it is now."""
        if self.scorer is not self.learner:
            self.scorer.model.load_state_dict(self.learner.model.state_dict())
        texts = {"valid": self.valid, "general": self.general} | ({"test": self.test} if on_test else {})
        return {name: text.loss(self.scorer) for name, text in texts.items()}

    # ---- the law ---------------------------------------------------------------------------------------------------

    def fit_law(self, method: str = "") -> Path:
        """Pilots (depletion as in the main run; or RESTORED), all laws they allow; `method`: of LIKENED, or empty."""
        s, scores = self.setting, self._scores_of(method)
        folder = self.folder / LIKENED.get(method, "")
        if method in LIKENED:
            ps.landscape(
                scores, budget=f"{100 * s.budget:g}%", out=folder / "landscape", n_bins=s.bins, levels=s.levels,
                corpus=self._corpus_of(method),
            )  # fmt: skip
        runs = [p for p in [folder / RESTORED] if p.exists()]
        rounds = 0 if runs else 2 if method.endswith(ROUNDS) else 1
        designed, random_seeds = s.pilots["designed"], s.pilots["random_seeds"]
        if method.endswith(WIDE):
            designed += designed + random_seeds
        for end in ("", "-2")[:rounds]:
            ps.plan(
                folder / "landscape", budget=self.budget, pilot_tokens=s.pilots["tokens"] // rounds,
                designed=designed, random_seeds=random_seeds, runs=runs or None,
                recipe=s.train_recipe, out=folder / f"plan{end}", seed=s.seed,
                n_params=self.learner.facts.n_params,
            )  # fmt: skip
            decision = read_json(folder / f"plan{end}" / "plan.json", "plan").get("adaptive")
            if decision and decision["state"] != "open":
                break
            ps.pilot(
                folder / f"plan{end}", model=s.model_path, scores=scores, corpus=self._corpus_of(method),
                out=folder / f"pilots{end}", heldout=self.valid_files, engine=s.engine, seed=s.seed,
            )  # fmt: skip
            runs.append(folder / f"pilots{end}" / "runs.jsonl")
        return ps.fit(
            runs, out=folder / "law", bootstrap=s.bootstrap,
            landscape=folder / "landscape" / "landscape.json", seed=s.seed,
        )  # fmt: skip

    @cache  # noqa: B019 - a bench lives as long as the process
    def _fitted(self, method: str) -> Path:
        """The folder of law/ and pilots/, made when the first arm asks for it; of LIKENED, VARIANCE, or empty."""
        if method == VARIANCE:
            return self._published_with_variance()
        return self.fit_law(method).parent

    def _published_with_variance(self) -> Path:
        """The published law, its sigma read as the variance, on the pilots of the other laws."""
        first = self._fitted("")
        return ps.fit(
            sorted(first.glob("pilots*/runs.jsonl")), out=first / VARIANCE / "law", forms=["paper:var"],
            bootstrap=self.setting.bootstrap, landscape=first / "landscape" / "landscape.json", seed=self.setting.seed,
        ).parent  # fmt: skip

    # ---- a draw ----------------------------------------------------------------------------------------------------

    @property
    def budget(self) -> int:
        """D in tokens."""
        return int(self.setting.budget * self.facts["tokens"])

    @cached_property
    def pool(self) -> Pool:
        return Pool.read(self.folder / "scores")

    @cached_property
    def clean_scores(self) -> Path:
        """The scores of the clean part: what the oracle knows."""
        file = self.folder / "clean-scores.parquet"
        table = whole_table(self.folder / "scores")
        pq.write_table(table.filter(pc.starts_with(table["source"], "clean-")), file)
        return file

    @cached_property
    def likest_scores(self) -> Path:
        """Of every bin of log-perplexity the half that is more like the valid text."""
        file = self.folder / "likest-scores.parquet"
        table = whole_table(self.likened)
        x, likeness, length = log_perplexity(table), second(table), table["length"].to_numpy()
        bins = cut_levels(make_bins(x, length, self.setting.bins), x, likeness, length, 2, "likeness")
        pq.write_table(table.filter(pa.array(bins.of(x, likeness) % 2 == 1)).drop_columns([LIKENESS]), file)
        return file

    @cached_property
    def by_byte(self) -> Path:
        """The scores with the loss per byte in place of the loss per token, in units of a mean token's bytes."""
        file = self.folder / "by-byte-scores.parquet"
        table = whole_table(self.folder / "scores")
        nll, n_bytes, tokens = (np.asarray(table[c], dtype=float) for c in ("nll_sum", "n_bytes", "n_tokens"))
        changed = pa.array(nll / n_bytes * tokens * (n_bytes.sum() / tokens.sum()))
        pq.write_table(table.set_column(table.schema.get_field_index("nll_sum"), "nll_sum", changed), file)
        return file

    @cached_property
    def probed(self) -> Path:
        """The scores with learnability, by probes trained on as many tokens as the largest pilot."""
        s, folder = self.setting, self.folder
        return ps.probe(
            folder / "scores", model=s.model_path, corpus=folder / "prepared", tokens=self.budget // PROBE_SHARE,
            out=folder / "probed", recipe=s.train_recipe, engine=s.engine, seed=s.seed,
        )  # fmt: skip

    @property
    def valid_files(self) -> list[str]:
        return [str(p) for p in sorted((self.heldout / "valid").glob("*.jsonl"))]

    @cached_property
    def likened(self) -> Path:
        """The pool's scores with likeness to the valid text."""
        corpus, out = self.folder / "prepared", self.folder / "likened"
        return ps.liken(self.folder / "scores", corpus=corpus, target=self.valid_files, out=out)

    @cached_property
    def sifted(self) -> Path:
        """The same without the near-duplicates that `prepare` removes by default: likeness is to what is left."""
        s, folder, scores = self.setting, self.folder / "run", self.folder / "run" / "scores"
        ps.prepare(
            [str(p) for p in sorted((self.folder / "sources").glob("*.jsonl"))], model=s.model_path,
            out=folder / "prepared", eval=[str(self.heldout / "documents.jsonl")], valid=0, test=0, seed=s.seed,
            chunk_tokens=s.chunk_tokens, min_tokens=s.min_tokens,
        )  # fmt: skip
        if not (scores / MANIFEST).exists():
            scores.mkdir(parents=True, exist_ok=True)
            table = whole_table(self.folder / "scores")
            left = Prepared(folder / "prepared").chunks("pool")["doc_id"].combine_chunks().unique()
            pq.write_table(table.filter(pc.is_in(table["doc_id"], value_set=left)), scores / "part-00000.parquet")
            manifest = {**read_manifest(self.folder / "scores"), "inputs": {}, "key": "sifted"}
            write_atomic(scores / MANIFEST, (json.dumps(manifest) + "\n").encode())
        return ps.liken(scores, corpus=folder / "prepared", target=self.valid_files, out=folder / "likened")

    @cached_property
    def target(self) -> tuple[Path, Path]:
        """The valid text as `run` has it, (prepared, scores): its chunks joined to documents again."""
        s, out = self.setting, self.heldout.parent / "target"
        documents: dict[str, list[str]] = {}
        for file in self.valid_files:
            for row in read_jsonl(Path(file)):
                documents.setdefault(row["id"].rpartition("#")[0] or row["id"], []).append(row["text"])
        out.mkdir(exist_ok=True)
        write_jsonl(out / "valid.jsonl", [{"id": k, "text": "\n\n".join(v)} for k, v in documents.items()])
        prepared = ps.prepare(
            [str(out / "valid.jsonl")], model=s.model_path, out=out / "prepared", valid=0, test=0, seed=s.seed,
            chunk_tokens=s.chunk_tokens, min_tokens=s.min_tokens, near_duplicates="keep",
        )  # fmt: skip
        return prepared, ps.score(prepared, model=s.model_path, out=out / "scores", engine=s.engine)

    @cache  # noqa: B019 - a bench lives as long as the process
    def _toward(self, method: str) -> Path | None:
        """Scores of the target, with likeness to its other documents."""
        if method not in TOWARD:
            return None
        prepared, scores = self.target
        return ps.locate(
            scores, text=prepared, scores=self._scores_of(method), corpus=self._corpus_of(method),
            out=self.folder / LIKENED[method] / "located",
        )  # fmt: skip

    def _corpus_of(self, method: str) -> Path:
        return self.folder / ("run" if method in RUN else "") / "prepared"

    def _scores_of(self, method: str) -> Path:
        if method == "oracle":
            return self.clean_scores
        if method.startswith(BY_BYTE):
            return self.by_byte
        if method in RUN:
            return self.sifted
        if method in LIKENED:
            return self.likened
        if method.endswith("+likeness"):
            return self.likest_scores
        return self.probed if method in PROBED else self.folder / "scores"

    def draw(self, cell: Cell) -> tuple[pa.Table, dict[str, Any]]:
        """The chunks of a cell (schema.SELECTED) and what selection.json says of them."""
        kind, _, told = cell.drawn.partition(":")
        budget = round(cell.size * self.budget)
        if kind == "composition":
            return self.composition(int(told), budget, cell.seed), {}
        asked = arguments(self._moments_of(kind, told) if kind in TARGETED else cell.drawn)
        if kind in TARGETED:
            asked |= self._target(kind, told)
        law, runs = asked.pop("law", False), asked.pop("runs", False)
        arm = MATCHED.get(cell.drawn, cell.drawn)
        fitted = self._fitted(arm if arm in (*LIKENED, VARIANCE) else "") if law else self.folder
        out = self.folder / "draws" / cell.file.removesuffix(".json")
        ps.select(
            self._scores_of(arm), budget=budget, out=out,
            law=fitted / "law" / "law.json" if law else None,
            runs=sorted(fitted.glob("pilots*/runs.jsonl")) if runs else None,
            resamples=self.setting.resamples if runs else 0, seed=cell.seed, overwrite=True,
            toward=self._toward(arm), **asked,
            **({"corpus": self.folder / "prepared", "target": self.valid_files} if cell.drawn == "dsir" else {}),
        )  # fmt: skip
        return read_selected(out), json.loads((out / "selection.json").read_text())

    def _moments_of(self, kind: str, told: str) -> str:
        return {"two-point": "dos", "box": "band"}.get(told, "maxent") if kind == "shape" else "maxent"

    def _target(self, kind: str, told: str) -> dict[str, Any]:
        """Targets of F1 to F4 on the nll scale; the box is the band with the same moments."""
        x = np.sort(self.pool.x)
        low, high = np.quantile(x, [0.1, 0.9])
        place, spread = {
            "shape": lambda: (SHAPE_MEAN, SHAPE_STD),
            "tilt": lambda: (float(told), TILT_STD),
            "corner": lambda: tuple(map(float, told.split(","))),
        }[kind]()
        mean, std = float(np.quantile(x, place)), float((high - low) * spread)
        if told != "box":
            return {"target_mean": mean, "target_std": std, "scale": "nll"}
        limits = self.facts["winsor"]["nll"]
        return {"band": band_with_moments(np.clip(self.pool.x, *limits), self.pool.length, mean, std)}

    def overlaps(self, cell: Cell, selected: pa.Table) -> dict[str, float]:
        """F7: what a changed draw has in common with the arm's own, and that one with its draw of the next seed."""
        own, other = (
            self.draw(Cell("primary", cell.pool, unchanged(cell.drawn), cell.seed + k, cell.size))[0] for k in (0, 1)
        )
        return {"overlap": overlap(selected, own), "overlap_of_seeds": overlap(other, own)}

    def composition(self, number: int, budget: int, seed: int) -> pa.Table:
        """A Dirichlet mixture of ten equal-token bins, no bin asked for more than it has."""
        bins = Bins(tuple(self.facts["bins"]["edges"]), tuple(self.facts["bins"]["share"]))
        share = np.asarray(bins.share)
        weights = np.random.default_rng([COMPOSITION_STREAM, number]).dirichlet(np.full(bins.n, DIRICHLET))
        shares = capped(weights, np.maximum(CAP_SAFETY * share * self.pool.tokens / budget, share))
        index = draw_shares(
            tuple(shares), bins.of(self.pool.x), self.pool.length, self.pool.uniforms(seed),
            np.ones(len(self.pool), dtype=bool), budget - self.setting.chunk_tokens // 2,
        )  # fmt: skip
        times = np.zeros(len(self.pool), dtype=np.int16)
        times[index] = 1
        return self.pool.table(Draw(times, "composition"))

    # ---- a cell ----------------------------------------------------------------------------------------------------

    def run(self, cell: Cell, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The row of a cell; `known`: earlier rows by what was trained, because equal training gives equal rows."""
        started = time.monotonic()
        if cell.method == "base":
            self.learner.reset()
            return self._losses(cell) | {"tokens": 0, "seconds_evaluate": round(time.monotonic() - started, 1)}
        selected, content = self.draw(cell)
        row = describe(selected, content) | self._moments(selected)
        row |= {"budget": round(cell.size * self.budget), "trained_as": self._training_key(selected, cell)}
        if cell.experiment == "F7":
            row |= self.overlaps(cell, selected)
        row["seconds_select"] = round(time.monotonic() - started, 1)
        twin = known.get(row["trained_as"])
        if twin is not None and (not cell.on_test or "loss_test" in twin):
            return row | {k: twin[k] for k in (*LOSSES, "replay_tokens") if k in twin} | {"same_as": twin["cell"]}
        started = time.monotonic()
        row["replay_tokens"] = self.train(selected, cell.seed, cell.replay_share)
        row["seconds_train"] = round(time.monotonic() - started, 1)
        started = time.monotonic()
        row |= self._losses(cell)
        return row | {"seconds_evaluate": round(time.monotonic() - started, 1)}

    trained_with: Sequence[Any] = ()
    """What tells this bench's training from that of the base model with the setting's recipe."""

    def _training_key(self, selected: pa.Table, cell: Cell) -> str:
        """What decides a training run: chunks, repeats, order, replay. Equal keys are the same run."""
        rows = zip(*(selected[c].to_pylist() for c in ("doc_id", "chunk_index", "repeats")), strict=True)
        told = [cell.seed, sorted(rows), *([cell.replay_share] if cell.replay_share else []), *self.trained_with]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def train(self, selected: pa.Table, seed: int, replay_share: float = 0.0) -> int:
        """As `pplscape.train`: paired order, the recipe, from the base model. Tokens that were replayed beside D."""
        order = uniforms(ORDER_STREAM + seed, selected["doc_id"].to_pylist(), np.asarray(selected["chunk_index"]))
        chunks = chunk_ids(self.corpus, selected.take(pa.array(with_repeats(selected, order))), self.learner)
        self.learner.reset()
        recipe, at = replace(self.setting.train_recipe, replay_share=replay_share), Progressed()
        train_steps(
            self.learner, run_steps(chunks, recipe), recipe, at, Replay(self.remembered) if replay_share else None
        )
        return at.replay_tokens

    @cached_property
    def remembered(self) -> list[Ids]:
        """Text that the base model was trained on, to replay: chunks of random documents, none of them measured."""
        file = self.heldout.parent / "replay.jsonl"
        if not file.exists():
            documents = Builder(self.setting, file.parent).learned(REPLAY_TOKENS)
            write_jsonl(file, ({"id": d.doc_id, "text": d.text} for d in documents))
        return heldout_from_files([str(file)], self.learner, self.setting.chunk_tokens).chunks

    def _losses(self, cell: Cell) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, loss in self.measure(cell.on_test).items():
            if not np.isfinite(loss.nll_sum).all():
                raise FloatingPointError(f"the {name} loss is not finite")
            found |= {f"loss_{name}": loss.loss, f"bits_per_byte_{name}": loss.bits_per_byte}
            if name != "general":
                found[f"nll_{name}"] = [round(float(v), 3) for v in loss.nll_sum]
        return found

    def _moments(self, selected: pa.Table) -> dict[str, float]:
        """Moments on both scales, winsorised as the landscape says."""
        x = np.repeat(np.asarray(selected["nll"]), np.asarray(selected["repeats"]))
        found = {}
        for scale in ("nll", "ppl"):
            low, high = self.facts["winsor"][scale]
            shape = moments(on_scale(x, scale), (float(low), float(high)))
            found |= {f"{scale}_mean": shape.mean, f"{scale}_std": shape.std}
        return found


LOSSES = tuple(
    [f"{kind}_{split}" for split in ("valid", "test", "general") for kind in ("loss", "bits_per_byte", "nll")]
)


def whole_table(folder: Path) -> pa.Table:
    """All parts of a folder of scores."""
    return pa.concat_tables([pq.read_table(p) for p in sorted(folder.glob("part-*.parquet"))])


def overlap(a: pa.Table, b: pa.Table) -> float:
    """Share of a draw's tokens (schema.SELECTED, no repeats) that is in the other, too."""
    chunks = [set(zip(t["doc_id"].to_pylist(), t["chunk_index"].to_pylist(), strict=True)) for t in (a, b)]
    both = [key in chunks[1] for key in zip(a["doc_id"].to_pylist(), a["chunk_index"].to_pylist(), strict=True)]
    length = np.asarray(a["length"])
    return float(length[both].sum() / length.sum())


def describe(selected: pa.Table, content: dict[str, Any]) -> dict[str, Any]:
    """Tokens, shares by origin, and what the law and the gate said."""
    times = np.asarray(selected["repeats"]).astype(np.int64)
    tokens = np.asarray(selected["length"]) * times
    source = np.asarray(selected["source"].to_pylist())
    total = int(tokens.sum())
    shares = {f"share_{name}": float(tokens[source == name].sum() / total) for name in sorted(set(source))}
    gate, predicted = content.get("gate") or {}, content.get("candidate_predicted") or content.get("predicted") or {}
    return {
        "tokens": total, "chunks": int(times.sum()), "unique_tokens": int(np.asarray(selected["length"]).sum()),
        "used": content.get("used"), "candidate": content.get("candidate"),
        "form": (content.get("law") or {}).get("form"), "kl_to_pool": content.get("kl_to_pool"),
        "target": content.get("target"), "bin_tokens": content.get("bin_tokens"),
        "predicted": predicted or None, "gate": gate or None, "warnings": content.get("warnings"),
        "share_clean": float(tokens[np.char.startswith(source, "clean-")].sum() / total), **shares,
    }  # fmt: skip
