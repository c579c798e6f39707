"""The JSON schema of a study file, for editors to complete and check it."""

import re
from typing import Any, cast

from holdfast.config import FIELDS, LEAVES, OWN, RunConfig
from holdfast.methods import METHODS, Part
from holdfast.series import KEYS, MOST

LISTED = {"type": "array", "minItems": 1, "uniqueItems": True}
SERIES = {
    "type": "object",
    "description": "Values in equal ratios, both ends included, rounded between whole ends.",
    "properties": {key: {"type": "number", "exclusiveMinimum": 0} for key in KEYS[:2]}
    | {KEYS[2]: {"type": "integer", "minimum": 2, "maximum": MOST}},
    "required": list(KEYS),
    "additionalProperties": False,
}


def study_schema() -> dict[str, Any]:
    """JSON schema of a study file, `grid` included, for editors to complete and check it.

    A required key may stand in the grid instead of the body, so `required` is spelled as a choice between the two.
    """
    schema = RunConfig.model_json_schema()
    schema["title"] = "Holdfast study"
    schema["description"] = "Runs to make: one, or those of the grids."
    defs, branches = schema["$defs"], [part.__name__ for part in METHODS.values()]
    schema["properties"]["adapter"] = {
        "description": schema["properties"]["adapter"]["description"],
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in branches],
    }
    axes: dict[str, Any] = {"adapter": {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in branches]}}
    choices = []
    for key in LEAVES:
        section, _, leaf = key.rpartition(".")
        owners = [schema] if not section else [defs[name] for name in _owners(section)]
        kinds = [owner["properties"][leaf] for owner in owners if leaf in owner["properties"]]
        items = [{name: value for name, value in kind.items() if name != "default"} for kind in kinds]
        axes[key] = items[0] if len(items) == 1 else {"anyOf": items}
        if FIELDS[key].is_required() and section != "adapter":
            choices.append(_given(key))
    axes = {key: {"anyOf": [LISTED | {"items": items}, SERIES]} for key, items in axes.items()}
    choices.append(_method_given())
    for owner in (schema, *schema["$defs"].values()):
        owner.pop("required", None)
    grid = {
        "type": "object",
        "description": "Values by dotted key; every combination is a run, the first key varying slowest.",
        "properties": axes,
        "patternProperties": {rf"^{re.escape(OWN)}\w+$": {"anyOf": [LISTED, SERIES]}},
        "additionalProperties": False,
    }
    schema["properties"]["grid"] = {
        "description": "One grid, or a list of grids whose runs are joined, each run once.",
        "anyOf": [grid, {"type": "null"}, {"type": "array", "minItems": 1, "items": grid}],
    }
    return schema | {"allOf": choices}


def _owners(section: str) -> list[str]:
    """Names of the classes that describe a section."""
    parts = list(METHODS.values()) if section == "adapter" else [cast(type[Part], FIELDS[section].annotation)]
    return [part.__name__ for part in parts]


def _given(key: str) -> dict[str, Any]:
    """JSON schema of a study that has a key, in its body or in its grid."""
    section, _, leaf = key.rpartition(".")
    here: dict[str, Any] = {"required": [leaf]}
    there = {"required": [section], "properties": {section: here}} if section else here
    return {"anyOf": [there, _in_the_grids(key)]}


def _in_the_grids(key: str) -> dict[str, Any]:
    """JSON schema of a study whose grid, or each of whose grids, has a key."""
    has = {"required": [key]}
    return {"required": ["grid"], "properties": {"grid": {"type": ["object", "array"], **has, "items": has}}}


def _method_given() -> dict[str, Any]:
    """JSON schema of a study that says how to fine-tune: a method, by default `lora`, and all that it must have."""
    choices = [_in_the_grids(key) for key in ("adapter", "adapter.method")]
    for name, part in METHODS.items():
        named = {"properties": {"method": {"const": name}}} | ({} if name == "lora" else {"required": ["method"]})
        needed = [key for key, field in part.model_fields.items() if field.is_required() and key != "method"]
        is_it: dict[str, Any] = {"properties": {"adapter": named}} | (
            {} if name == "lora" else {"required": ["adapter"]}
        )
        choices.append({"allOf": [is_it, *(_given(f"adapter.{key}") for key in needed)]})
    return {"anyOf": choices}
