"""Malformed models and adapters at the command line: exit code 3 and the place, before any training."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
from transformers import AutoTokenizer

from hostile import SECTION, Tally, command, write_study
from hostile_models import FOLDERS, GARBAGE, RIGHT, Folder, Kind
from hostile_texts import GOOD, SUMS, lines
from tuned import LM, adapter, shaken, tuned_model, write_gguf

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that make the models, as anyone would


@pytest.fixture(scope="module")
def good(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    """A fine-tuned model, a base, and an adapter with the tokenizer beside it."""
    root = tmp_path_factory.mktemp("good")
    whole = tuned_model(tiny, root / "whole", lambda m: shaken(m, std=0.05, only=lambda name: "layers" in name))
    lora = adapter(tiny, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **LM), root / "lora")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(lora)
    return {"whole": whole, "base": whole, "adapter": lora}


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    """A folder with a target and a retained text."""
    (tmp_path / "sums.jsonl").write_bytes(lines(SUMS))
    (tmp_path / "kelp.jsonl").write_bytes(GOOD)
    return tmp_path


def test_there_are_more_than_a_hundred() -> None:
    assert len({(case.group, case.name) for case in FOLDERS}) == len(FOLDERS) >= 140


TALLY = Tally()
CASES = [(case, kind) for case in FOLDERS for kind in case.kinds]


@pytest.mark.parametrize(("case", "kind"), CASES, ids=[f"{case.group}-{case.name}-{kind}" for case, kind in CASES])
def test_a_malformed_folder_is_refused(
    tiny: Path, good: dict[Kind, Path], folder: Path, case: Folder, kind: Kind
) -> None:
    made = Path(shutil.copytree(good[kind], folder / "made"))
    case.make(made)
    answers = []
    if kind != "base":
        answers += [command("measure", tiny, made, "--text", "kelp.jsonl", "--dtype", "float32", folder=folder)]
    else:
        answers += [command("measure", made, tiny, "--text", "kelp.jsonl", "--dtype", "float32", folder=folder)]
        study = write_study(folder, model=made, target="sums.jsonl", retain="kelp.jsonl")
        answers += [command("sweep", study, folder=folder)]
    for answer in answers:
        assert answer.code == 3, answer.err
        assert re.search(case.message, answer.refusal[-1]), answer.err
        assert str(made) in answer.refusal[-1]
        assert len(answer.refusal[-1]) < 900
        assert not answer.out
    assert not list(folder.glob("runs/*"))
    if kind == case.kinds[0]:
        TALLY.add(f"model: {case.group}" if kind != "adapter" else f"adapter: {case.group}", answers[0], folder)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_only_odd_gives_the_same_numbers(tiny: Path, good: dict[Kind, Path], folder: Path, name: str) -> None:
    kind, changes = RIGHT[name]
    made = Path(shutil.copytree(good[kind], folder / "made"))
    for change in changes:
        change(made)
    numbers = []
    for tuned in (good[kind], made):
        answer = command("measure", tiny, tuned, "--text", "kelp.jsonl", "--dtype", "float32", "--json", folder=folder)
        assert answer.code == 0, answer.err
        numbers.append(json.loads(answer.out)["checkpoints"][0]["texts"])
    assert numbers[0] == numbers[1]
    assert numbers[0][0]["kl_base_tuned"]["value"] > 1e-4


GGUFS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "only its first letters": lambda b: b[:4],
    "cut in the head": lambda b: b[:300],
    "cut in the weights": lambda b: b[: len(b) // 2],
    "cut by a byte": lambda b: b[:-1],
    "other letters": lambda b: b"XXXX" + b[4:],
    "another version": lambda b: b[:4] + b"\xff\xff\xff\x7f" + b[8:],
    "2^63 tensors": lambda b: b[:8] + b"\xff" * 7 + b"\x7f" + b[16:],
    "2^63 settings": lambda b: b[:16] + b"\xff" * 7 + b"\x7f" + b[24:],
    "a pickle": lambda _: GARBAGE,
}


@pytest.mark.parametrize("name", GGUFS)
def test_a_malformed_gguf_file_is_refused(tiny: Path, folder: Path, name: str) -> None:
    whole = write_gguf(tiny, folder / "whole.gguf")
    (folder / "made.gguf").write_bytes(GGUFS[name](whole.read_bytes()))
    study = write_study(folder, model="made.gguf", target="sums.jsonl", retain="kelp.jsonl")
    answers = [command("measure", tiny, "made.gguf", "--text", "kelp.jsonl", folder=folder)]
    answers += [command("measure", "made.gguf", tiny, "--text", "kelp.jsonl", folder=folder)]
    answers += [command("sweep", study, folder=folder)]
    for answer in answers:
        assert answer.code == 3, answer.err
        assert "made.gguf" in answer.refusal[-1]
    TALLY.add("model: GGUF files", answers[0], folder)


REAL = ("a mistake in the study", "nested JSON", "a header of 2^64 bytes")


@pytest.mark.parametrize("name", REAL)
def test_a_process_of_its_own_says_the_same(tiny: Path, good: dict[Kind, Path], folder: Path, name: str) -> None:
    made = Path(shutil.copytree(good["base"], folder / "made"))
    arguments = ["sweep", write_study(folder, model=made, target="sums.jsonl", retain="kelp.jsonl")]
    if name == REAL[0]:
        arguments += ["--set", "adapter.rank=3", "--set", "lr=3"]
    elif name == REAL[1]:
        (folder / "kelp.jsonl").write_bytes(b'{"text": ' + b"[" * 100_000)
    else:
        next(case for case in FOLDERS if case.name == name).make(made)
    program = Path(sys.executable).with_name("holdfast")
    ended = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    here = command(*arguments, folder=folder)
    assert (ended.returncode, ended.stdout) == (here.code, "")
    assert ended.stderr == here.err
    assert here.code == (2 if name == REAL[0] else 3)


def test_the_page_tells_of_them(record_property: Callable[[str, object], None]) -> None:
    TALLY.tell(record_property)
    record_property(SECTION, f"model, adapter: odd, and right | {len(RIGHT)} | measured as the ordinary folder is")
