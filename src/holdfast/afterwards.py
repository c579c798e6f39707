"""What was probed and measured of a study's runs once they were made: kept beside them, found again by their page.

    runs/afterwards/<kind>-<hash>.json.gz   a call of `holdfast probe` or `measure`: its items, answers, passages

Models are named as they lie in the folder of runs, so that it can be moved. A call that is made again replaces its
file; of one model asked the same twice the later answer counts. No torch here: a page is made of these on a laptop.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from holdfast import files
from holdfast.behaviour import ChoiceResult, OutcomeResult, ProbedModel, ProbeReport, TaskResult
from holdfast.errors import StoreError, first_line
from holdfast.evidence import Passage
from holdfast.forgetting import Finding, ForgettingReport
from holdfast.questions import PROTOCOLS
from holdfast.refusals import RefusalOdds, RefusalResult, Said
from holdfast.stats import Estimate
from holdfast.store import read_run

FOLDER = "afterwards"

KINDS = {"choices": ChoiceResult, "outcomes": OutcomeResult, "refusals": RefusalResult, "odds": RefusalOdds}

OF_TUNED = ("tuned", "tuned_scores", "tuned_says", "own_change")
"""Fields of a result that are one model's; the others, items and the base's answers, are many models' in common."""


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What one tuned model forgot of one text: nats per token, and the passages that fell most in probability."""

    model: str
    run: str
    step: int
    corpus: str
    kl_base_tuned: Estimate
    passages: tuple[Passage, ...]


@dataclass(frozen=True, kw_only=True)
class Afterwards:
    """All that is kept beside a folder of runs; `others` says what is there and not among it, and why."""

    probed: ProbeReport | None
    forgotten: tuple[Forgotten, ...]
    others: tuple[str, ...]

    def on(self, corpus: str) -> Self:
        """The same, and of what each probed model forgot that of one retained text alone."""
        if self.probed is None:
            return self
        models = tuple(
            replace(model, forgetting={name: kl for name, kl in model.forgetting.items() if name == corpus})
            for model in self.probed.models
        )
        return replace(self, probed=replace(self.probed, models=models))


def keep(report: ProbeReport | ForgettingReport) -> tuple[Path, ...]:
    """Keep what a report says of runs' models beside those runs, a file for each folder of runs; the files written.

    A report's models are found by their names, which are paths from here; what is none of a run's is left out.

    Raises:
        ResourceError: a file cannot be written.
    """
    written = []
    for root, places in _roots(report).items():
        held = _probed(report, places) if isinstance(report, ProbeReport) else _measured(report, places, root)
        kind = "probe" if isinstance(report, ProbeReport) else "measure"
        asked = json.dumps([kind, sorted(places.values()), held["asked"]])
        path = root / FOLDER / f"{kind}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.json.gz"
        content = json.dumps({"kind": kind, "at": time.time(), **held}, separators=(",", ":"))
        with files.refusing(path):
            files.make_folder(path.parent)
            files.write(path, gzip.compress(content.encode(), mtime=0))
        written.append(path)
    return tuple(written)


def read_afterwards(root: Path, runs: Iterable[str]) -> Afterwards:
    """What is kept beside a folder of runs of those among them that are named.

    Of several samples of one task's items, the one that most models were asked: answers to others do not compare.

    Raises:
        StoreError: a file is damaged, or of another version.
    """
    known = set(runs)
    probes: list[_Asked] = []
    texts: dict[tuple[str, str], Forgotten] = {}
    for held in sorted(map(_read, sorted((root / FOLDER).glob("*.json.gz"))), key=lambda one: one.at):
        probes += [held] if isinstance(held, _Asked) else []
        found = held.forgotten if isinstance(held, _Texts) else ()
        texts |= {(one.model, one.corpus): one for one in found if one.run in known}
    probed, others = _together(probes, known)
    return Afterwards(probed=probed, forgotten=tuple(texts.values()), others=others)


def copy(root: Path, to: Path) -> None:
    """Put what is kept beside a folder of runs beside a page of it as well.

    Raises:
        ResourceError: it cannot be written.
    """
    for path in sorted((root / FOLDER).glob("*.json.gz")):
        with files.refusing(to):
            files.make_folder(to / FOLDER)
            files.write(to / FOLDER / path.name, path.read_bytes())


def _roots(report: ProbeReport | ForgettingReport) -> dict[Path, dict[str, str]]:
    """Each folder of runs, and of its models what they are called in the report and in the folder."""
    found: dict[Path, dict[str, str]] = {}
    for name in [model.name for model in (report.models if isinstance(report, ProbeReport) else report.checkpoints)]:
        path = _folder(name)
        if path and all((path.parent / part).is_file() for part in ("config.json", "records.jsonl")):
            found.setdefault(path.parent.parent, {})[name] = f"{path.parent.name}/{path.name}"
    return found


def _folder(name: str) -> Path | None:
    """The folder that a model's name is; a name may be anything, and no path a disk takes."""
    with contextlib.suppress(OSError, ValueError):
        path = Path(name).resolve()
        return path if path.is_dir() else None
    return None


def _probed(report: ProbeReport, places: Mapping[str, str]) -> dict[str, Any]:
    """A probe's models that lie in one folder of runs, with what all were asked written once."""
    asked: dict[str, int] = {}  # what was asked, and its number
    models: list[dict[str, Any]] = []
    for model in (one for one in report.models if one.name in places):
        results = []
        for result in model.results:
            held = {field.name: _plain(getattr(result, field.name)) for field in fields(result)}
            own = {name: held.pop(name) for name in OF_TUNED if name in held}
            kind = next(name for name, made in KINDS.items() if isinstance(result, made))
            common = json.dumps({"kind": kind, **held})
            results.append({"sample": asked.setdefault(common, len(asked)), **own})
        place = places[model.name]
        models.append(
            {
                "name": place, "run": place.split("/")[0], "step": model.step, "merged": model.merged,
                "forgetting": {corpus: kl.to_dict() for corpus, kl in model.forgetting.items()},
                "findings": [asdict(one) for one in model.findings], "failure": model.failure, "results": results,
            }
        )  # fmt: skip
    return {
        "base": report.base,
        "dtype": report.dtype,
        "device": report.device,
        "asked": list(map(json.loads, asked)),
        "models": models,
    }


def _plain(value: Any) -> Any:
    """What JSON can hold, NaN included."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Said):
        return asdict(value)
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """One call of a probe; `sample` tells which items and base each result is of, by model and task."""

    at: float
    report: ProbeReport
    sample: Mapping[tuple[str, str], str]


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """One call of a measurement."""

    at: float
    forgotten: tuple[Forgotten, ...]


def _read(path: Path) -> _Asked | _Texts:
    try:
        held = json.loads(gzip.decompress(path.read_bytes()))
        return _read_probe(held) if held["kind"] == "probe" else _read_measured(held)
    except (OSError, EOFError, zlib.error, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"got an unreadable file ({first_line(error)}), expected what a probe or measurement found; remove it, ask "
            f"again, at {path}"
        ) from error


def _read_probe(held: Mapping[str, Any]) -> _Asked:
    digests = [hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest() for one in held["asked"]]
    models, sample = [], {}
    for one in held["models"]:
        results = []
        for own in one["results"]:
            results.append(_result({**held["asked"][own["sample"]], **own}))
            sample[str(one["name"]), results[-1].name] = digests[own["sample"]]
        models.append(
            ProbedModel(
                name=str(one["name"]), step=None if one["step"] is None else int(one["step"]), run=str(one["run"]),
                forgetting={str(corpus): Estimate.from_dict(kl) for corpus, kl in one["forgetting"].items()},
                merged=bool(one["merged"]), results=tuple(results),
                findings=tuple(map(_finding, one["findings"])),
                failure=None if one["failure"] is None else str(one["failure"]),
            )
        )  # fmt: skip
    about = {name: str(held[name]) for name in ("base", "dtype", "device")}
    return _Asked(at=float(held["at"]), report=ProbeReport(**about, models=tuple(models)), sample=sample)


TEXTS = ("items", "questions", "prompts", "base_says", "tuned_says")
ARRAYS: Mapping[str, Mapping[str, type]] = {
    "choices": {"answers": int, "base": int, "tuned": int},
    "outcomes": {"base": bool, "tuned": bool},
    "refusals": {"own_change": float},
    "odds": {"tokens": int, "base": float, "tuned": float},
}


def _result(held: Mapping[str, Any]) -> TaskResult:
    """A result from its fields, each made what it is, and as many of each as there are items."""
    of = {name: part for name, part in held.items() if name not in ("kind", "sample")}
    of |= {name: _strings(of[name]) for name in TEXTS if name in of}
    of |= {name: np.array(of[name], dtype=kind) for name, kind in ARRAYS[held["kind"]].items()}
    if held["kind"] == "choices":
        of |= {
            name: tuple(np.array(each, dtype=float) for each in of[name]) for name in ("base_scores", "tuned_scores")
        }
        of["choices"] = tuple(map(_strings, of["choices"]))
        chosen = zip(
            of["choices"], of["base_scores"], of["tuned_scores"], of["answers"], of["base"], of["tuned"], strict=True
        )
        if of["protocol"] not in PROTOCOLS or any(
            not len(each) == len(b) == len(t) or not all(0 <= one < len(each) for one in picks)
            for each, b, t, *picks in chosen
        ):
            raise ValueError("choices and answers that do not belong together")
    if held["kind"] == "refusals":
        of |= {role: tuple(_said(one) for one in of[role]) for role in ("base", "tuned")}
        of["agreement"] = _strings(of["agreement"])
    per_item = [name for name in of if name in TEXTS or name in ARRAYS[held["kind"]] or name in ("base", "tuned")]
    if {len(of[name]) for name in per_item} != {len(of["items"])}:
        raise ValueError("lists of different lengths")
    made: TaskResult = KINDS[held["kind"]](**of)
    return made


def _finding(held: Mapping[str, Any]) -> Finding:
    return Finding(what=str(held["what"]), consequence=str(held["consequence"]))


def _said(held: Mapping[str, Any]) -> Said:
    return Said(
        text=str(held["text"]), tokens=int(held["tokens"]), ended=bool(held["ended"]), verdict=str(held["verdict"]),
        score=float(held["score"]), string_match=bool(held["string_match"]),
    )  # fmt: skip


def _strings(texts: Iterable[Any]) -> tuple[str, ...]:
    return tuple(map(str, texts))


def _together(asked: Sequence[_Asked], known: set[str]) -> tuple[ProbeReport | None, tuple[str, ...]]:
    """Several calls as one report, each task with the sample of items that most models were asked."""
    models: dict[str, ProbedModel] = {}
    answers: dict[str, dict[str, dict[str, TaskResult]]] = {}  # by task, sample, model
    for one in asked:
        for model in (each for each in one.report.models if each.run in known):
            models[model.name] = model
            for result in model.results:
                samples = answers.setdefault(result.name, {})
                mine = samples.pop(one.sample[model.name, result.name], {})
                samples[one.sample[model.name, result.name]] = mine | {model.name: result}  # now the latest
    if not models:
        return None, ()
    chosen = {task: max(reversed(samples.values()), key=len) for task, samples in answers.items()}
    made = []
    for name, model in sorted(models.items(), key=lambda each: (each[1].run, each[1].step or 0, each[0])):
        results = tuple(of[name] for of in chosen.values() if name in of)
        made.append(replace(model, results=results, failure=None if results else model.failure))
    others = [
        f"{task}: {left} answers to other items, or of another base, do not compare and are left out"
        for task, samples in answers.items()
        if (left := sum(map(len, samples.values())) - len(chosen[task]))
    ]
    about = {
        name: ", ".join(dict.fromkeys(getattr(one.report, name) for one in asked))
        for name in ("base", "dtype", "device")
    }
    return ProbeReport(**about, models=tuple(made)), tuple(others)


def _measured(report: ForgettingReport, places: Mapping[str, str], root: Path) -> dict[str, Any]:
    """Of a measurement's models that lie in one folder of runs, each text that was to be retained."""
    models = []
    for one in (each for each in report.checkpoints if each.name in places):
        run = places[one.name].split("/")[0]
        texts = [
            {
                "corpus": text.corpus,
                "kl_base_tuned": text.kl_base_tuned.to_dict(),
                "passages": [asdict(passage) for passage in text.passages],
            }
            for text in one.texts.values()
            if text.role == "retain"
        ]
        step = one.step if one.step is not None else read_run(root / run).config.steps
        models.append({"name": places[one.name], "run": run, "step": step, "texts": texts})
    return {
        "base": report.base,
        "asked": sorted({name for one in report.checkpoints for name in one.texts}),
        "models": models,
    }


def _read_measured(held: Mapping[str, Any]) -> _Texts:
    forgotten = [
        Forgotten(
            model=str(one["name"]), run=str(one["run"]), step=int(one["step"]), corpus=str(text["corpus"]),
            kl_base_tuned=Estimate.from_dict(text["kl_base_tuned"]),
            passages=tuple(map(_passage, text["passages"])),
        )
        for one in held["models"]
        for text in one["texts"]
    ]  # fmt: skip
    return _Texts(at=float(held["at"]), forgotten=tuple(forgotten))


PASSAGE_TEXTS = ("place", "before", "token", "after", "base_says", "tuned_says")
PASSAGE_NUMBERS = ("base_nll", "nll", "base_says_probability", "tuned_says_probability")


def _passage(held: Mapping[str, Any]) -> Passage:
    texts: dict[str, Any] = {field: str(held[field]) for field in PASSAGE_TEXTS}
    return Passage(**texts | {field: float(held[field]) for field in PASSAGE_NUMBERS})
