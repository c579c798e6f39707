"""What a run is, what a study is, and reading a study file with every mistake located.

A `RunConfig` holds exactly what can change a run's numbers; its hash is the run's name. A study file is the same
fields plus `grid`, lists of values whose product gives the runs, or several such grids, whose runs are joined.
"""

import copy
import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ValidationError, ValidationInfo
from pydantic.fields import Field, FieldInfo
from pydantic.functional_validators import field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from holdfast.errors import ConfigError
from holdfast.methods import METHODS, Adapter, Count, Names, Number, Part, Text, method_of
from holdfast.mistakes import Key, Mistakes, Place, alike, clip, clip_path, read_text, show
from holdfast.series import axis

MAX_RUNS = 10_000
"""Most runs one study may give."""


class Target(Part):
    """What the model is taught."""

    data: Text = Field(
        description="Text to learn: builtin:<name>, org/name[:config][@split], or a path from the working folder."
    )
    held_out: int = Field(default=64, ge=2, description="Documents measured and never trained on.")


class Optimizer(Part):
    """How the parameters move."""

    name: Literal["adamw", "adafactor"] = Field(default="adamw", description="Update rule; the paper's is adafactor.")
    learning_rate: Number = Field(gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "cosine"] = Field(default="constant", description="Learning rate after warm-up.")
    warmup_steps: int = Field(default=0, ge=0, description="Update steps of linear warm-up from 0.")
    weight_decay: Number = Field(default=0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: Annotated[Number, Field(gt=0)] | None = Field(default=1.0, description="Norm to clip gradients to.")


class Measure(Part):
    """When and on how much text forgetting is measured."""

    points: int = Field(default=10, ge=1, le=1000, description="Measurements after step 0, spaced geometrically.")
    first: int = Field(default=1, ge=1, description="Step of the first of them; the last is at the end of the run.")
    documents: int | None = Field(default=32, ge=2, description="Documents per retained text; null takes all of them.")


class RunConfig(Part):
    """Exactly what can change the numbers of one run, and nothing else.

    Two configs are equal if and only if their names are: -0.0 reads as 0.0, and 1 as 1.0 where a real number is
    meant. Where the file was, the order of its keys and which values were left to their defaults do not matter.
    """

    model: Text = Field(description="Base model: builtin:<name>, org/name[@revision], or a local folder.")
    dtype: Literal["auto", "bfloat16", "float32", "nf4"] = Field(
        default="auto", description="Numerics. auto: the machine's; nf4: QLoRA, a base in 4 bits computed in bfloat16."
    )
    target: Target = Field(description="What the model is taught.")
    retain: Names = Field(description="Texts on which forgetting is measured.")
    adapter: Adapter = Field(description="How the model is fine-tuned: which parameters are trained.")
    # Before the sections that are checked against it: pydantic shows a validator only the fields above its own.
    steps: Count = Field(description="Update steps.")
    optimizer: Optimizer = Field(description="How the parameters move.")
    batch_size: Count = Field(description="Packed blocks in one forward pass.")
    gradient_accumulation_steps: Count = Field(default=1, description="Forward passes in one update step.")
    context: int = Field(ge=8, le=1_000_000_000, description="Tokens in a block.")
    measure: Measure = Field(default_factory=Measure, description="When and on how much text to measure.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of initialisation, dropout and data order.")

    @field_validator("retain")
    @classmethod
    def _target_is_not_retained(cls, retain: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        target: Target | None = info.data.get("target")
        if target is not None and target.data in retain:
            raise ValueError("other texts than the one learned (target.data)")
        return retain

    @field_validator("optimizer")
    @classmethod
    def _fits_the_steps(cls, optimizer: Optimizer, info: ValidationInfo) -> Optimizer:
        # "at" and "got" name the field of the section that does not fit, for `_run` to find where it was written.
        steps = info.data.get("steps", math.inf)
        if optimizer.warmup_steps >= steps:
            context = {"steps": steps, "at": "warmup_steps", "got": optimizer.warmup_steps}
            raise PydanticCustomError("related", "fewer than steps ({steps})", context)
        return optimizer

    def canonical(self) -> str:
        """The config as one line of JSON: sorted keys, defaults written out, floats exact, ASCII only.

        `RunConfig.model_validate_json` reads it back to an equal config.
        """
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def name(self) -> str:
        """The run's name: the first 12 hex digits of the SHA-256 of `canonical()`.

        Raises:
            ConfigError: dtype is still auto; one name would then stand for different numbers on different machines.
        """
        if self.dtype == "auto":
            raise ConfigError("dtype: got 'auto', expected 'bfloat16', 'float32' or 'nf4' before a run is named")
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:12]

    @property
    def batch_tokens(self) -> int:
        """Training tokens in one update step."""
        return self.batch_size * self.gradient_accumulation_steps * self.context

    def measured_steps(self) -> tuple[int, ...]:
        """Update steps after which to measure: 0, then `points` from `first` to `steps` in equal ratios, rounded.

        Strictly increasing and ending at `steps`. Rounding can make early ones coincide, so there may be fewer.
        """
        first, points = min(self.measure.first, self.steps), self.measure.points
        inner = (round(first * (self.steps / first) ** (k / (points - 1))) for k in range(points - 1))
        return tuple(sorted({0, *inner, self.steps}))


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file that was read: its runs in the order of its grids, the first key of each varying slowest."""

    source: str
    """Path it was read from."""
    runs: tuple[RunConfig, ...]
    """Distinct configs, one per cell of the grids."""
    raw: Mapping[str, Any]
    """The file as written, overrides applied."""
    places: Mapping[Key, Place]
    """Where each value was written."""


def _walk(part: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in part.model_fields.items():
        yield prefix + name, info
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _walk(info.annotation, f"{prefix}{name}.")
        elif name == "adapter":
            for method in reversed(METHODS.values()):  # of fields that several have, the first one's stays
                yield from _walk(method, "adapter.")


FIELDS = dict(_walk(RunConfig))
"""Every key of a study by its dotted name, sections among them."""
LEAVES = [key for key in FIELDS if not any(other.startswith(key + ".") for other in FIELDS)]
"""Those that hold a value."""
_WHOLE = ("adapter",)
"""Sections that a grid may give as a whole, beside their keys: methods do not have the same."""
OWN = "adapter.config."
"""Before a name that is a library's."""
# What other trainers call the same thing.
_ALIASES = {
    "alpha": "lora_alpha",
    "base_model": "model",
    "dropout": "lora_dropout",
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "max_length": "context",
    "max_seq_length": "context",
    "max_steps": "steps",
    "model_name_or_path": "model",
    "optim": "name",
    "per_device_train_batch_size": "batch_size",
    "rank": "r",
    "torch_dtype": "dtype",
}


_EXPECTED = {
    "bool_type": "true or false",
    "float_type": "a number",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "less_than_equal": "at most {le}",
    "model_type": "a mapping",
    "string_type": "text",
    "too_short": "at least {min_length} item",
    "dict_type": "a mapping",
    "union_tag_not_found": "a mapping",
    "invalid-json-value": "a value that JSON can hold",
    "tuple_type": "a list",
    "value_error": "{error}",
}


def _suggest(word: str, siblings: Sequence[str]) -> str:
    """A guess at the key that was meant: the same name elsewhere or in other trainers, else one spelled alike."""
    leaf = _ALIASES.get(word.lower(), word.lower())
    for key in LEAVES:
        section, _, name = key.rpartition(".")
        if name == leaf:
            same = [known for known in (name, key) if known in siblings]
            where = f" under '{section}'" if section else " at the top level"
            return f"; did you mean '{same[0]}'?" if same else f"; did you mean '{name}'{where}?"
    return alike(word, siblings)


def _explain(error: ErrorDetails, key: Key, method: str | None) -> tuple[str, str]:
    """What pydantic found at a key, as what was got and what was expected; `method` is that of the adapter."""
    kind, context = error["type"], error.get("ctx", {})
    section, leaf = ".".join(str(part) for part in key[:-1]), str(key[-1])
    fields = {name.rpartition(".")[2]: info for name, info in FIELDS.items() if name.rpartition(".")[0] == section}
    if section == "adapter":
        fields = dict(METHODS[str(method)].model_fields)
    if kind == "missing":
        return "nothing", f"a value: {fields[leaf].description}".rstrip(".")
    if kind == "extra_forbidden":
        siblings = [*fields, *(() if section else ("grid",))]
        others = [name for name, part in METHODS.items() if section == "adapter" and leaf in part.model_fields]
        hint = f"; '{leaf}' is of method {' and '.join(others)}" if others else _suggest(leaf, siblings)
        return "an unknown key", f"one of {', '.join(siblings)}{hint}"
    template = _EXPECTED.get(kind)
    expected = template.format(**context) if template else error["msg"].removeprefix("Input should be ")
    value = context.get("got", error["input"])
    if kind == "union_tag_invalid":
        value, expected = error["input"]["method"], " or ".join(map(repr, METHODS))
    return show(value), expected + (alike(value, re.findall("'(.*?)'", expected)) if isinstance(value, str) else "")


def _override(raw: dict[str, Any], text: str, mistakes: Mistakes) -> None:
    """Put one dotted.key=value into the mapping; the grid no longer varies a key so set."""
    name, sign, value = map(str.strip, text.partition("="))
    path = ("grid", name.removeprefix("grid.")) if name.startswith("grid.") else tuple(name.split("."))
    place = Place(sys.maxsize, f"--set {clip(text)}")
    if not sign or not all(path):
        mistakes.add((), got=show(text), expected="dotted.key=value", place=place)
        return
    mistakes.forget(path)
    mistakes.places[path] = place
    parsed = mistakes.parse(value, path, lambda _: place)
    if path[0] != "grid":
        whole: list[str] = []
        raw["grid"] = _without(raw.get("grid"), name, whole)
        for axis in whole[:1]:
            mistakes.add(path, got=f"a part of {axis}, an axis of the grid", expected=f"grid.{axis}=[…]", place=place)
    section = raw
    for n, part in enumerate(path[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
            mistakes.places[path[:n]] = place
        section = section[part]
        if not isinstance(section, dict):
            mistakes.add(path[:n], got=show(section), expected="a mapping")
            return
    section[path[-1]] = parsed


def _without(grid: Any, name: str, whole: list[str]) -> Any:
    """A grid, or several, that no longer varies a key or what is in it; `whole` gets axes that this is a part of."""
    if isinstance(grid, list):
        return [_without(each, name, whole) for each in grid]
    if not isinstance(grid, dict):
        return grid
    whole += [axis for axis in map(str, grid) if name.startswith(f"{axis}.")]
    return {key: axis for key, axis in grid.items() if not f"{key}.".startswith(f"{name}.")}


def _grids(written: object, mistakes: Mistakes) -> dict[Key, dict[str, list[Any]]]:
    """Where each grid was written, and its axes; those of one value where there are too many runs."""
    if written == []:
        mistakes.add(("grid",), got="[]", expected="at least one grid")
    each: dict[Key, Any] = {("grid",): written}
    if isinstance(written, list):
        each = {("grid", n): one for n, one in enumerate(written)}
    grids = {where: _axes(grid, where, mistakes) for where, grid in each.items()}
    size = sum(math.prod(len(values) for values in axes.values()) for axes in grids.values())
    if size > MAX_RUNS:
        mistakes.add(("grid",), got=f"{size:,} runs", expected=f"at most {MAX_RUNS:,}")
        return {where: {key: values[:1] for key, values in axes.items()} for where, axes in grids.items()}
    for where, axes in grids.items():
        for key, values in axes.items():
            for i, value in enumerate(values):
                if value in values[:i]:
                    mistakes.add((*where, key, i), got=f"{show(value)} twice", expected="each value once")
    return grids


def _axes(grid: object, where: Key, mistakes: Mistakes) -> dict[str, list[Any]]:
    """The axes of a grid; one that cannot be used holds one None, so that the rest is still checked."""
    if grid is None and where == ("grid",):
        return {}
    if not isinstance(grid, dict):
        mistakes.add(where, got=show(grid), expected="a mapping from dotted keys to lists of values")
        return {}
    axes: dict[str, list[Any]] = {}
    for key, values in grid.items():
        place = (*where, key)
        if key not in (*LEAVES, *_WHOLE) and not key.startswith(OWN):
            hint = _suggest(key, LEAVES)
            mistakes.add(place, got="an unknown key", expected=f"a dotted key of the study{hint}")
            continue
        axes[key] = axis(values, place, mistakes) or [None]
    return axes


def _put(draft: dict[str, Any], key: Sequence[str], value: Any) -> None:
    """Set a value in nested mappings, made where they are missing; nothing where something else stands in the way."""
    first, *rest = key
    if not rest:
        draft[first] = value
        return
    if draft.get(first) is None:
        draft[first] = {}
    if isinstance(draft[first], dict):
        _put(draft[first], rest, value)


def _run(
    body: Mapping[str, Any], cell: Mapping[str, tuple[int, Any]], where: Key, mistakes: Mistakes
) -> RunConfig | None:
    """The run in one cell of a grid (value and its number for each key), None where there are mistakes."""
    draft: dict[str, Any] = copy.deepcopy(dict(body))
    for dotted, (_, value) in sorted(cell.items(), key=lambda item: item[0].count(".")):  # a section before its keys
        _put(draft, dotted.split("."), copy.deepcopy(value))
    try:
        return RunConfig.model_validate(draft)
    except ValidationError as error:
        found = error.errors(include_url=False)
    method = method_of(draft.get("adapter"))
    for details in found:
        node: Any = draft
        key: Key = ()
        for n, part in enumerate(details["loc"]):
            if n == 1 and key == ("adapter",):  # the method, which is how pydantic names a branch
                continue
            if isinstance(node, list) == isinstance(part, int):  # otherwise the tag of a union
                key, node = (*key, part), node.get(part) if isinstance(node, dict) else node[part]
        got, expected = _explain(details, key, method)
        key = (*key, details["ctx"]["at"]) if details["type"] == "related" else key
        key = (*key, "method") if details["type"] == "union_tag_invalid" else key
        for n in range(len(key), 0, -1):
            axis = ".".join(str(part) for part in key[:n])
            inside = [longer for longer in cell if longer.startswith(f"{axis}.")] if n == len(key) else []
            if axis in cell and axis.count(".") == n - 1:
                key = (*where, axis, cell[axis][0], *key[n:])
                break
            if inside and details["type"] == "extra_forbidden":  # a section that the grid alone speaks of
                key = (*where, inside[0])
                break
        mistakes.add(key, got=got, expected=expected)
    return None


def refusal(study: Study, found: Sequence[tuple[Key, str, str]]) -> ConfigError:
    """What only a library could find wrong, each (key, got, expected) told at the place where it was written."""
    mistakes = Mistakes(source=clip_path(study.source), places=dict(study.places))
    axes = {place[-1]: place for place in study.places if place[:1] == ("grid",)}
    for key, got, expected in found:
        whole, *around = (axes.get(".".join(map(str, key[:n])), ()) for n in range(len(key), 0, -1))
        at = next((place for place in (whole, key, *around) if place and place in study.places), key)
        mistakes.add(key if at == key else ("grid", *key), got=got, expected=expected, place=study.places.get(at))
    return mistakes.error()


def read_study(path: str | Path, *, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, put the overrides in, and check every run it asks for.

    An override is "dotted.key=value" with the value in YAML; "grid.adapter.r=[4, 8]" sets an axis of the only grid. A
    value in a grid replaces the one in the body, so a body may keep a default; an override of the body, being the
    last word, takes its key off every grid.

    Raises:
        ConfigError: with every mistake found, one a line: "file:line: key: got X, expected Y".
        ResourceError: the file is there and may not be read.
    """
    text = read_text(Path(path))
    mistakes = Mistakes(source=clip_path(str(path)))
    raw = mistakes.parse(text, (), mistakes.at_line)
    if not isinstance(raw, dict):
        got = "nothing" if raw is None else show(raw)
        mistakes.add((), got=got, expected="a mapping with keys such as model, target and adapter")
        mistakes.refused.add(())
        raw = {}
    for override in overrides:
        _override(raw, override, mistakes)
    body = {key: value for key, value in raw.items() if key != "grid"}
    runs: dict[RunConfig, None] = {}
    for where, axes in _grids(raw.get("grid"), mistakes).items():
        for cell in itertools.product(*(enumerate(values) for values in axes.values())):
            run = _run(body, dict(zip(axes, cell, strict=True)), where, mistakes)
            runs |= {} if run is None else {run: None}
    if mistakes.lines:
        raise mistakes.error()
    return Study(source=str(path), runs=tuple(runs), raw=raw, places=mistakes.places)
