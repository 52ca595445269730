"""Which dtype `auto` takes, and that it says why: models made to overflow, to lose digits, to be tame."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from architectures import build, chunks_of

from pplscape.engines import dtype as module
from pplscape.engines.base import Ids, Nll
from pplscape.engines.dtype import CHUNK_ERROR, CHUNKS, TOKENS, calibration_rows, candidates, choose_dtype, chunk_error
from pplscape.engines.transformers import TransformersEngine
from pplscape.manifest import read_manifest
from pplscape.stages.prepare import prepare
from pplscape.stages.score import DTYPE, score

CHUNKS_OF_64 = chunks_of(300, lengths=(64,) * 6)
GPU = ("float16", "bfloat16", "float32")


@pytest.fixture(scope="module")
def tame(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(build("llama-untied", tiny_tokenizer_dir, tmp_path_factory.mktemp("tame"), scale=0.3))


def loud(tame: Path, folder: Path, factor: float) -> str:
    """The same function, but the values inside its feed-forward layers are `factor` times as large."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tame, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight *= factor
            layer.mlp.down_proj.weight /= factor
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tame).save_pretrained(folder)
    return str(folder)


def choose(folder: str, dtypes: tuple[str, ...] = GPU) -> module.Choice:
    return choose_dtype(lambda dtype: TransformersEngine(folder, dtype=dtype), dtypes, CHUNKS_OF_64)


def test_a_tame_model_takes_the_first(tame: Path) -> None:
    choice = choose(str(tame))
    assert choice.dtype == "float16"
    assert choice.reason.startswith("float16: chunks differ from float32 by")
    assert choice == choose(str(tame)), "a function of model and chunks"


@pytest.mark.parametrize(("factor", "overflows"), [(1000, False), (1e6, True)])
def test_a_model_that_could_overflow_float16_is_not_scored_in_it(
    factor: float, overflows: bool, tame: Path, tmp_path: Path
) -> None:
    """Also where the calibration chunks themselves just escape: other chunks would not."""
    folder = loud(tame, tmp_path / "loud", factor)
    naive = TransformersEngine(folder, dtype="float16").nll(CHUNKS_OF_64)
    assert np.isfinite(np.concatenate(naive)).all() == (not overflows)
    choice = choose(folder)
    assert choice.dtype == "bfloat16"
    assert "not float16: activations reach" in choice.reason
    found = TransformersEngine(folder, dtype=choice.dtype).nll(CHUNKS_OF_64)
    expected = TransformersEngine(folder, dtype="float32").nll(CHUNKS_OF_64)
    assert chunk_error(found, expected) <= CHUNK_ERROR


def test_a_model_that_loses_digits_is_scored_in_float32(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    folder = build("llama-untied", tiny_tokenizer_dir, tmp_path / "sharp", scale=20)
    choice = choose(folder)
    assert choice.dtype == "float32"
    assert "not float16: chunks differ" in choice.reason
    assert "not bfloat16: chunks differ" in choice.reason


class Planned:
    """An engine whose losses are given."""

    def __init__(self, nll: float):
        self.model = torch.nn.Linear(1, 1)
        self._nll = nll

    def nll(self, chunks: list[Ids]) -> list[Nll]:
        return [np.full(len(c), self._nll, np.float32) for c in chunks]


def planned(**nll: float) -> Callable[[str], Planned]:
    return lambda dtype: Planned(nll[dtype])


def test_errors_of_chunks_by_hand() -> None:
    reference = [np.zeros(2, np.float32), np.zeros(4, np.float32), np.zeros(0, np.float32)]
    found = [np.array([3, 3], np.float32), np.array([8, 0, 8, 0], np.float32), np.zeros(0, np.float32)]
    assert chunk_error(found, reference) == pytest.approx(np.sqrt((3**2 + 4**2) / 2))
    assert chunk_error([], []) == 0


def test_the_limit_is_the_limit() -> None:
    chunks = CHUNKS_OF_64
    for shift, expected in ((0.9 * CHUNK_ERROR, "bfloat16"), (1.1 * CHUNK_ERROR, "float32")):
        load = planned(bfloat16=4 + shift, float32=4)
        assert choose_dtype(load, ("bfloat16", "float32"), chunks).dtype == expected
    infinite = planned(float16=np.inf, bfloat16=np.nan, float32=4)
    assert choose_dtype(infinite, GPU, chunks).reason.count("likelihoods are not finite") == 2
    broken = planned(float16=4, bfloat16=4, float32=np.nan)
    assert choose_dtype(broken, GPU, chunks).dtype == "float32"


def test_nothing_to_compare_is_said() -> None:
    assert choose_dtype(planned(), ("float32",), CHUNKS_OF_64).reason == (
        "float32: no lower precision pays for this model on this device"
    )
    assert "no chunk" in choose_dtype(planned(), GPU, []).reason

    def too_large(dtype: str) -> Planned:
        raise torch.OutOfMemoryError

    choice = choose_dtype(too_large, GPU, CHUNKS_OF_64)
    assert (choice.dtype, "does not fit" in choice.reason) == ("bfloat16", True)


def test_candidates_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert candidates("cuda", 10**9) == GPU
    assert candidates("cpu", 10**9) == ("bfloat16", "float32")
    assert candidates("cpu", 10**6) == ("float32",)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert candidates("cpu", 10**9) == ("float32",)


@pytest.mark.parametrize("lengths", [[], [5], [100] * 1000, [512] * 40, [4096] * 7, [10**6] * 3, [1] * 15])
def test_calibration_is_small_and_spread(lengths: list[int]) -> None:
    rows = calibration_rows(lengths)
    assert len(rows) == len(set(rows)) <= CHUNKS
    assert sum(lengths[r] for r in rows) <= max([TOKENS, *lengths[:1]])
    assert bool(rows) == bool(lengths)
    if len(rows) > 1:
        assert (rows[0], rows[-1]) == (0, len(lengths) - 1)


# ---- the stage ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tame: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dtype")
    rng = np.random.default_rng(0)
    words = ["patients", "court", "fox", "the", "treated", "1998", "é", "dog"]
    rows = [{"id": f"d{i}", "text": " ".join(rng.choice(words, 60))} for i in range(20)]
    (folder / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return prepare(
        [str(folder / "c.jsonl")], model=str(tame), out=folder / "prepared", chunk_tokens=64, min_tokens=16, valid=0,
        test=0, near_duplicates="keep",
    )  # fmt: skip


def facts(out: Path) -> dict[str, str]:
    return read_manifest(out)["counts"]["facts"]


def test_the_stage_stores_the_choice_and_its_reason(
    corpus: Path, tame: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "candidates", lambda device, n_params: GPU)
    out = score(corpus, model=loud(tame, tmp_path / "loud", 1e6), out=tmp_path / "scores")
    assert facts(out)["dtype"] == "bfloat16"
    assert "not float16: activations reach" in facts(out)["dtype_reason"]
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)  # finished: no weights are read
    monkeypatch.setattr(module, "choose_dtype", None)
    score(corpus, model=str(tmp_path / "loud"), out=tmp_path / "scores")


def test_resumed_work_keeps_the_dtype_it_began_with(
    corpus: Path, tame: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "candidates", lambda device, n_params: GPU)
    import pplscape.jobs as stage

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "score_part", killed)
        with pytest.raises(KeyboardInterrupt):
            score(corpus, model=str(tame), out=tmp_path / "scores")
    assert json.loads((tmp_path / "scores.partial" / DTYPE).read_text())["dtype"] == "float16"
    monkeypatch.setattr(module, "candidates", lambda device, n_params: ("float32",))  # as on another machine
    assert facts(score(corpus, model=str(tame), out=tmp_path / "scores"))["dtype"] == "float16"


def test_what_is_asked_for_is_done(corpus: Path, tame: Path, tmp_path: Path) -> None:
    out = score(corpus, model=str(tame), dtype="bfloat16", out=tmp_path / "asked")
    assert (facts(out)["dtype"], facts(out)["dtype_reason"]) == ("bfloat16", "asked for")
    assert not (out / DTYPE).exists()
    out = score(corpus, model=str(tame), engine="fake", out=tmp_path / "fake")
    assert (facts(out)["dtype"], facts(out)["dtype_reason"]) == ("float64", "the engine's only one")
