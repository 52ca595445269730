"""A user's own form: a subclass of `Form` in a module on sys.path, or in a file. docs/new-form.md has the recipe."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from pplscape.errors import UserError
from pplscape.laws.forms.base import Form

_loaded: dict[str, type[Form]] = {}
"""Classes of this process by `module:Class` or `path.py:Class`."""


def own_class(source: str, name: str, run_files: bool = True) -> type[Form]:
    """The class `name` of a module, or of a file ending in .py; UserError says what is missing.

    Without `run_files` a file must have been loaded before: reading law.json never runs a file that it names.
    """
    spec = f"{source}:{name}"
    if spec not in _loaded:
        if source.endswith(".py") and not run_files:
            raise UserError(
                f"This law's form {name} is your own, from {source}, which is not loaded here; a law is data and runs "
                f"no file by itself. Pass --form {spec}, or call pplscape.laws.forms.get_form('{spec}') first."
            )
        _loaded[spec] = _form_class(_module(source, spec), name, spec)
    return _loaded[spec]


def _module(source: str, spec: str) -> ModuleType:
    if source.endswith(".py"):
        return _file_module(Path(source), spec)
    try:
        return importlib.import_module(source)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{source}.".startswith(f"{missing}."):
            raise UserError(
                f"Form {spec}: no module {source} can be imported; put it on sys.path (PYTHONPATH) or give its file, "
                f"path/to/file.py:{spec.rpartition(':')[2]}."
            ) from None
        raise _failed(spec, error) from error


def _file_module(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"Form {spec}: there is no file {path}.")
    name = f"pplscape_own_{path.stem}_{len(_loaded)}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses of the file look themselves up there
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failed(spec, error) from error
    return module


def _failed(spec: str, error: Exception) -> UserError:
    return UserError(f"Form {spec}: importing it fails with {type(error).__name__}: {error}.")


def _form_class(module: ModuleType, name: str, spec: str) -> type[Form]:
    kind = getattr(module, name, None)
    if kind is None:
        own = [k for k, v in vars(module).items() if inspect.isclass(v) and issubclass(v, Form) and v is not Form]
        raise UserError(f"Form {spec}: there is no class {name}; its forms are: {', '.join(own) or 'none'}.")
    if not (inspect.isclass(kind) and issubclass(kind, Form)):
        raise UserError(f"Form {spec}: {name} is no subclass of pplscape.laws.forms.Form.")
    if inspect.isabstract(kind):
        lacking = ", ".join(sorted(kind.__abstractmethods__))
        raise UserError(f"Form {spec}: {name} lacks {lacking}.")
    return kind
