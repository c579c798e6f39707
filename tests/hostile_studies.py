"""Study files that are wrong, each with the place, the key and the words it is to be refused with."""

from collections.abc import Iterator
from dataclasses import dataclass

from test_config import BODY


@dataclass(frozen=True, kw_only=True)
class Study:
    """A wrong study file and how it is refused: `place: key: got …, expected …`; `alone`: by that line only."""

    group: str
    content: bytes
    overrides: tuple[str, ...] = ()
    place: str
    key: str
    got: str
    expected: str
    alone: bool = True


def studies() -> Iterator[Study]:
    """Every case of the tables below."""
    for old, new, line, key, got, expected in EDITED:
        assert old in BODY
        kind = {"unknown key": "unknown keys", "got nothing": "missing keys"}.get(got, "values")
        yield _study(kind, BODY.replace(old, new, 1), line, key, got, expected, alone=False)
    for own, line, key, got, expected in OWN:
        text = BODY.replace("  r: 16\n  lora_alpha: 1", own)
        yield _study("PEFT's own keys", text, line, key, got, expected, alone=False)
    for grid, line, key, got, expected in GRIDS:
        yield _study("grids", f"{BODY}grid:{grid}\n", line, key, got, expected, alone=False)
    for override, place, key, got, expected in OVERRIDDEN:
        yield Study(
            group="--set", content=BODY.encode(), overrides=(override,), place=place, key=key, got=got,
            expected=expected,
        )  # fmt: skip
    for text, line, got, expected in BROKEN:
        yield _study("YAML", text, line, "", got, expected)
    for old, new, line, key, got in LOADED:
        yield _study("YAML that is more than data", BODY.replace(old, new, 1), line, key, got, "")
    for content, place, got, expected in FILES:
        yield Study(group="files", content=content, place=place, key="", got=got, expected=expected)


def _study(group: str, text: str, line: int, key: str, got: str, expected: str, *, alone: bool = True) -> Study:
    place, content = f"study.yaml:{line}", text.encode("utf-8", "surrogatepass")
    return Study(group=group, content=content, place=place, key=key, got=got, expected=expected, alone=alone)


EDITED = [
    # unknown keys: the same name elsewhere, another trainer's name, a typing error
    ("model:", "modle:", 1, "modle", "unknown key", "did you mean 'model'?"),
    ("model:", "model_name_or_path:", 1, "model_name_or_path", "unknown key", "did you mean 'model'?"),
    ("dtype:", "torch_dtype:", 2, "torch_dtype", "unknown key", "did you mean 'dtype'?"),
    ("  held_out:", "  heldout:", 5, "target.heldout", "unknown key", "did you mean 'held_out'?"),
    ("  r: 16", "  rank: 16", 8, "adapter.rank", "unknown key", "did you mean 'r'?"),
    ("  r: 16", "  R: 16", 8, "adapter.R", "unknown key", "did you mean 'r'?"),
    ("  lora_alpha", "  alpha", 9, "adapter.alpha", "unknown key", "did you mean 'lora_alpha'?"),
    ("  learning_rate", "  lr", 11, "optimizer.lr", "unknown key", "did you mean 'learning_rate'?"),
    ("  warmup_steps", "  warmup", 12, "optimizer.warmup", "unknown key", "did you mean 'warmup_steps'?"),
    ("steps: 64", "max_steps: 64", 13, "max_steps", "unknown key", "did you mean 'steps'?"),
    ("batch_size", "batchsize", 14, "batchsize", "unknown key", "did you mean 'batch_size'?"),
    ("context", "max_seq_length", 15, "max_seq_length", "unknown key", "did you mean 'context'?"),
    ("seed: 0", "r: 16", 16, "r", "unknown key", "did you mean 'r' under 'adapter'?"),
    ("seed: 0", "grids: {}", 16, "grids", "unknown key", "did you mean 'grid'?"),
    ("seed: 0", "zzz: 1", 16, "zzz", "unknown key", "expected one of model, dtype, target"),
    ("seed: 0", "null: 1", 16, "null", "unknown key", "expected one of"),
    ("seed: 0", '"": 1', 16, "", "unknown key", "expected one of"),
    ("seed: 0", '"a\\eb": 1', 16, "a\\x1bb", "unknown key", "expected one of"),
    ("seed: 0", "adapter.r: 8", 16, "adapter.r", "unknown key", "expected one of"),
    # missing keys are placed at what should hold them
    ("model: builtin:smollm2", "seed: 1", 1, "model", "got nothing", "Base model"),
    ("  data: builtin:gsm8k\n", "", 3, "target.data", "got nothing", "Text to learn"),
    ("  r: 16\n", "", 7, "adapter.r", "got nothing", "Rank"),
    ("  learning_rate: 1e-3\n", "", 10, "optimizer.learning_rate", "got nothing", "Peak learning rate"),
    ("adapter:\n  r: 16\n  lora_alpha: 1\n", "", 1, "adapter", "got nothing", "a value"),
    ("steps: 64\n", "", 1, "steps", "got nothing", "Update steps"),
    ("retain: [builtin:wikipedia]\n", "", 1, "retain", "got nothing", "forgetting is measured"),
    # wrong types
    ("builtin:smollm2", "3", 1, "model", "got 3", "text"),
    ("builtin:smollm2", "[a]", 1, "model", "got ['a']", "text"),
    ("builtin:smollm2", "", 1, "model", "got null", "text"),
    ("builtin:smollm2", "''", 1, "model", "got ''", "printable text"),
    ("builtin:smollm2", "' a'", 1, "model", "got ' a'", "without spaces around it"),
    ("builtin:smollm2", '"a\\0b"', 1, "model", "got 'a\\x00b'", "printable text"),
    ("builtin:smollm2", '"\\u202Eb"', 1, "model", "got '\\u202eb'", "printable text"),
    ("builtin:smollm2", '"\\ud800"', 1, "model", "got '\\ud800'", "expected"),
    ("builtin:smollm2", "2024-01-02", 1, "model", "got 2024-01-02", "text"),
    ("  data: builtin:gsm8k", "  data: {a: 1}", 4, "target.data", "got a mapping", "text"),
    ("held_out: 16", "held_out: '16'", 5, "target.held_out", "got '16'", "a whole number"),
    ("[builtin:wikipedia]", "builtin:wikipedia", 6, "retain", "got 'builtin:wikipedia'", "a list"),
    ("[builtin:wikipedia]", "[]", 6, "retain", "got []", "at least 1 item"),
    ("[builtin:wikipedia]", "[a, 3]", 6, "retain", "got 3", "text"),
    ("[builtin:wikipedia]", "\n- a\n- null", 8, "retain", "got null", "text"),
    ("adapter:\n  r: 16\n  lora_alpha: 1", "adapter: 16", 7, "adapter", "got 16", "a mapping"),
    ("adapter:\n  r: 16\n  lora_alpha: 1", "adapter:", 7, "adapter", "got null", "a mapping"),
    ("adapter:\n  r: 16\n  lora_alpha: 1", "adapter: [r]", 7, "adapter", "got ['r']", "a mapping"),
    ("r: 16", "r: true", 8, "adapter.r", "got true", "a whole number"),
    ("r: 16", "r: 16.0", 8, "adapter.r", "got 16.0", "a whole number"),
    ("r: 16", "r: [16]", 8, "adapter.r", "got [16]", "a whole number"),
    ("r: 16", "r: 1e400", 8, "adapter.r", "got inf", "a whole number"),
    ("lora_alpha: 1", "lora_alpha: true", 9, "adapter.lora_alpha", "got true", "a number"),
    ("lora_alpha: 1", "lora_alpha: .inf", 9, "adapter.lora_alpha", "got inf", "a finite number"),
    ("lora_alpha: 1", "use_rslora: 1", 9, "adapter.use_rslora", "got 1", "true or false"),
    ("lora_alpha: 1", "use_rslora: 'yes'", 9, "adapter.use_rslora", "got 'yes'", "true or false"),
    ("lora_alpha: 1", "target_modules: q", 9, "adapter.target_modules", "got 'q'", "'all-linear' or a list"),
    ("lora_alpha: 1", "target_modules: 5", 9, "adapter.target_modules", "got 5", "'all-linear' or a list"),
    ("lora_alpha: 1", "target_modules: [q, 5]", 9, "adapter.target_modules", "got 5", "text"),
    ("lora_alpha: 1", "target_modules: []", 9, "adapter.target_modules", "got []", "at least 1 item"),
    ("1e-3", "'1e-3'", 11, "optimizer.learning_rate", "got '1e-3'", "a number"),
    ("1e-3", ".nan", 11, "optimizer.learning_rate", "got nan", "a finite number"),
    ("1e-3", "1e-3x", 11, "optimizer.learning_rate", "got '1e-3x'", "a number"),
    # wrong values
    ("dtype: float32", "dtype: flaot32", 2, "dtype", "got 'flaot32'", "did you mean 'float32'?"),
    ("dtype: float32", "dtype: bf16", 2, "dtype", "got 'bf16'", "expected 'auto', 'bfloat16', 'float32' or 'nf4'"),
    ("held_out: 16", "held_out: 1", 5, "target.held_out", "got 1", "at least 2"),
    ("[builtin:wikipedia]", "[a, b, a]", 6, "retain", "got ['a', 'b', 'a']", "each name once"),
    ("[builtin:wikipedia]", "[builtin:gsm8k]", 6, "retain", "got ['builtin:gsm8k']", "other texts than the one"),
    ("r: 16", "r: 0", 8, "adapter.r", "got 0", "at least 1"),
    ("r: 16", "r: -4", 8, "adapter.r", "got -4", "at least 1"),
    ("r: 16", "r: 0x" + "f" * 90, 8, "adapter.r", "got a huge number", "expected"),
    ("lora_alpha: 1", "method: LoRa", 9, "adapter.method", "got 'LoRa'", "did you mean 'lora'?"),
    ("lora_alpha: 1", "method: 3", 9, "adapter.method", "got 3", "'lora' or 'full' or 'top-layers'"),
    ("lora_alpha: 1", "method: null", 9, "adapter.method", "got null", "'lora' or 'full' or 'top-layers'"),
    ("lora_alpha: 1", "method: full", 8, "adapter.r", "unknown key", "expected one of method; 'r' is of method lora"),
    ("lora_alpha: 1", "layers: 3", 9, "adapter.layers", "unknown key", "'layers' is of method top-layers"),
    ("lora_alpha: 1", "r_: 3", 9, "adapter.r_", "unknown key", "did you mean 'r'?"),
    ("  r: 16\n  lora_alpha: 1", "  method: top-layers\n  layers: 0", 9, "adapter.layers", "got 0", "at least 1"),
    ("  r: 16\n  lora_alpha: 1", "  method: top-layers\n  layer: 1", 9, "adapter.layer", "unknown", "mean 'layers'?"),
    ("  r: 16\n  lora_alpha: 1", "  method: top-layers", 7, "adapter.layers", "got nothing", "Decoder blocks"),
    (
        "  r: 16\n  lora_alpha: 1",
        "  method: ia3\n  target_modules: []",
        9,
        "adapter.target_modules",
        "got []",
        "1 item",
    ),
    (
        "  r: 16\n  lora_alpha: 1",
        "  method: ia3\n  feedforward_modules: [up_proj]",
        9,
        "adapter.feedforward_modules",
        "got ['up_proj']",
        "some of target_modules",
    ),
    ("  r: 16\n  lora_alpha: 1", "  method: peft", 7, "adapter.peft_type", "got nothing", "PEFT's name"),
    ("  r: 16\n  lora_alpha: 1", "  method: peft\n  peft_type: 3", 9, "adapter.peft_type", "got 3", "text"),
    (
        "  r: 16\n  lora_alpha: 1",
        "  method: peft\n  peft_type: OFT\n  config: 3",
        10,
        "adapter.config",
        "got 3",
        "a mapping",
    ),
    (
        "  r: 16\n  lora_alpha: 1",
        "  method: peft\n  peft_type: OFT\n  config:\n    r: .nan",
        10,
        "adapter.config",
        "got a mapping",
        "values that JSON can hold",
    ),
    (
        "  r: 16\n  lora_alpha: 1",
        "  method: peft\n  peft_type: OFT\n  config:\n    r: 2024-01-02",
        11,
        "adapter.config.r",
        "got 2024-01-02",
        "a value that JSON can hold",
    ),
    ("lora_alpha: 1", "lora_alpha: 0", 9, "adapter.lora_alpha", "got 0", "greater than 0"),
    ("lora_alpha: 1", "lora_dropout: 1", 9, "adapter.lora_dropout", "got 1", "less than 1"),
    ("lora_alpha: 1", "lora_dropout: -.1", 9, "adapter.lora_dropout", "got -0.1", "at least 0"),
    ("lora_alpha: 1", "target_modules: [q, q]", 9, "adapter.target_modules", "got ['q', 'q']", "each name once"),
    ("warmup_steps: 4", "name: adamW8", 12, "optimizer.name", "got 'adamW8'", "did you mean 'adamw'?"),
    ("warmup_steps: 4", "schedule: cosin", 12, "optimizer.schedule", "got 'cosin'", "did you mean 'cosine'?"),
    ("1e-3", "0", 11, "optimizer.learning_rate", "got 0", "greater than 0"),
    ("warmup_steps: 4", "max_grad_norm: 0", 12, "optimizer.max_grad_norm", "got 0", "greater than 0"),
    ("warmup_steps: 4", "warmup_steps: -1", 12, "optimizer.warmup_steps", "got -1", "at least 0"),
    ("warmup_steps: 4", "warmup_steps: 64", 12, "optimizer.warmup_steps", "got 64", "fewer than steps (64)"),
    ("steps: 64", "steps: 0", 13, "steps", "got 0", "at least 1"),
    ("steps: 64", "steps: 5000000000", 13, "steps", "got 5000000000", "at most 1000000000"),
    ("batch_size: 8", "batch_size: auto", 14, "batch_size", "got 'auto'", "a whole number"),
    ("context: 128", "context: 4", 15, "context", "got 4", "at least 8"),
    ("seed: 0", "seed: -1", 16, "seed", "got -1", "at least 0"),
    ("seed: 0", "seed: 4294967296", 16, "seed", "got 4294967296", "less than 4294967296"),
    ("seed: 0", "measure:\n  points: 0", 17, "measure.points", "got 0", "at least 1"),
    ("seed: 0", "measure:\n  documents: 1", 17, "measure.documents", "got 1", "at least 2"),
    ("seed: 0", "gradient_accumulation_steps: 0", 16, "gradient_accumulation_steps", "got 0", "at least 1"),
]

# What only PEFT knows is told at the same places, once its types are loaded.
PEFT = "  method: peft\n  peft_type: LORA\n  config:\n    r: 8\n    "
OWN = [
    ("  method: peft\n  peft_type: LORRA", 9, "adapter.peft_type", "got 'LORRA'", "did you mean 'LORA'?"),
    ("  method: peft\n  peft_type: oft", 9, "adapter.peft_type", "got 'oft'", "did you mean 'OFT'?"),
    ("  method: peft\n  peft_type: ADALORA", 9, "adapter.peft_type", "got 'ADALORA'", "one loop over the loss trains"),
    ("  method: peft\n  peft_type: X-LORA", 9, "adapter.peft_type", "got 'X-LORA'", "one of ADAMSS, BEFT"),
    (PEFT + "use_dorra: true", 12, "adapter.config.use_dorra", "unknown key", "did you mean 'use_dora'?"),
    (PEFT + "inference_mode: true", 12, "adapter.config.inference_mode", "unknown key", "a field of LoraConfig"),
    (PEFT + "use_dora: 1", 12, "adapter.config.use_dora", "got 1", "a valid boolean"),
    (PEFT + "bias: some", 12, "adapter.config.bias", "got 'some'", "'none', 'all' or 'lora_only'"),
    (PEFT + "lora_alpha: '8'", 12, "adapter.config.lora_alpha", "got '8'", "a valid integer"),
    (PEFT + "target_modules: 3", 12, "adapter.config.target_modules", "got 3", "a valid"),
    (PEFT + "init_lora_weights: pisa", 12, "adapter.config.init_lora_weights", "got 'pisa'", "'pissa'"),
    (
        PEFT + "init_lora_weights: pissa_niter_4",
        12, "adapter.config.init_lora_weights", "got 'pissa_niter_4'", "that PEFT can repeat",
    ),
    (PEFT + "init_lora_weights: eva", 12, "adapter.config.init_lora_weights", "got 'eva'", "that PEFT can repeat"),
    (
        "  method: peft\n  peft_type: LORA\n  config:\n    layers_pattern: h",
        10, "adapter.config", "fields that PEFT refuses", "ones it takes",
    ),
]  # fmt: skip

GRIDS = [
    (" 3", 17, "grid", "got 3", "a mapping"),
    (" [adapter.r]", 17, "grid", "got 'adapter.r'", "a mapping"),
    (" []", 17, "grid", "got []", "at least one grid"),
    ("\n- {adapter.r: [4]}\n-", 19, "grid", "got null", "a mapping"),
    ("\n- {adapter.r: [4]}\n- {adapter.r: [4, x]}", 19, "grid.adapter.r", "got 'x'", "a whole number"),
    (
        "\n- {adapter.r: [4]}\n- adapter.r: [8]\n  rank: [4]",
        20,
        "grid.rank",
        "unknown key",
        "did you mean 'adapter.r'?",
    ),
    (f"\n- seed: {[*range(6000)]}\n- seed: {[*range(6000)]}", 17, "grid", "12,000 runs", "at most 10,000"),
    ("\n  adapter.r: {from: 4, to: 64}", 18, "grid.adapter.r.points", "got null", "a whole number from 2 to 1,000"),
    ("\n  adapter.r: {from: 4, to: 64, points: 1}", 18, "grid.adapter.r.points", "got 1", "a whole number from 2"),
    ("\n  adapter.r:\n    from: 4\n    to: x\n    points: 3", 20, "grid.adapter.r.to", "got 'x'", "a number above 0"),
    ("\n  adapter.r: {from: 0, to: 8, points: 3}", 18, "grid.adapter.r.from", "got 0", "a number above 0"),
    ("\n  adapter.r: {from: 1, to: 8, points: 3, by: 2}", 18, "grid.adapter.r.by", "unknown key", "from, to, points"),
    ("\n  adapter.r: {from: 1, to: 8, points: 9}", 18, "grid.adapter.r.points", "9 points from 1 to 8", "once rounded"),
    ("\n  adapter.r: {from: 1.5, to: 6, points: 2}", 18, "grid.adapter.r", "got 1.5", "a whole number"),
    (
        "\n- adapter.r: {from: x, to: 6, points: 2}\n- adapter.r: {from: x}",
        19,
        "grid.adapter.r.to",
        "got null",
        "number",
    ),
    ("\n  adapter.rank: [4]", 18, "grid.adapter.rank", "unknown key", "did you mean 'adapter.r'?"),
    ("\n  lr: [4]", 18, "grid.lr", "unknown key", "did you mean 'optimizer.learning_rate'?"),
    ("\n  adapter: {r: [4]}", 18, "grid.adapter", "got a mapping", "a list of at least one value"),
    ("\n  adapter:\n  - {r: 4}\n  - {rank: 4}", 20, "grid.adapter.rank", "unknown key", "did you mean 'r'?"),
    ("\n  adapter:\n  - {r: 4}\n  - {method: al}", 20, "grid.adapter.method", "got 'al'", "'lora' or 'full'"),
    ("\n  adapter:\n  - {r: 4}\n  - 3", 20, "grid.adapter", "got 3", "a mapping"),
    ("\n  adapter.layers: [1, 2]", 18, "grid.adapter.layers", "unknown key", "'layers' is of method top-layers"),
    ("\n  adapter.method:\n  - lora\n  - foo", 20, "grid.adapter.method", "got 'foo'", "'lora' or 'full'"),
    ("\n  adapter.config.r: [1]", 18, "grid.adapter.config.r", "unknown key", "'config' is of method peft"),
    ("\n  adapter.confg.r: [1]", 18, "grid.adapter.confg.r", "unknown key", "a dotted key of the study"),
    ("\n  adapter.r: []", 18, "grid.adapter.r", "got []", "a list of at least one value"),
    ("\n  adapter.r: 4", 18, "grid.adapter.r", "got 4", "a list of at least one value"),
    ("\n  adapter.r:\n  - 4\n  - x", 20, "grid.adapter.r", "got 'x'", "a whole number"),
    ("\n  adapter.r:\n  - 4\n  - 4", 20, "grid.adapter.r", "got 4 twice", "each value once"),
    ("\n  adapter.r:\n  - 4\n  - 4\n  adapter.r: [2]", 21, "grid.adapter.r", "the key again", "it once"),
    ("\n  lr: [1]\n  adapter.lora_alpha: [1, 1.0]", 19, "grid.adapter.lora_alpha", "1.0 twice", "each value once"),
    ("\n  retain:\n  - [a]\n  - [b, b]", 20, "grid.retain", "['b', 'b']", "each name once"),
    ("\n  seed: [1, 2]\n  retain:\n  - [a]\n  - b", 21, "grid.retain", "got 'b'", "a list"),
    ("\n  steps: [64, 4]\n  measure.points: [2]", 12, "optimizer.warmup_steps", "got 4", "fewer than steps (4)"),
    ("\n  adapter.target_modules:\n  - [q, 1]", 19, "grid.adapter.target_modules", "got 1", "text"),
    (f"\n  seed: {[*range(101)]}\n  steps: {[*range(20, 120)]}", 17, "grid", "10,100 runs", "at most 10,000"),
]

OVERRIDDEN = [
    ("adapter.r=x", "--set adapter.r=x", "adapter.r", "got 'x'", "a whole number"),
    ("adapter.rank=8", "--set adapter.rank=8", "adapter.rank", "unknown key", "did you mean 'r'?"),
    ("lr=8", "--set lr=8", "lr", "unknown key", "did you mean 'learning_rate' under 'optimizer'?"),
    ("x.y.z=8", "--set x.y.z=8", "x", "unknown key", "one of"),
    ("steps=", "--set steps=", "steps", "got null", "a whole number"),
    ("steps=[1", "--set steps=[1", "steps", "got ", "plain 'key: value' lines"),
    (
        "steps=!!python/name:os.system",
        "--set steps=!!python/name:os.system",
        "steps",
        "the tag !!python/name:os.system",
        "a plain value",
    ),
    ("retain=[a,a]", "--set retain=[a,a]", "retain", "got ['a', 'a']", "each name once"),
    ("seed.x=1", "study.yaml:16", "seed", "got 0", "a mapping"),
    ("adapter={rank: 3, r: 4}", "--set adapter={rank: 3, r: 4}", "adapter.rank", "unknown key", "did you mean 'r'?"),
    ("grid.adapter.r=8", "--set grid.adapter.r=8", "grid.adapter.r", "got 8", "a list"),
    ("grid.adapter.r=[8, x]", "--set grid.adapter.r=[8, x]", "grid.adapter.r", "got 'x'", "a whole number"),
    ("grid.rank=[8]", "--set grid.rank=[8]", "grid.rank", "unknown key", "did you mean 'adapter.r'?"),
    ("steps", "--set steps", "", "got 'steps'", "dotted.key=value"),
    ("=3", "--set =3", "", "got '=3'", "dotted.key=value"),
    ("adapter..r=3", "--set adapter..r=3", "", "got 'adapter..r=3'", "dotted.key=value"),
    ("grid.=[3]", "--set grid.=[3]", "", "got 'grid.=[3]'", "dotted.key=value"),
    ("warmup_steps\x1b=3", "--set warmup_steps\\x1b=3", "warmup_steps\\x1b", "unknown key", "one of"),
]

BROKEN = [
    ("\tr: 16", 1, "a tab in the indentation", "spaces"),
    ("a:\n\tr: 16", 2, "a tab in the indentation", "spaces"),
    ("a:\n  r: 16\n\ts: 3", 3, "a tab in the indentation", "spaces"),
    ("a: b: c", 1, "mapping values are not allowed here", "plain 'key: value' lines"),
    ("model: a\nsteps 64\nseed: 1", 2, "could not find expected ':'", "plain 'key: value' lines"),
    ("model: [a", 1, "expected ',' or ']'", "plain 'key: value' lines"),
    ("model: a\nretain: [a, b\nsteps: 3", 3, "expected ',' or ']'", "plain 'key: value' lines"),
    ("model: 'a", 1, "unexpected end of stream", "plain 'key: value' lines"),
    ("model: a\n steps: 3", 2, "mapping values are not allowed here", "plain 'key: value' lines"),
    ("model: a\n- steps", 2, "expected <block end>", "plain 'key: value' lines"),
    ("model: @a", 1, "cannot start any token", "plain 'key: value' lines"),
    ("model: %a", 1, "cannot start any token", "plain 'key: value' lines"),
    ("# \u2028\u2029\u0085#\r#\r\n\tr: 16", 6, "a tab in the indentation", "spaces"),
    ("model: a\n---\nmodel: b", 2, "another document", "plain 'key: value' lines"),
    ("model: a\nseed: \x07", 2, "the character 0x0007", "printable text"),
    ("model: &a b\ndtype: *a", 2, "an alias", "plain 'key: value' lines"),
    ("a: &a [b]\nc: &c [*a, *a]", 2, "an alias", "plain 'key: value' lines"),
    ("a: &a [*a]", 1, "an alias", "plain 'key: value' lines"),
    ("a: *b", 1, "an alias", "plain 'key: value' lines"),
    ("a:\n  " + "[" * 5000, 2, "more than 32 levels", "plain 'key: value' lines"),
    ("\n".join(" " * n + "a:" for n in range(200)), 32, "more than 32 levels", "plain 'key: value' lines"),
    ("%YAML 9.9\n---\na: 1", 1, "found incompatible YAML document", "plain 'key: value' lines"),
    ("model: !foo!bar a", 1, "found undefined tag handle", "plain 'key: value' lines"),
    ("", 1, "nothing", "a mapping"),
    ("# nothing here\n\n", 1, "nothing", "a mapping"),
    ("~", 1, "nothing", "a mapping"),
    ("model: 'a\nseed: 1\n", 1, "unexpected end of stream", "plain 'key: value' lines"),
    ("- model: a", 1, "[{'model': 'a'}]", "a mapping"),
    ("\n\nmodel", 3, "'model'", "a mapping"),
    ("16", 1, "16", "a mapping"),
    ("--- !!set {a}", 1, "the tag !!set", "a plain value"),
]

LOADED = [
    (
        "seed: 0",
        "seed: !!python/object/apply:os.system ['touch canary']",
        16,
        "seed",
        "the tag !!python/object/apply:os.s",
    ),
    ("seed: 0", "seed: !!python/name:os.system", 16, "seed", "the tag !!python/name:os.system"),
    ("seed: 0", "seed: !mine 3", 16, "seed", "the tag !mine"),
    ("seed: 0", "seed: !!int 'x'", 16, "seed", "the tag !!int"),
    ("seed: 0", "seed: !!binary aGk=", 16, "seed", "the tag !!binary"),
    ("  r: 16", "  r: !!python/tuple [1]", 8, "adapter.r", "the tag !!python/tuple"),
    ("[builtin:wikipedia]", "[a, !!python/name:os.system ]", 6, "retain", "the tag !!python/name:os.system"),
    ("seed: 0", "seed: 0\ngrid:\n  seed: [1, !x 2]", 18, "grid.seed", "the tag !x"),
    ("seed: 0", "seed: 010", 16, "seed", "got 010"),
    ("seed: 0", "seed: 1:30", 16, "seed", "got 1:30"),
    ("  lora_alpha: 1", "  lora_alpha: 1:30.5", 9, "adapter.lora_alpha", "got 1:30.5"),
    ("seed: 0", "seed: 0b_", 16, "seed", "got 0b_"),
    ("seed: 0", "seed: 2024-13-45", 16, "seed", "got 2024-13-45"),
    ("seed: 0", "seed: =", 16, "seed", "got ="),
    ("seed: 0", "seed: " + "9" * 5000, 16, "seed", "got 9999"),
    ("seed: 0", "seed: 0\nseed: 1", 17, "seed", "the key again after"),
    ("  r: 16", "  r: 16\n  'r': 4", 9, "adapter.r", "the key again after"),
    ("seed: 0", "? [a, b]\n: 3", 16, "", "a sequence as a key"),
    ("seed: 0", "? {a: b}\n: 3", 16, "", "a mapping as a key"),
    ("  r: 16", "  r: 16\n  [a]: 3", 9, "adapter", "a sequence as a key"),
    ("seed: 0", "<<: {seed: 3}", 16, "<<", "an unknown key"),
]

# Whole files that are no study.
FILES = [
    (b"\xef\xbb\xbf", "study.yaml:1", "nothing", "a mapping"),
    (b"\0", "study.yaml:1", "the character 0x0000", "printable text"),
    (b"model: a\0b", "study.yaml:1", "the character 0x0000", "printable text"),
    (b"model: a\nseed: 0 # caf\xe9\n", "study.yaml:2", "the byte 0xe9", "UTF-8"),
    (b"\xff\xfem\0o\0d\0e\0l\0", "study.yaml:1", "the byte 0xff", "UTF-8"),
    (b"\x80\x04\x95pickle", "study.yaml:1", "the byte 0x80", "UTF-8"),
    (b"PK\x03\x04", "study.yaml:1", "the character 0x0003", "printable text"),
    (b"#" * 100_001, "study.yaml", "more than 100,000 bytes", "a YAML file written by hand"),
    (b"{" * 5_000, "study.yaml:1", "more than 32 levels", "plain 'key: value' lines"),
    (b'{"model": "a"}{"model": "b"}', "study.yaml:1", "broken YAML", "plain 'key: value' lines"),
    (b"<study/>", "study.yaml:1", "'<study/>'", "a mapping"),
    (b"[model]\nname = 1\n", "study.yaml:2", "broken YAML", "plain 'key: value' lines"),
    (b"#!/bin/sh\ntouch canary\n", "study.yaml:2", "'touch canary'", "a mapping"),
]
