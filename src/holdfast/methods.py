"""How a model is fine-tuned: which parameters are trained, each way with its own strict fields.

PEFT's own names wherever it has them. What PEFT says of its other methods' fields is checked by `adapters`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, JsonValue, Tag, ValidationInfo
from pydantic.fields import Field
from pydantic.functional_validators import field_validator, model_validator


def _plain(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError("printable text without spaces around it")
    return text


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("each name once")
    return names


def _modules_kind(value: object) -> str | None:
    return "word" if value == "all-linear" else "names" if isinstance(value, list | tuple) else None


def _writable(fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        json.dumps(fields, allow_nan=False).encode()
    except ValueError as error:
        raise ValueError("values that JSON can hold") from error
    return fields


Text = Annotated[str, AfterValidator(_plain)]
# A list is what YAML and JSON can write; the items stay strict. -0.0 becomes 0.0: equal values must share a name.
Names = Annotated[tuple[Text, ...], Field(strict=False, min_length=1), AfterValidator(_distinct)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Number = Annotated[float, Field(allow_inf_nan=False), AfterValidator(lambda number: number + 0.0)]
Modules = Annotated[
    Annotated[Literal["all-linear"], Tag("word")] | Annotated[Names, Tag("names")],
    Discriminator(
        _modules_kind,
        custom_error_type="modules",
        custom_error_message="'all-linear' or a list of module names",
    ),
]


class Part(BaseModel):
    """A section of a config: strict, frozen, and without keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, defer_build=True)


class Lora(Part):
    """Low-rank updates of linear maps."""

    method: Literal["lora"] = Field(default="lora", description="Low-rank updates of linear maps.")
    r: Count = Field(description="Rank of the low-rank update.")
    lora_alpha: Number = Field(default=1.0, gt=0, description="Numerator of the update's scale; 1 in the paper.")
    use_rslora: bool = Field(default=True, description="Scale by lora_alpha / sqrt(r), as the paper, not / r.")
    target_modules: Modules = Field(default="all-linear", description="Linear maps that are updated: all, or names.")
    lora_dropout: Number = Field(default=0.0, ge=0, lt=1, description="Dropout on the update's input, in training.")


class Full(Part):
    """Every weight: embeddings, layers, norms and the output head."""

    method: Literal["full"] = Field(description="Every weight: embeddings, layers, norms and the output head.")


class TopLayers(Part):
    """Every weight of the uppermost decoder blocks, and nothing else."""

    method: Literal["top-layers"] = Field(description="Every weight of the uppermost decoder blocks.")
    layers: Count = Field(description="Decoder blocks that are trained, counted from the output head.")


class Ia3(Part):
    """A learned factor for each output of some linear maps, or each input of those in `feedforward_modules`."""

    method: Literal["ia3"] = Field(description="Learned factors of what some linear maps give or take.")
    target_modules: Names = Field(
        default=("k_proj", "v_proj", "down_proj"), description="Linear maps with a factor; as in the IA3 paper."
    )
    feedforward_modules: Annotated[tuple[Text, ...], Field(strict=False), AfterValidator(_distinct)] = Field(
        default=("down_proj",), description="Those of them whose input is multiplied, not their output."
    )

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, given: Any) -> Any:
        """Unless named, the usual input factor, where it is among the maps."""
        if isinstance(given, dict) and isinstance(maps := given.get("target_modules"), list | tuple):
            return {"feedforward_modules": [name for name in maps if name == "down_proj"][:1]} | given
        return given

    @field_validator("feedforward_modules")
    @classmethod
    def _are_targets(cls, modules: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not set(modules) <= set(info.data.get("target_modules", modules)):
            raise ValueError("some of target_modules")
        return modules


class Peft(Part):
    """Any other method of PEFT's, by the fields of its own config."""

    method: Literal["peft"] = Field(description="Any other method that PEFT has.")
    peft_type: Text = Field(description="PEFT's name of the method: LORA, OFT, VERA, …")
    config: Annotated[dict[str, JsonValue], AfterValidator(_writable)] = Field(
        default={}, description="Fields of that method's own config in PEFT; what is not given is PEFT's default."
    )

    def _key(self) -> str:
        return json.dumps([self.peft_type, self.config], sort_keys=True)

    def __eq__(self, other: object) -> bool:
        """Equal as they are written, so that equal ones share a run's name: 8 is not 8.0 where PEFT alone knows."""
        return isinstance(other, Peft) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


_Any: TypeAlias = Lora | Full | TopLayers | Ia3 | Peft
METHODS: dict[str, type[Part]] = {
    get_args(each.model_fields["method"].annotation)[0]: each for each in (Lora, Full, TopLayers, Ia3, Peft)
}
"""By the name in `method`."""


def method_of(value: object) -> str | None:
    """The method that a section asks for: `lora` where it names none; None for what is no section."""
    if isinstance(value, Part):
        return str(getattr(value, "method"))  # noqa: B009  (of a part, which has none in general)
    return str(value.get("method", "lora")) if isinstance(value, Mapping) else None


Adapter = Annotated[
    Annotated[Lora, Tag("lora")]
    | Annotated[Full, Tag("full")]
    | Annotated[TopLayers, Tag("top-layers")]
    | Annotated[Ia3, Tag("ia3")]
    | Annotated[Peft, Tag("peft")],
    Discriminator(method_of),
]


def trains_head(adapter: _Any) -> bool:
    """Whether a method changes the output head, so that a model can no longer be compared by the base's."""
    return isinstance(adapter, Full)


def named(adapter: _Any) -> tuple[str, int | None]:
    """A method as a person calls it, and its rank where it has one and names it."""
    if isinstance(adapter, Peft):
        r = adapter.config.get("r")
        return f"peft {adapter.peft_type}", r if isinstance(r, int) else None
    if isinstance(adapter, TopLayers):
        return f"top {adapter.layers} layers", None
    return adapter.method, adapter.r if isinstance(adapter, Lora) else None


def columns(adapter: _Any) -> dict[str, Any]:
    """What tells fine-tunings apart in a table: `method`, the numbers it is best known by, and `adapter`, all the rest.

    A method of PEFT's by its type there. A number that a method does not have, or does not name, is nan; `adapter` is
    canonical JSON.
    """
    method, rest = str(adapter.method), adapter.model_dump(mode="json", exclude={"method"})
    if isinstance(adapter, Peft):
        method, rest = f"peft {adapter.peft_type}", dict(adapter.config)
    named = {
        "r": rest.pop("r", math.nan),
        "layers": rest.pop("layers", math.nan),
        "lora_alpha": rest.pop("lora_alpha", math.nan),
        "use_rslora": rest.pop("use_rslora", None),
    }
    return {"method": method, **named, "adapter": json.dumps(rest, sort_keys=True, separators=(",", ":"))}
