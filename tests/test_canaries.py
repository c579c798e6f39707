"""Files that would run code if they were trusted: every command is given them, and none lets them."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jinja2
import peft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from damage import ADAPTER, WEIGHTS, claims, config, entries, gone, raw, tokens
from hostile import SECTION, Answer, command, write_study
from hostile_texts import GOOD, SUMS, lines
from tuned import LM, adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that make the models, as anyone would

PICKLES = (
    "pytorch_model.bin", "adapter_model.bin", "model.pt", "model.pth", "model.ckpt", "optimizer.pt", "optimizer.bin",
    "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.pkl", "tokenizer.pkl", "tf_model.h5",
    "flax_model.msgpack", "random_states_0.pkl", "consolidated.00.pth",
)  # fmt: skip
CODE = (
    "modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "evil.py", "custom_generate/generate.py",
    "sitecustomize.py", "conftest.py", "setup.py", "__init__.py", "handler.py",
)  # fmt: skip


class Payload:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "CANARY"


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    (tmp_path / "sums.jsonl").write_bytes(lines(SUMS))
    (tmp_path / "kelp.jsonl").write_bytes(GOOD)
    return tmp_path


@pytest.fixture(scope="module")
def plain(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lora = adapter(tiny, peft.LoraConfig(r=4, target_modules=["q_proj"], **LM), tmp_path_factory.mktemp("a") / "lora")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(lora)
    return lora


def sow(folder: Path, canary: Path) -> None:
    """Pickles and scripts by every name that libraries look for."""
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))
    for name in CODE:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(script(canary))


def script(canary: Path) -> str:
    return (
        f"import os; os.makedirs({str(canary)!r}, exist_ok=True)\n"
        "from transformers import LlamaConfig as C, LlamaForCausalLM as M, PreTrainedTokenizerFast as T\n"
        "generate = print\n"
    )


def test_the_payloads_work(folder: Path, canary: Path) -> None:
    """Without this the rest would pass for nothing."""
    pickle.loads(pickle.dumps(Payload(canary)))  # noqa: S301
    assert canary.is_dir()
    canary.rmdir()
    exec(script(canary), {})  # noqa: S102
    assert canary.is_dir()
    for name, template in ESCAPES.items():
        if "popen" in template:
            canary.rmdir()
            jinja2.Environment().from_string(told(template, canary)).render(messages=[])  # noqa: S701
            assert canary.is_dir(), name


def measured(tiny: Path, tuned: Path, folder: Path, text: str = "kelp.jsonl") -> Answer:
    return command("measure", tiny, tuned, "--text", text, "--dtype", "float32", folder=folder)


def swept(model: Path, folder: Path, target: str = "sums.jsonl") -> Answer:
    return command("sweep", write_study(folder, model=model, target=target, retain="kelp.jsonl"), folder=folder)


def test_nothing_beside_the_weights_runs(tiny: Path, plain: Path, folder: Path, canary: Path) -> None:
    whole, lora = (Path(shutil.copytree(source, folder / name)) for name, source in (("w", tiny), ("a", plain)))
    for made in (whole, lora):
        sow(made, canary)
    entries("pytorch_model.bin.index.json", weight_map={"x": "pytorch_model.bin"})(whole)
    config(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})(whole)
    claims(auto_mapping={"base_model_class": "M", "parent_library": "evil"})(lora)
    answers = [measured(tiny, whole, folder), measured(tiny, lora, folder), swept(whole, folder)]
    assert [answer.code for answer in answers] == [0, 0, 0], answers
    assert not canary.exists()


def test_nothing_instead_of_the_weights_runs(tiny: Path, plain: Path, folder: Path, canary: Path) -> None:
    whole, lora = (Path(shutil.copytree(source, folder / name)) for name, source in (("w", tiny), ("a", plain)))
    for made, weights in ((whole, WEIGHTS), (lora, ADAPTER)):
        sow(made, canary)
        gone(weights)(made)
    answers = [measured(tiny, whole, folder), measured(tiny, lora, folder), swept(whole, folder)]
    for made, weights in ((whole, WEIGHTS), (lora, ADAPTER)):
        raw(weights, lambda _: pickle.dumps(Payload(canary)))(made)
    answers += [measured(tiny, whole, folder), measured(tiny, lora, folder), swept(whole, folder)]
    assert [answer.code for answer in answers] == [3] * 6
    assert not canary.exists()


REMOTE: dict[str, Callable[[Path], object]] = {
    "a model": config(model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
    "a model of a known kind": config(architectures=["M"], auto_map={"AutoModelForCausalLM": "evil.M"}),
    "a model elsewhere": config(model_type="evil", auto_map={"AutoModelForCausalLM": "evil/repo--evil.M"}),
    "a tokenizer": tokens(tokenizer_class="T", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]}),
    "a trusting config": config(trust_remote_code=True, model_type="evil", auto_map={"AutoConfig": "evil.C"}),
    "a trusting tokenizer": tokens(trust_remote_code=True, tokenizer_class="T", auto_map={"AutoTokenizer": "evil.T"}),
    "an attention kernel": config(attn_implementation="evil/kernel", _attn_implementation="evil/kernel"),
    "an activation": config(hidden_act="__import__('os').mkdir('CANARY')"),
    "a type": config(dtype="os.mkdir('CANARY')"),
    "a quantisation": config(quantization_config={"quant_method": "evil", "modules_to_not_convert": ["evil.M"]}),
}


@pytest.mark.parametrize("name", REMOTE)
def test_code_that_a_model_names_is_not_run(name: str, tiny: Path, folder: Path, canary: Path) -> None:
    made = Path(shutil.copytree(tiny, folder / "made"))
    sow(made, canary)
    REMOTE[name](made)
    for answer in (measured(tiny, made, folder), measured(made, tiny, folder), swept(made, folder)):
        assert answer.code in (0, 3), answer.err
    assert not canary.exists()


# Chat templates: a program that comes with a model and is run, in a sandbox.
ESCAPES = {
    "by the globals of a helper": "{{ cycler.__init__.__globals__.os.popen('mkdir CANARY').read() }}",
    "by the globals of a macro": "{{ lipsum.__globals__['os'].popen('mkdir CANARY').read() }}",
    "by the classes of a text": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "by an attribute made of parts": "{{ ''|attr('__cla' ~ 'ss__')|attr('mro') }}",
    "by a format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "by a format with a map": "{{ '{m.__class__.__mro__}'.format_map({'m': messages}) }}",
    "by its own module": "{{ self.__init__.__globals__ }}",
    "by the functions given to it": "{{ raise_exception.__globals__['os'].mkdir('CANARY') }}",
    "by code of a function": "{{ raise_exception.__code__.co_consts }}",
    "by an import": "{% import 'os' as os %}{{ os.mkdir('CANARY') }}",
    "by a file": "{% include '/etc/passwd' %}",
    "by a change of the messages": "{{ messages.append(messages[0]) }}{{ messages.clear() }}",
}
FAILING = {
    "raises": "{{ raise_exception('no such role') }}",
    "has no end": "{% for i in range(10 ** 12) %}{{ i }}{% endfor %}",
    "is broken": "{% for m in messages %}{{ m.content }",
    "knows no such thing": "{{ nothing.of.the.kind }}",
    "divides by nothing": "{{ 1 // 0 }}",
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "is a number": "5",
    "says nothing": "",
}


def told(template: str, canary: Path) -> str:
    return template.replace("CANARY", str(canary))


@pytest.mark.parametrize("name", [*ESCAPES, *FAILING])
def test_a_template_cannot_act(name: str, tiny: Path, folder: Path, canary: Path) -> None:
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    (folder / "chat.jsonl").write_bytes(lines([{"messages": [*turns, *turns[: 2 * n]]} for n in range(4)]))
    made = Path(shutil.copytree(tiny, folder / "made"))
    (made / "chat_template.jinja").write_text(told({**ESCAPES, **FAILING}[name], canary))
    for answer in (measured(made, made, folder, "chat.jsonl"), swept(made, folder, "chat.jsonl")):
        assert answer.code == 3, answer.err
        assert "chat.jsonl:" in answer.refusal[-1]
    assert not canary.exists()


def test_data_is_only_data(tiny: Path, folder: Path, canary: Path) -> None:
    evil = pickle.dumps(Payload(canary))
    kind = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": evil}
    schema = pa.schema([pa.field("text", pa.string(), metadata=kind)], metadata={"pandas": evil, "huggingface": evil})
    pq.write_table(pa.table({"text": ["kelp and tide", "rock"]}, schema=schema), folder / "a.parquet")
    data = folder / "org" / "name"
    data.mkdir(parents=True)
    sow(data, canary)
    (data / "name.py").write_text(script(canary))
    (data / "rows.jsonl").write_bytes(GOOD)
    for spec, code in (("a.parquet", 0), ("org/name", 0), ("org/name@train", 3), ("org/name/optimizer.pt", 3)):
        assert measured(tiny, tiny, folder, spec).code == code, spec
    assert not canary.exists()


def test_a_folder_of_runs_is_only_data(tiny: Path, folder: Path, canary: Path) -> None:
    assert swept(tiny, folder).code == 0
    (run,) = (path for path in (folder / "runs").iterdir() if path.is_dir())
    for place in (folder / "runs", run, run / "adapter"):
        sow(place, canary)
    for arguments in (["status"], ["fit"], ["report"], ["sweep"]):
        where = ["study.yaml"] if arguments == ["sweep"] else ["runs"]
        assert command(*arguments, *where, folder=folder).code in (0, 3)
    assert not canary.exists()


def test_modules_in_the_working_folder_are_not_taken_for_libraries(folder: Path, canary: Path) -> None:
    for name in ("torch", "yaml", "json", "holdfast", "sitecustomize", "transformers", "readline"):
        (folder / f"{name}.py").write_text(script(canary))
    program = Path(sys.executable).with_name("holdfast")
    ended = subprocess.run([program, "schema"], cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["title"] == "Holdfast study"
    assert not canary.exists()


def test_the_page_tells_of_them(record_property: Callable[[str, object], None]) -> None:
    beside = len(PICKLES) + len(CODE)
    record_property(SECTION, f"pickles and scripts beside, and instead of, weights | {beside} names | none was run")
    record_property(SECTION, f"configs that name code (`auto_map` and the like) | {len(REMOTE)} | none was run")
    record_property(
        SECTION, f"chat templates that reach out, fail or do not end | {len(ESCAPES) + len(FAILING)} | exit code 3"
    )
    record_property(SECTION, "pickles and scripts in data sets, run folders, the working folder | 3 | none was run")
