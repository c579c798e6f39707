"""What a run is and is named, what a grid and overrides give; what is refused is in `hostile_studies`."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.config import Measure, Optimizer, RunConfig, Study, Target, read_study
from holdfast.errors import ConfigError
from holdfast.methods import Full, Ia3, Lora, Peft, TopLayers
from holdfast.schemas import study_schema

BODY = """\
model: builtin:smollm2
dtype: float32
target:
  data: builtin:gsm8k
  held_out: 16
retain: [builtin:wikipedia]
adapter:
  r: 16
  lora_alpha: 1
optimizer:
  learning_rate: 1e-3
  warmup_steps: 4
steps: 64
batch_size: 8
context: 128
seed: 0
"""
"""A good study; `hostile_studies` counts its lines."""


def read(folder: Path, text: str, *overrides: str) -> Study:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return read_study(path, overrides=overrides)


def test_a_study_without_a_grid_is_one_run(tmp_path: Path) -> None:
    study = read(tmp_path, BODY)
    assert study.source == str(tmp_path / "study.yaml")
    assert study.raw == yaml.safe_load(BODY) | {"optimizer": {"learning_rate": 1e-3, "warmup_steps": 4}}
    assert study.runs == (
        RunConfig(
            model="builtin:smollm2",
            dtype="float32",
            target=Target(data="builtin:gsm8k", held_out=16),
            retain=("builtin:wikipedia",),
            adapter=Lora(r=16),
            optimizer=Optimizer(learning_rate=0.001, warmup_steps=4),
            steps=64,
            batch_size=8,
            context=128,
        ),
    )
    run = study.runs[0]
    assert (run.adapter.lora_alpha, run.adapter.use_rslora, run.adapter.target_modules) == (1.0, True, "all-linear")
    assert (run.measure, run.seed, run.optimizer.name) == (Measure(points=10, first=1, documents=32), 0, "adamw")
    assert run.batch_tokens == 1024


GOOD = [
    ("learning_rate: 1e-3", "learning_rate: 1", "optimizer", {"learning_rate": 1.0}),
    ("learning_rate: 1e-3", "learning_rate: 2.5E+1", "optimizer", {"learning_rate": 25.0}),
    ("learning_rate: 1e-3", "learning_rate: .5e-1", "optimizer", {"learning_rate": 0.05}),
    ("warmup_steps: 4", "max_grad_norm: null", "optimizer", {"max_grad_norm": None}),
    ("warmup_steps: 4", "weight_decay: -0.0", "optimizer", {"weight_decay": 0.0}),
    ("lora_alpha: 1", "target_modules: [q_proj, v_proj]", "adapter", {"target_modules": ("q_proj", "v_proj")}),
    ("lora_alpha: 1", "target_modules: all-linear", "adapter", {"target_modules": "all-linear"}),
    ("lora_alpha: 1", "use_rslora: no", "adapter", {"use_rslora": False}),
    ("seed: 0", "measure: {documents: null, points: 64}", "measure", {"documents": None, "points": 64}),
    ("data: builtin:gsm8k", "data: '1234'", "target", {"data": "1234"}),
    ("data: builtin:gsm8k", "data: texts/привет.jsonl", "target", {"data": "texts/привет.jsonl"}),
    ("seed: 0", "grid:", "adapter", {"r": 16}),
    ("seed: 0", "grid: {}", "adapter", {"r": 16}),
]


@pytest.mark.parametrize(("old", "new", "section", "expected"), GOOD)
def test_good_values(tmp_path: Path, old: str, new: str, section: str, expected: dict[str, object]) -> None:
    (run,) = read(tmp_path, BODY.replace(old, new)).runs
    assert {key: value for key, value in getattr(run, section) if key in expected} == expected


METHODS = [
    ("{r: 2500, target_modules: [q_proj, v_proj]}", Lora(r=2500, target_modules=("q_proj", "v_proj"))),
    ("{method: lora, r: 4}", Lora(r=4)),
    ("{method: full}", Full(method="full")),
    ("{method: top-layers, layers: 3}", TopLayers(method="top-layers", layers=3)),
    ("{method: ia3}", Ia3(method="ia3")),
    (
        "{method: ia3, target_modules: [fc1, fc2], feedforward_modules: [fc2]}",
        Ia3(method="ia3", target_modules=("fc1", "fc2"), feedforward_modules=("fc2",)),
    ),
    (
        "{method: peft, peft_type: LORA, config: {use_dora: true, r: 8, target_modules: [q_proj]}}",
        Peft(method="peft", peft_type="LORA", config={"r": 8, "target_modules": ["q_proj"], "use_dora": True}),
    ),
]


@pytest.mark.parametrize(("written", "expected"), METHODS)
def test_every_method_is_read(tmp_path: Path, written: str, expected: object) -> None:
    text = BODY.replace("adapter:\n  r: 16\n  lora_alpha: 1\n", f"adapter: {written}\n")
    (run,) = read(tmp_path, text).runs
    assert run.adapter == expected
    assert RunConfig.model_validate_json(run.canonical()) == run
    assert len({run, RunConfig.model_validate_json(run.canonical())}) == 1
    jsonschema.Draft202012Validator(study_schema()).validate(read(tmp_path, text).raw)


def test_a_grid_varies_any_key_of_a_method_or_the_method_as_a_whole(tmp_path: Path) -> None:
    bare = BODY.replace("adapter:\n  r: 16\n  lora_alpha: 1\n", "")
    whole = bare + "grid:\n  seed: [0, 1]\n  adapter: [{r: 4}, {method: full}, {method: top-layers, layers: 2}]\n"
    found = [(run.adapter, run.seed) for run in read(tmp_path, whole).runs]
    each = [Lora(r=4), Full(method="full"), TopLayers(method="top-layers", layers=2)]
    assert found == [(adapter, seed) for seed in (0, 1) for adapter in each]
    mixed = bare + "grid:\n  adapter.lora_alpha: [1, 2]\n  adapter: [{r: 4}, {r: 8}]\n"
    assert [(run.adapter.r, run.adapter.lora_alpha) for run in read(tmp_path, mixed).runs] == [
        (4, 1.0), (8, 1.0), (4, 2.0), (8, 2.0),
    ]  # fmt: skip
    layers = f"{bare}adapter: {{method: top-layers}}\ngrid: {{adapter.layers: [1, 3]}}\n"
    assert [run.adapter.layers for run in read(tmp_path, layers).runs] == [1, 3]
    plain = f"{bare}grid: {{adapter.method: [full, ia3]}}\n"
    assert [run.adapter.method for run in read(tmp_path, plain).runs] == ["full", "ia3"]
    own = (
        f"{bare}adapter: {{method: peft, peft_type: OFT, config: {{r: 2, u: 0}}}}\ngrid: {{adapter.config.r: [4, 8]}}\n"
    )
    assert [run.adapter.config for run in read(tmp_path, own).runs] == [{"r": 4, "u": 0}, {"r": 8, "u": 0}]
    assert [run.adapter.config["r"] for run in read(tmp_path, own, "adapter.config.r=3").runs] == [3]
    validator = jsonschema.Draft202012Validator(study_schema())
    for text in (whole, mixed, layers, plain, own):
        validator.validate(read(tmp_path, text).raw)


def test_overrides_apply_in_order_and_pin_what_the_grid_varies(tmp_path: Path) -> None:
    text = BODY + "grid:\n  adapter.r: [4, 16]\n  seed: [0, 1]\n"
    assert [(run.adapter.r, run.seed) for run in read(tmp_path, text).runs] == [(4, 0), (4, 1), (16, 0), (16, 1)]
    assert [(run.adapter.r, run.seed) for run in read(tmp_path, text, "adapter.r=8").runs] == [(8, 0), (8, 1)]
    assert [run.adapter.r for run in read(tmp_path, text, "adapter={r: 3}", "seed=5").runs] == [3]
    assert len(read(tmp_path, text, "grid.optimizer.learning_rate=[1e-4, 1e-3]").runs) == 8
    assert len(read(tmp_path, text, "adapter.r=8", "grid.adapter.r=[1, 2, 3]", "seed=0", "seed=1").runs) == 3
    assert [run.adapter.r for run in read(tmp_path, text, "grid=", "steps=32", "measure.points=4").runs] == [16]
    assert read(tmp_path, BODY, "measure.points=4", " steps =32").runs[0].measured_steps()[-1] == 32


def test_a_part_of_what_the_grid_varies_as_a_whole_is_not_set_in_vain(tmp_path: Path) -> None:
    text = BODY + "grid:\n  adapter: [{method: lora, r: 8}, {method: full}]\n"
    with pytest.raises(
        ConfigError, match=r"adapter.r: got a part of adapter, an axis of the grid, expected grid.adapter="
    ):
        read(tmp_path, text, "adapter.r=2")
    assert [run.adapter.r for run in read(tmp_path, text, "adapter={r: 2}").runs] == [2]


def test_the_grid_supplies_and_replaces_what_the_body_holds(tmp_path: Path) -> None:
    text = BODY.replace("adapter:\n  r: 16\n  lora_alpha: 1\n", "") + "grid:\n  adapter.r: [4, 64]\n  steps: [20, 30]\n"
    assert [(run.adapter.r, run.steps) for run in read(tmp_path, text).runs] == [(4, 20), (4, 30), (64, 20), (64, 30)]
    retained = BODY + "grid:\n  retain: [[a], [a, b]]\n  adapter.target_modules: [all-linear, [q]]\n"
    assert [run.retain for run in read(tmp_path, retained).runs] == [("a",), ("a",), ("a", "b"), ("a", "b")]


def test_a_series_is_in_equal_ratios_and_whole_between_whole_ends(tmp_path: Path) -> None:
    grid = "grid:\n  adapter.r: {from: 8, to: 256, points: 6}\n  steps: {from: 100, to: 10, points: 3}\n"
    runs = read(tmp_path, BODY + grid, "optimizer.warmup_steps=0").runs
    assert [run.adapter.r for run in runs[::3]] == [8, 16, 32, 64, 128, 256]
    assert [run.steps for run in runs[:3]] == [100, 32, 10]
    rates = read(tmp_path, BODY + "grid: {optimizer.learning_rate: {from: 1e-4, to: 1e-2, points: 5}}\n").runs
    spelled = [1e-4, 3.16227766017e-4, 1e-3, 3.16227766017e-3, 1e-2]
    assert [run.optimizer.learning_rate for run in rates] == spelled
    assert rates[2].name == read(tmp_path, BODY, "optimizer.learning_rate=0.001").runs[0].name


def test_several_grids_are_joined_and_a_run_of_two_is_made_once(tmp_path: Path) -> None:
    text = BODY + "grid:\n- {adapter.r: [4, 16, 64]}\n- {adapter.r: [16], seed: [0, 1, 2]}\n"
    runs = read(tmp_path, text).runs
    assert [(run.adapter.r, run.seed) for run in runs] == [(4, 0), (16, 0), (64, 0), (16, 1), (16, 2)]
    assert [(run.adapter.r, run.seed) for run in read(tmp_path, text, "adapter.r=8").runs] == [(8, 0), (8, 1), (8, 2)]
    assert len(read(tmp_path, text, "grid={seed: [1, 2]}").runs) == 2


def test_a_name_needs_the_dtype_decided(tmp_path: Path) -> None:
    (run,) = read(tmp_path, BODY.replace("dtype: float32\n", "")).runs
    with pytest.raises(ConfigError, match="dtype: got 'auto', expected 'bfloat16', 'float32' or 'nf4'"):
        _ = run.name
    assert run.model_copy(update={"dtype": "float32"}).name == read(tmp_path, BODY).runs[0].name


def test_the_name_is_the_hash_of_sorted_exact_json(tmp_path: Path) -> None:
    (run,) = read(tmp_path, BODY).runs
    written = json.loads(run.canonical())
    assert run.canonical() == json.dumps(written, sort_keys=True, separators=(",", ":"))
    assert written["optimizer"]["learning_rate"] == 0.001
    assert written["measure"] == {"points": 10, "first": 1, "documents": 32}
    assert run.name == hashlib.sha256(run.canonical().encode()).hexdigest()[:12]
    signed = (BODY.replace("warmup_steps: 4", f"weight_decay: {zero}") for zero in ("-0.0", "0", "+0e9"))
    assert len({read(tmp_path, text).runs[0].name for text in signed}) == 1
    # Old run folders must keep their names: when this changes, every stored study becomes unreadable by name.
    assert run.name == "197f86bdc90c"


numbers = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
words = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=8)
names = st.lists(words, min_size=1, max_size=3, unique=True).map(tuple)
runs = st.builds(
    RunConfig,
    model=words,
    dtype=st.sampled_from(["bfloat16", "float32"]),
    target=st.builds(Target, data=words.map("target ".__add__), held_out=st.integers(2, 99)),
    retain=names,
    adapter=st.builds(
        Lora,
        r=st.integers(1, 4096),
        lora_alpha=numbers | st.integers(1, 64),
        use_rslora=st.booleans(),
        target_modules=names | st.just("all-linear"),
        lora_dropout=st.sampled_from([0.0, -0.0, 0, 0.1]),
    )
    | st.just(Full(method="full"))
    | st.builds(TopLayers, method=st.just("top-layers"), layers=st.integers(1, 99))
    | names.map(lambda each: Ia3(method="ia3", target_modules=each, feedforward_modules=each[:1]))
    | st.builds(
        Peft,
        method=st.just("peft"),
        peft_type=words,
        config=st.dictionaries(words, numbers | st.booleans() | names.map(list)),
    ),
    optimizer=st.builds(
        Optimizer,
        name=st.sampled_from(["adamw", "adafactor"]),
        learning_rate=numbers,
        schedule=st.sampled_from(["constant", "cosine"]),
        warmup_steps=st.integers(0, 99),
        weight_decay=numbers | st.sampled_from([0.0, -0.0]),
        max_grad_norm=numbers | st.none(),
    ),
    steps=st.integers(100, 10_000),
    batch_size=st.integers(1, 64),
    gradient_accumulation_steps=st.integers(1, 8),
    context=st.integers(8, 4096),
    measure=st.builds(
        Measure, points=st.integers(1, 100), first=st.integers(1, 9), documents=st.integers(2, 99) | st.none()
    ),
    seed=st.integers(0, 2**32 - 1),
)


@settings(deadline=None)
@given(runs)
def test_canonical_round_trips(run: RunConfig) -> None:
    back = RunConfig.model_validate_json(run.canonical())
    assert back == run
    assert (back.canonical(), back.name) == (run.canonical(), run.name)
    assert run.canonical().isascii()
    assert len(run.name) == 12


@settings(deadline=None)
@given(runs, runs, st.data())
def test_the_name_changes_if_and_only_if_a_field_does(one: RunConfig, other: RunConfig, data: st.DataObject) -> None:
    assert (one == other) == (one.name == other.name)
    field = data.draw(st.sampled_from(sorted(RunConfig.model_fields)))
    mixed = one.model_copy(update={field: getattr(other, field)})
    assert (mixed.name == one.name) == (getattr(one, field) == getattr(other, field))
    section = data.draw(st.sampled_from(["target", "adapter", "optimizer", "measure"]))
    part, donor = getattr(one, section), getattr(other, section)
    if type(part) is not type(donor):
        return
    leaf = data.draw(st.sampled_from(sorted(type(part).model_fields)))
    mixed = one.model_copy(update={section: part.model_copy(update={leaf: getattr(donor, leaf)})})
    assert (mixed.name == one.name) == (getattr(part, leaf) == getattr(donor, leaf))


@settings(deadline=None)
@given(st.permutations(list(yaml.safe_load(BODY).items())), st.booleans())
def test_the_order_of_keys_does_not_change_the_name(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[str, object]], flow: bool
) -> None:
    folder = tmp_path_factory.mktemp("order")
    text = yaml.safe_dump(dict(items), sort_keys=False, default_flow_style=flow).replace("'1e-3'", "1e-3")
    assert read(folder, text).runs == read(folder, BODY).runs


@settings(deadline=None)
@given(st.integers(1, 1_000_000_000), st.integers(1, 1000), st.integers(1, 10_000))
def test_measured_steps(steps: int, points: int, first: int) -> None:
    run = BASE.model_copy(update={"steps": steps, "measure": Measure(points=points, first=first)})
    measured = run.measured_steps()
    assert measured[0] == 0
    assert measured[-1] == steps
    assert len(measured) <= points + 1
    assert list(measured) == sorted(set(measured))
    assert points == 1 or measured[1] == min(first, steps)
    # Every point of the exact grid has a measurement within the half step that rounding may move it.
    low = min(first, steps)
    exact = [low * (steps / low) ** (k / (points - 1)) for k in range(points)] if points > 1 else [steps]
    assert all(min(abs(x - m) for m in measured) <= 0.5 + 1e-6 * x for x in exact[:: max(1, points // 20)])


BASE = RunConfig.model_validate(yaml.safe_load(BODY) | {"optimizer": {"learning_rate": 1}})


def test_measured_steps_of_the_default_plan() -> None:
    assert BASE.measured_steps() == (0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 64)


def test_the_schema_agrees_with_the_reader(tmp_path: Path) -> None:
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = read(tmp_path, BODY).raw
    moved = {key: value for key, value in good.items() if key != "adapter"} | {"grid": {"adapter.r": [4]}}
    several = moved | {"grid": [{"adapter.r": {"from": 4, "to": 8, "points": 2}}, {"adapter.r": [4], "seed": [0, 1]}]}
    for study in (good, moved, several, dict(good, grid=None), dict(good, grid={"retain": [["a"], ["b"]]})):
        validator.validate(study)
    less = {key: value for key, value in good.items() if key != "adapter"}
    for study in (
        less,
        dict(good, x=1),
        dict(good, adapter={"r": 0}),
        dict(good, adapter={"method": "full", "r": 4}),
        dict(good, adapter={"method": "top-layers"}),
        dict(good, adapter={"layers": 2}),
        dict(good, adapter={"method": "peft", "config": {}}),
        dict(less, grid={"adapter.layers": [1]}),
        dict(good, grid={"adapter": [1]}),
        dict(good, grid={"steps": []}),
        dict(good, grid=[]),
        dict(less, grid=[{"adapter.r": [4]}, {"seed": [0, 1]}]),
        dict(good, grid={"steps": {"from": 10, "to": 20}}),
        dict(good, grid={"steps": {"from": 0, "to": 20, "points": 3}}),
    ):
        assert not validator.is_valid(study)
    described = [
        *schema["properties"].values(),
        *(p for d in schema["$defs"].values() for p in d.get("properties", {}).values()),
    ]
    assert all(field.get("description") or "$ref" in field for field in described)


def test_importing_config_stays_light() -> None:
    code = "import sys, holdfast.config; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "numpy", "pandas", "peft", "datasets"} & set(loaded)
