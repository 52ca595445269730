"""The configuration of a whole run: one YAML file, checked, with dotted overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pplscape.errors import UserError
from pplscape.training.schedule import Recipe


class _NumericSafeLoader(yaml.SafeLoader):
    """Safe YAML in which 1e9 is a number, as YAML 1.2 says and PyYAML does not."""


_NumericSafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Pilots(_Strict):
    """How much to spend on pilots, and on which regimes."""

    tokens: int = Field(gt=0, description="domain tokens over all pilots")
    designed: int = Field(default=9, ge=1, description="regimes besides random")
    random_seeds: int = Field(default=3, ge=1, description="seeds of the random regime: the noise floor")
    rounds: int = Field(
        default=1, ge=1, description="the tokens in equal parts; from the second on planned by the law so far, or saved"
    )
    executor: Literal["local", "ray"] = Field(default="local", description="where trunks run; on Ray one GPU each")
    workers: int | None = Field(
        default=None, ge=1, description="trunks at a time; default: local 1, on Ray all that fit"
    )


class Training(_Strict):
    """The recipe of pilots and arms alike; see `training.schedule.Recipe`."""

    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        default=Recipe.learning_rate, description="peak; auto: found by short runs on random chunks"
    )
    tune_tokens: int = Field(default=65_536, gt=0, description="of each of these short runs")
    warmup_tokens: int = Field(default=Recipe.warmup_tokens, ge=0)
    cooldown_share: float = Field(default=Recipe.cooldown_share, gt=0, le=1)
    step_tokens: int = Field(default=Recipe.step_tokens, gt=0)
    replay_share: float = Field(default=Recipe.replay_share, ge=0, lt=1)
    decay: Literal["sqrt", "cosine"] = "sqrt"
    lora_rank: int = Field(default=Recipe.lora_rank, ge=0)

    def recipe(self, learning_rate: float) -> Recipe:
        """With the rate that was given or found."""
        return Recipe(**self.model_dump(exclude={"tune_tokens", "learning_rate"}), learning_rate=learning_rate)


class RunConfig(_Strict):
    """Everything `pplscape run` needs. Paths may contain environment variables (`${PPLSCAPE_DATA}/...`)."""

    model: str = Field(description="Hugging Face id, local folder, or `demo` for the embedded model")
    corpus: list[str] = Field(min_length=1, description="files, folders, globs or URLs")
    heldout: list[str] | None = Field(default=None, description="valid and test text; default: split off the corpus")
    eval: list[str] | None = Field(default=None, description="benchmark text that must not be trained on")
    general: list[str] | None = Field(default=None, description="text to measure forgetting on; default: self-samples")
    budget: str = Field(description="tokens of the main run: 2e6, 2M or 10% of the pool")
    pilots: Pilots
    training: Training = Training()
    text_column: str = Field(default="text", description="dotted path of the text")
    id_column: str = Field(default="id", description="dotted path of the id")
    eval_column: str | None = Field(default=None, description="dotted path of the text of `eval`; default: text_column")
    near_duplicates: Literal["remove", "keep"] | int = "remove"
    revision: str | None = Field(default=None, description="of a model on the hub")
    bos: Literal["auto", "none", "bos", "eos"] = Field(default="auto", description="token put before every chunk")
    context: int = Field(default=0, ge=0, description="tokens of left context that chunks are scored after")
    chunk_tokens: int = Field(default=512, gt=0)
    min_tokens: int = Field(default=64, gt=0, description="shorter remainders are rejected")
    bins: int = Field(default=10, ge=2, le=50)
    second_axis: Literal["auto", "none", "likeness", "learnability"] = Field(
        default="auto", description="what cuts bins again; auto: likeness to the valid text, where `heldout` is given"
    )
    levels: int = Field(default=3, ge=2, le=9, description="of the second axis in every bin, at most")
    probe_tokens: str = Field(default="2%", description="that each probe of learnability is trained on")
    valid_tokens: int = Field(default=50_000, gt=0)
    test_tokens: int = Field(default=100_000, gt=0)
    general_tokens: int = Field(default=12_288, gt=0, description="size of the self-samples")
    sample: float = Field(default=1.0, gt=0, le=1, description="share of the corpus' documents to read")
    limit_tokens: int | None = Field(default=None, gt=0, description="read about this many tokens of the corpus")
    max_row_bytes: int = Field(default=256_000_000, gt=0, description="longer JSON lines and texts are rejected")
    forms: list[str] | None = Field(default=None, description="laws to fit; default: all the runs permit")
    bootstrap: int = Field(default=500, ge=0)
    strategy: str = "auto"
    max_epochs: float = Field(default=1.0, ge=1, description="most repeats of a bin's tokens (strategy allocate)")
    resamples: int = Field(default=200, ge=0, description="how often the gate redoes the choice of the law; 0: no gate")
    baselines: list[str] = Field(default=[], description="strategies measured besides random and the law's choice")
    arm_seeds: int = Field(default=3, ge=1)
    engine: Literal["transformers", "fake"] = "transformers"
    score_dtype: str = "auto"
    seed: int = 0

    @field_validator("budget", "probe_tokens", mode="before")
    @classmethod
    def _text(cls, value: Any) -> str:
        return str(value)

    @field_validator("strategy", "baselines")
    @classmethod
    def _known(cls, value: Any) -> Any:
        from pplscape.draw.strategies import STRATEGIES

        allowed = {"auto", *STRATEGIES} - {"full", "band"}
        if unknown := {value} - allowed if isinstance(value, str) else set(value) - allowed:
            raise ValueError(f"unknown strategy {', '.join(sorted(unknown))}; choose from {', '.join(sorted(allowed))}")
        return value

    @model_validator(mode="after")
    def _has_target(self) -> RunConfig:
        if "matched" in (self.strategy, *self.baselines) and not self.heldout:
            raise ValueError("strategy matched draws in the mix of a target text; give it as heldout")
        return self


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `a.b=value` overrides. UserError with the field and what is wrong with it."""
    return parse_config(read_yaml(path, overrides), str(path))


def read_yaml(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a YAML file with `a.b=value` overrides. UserError if it is not a mapping."""
    try:
        content = yaml.load(Path(path).read_text(), Loader=_NumericSafeLoader)  # noqa: S506
    except FileNotFoundError:
        raise UserError(f"There is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a configuration file: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines, not {type(content).__name__}.")
    return with_overrides(content, overrides)


def with_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`content` with `a.b=value` applied in place, the values read as YAML."""
    for override in overrides:
        _apply(content, override)
    return content


def parse_part(content: dict[str, Any], where: str) -> dict[str, Any]:
    """Checked values of a configuration that need not be whole, by dotted key: what single stages take from it."""
    pilots: Any = content.get("pilots", {})
    pilots = {"tokens": 1, **pilots} if isinstance(pilots, dict) else pilots
    needed: dict[str, Any] = {"model": "-", "corpus": ["-"], "budget": "1"}
    values = parse_config({**needed, **content, "pilots": pilots}, where).model_dump()
    found: dict[str, Any] = {}
    for key, given in content.items():
        found |= {f"{key}.{k}": values[key][k] for k in given} if isinstance(given, dict) else {key: values[key]}
    return found


def parse_config(content: dict[str, Any], where: str) -> RunConfig:
    """A checked configuration from plain values; environment variables in paths are filled in."""
    content = {k: _expand(v) for k, v in content.items()}
    try:
        return RunConfig(**content)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{where}: {faults}. Known keys: {', '.join(RunConfig.model_fields)}.") from None


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(
            f"Cannot read the override '{override}'; write it as key=value, e.g. training.learning_rate=1e-3."
        )
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise UserError(f"Cannot set '{key}': '{parent}' is a single value.")
    try:
        content[last] = yaml.load(value, Loader=_NumericSafeLoader)  # noqa: S506
    except yaml.YAMLError as error:
        raise UserError(f"The value of the override '{override}' is not valid YAML: {error}") from None


def _expand(value: Any) -> Any:
    if isinstance(value, list):
        return [_expand(v) for v in value]
    if isinstance(value, str) and "$" in value:
        expanded = os.path.expandvars(value)
        if "$" in expanded:
            raise UserError(f"'{value}' needs an environment variable that is not set; export it and run again.")
        return expanded
    return value
