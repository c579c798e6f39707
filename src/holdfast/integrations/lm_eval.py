"""Tasks of lm-evaluation-harness, by name: its prompts, its scoring and its forward passes, paired by item as ours are.

The harness's own cache, which does not know whose answers it holds, is never used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.answering import Tell
from holdfast.behaviour import ChoiceResult, OutcomeResult, TaskResult
from holdfast.errors import ConfigError, DataError, first_line
from holdfast.meter import measuring
from holdfast.models import Base, Tokenizer, Tuned, autocast
from holdfast.probes import Answers, AskBase
from holdfast.questions import Protocol, chosen

PREFIX = "lm_eval:"
BATCH_SIZE = 8
"""Of base and tuned alike, because batch shape alone moves floating-point results."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HarnessProbe:
    """A task of the harness. `asked` are its requests as the harness would send them, without any model."""

    task: str
    folder: str | None
    limit: int | None
    asked: tuple[str, ...]
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        """Of the task."""
        return f"{PREFIX}{self.task}"

    @property
    def work(self) -> float:
        """Tokens that asking passes through a model, about."""
        return sum(map(len, self.asked)) / 4

    @property
    def base_work(self) -> float:
        """As many."""
        return self.work

    def prepared(self, ask: AskBase) -> PreparedHarness:
        """The same with the base's answers."""
        identity = {
            "probe": "lm_eval", "task": self.task, "lm_eval": version("lm_eval"), "batch_size": str(BATCH_SIZE),
            "requests": hashlib.sha256(json.dumps(self.asked).encode()).hexdigest(),
        }  # fmt: skip
        return PreparedHarness(probe=self, base=ask(identity, self.work, self.ask))

    def ask(self, model: Base | Tuned, tell: Tell) -> Answers:
        """Per item: its prompt, the right choice, each choice with its log-likelihood, and every metric."""
        from lm_eval.models.huggingface import HFLM

        with _quiet():
            lm = HFLM(pretrained=model, tokenizer=self.tokenizer, batch_size=BATCH_SIZE, device=str(model.device))
            with measuring(model), autocast(model):
                samples = _evaluated(self.task, self.folder, self.limit, lm)
        tell(1.0)
        return [_item(sample) for sample in samples]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedHarness:
    """A task of the harness with the base's answers."""

    probe: HarnessProbe
    base: Answers

    def results(self, model: Base | Tuned, tell: Tell) -> tuple[TaskResult, ...]:
        """Choices where the task has them and they are all the task looks at, and each yes-or-no metric otherwise."""
        tuned = self.probe.ask(model, tell)
        if all(item["choices"] and isinstance(item["target"], int) for item in (*self.base, *tuned)):
            by_length = all("acc_norm" in item["metrics"] for item in self.base)
            protocols: tuple[Protocol, ...] = ("total", "character") if by_length else ("total",)
            return tuple(self._choices(protocol, tuned) for protocol in protocols)
        return tuple(self._outcomes(metric, tuned) for metric in self._yes_or_no(tuned))

    def _choices(self, protocol: Protocol, tuned: Answers) -> ChoiceResult:
        scored = [
            tuple(
                np.array([value / (len(said) if protocol == "character" else 1) for said, value in item["choices"]])
                for item in answers
            )
            for answers in (self.base, tuned)
        ]
        return ChoiceResult(
            task=self.probe.name, protocol=protocol, items=tuple(item["id"] for item in self.base),
            questions=tuple(item["prompt"] for item in self.base),
            choices=tuple(tuple(said for said, _ in item["choices"]) for item in self.base),
            answers=np.array([item["target"] for item in self.base]),
            base=np.array([chosen(list(each)) for each in scored[0]]),
            tuned=np.array([chosen(list(each)) for each in scored[1]]), base_scores=scored[0], tuned_scores=scored[1],
        )  # fmt: skip

    def _yes_or_no(self, tuned: Answers) -> list[str]:
        items = (*self.base, *tuned)
        found = [name for name in self.base[0]["metrics"] if all(item["metrics"].get(name) in (0, 1) for item in items)]
        if not found:
            names = ", ".join(self.base[0]["metrics"]) or "none"
            raise DataError(f"got metrics {names}, expected one that is 0 or 1 for every item, at {self.probe.name}")
        return found

    def _outcomes(self, metric: str, tuned: Answers) -> OutcomeResult:
        return OutcomeResult(
            task=self.probe.name, metric=metric, items=tuple(item["id"] for item in self.base),
            prompts=tuple(item["prompt"] for item in self.base),
            base=np.array([item["metrics"][metric] == 1 for item in self.base]),
            tuned=np.array([item["metrics"][metric] == 1 for item in tuned]),
            base_says=tuple(item["says"] for item in self.base), tuned_says=tuple(item["says"] for item in tuned),
        )  # fmt: skip


def harness_probes(task: str, *, tokenizer: Tokenizer, limit: int | None) -> list[HarnessProbe]:
    """The probe of `lm_eval:NAME`, or of `lm_eval:FOLDER/NAME` for a task whose YAML lies in a folder of yours.

    `limit` takes the first items, as the harness does.

    Raises:
        ConfigError: lm-evaluation-harness is not installed.
        DataError: it has no such task, or cannot load it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(f"got task {task!r}, which needs lm-evaluation-harness: pip install 'holdfast[lm-eval]'")
    folder, _, name = task.removeprefix(PREFIX).rpartition("/")
    if not name or (folder and not Path(folder).is_dir()):
        raise DataError(f"got task {task!r}, expected lm_eval:NAME, or a folder with its YAML before the name")
    recorder = _recorder()
    with _quiet():
        _evaluated(name, folder or None, limit, recorder)
    if not recorder.asked:
        raise DataError(f"got no items, expected at least one, at {task}")
    return [
        HarnessProbe(
            task=name, folder=folder or None, limit=limit, asked=tuple(recorder.asked), tokenizer=tokenizer
        )
    ]  # fmt: skip


def _evaluated(task: str, folder: str | None, limit: int | None, lm: Any) -> list[dict[str, Any]]:
    """The harness's own samples of one task, in order."""
    import lm_eval

    try:
        found: Any = lm_eval.simple_evaluate(
            model=lm, tasks=[task], limit=limit, bootstrap_iters=0, log_samples=True,
            task_manager=_known(folder),
        )  # fmt: skip
    except Exception as error:  # the library raises many kinds, its own and its data sets'
        raise DataError(f"task {task!r} of lm-evaluation-harness cannot be run: {first_line(error)}") from error
    samples: list[dict[str, Any]] = [
        sample | {"of": name} for name, of in sorted(found["samples"].items()) for sample in of
    ]
    return sorted(samples, key=lambda sample: (sample["of"], sample["doc_id"]))


@functools.cache
def _known(folder: str | None) -> Any:
    """The harness's index of its fourteen thousand tasks, and of a folder's."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder)


def _item(sample: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one of the harness's samples."""
    arguments = list(sample["arguments"].values() if isinstance(sample["arguments"], dict) else sample["arguments"])
    pairs = [list(one.values()) if isinstance(one, dict) else list(one) for one in arguments]
    answers = sample["filtered_resps"]
    chances = all(isinstance(answer, list | tuple) and len(answer) == 2 for answer in answers)
    choices = (
        [[str(pair[1]).removeprefix(" "), float(answer[0])] for pair, answer in zip(pairs, answers, strict=True)]
        if chances and len(pairs) == len(answers) > 1
        else []
    )
    target = sample["target"]
    return {
        "id": f"{sample['of']}/{sample['doc_id']}",
        "prompt": str(pairs[0][0]),
        "target": target if isinstance(target, int) and not isinstance(target, bool) else None,
        "choices": choices,
        "says": "" if chances else str(answers[0]),
        "metrics": {name: _number(sample.get(name)) for name in sample["metrics"]},
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) else None


def _recorder() -> Any:
    """A model of the harness that answers nothing and notes what it is asked."""
    from lm_eval.api.model import LM

    class Recorder(LM):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []

        def _note(self, requests: Sequence[Any]) -> None:
            self.asked += [json.dumps(request.args, default=str, ensure_ascii=False) for request in requests]

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            self._note(requests)
            return [(0.0, False) for _ in requests]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            self._note(requests)
            return [0.0 for _ in requests]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            self._note(requests)
            return ["" for _ in requests]

    return Recorder()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The harness's notices and bars off; its errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
