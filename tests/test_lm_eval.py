"""Tasks of lm-evaluation-harness, run by itself and paired by item; its tasks here read local files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import yaml

import holdfast
from holdfast.behaviour import ChoiceResult, OutcomeResult
from holdfast.errors import DataError
from holdfast.integrations import lm_eval as integration
from tuned import ALL, LM, adapter

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'holdfast[lm-eval]'")

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.filterwarnings("ignore"),  # of the harness's own libraries
]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with two tasks: choices between three, and a word to be written."""
    rows = [
        {
            "question": f"Which is stalk {i}?", "choices": [f"stalk {i}", f"stalk {i + 1}", "no stalk at all"],
            "answer": i % 3,
        }
        for i in range(14)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test", "doc_to_text": "{{question}}\nAnswer:", "metadata": {"version": 1.0},
    }  # fmt: skip
    metric = {"aggregation": "mean", "higher_is_better": True}
    choose: dict[str, Any] = common | {
        "task": "stalks_choose", "output_type": "multiple_choice", "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": name} | metric for name in ("acc", "acc_norm")],
    }  # fmt: skip
    write: dict[str, Any] = common | {
        "task": "stalks_write", "output_type": "generate_until", "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"} | metric],
    }  # fmt: skip
    folder = tmp_path / "tasks"
    folder.mkdir()
    for task in (choose, write):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture
def moved(tiny: Path, tmp_path: Path) -> Path:
    """An adapter that changed the model a good deal."""
    return adapter(tiny, peft.LoraConfig(r=4, target_modules=ALL, **LM), tmp_path / "moved", std=0.4)


def test_its_choices_are_paired_as_ours_are_and_equal_ours(
    tiny: Path, moved: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    real = integration.HarnessProbe.ask
    monkeypatch.setattr(integration.HarnessProbe, "ask", lambda *a: loads.append(1) or real(*a))
    task = f"lm_eval:{tasks}/stalks_choose"
    run = lambda **more: holdfast.probe(  # noqa: E731
        **{"base": str(tiny), "tuned": [str(tiny), str(moved)], "tasks": [task], "dtype": "float32"} | more
    )
    report = run()
    assert len(loads) == 3
    same, other = report.models
    total, by_character = other.results
    assert isinstance(total, ChoiceResult)
    assert isinstance(by_character, ChoiceResult)
    assert (total.task, total.protocol, by_character.protocol) == ("lm_eval:stalks_choose", "total", "character")
    assert all(result.agreement.value == 1 and not result.change().any() for result in same.results)
    assert total.change().max() > 0
    for scored, size in zip(by_character.tuned_scores, total.tuned_scores, strict=True):
        assert scored == pytest.approx(size / np.array([len("stalk 1"), len("stalk 1"), 15]), rel=0.3)
    assert run().to_dict() == report.to_dict()
    assert len(loads) == 5  # the base's were kept
    assert len(run(limit=5).models[0].results[0].items) == 5
    assert len(loads) == 8  # fewer items are another question


def test_what_it_calls_right_or_wrong_is_paired(tiny: Path, moved: Path, tasks: Path) -> None:
    report = holdfast.probe(
        base=str(tiny), tuned=[str(tiny), str(moved)], tasks=[f"lm_eval:{tasks}/stalks_write"], dtype="float32"
    )
    same, other = (model.results[0] for model in report.models)
    assert isinstance(same, OutcomeResult)
    assert isinstance(other, OutcomeResult)
    assert same.metric == "exact_match"
    assert same.agreement.value == 1
    assert same.base_says == same.tuned_says == other.base_says
    assert other.agreement.value < 1
    assert other.accuracy.n == 14
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["models"][1]["results"][0]["kind"] == "outcomes"
    assert (report.to_frame()["tuned_right"].to_numpy()[14:] == other.tuned).all()
    assert "lm_eval:stalks_write, exact_match: 0.0 % → 0.0 %" in str(report)


def test_a_task_that_is_not_there_is_refused(tiny: Path, tasks: Path) -> None:
    for task, message in {
        "lm_eval:no_such_task": "task 'no_such_task' of lm-evaluation-harness cannot be run",
        f"lm_eval:{tasks}/no_such_task": "cannot be run",
        "lm_eval:": "expected lm_eval:NAME",
        "lm_eval:no/such/folder": "expected lm_eval:NAME",
    }.items():
        with pytest.raises(DataError, match=message):
            holdfast.probe(base=str(tiny), tuned=str(tiny), tasks=[task], dtype="float32")
