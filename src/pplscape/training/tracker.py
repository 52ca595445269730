"""Where the figures of a training go besides train.jsonl: one tiny protocol over the usual trackers.

A tracker that fails must not cost a training: the first failure is warned about, and the run goes on without it.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pplscape.errors import UserError

PROJECT = "pplscape"


class Tracker(Protocol):
    """Told every step's figures."""

    def log(self, figures: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class NoTracker:
    """train.jsonl alone."""

    def log(self, figures: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Wandb:
    def __init__(self, name: str, config: dict[str, Any], folder: Path):
        self._run = _module("wandb").init(project=PROJECT, name=name, config=config, dir=str(folder))

    def log(self, figures: dict[str, float], step: int) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    def __init__(self, name: str, config: dict[str, Any], folder: Path):
        self._trackio = _module("trackio")
        self._trackio.init(project=PROJECT, name=name, config=config)

    def log(self, figures: dict[str, float], step: int) -> None:
        self._trackio.log(figures, step=step)

    def close(self) -> None:
        self._trackio.finish()


class Mlflow:
    def __init__(self, name: str, config: dict[str, Any], folder: Path):
        self._mlflow = _module("mlflow")
        self._mlflow.set_experiment(PROJECT)
        self._mlflow.start_run(run_name=name)
        self._mlflow.log_params(config)

    def log(self, figures: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(figures, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class Tensorboard:
    def __init__(self, name: str, config: dict[str, Any], folder: Path):
        self._writer = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / name))

    def log(self, figures: dict[str, float], step: int) -> None:
        for key, value in figures.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


TRACKERS: dict[str, Callable[[str, dict[str, Any], Path], Tracker]] = {
    "wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio, "tensorboard": Tensorboard,
}  # fmt: skip


class _Forgiving:
    """Stops using a tracker at its first failure."""

    def __init__(self, inner: Tracker):
        self._inner = inner

    def log(self, figures: dict[str, float], step: int) -> None:
        self._call(lambda: self._inner.log(figures, step))

    def close(self) -> None:
        self._call(self._inner.close)

    def _call(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a service that is down, in whatever way, must not end a training
            warnings.warn(f"The tracker failed and is not used any more ({error}).", stacklevel=4)
            self._inner = NoTracker()


def open_tracker(kind: str, name: str, config: dict[str, Any], folder: Path) -> Tracker:
    """A tracker by name; `none` writes train.jsonl only. UserError: unknown, not installed, or it does not start."""
    if kind == "none":
        return NoTracker()
    if kind not in TRACKERS:
        raise UserError(f"Unknown tracker '{kind}'; choose one of none, {', '.join(TRACKERS)}.")
    try:
        return _Forgiving(TRACKERS[kind](name, config, folder))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The tracker {kind} does not start: {error}. Set it up, or choose --tracker none.") from error


def _module(name: str, package: str | None = None) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        wanted = package or name
        raise UserError(f"The tracker needs {wanted}; install it with: pip install {wanted}") from error
