"""The command line: help without torch, errors in one sentence, names that never shadow functions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pplscape

VERBS = [v for v in pplscape.__all__ if not v.startswith("_")]


def _run(*arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pplscape", *arguments], capture_output=True, text=True, check=check)


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['pplscape', '--help']\ntry:\n    import pplscape.__main__\nexcept SystemExit: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("False")
    assert "demo" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_function_is_a_command_with_help(verb: str) -> None:
    from typer.testing import CliRunner

    from pplscape.cli import app

    done = CliRunner().invoke(app, [verb, "--help"])
    assert done.exit_code == 0
    assert "--out" in done.stdout
    assert "--dry-run" in done.stdout


def test_functions_are_never_shadowed_by_modules() -> None:
    code = (
        "import pkgutil, importlib, pplscape\n"
        "for m in pkgutil.walk_packages(pplscape.__path__, 'pplscape.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        f"assert all(callable(getattr(pplscape, v)) for v in {VERBS})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "nowhere.jsonl", "--model", "m", "--out", "o"], "nowhere.jsonl"),
        (["run", "nowhere.yaml"], "no configuration file nowhere.yaml"),
        (["fit", "nowhere.csv", "--out", "o"], "nowhere.csv"),
        (["score", "nowhere", "--model", "m", "--out", "o"], "nowhere"),
        (["plan", "nowhere", "--budget", "1M", "--pilot-tokens", "1M", "--out", "o"], "nowhere"),
        (["select", "nowhere", "--budget", "ten", "--out", "o"], "nowhere"),
    ],
)
def test_user_errors_exit_with_2_and_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pplscape", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("o*"))


def test_dry_run_writes_nothing_and_states_the_cost(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "subset").mkdir()
    (tmp_path / "subset/selection.json").write_text(json.dumps({"tokens": 1000}))
    arguments = [
        "train",
        str(tmp_path / "subset"),
        "--model",
        str(tiny_model_dir),
        "--out",
        str(tmp_path / "o"),
        "--dry-run",
    ]
    done = _run(*arguments, check=True)
    assert "1,000 tokens" in done.stdout
    assert "FLOPs" in done.stdout
    assert not (tmp_path / "o").exists()


def test_a_dry_run_of_several_workers_shares_the_time(tiny_model_dir: Path, tmp_path: Path) -> None:
    """In this process: a fresh one needs seconds to import torch, and the test above starts one."""
    from typer.testing import CliRunner

    from pplscape.cli import app

    (tmp_path / "c.txt").write_text("the fox " * 2000)
    arguments = ["score", str(tmp_path / "c.txt"), "--model", str(tiny_model_dir), "--out", str(tmp_path / "o")]
    done = [CliRunner().invoke(app, [*arguments, "--dry-run", *more]) for more in ([], ["--workers", "4"])]
    assert [d.exit_code for d in done] == [0, 0], done
    told = [d.output for d in done]
    assert "workers" not in told[0]
    assert "4 workers, each with such a processor" in told[1]


def test_version() -> None:
    assert _run("--version", check=True).stdout.strip() == f"pplscape {pplscape.__version__}"
