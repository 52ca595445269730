"""Ray: a cluster of separate raylets on this machine; killed actors, a lost node, the same files and ids."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PARTS, assert_same_scores, workers_of
from worker_jobs import Squares, wait_for

from pplscape.errors import UserError
from pplscape.executors import open_executor
from pplscape.stages.score import score

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'pplscape[ray]'")

NODE: dict[str, Any] = {"object_store_memory": 80 * 2**20, "include_log_monitor": False}
"""Little memory (near the least that Ray takes) and few processes."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_prestart_worker_first_driver": "0", "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "2", "OMP_NUM_THREADS": "1",
}  # fmt: skip
"""No processes in advance; a lost node is noticed after seconds."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and two nodes with two, each a raylet of its own; all ended whatever happens."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        started = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **NODE},
        )
        try:
            for _ in range(2):
                started.add_node(num_cpus=2, **NODE)
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


@pytest.fixture
def on(cluster: Any) -> dict[str, Any]:
    """Options of a stage that runs there: one worker a node."""
    return {"executor": "ray", "address": cluster.address, "threads": 2}


def test_distinct_processes_and_nodes_and_a_killed_actor(
    parted: Path, bigram_dir: Path, reference: Path, tmp_path: Path, on: dict[str, Any], disturb: Callable[..., Path]
) -> None:
    """Parts 0 and 1 are in work at the same time; the actor that holds part 3 is killed (SIGKILL) in the middle."""
    marks = disturb(deadly=(3,), together=((0, 1),))
    found = score(parted, model=str(bigram_dir), engine="fake", out=tmp_path / "s", **on)
    assert (marks / "died-3").exists()
    assert_same_scores(found, reference)
    by = {part: where.split(":") for where, parts in workers_of(found).items() for part in parts}
    assert sorted(by) == list(range(PARTS))
    (_, node_0, pid_0), (_, node_1, pid_1) = by[0], by[1]
    assert node_0 != node_1
    assert len({pid_0, pid_1, str(os.getpid())}) == 3
    assert not ray.is_initialized()


def test_a_lost_node(
    parted: Path, bigram_dir: Path, reference: Path, tmp_path: Path, cluster: Any, on: dict[str, Any],
    disturb: Callable[..., Path],
) -> None:  # fmt: skip
    """The node whose actor holds part 2 is taken away: the part, and what else it held, is done elsewhere."""
    marks = disturb(stuck=(2,), together=((0, 1),))
    lost: list[str] = []

    def take_away() -> None:
        wait_for(marks / "stuck-2")
        lost.append((marks / "node-2").read_text())
        (node,) = (n for n in cluster.list_all_nodes() if n.node_id == lost[0])
        cluster.remove_node(node, allow_graceful=False)

    other = threading.Thread(target=take_away, daemon=True)
    other.start()
    found = score(parted, model=str(bigram_dir), engine="fake", out=tmp_path / "s", **on)
    other.join()
    cluster.add_node(num_cpus=2, **NODE)
    assert_same_scores(found, reference)
    assert all(lost[0] not in where for where, parts in workers_of(found).items() if 2 in parts)


def test_a_real_model_by_two_actors(
    parted: Path, tiny_model_dir: Path, tiny_reference: Path, tmp_path: Path, on: dict[str, Any],
    disturb: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Parts are in work two by two, so each of a pair has a process of its own. From a relative path, which means the
    same to workers.
    """
    monkeypatch.chdir(parted.parent)
    pairs = tuple((part, part + 1) for part in range(0, PARTS, 2))
    disturb(together=pairs)
    found = score(parted.name, model=str(tiny_model_dir), out=tmp_path / "s", **on | {"threads": 1, "workers": 2})
    assert_same_scores(found, tiny_reference)
    by = {part: where.split(":")[-1] for where, parts in workers_of(found).items() for part in parts}
    assert sorted(by) == list(range(PARTS))
    assert all(by[one] != by[other] for one, other in pairs)
    assert len(set(by.values())) == 2
    assert str(os.getpid()) not in by.values()


def test_errors_and_resources(tmp_path: Path, on: dict[str, Any]) -> None:
    address = on["address"]
    with open_executor("ray", address=address, workers=1, threads=2) as executor:
        told: list[int] = []
        done = list(executor.map(Squares(tmp_path, deadly=(1,)), range(3), tell=told.append))
        assert sorted(one.value for one in done) == [0, 1, 4]
        assert sum(told) == 2 * 3
        with pytest.raises(UserError, match="part 1 failed 2 times"):
            list(executor.map(Squares(tmp_path, deadly=(1,), always=True), range(2), name=lambda i: f"part {i}"))
        with pytest.raises(ZeroDivisionError):
            list(executor.map(Squares(tmp_path, bad=(0,)), range(1)))
    with pytest.raises(UserError, match="No node of the Ray cluster has 3 CPUs"):
        open_executor("ray", address=address, threads=3)
    assert not ray.is_initialized()
