"""One Ray for the stages that use it: starting it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package")
def on_ray() -> Iterator[None]:
    """Ray on this machine, already connected to when a stage asks for it."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'pplscape[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        try:
            ray.init("local", num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
            yield
        finally:
            ray.shutdown()
