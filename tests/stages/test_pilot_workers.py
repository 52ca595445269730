"""pilot on several workers: the same rows as in one process, whatever happens to the workers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pilot_jobs import DisturbedPiloting
from test_pilot_train_compare import bench  # noqa: F401

from pplscape.manifest import read_manifest
from pplscape.stages.pilot import pilot

pytestmark = pytest.mark.usefixtures("figures_never_saved")


def _run(bench: dict[str, Path], out: Path, **how: Any) -> Path:  # noqa: F811
    return pilot(
        bench["plan"], model=str(bench["model"]), scores=bench["scores"], corpus=bench["prepared"], out=out,
        general=[str(bench["text"])], engine="fake", **how,
    )  # fmt: skip


def _files(out: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "manifest.json"
    }


def _rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def serial(bench: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return _run(bench, tmp_path_factory.mktemp("serial") / "pilots")


def test_killed_workers(
    bench: dict[str, Path], serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """kill -9 in the middle of a trunk: another worker goes on with it, and its rows are those of one process. What
    kills two workers is recorded as failed; sizes it finished before stay."""
    (tmp_path / "marks").mkdir()
    job = partial(DisturbedPiloting, folder=tmp_path / "marks", deadly={"random-1": 1, "tilt-0-0": 2})
    monkeypatch.setattr("pplscape.stages.pilot.Piloting", job)
    found = _run(bench, tmp_path / "pilots", workers=2)
    names = ["random-1-killed-0", "tilt-0-0-killed-0", "tilt-0-0-killed-1"]
    assert sorted(p.name for p in (tmp_path / "marks").iterdir()) == names
    rows, good = ({r["run_id"]: r for r in _rows(out)} for out in (found, serial))
    assert list(rows) == list(good)
    failed = [r for r in rows.values() if r["status"] == "failed"]
    assert {r["group"] for r in failed} == {"tilt-0-0"}
    assert 0 < len(failed) < 4
    assert {r["reason"] for r in failed} == {"its worker died twice: killed by SIGKILL (out of memory?)"}
    assert all(r["nll_mean"] == good[r["run_id"]]["nll_mean"] and r["loss"] is None for r in failed)
    assert all(r == good[name] for name, r in rows.items() if r["status"] == "ok")
    ours, theirs = _files(found), _files(serial)
    assert all(ours[n] == theirs[n] for n in theirs if n not in ("runs.jsonl", "trunks/tilt-0-0.jsonl"))
    assert set(ours) == set(theirs)
    assert len(read_manifest(found)["run"]["trunks"]) >= 2


def test_a_killed_coordinator_finds_its_trunks(
    bench: dict[str, Path], serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    from pplscape.manifest import StageFolder

    real, written = StageFolder.write_jsonl, list[str]()

    def stops(self: StageFolder, name: str, rows: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        real(self, name, rows)

    monkeypatch.setattr(StageFolder, "write_jsonl", stops)
    with pytest.raises(KeyboardInterrupt):
        _run(bench, tmp_path / "pilots")
    monkeypatch.setattr(StageFolder, "write_jsonl", real)
    found = _run(bench, tmp_path / "pilots")
    assert _files(found) == _files(serial)
    again = [g for groups in read_manifest(found)["run"]["trunks"].values() for g in groups]
    assert len(again) == 2


def test_ray(bench: dict[str, Path], serial: Path, tmp_path: Path, on_ray: None) -> None:  # noqa: F811
    """An actor; the same files."""
    found = _run(bench, tmp_path / "pilots", executor="ray", workers=1)
    assert _files(found) == _files(serial)
    assert ":" in next(iter(read_manifest(found)["run"]["trunks"]))
