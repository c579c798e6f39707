"""`holdfast.probe` from end to end: find the models and items, check the pairs, ask the base once, ask every tuned one.

The base is loaded only for what is not yet kept of its answers, and let go before a tuned model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from holdfast import adapters, answercache, answering, basecache, checks, models, sources
from holdfast.behaviour import ProbedModel, ProbeReport, TaskResult
from holdfast.errors import ConfigError, DataError, ModelError
from holdfast.forgetting import Finding
from holdfast.items import SIDE_BY_SIDE, read_items
from holdfast.judges import model_judge
from holdfast.kernels import fastest_dtype
from holdfast.models import Base, Tokenizer, Tuned
from holdfast.probes import Answers, AskBase, ChoiceProbe, Prepared, Probe, choice_probes
from holdfast.prompt_probes import Judge, PromptProbe, built_in_judge, prompt_probe
from holdfast.questions import PROTOCOLS
from holdfast.sources import Candidate
from holdfast.stats import Estimate
from holdfast.store import read_run

Tell = Callable[[str, float], None]
"""Given what is being done, and the share of all work that is done."""

VIRTUAL = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT")
"""Adapters that put tokens of their own before a text, after which no mask can be laid."""


def probe(
    *,
    tuned: str | Sequence[str],
    base: str | None = None,
    tasks: Sequence[str] = ("arc_challenge",),
    protocols: Sequence[str] = ("character",),
    limit: int | None = None,
    max_new_tokens: int = 128,
    judge: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    tell: Tell = lambda _what, _share: None,
) -> ProbeReport:
    """What tuned models answer where their base answered something else.

        report = holdfast.probe(base="builtin:smollm2", tuned="outputs", tasks=["arc_challenge", "quiz.jsonl"])

    Args:
        tuned: PEFT adapter folders, whole models (folders, hub ids, GGUF files), a trainer's folder of `checkpoint-*`,
            or runs of `holdfast.sweep`, one or a folder of them: what was probed is then set against the forgetting
            that they measured (see `exchange`).
        base: the untuned model; None where the adapters' own configs name it. It is always loaded as itself, never as
            a tuned model with its adapter switched off.
        tasks: `arc_challenge`, `arc_easy`; `advbench`, `xstest`; `side_by_side` (40 questions answered freely); a file
            or hub set of questions or prompts (see `items.read_items`); `lm_eval:` and the name of a task of
            lm-evaluation-harness; `refusal_logodds`, or `refusal_logodds:` and a set of prompts, for which no tuned
            model writes anything.
        protocols: how choices are scored, of `questions.PROTOCOLS`; the same items under several are several results.
        limit: items of each task, the same ones however many more there are; None: all.
        max_new_tokens: of an answer to a prompt.
        judge: a causal language model that is asked what each answer is, in place of `judging.judge`.
        dtype: `float32`, `bfloat16`, or `auto`, the faster here.
        device: `auto`, `cpu`, `cuda`, …
        tell: is told of progress.

    Raises:
        ConfigError: an argument is not one of those.
        ModelError: a model cannot be loaded, or no number about the pair could mean anything.
        DataError: a task cannot be asked.
    """
    _check(tasks, protocols, limit, max_new_tokens, dtype)
    place = models.choose_device(device)
    dtype = fastest_dtype(place) if dtype == "auto" else dtype
    specs = [tuned] if isinstance(tuned, str) else list(tuned)
    found = [candidate for spec in specs for candidate in sources.candidates(models.locate(spec), spec=spec)]
    base = base or sources.named_base(found)
    reference = _Reference(base, dtype=dtype, device=place)
    findings, refused = checks.check_pairs(
        found, base=base, path=reference.path, quantised=None, tokenizer=reference.tokenizer
    )
    virtual = any(candidate.adapter_config.get("peft_type") in VIRTUAL for candidate in found)
    shared = not virtual and reference.shares()
    judged = built_in_judge() if judge is None else model_judge(judge, dtype=dtype, device=place)
    asked = _Asked(
        protocols=protocols, tokens=max_new_tokens, tokenizer=reference.tokenizer, shared=shared, judge=judged
    )
    probes = asked.all_probes(tasks, limit)
    progress = _Progress(tell, sum(one.base_work + one.work * len(findings) for one in probes))
    prepared = [one.prepared(reference.asker(one.name, progress)) for one in probes]
    reference.release()
    probed = []
    for candidate in found:
        noted = findings.get(candidate.name, ())
        try:
            if why := refused.get(candidate.name):
                raise ModelError(why)
            one = _probe_one(candidate, reference, probes, prepared, noted, progress, shared)
        except ModelError as error:
            if len(found) == 1:
                raise
            one = _probed(candidate, findings=noted, failure=str(error))
        probed.append(one)
    return ProbeReport(base=base, dtype=dtype, device=place, models=tuple(probed))


def _check(tasks: Sequence[str], protocols: Sequence[str], limit: int | None, tokens: int, dtype: str) -> None:
    if dtype not in ("auto", "bfloat16", "float32"):
        raise ConfigError(f"got {dtype!r}, expected auto, bfloat16 or float32, at dtype")
    if limit is not None and limit < 1:
        raise ConfigError(f"got {limit}, expected at least 1 item, at limit")
    if tokens < 1:
        raise ConfigError(f"got {tokens}, expected at least 1 token, at max_new_tokens")
    unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
    if unknown or not protocols:
        raise ConfigError(f"got {unknown or 'none'}, expected some of {', '.join(PROTOCOLS)}, at protocols")
    if not tasks or len(set(tasks)) < len(tasks):
        raise ConfigError(f"got {list(tasks)}, expected at least one task, each once, at tasks")


LOG_ODDS = "refusal_logodds"

OPEN_QUESTIONS = 40
"""Of `side_by_side`, unless told how many: they are to be read."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """How whatever is asked is asked."""

    protocols: Sequence[str]
    tokens: int
    tokenizer: Tokenizer
    shared: bool
    judge: Judge

    def all_probes(self, tasks: Sequence[str], limit: int | None) -> list[Probe]:
        """What the tasks put to each model; log-odds of refusals that come with the prompts' own task only there."""
        made = [one for task in tasks for one in self.probes(task, limit)]
        sets = {one.items.fingerprint: one.items.name for one in made if isinstance(one, ChoiceProbe | PromptProbe)}
        if len(set(sets.values())) < len(sets):
            raise DataError(f"got tasks named {sorted(sets.values())}, expected a name of its own each, at tasks")
        answered = {one.items.fingerprint for one in made if isinstance(one, PromptProbe) and one.generates}
        return [
            one
            for one in made
            if not isinstance(one, PromptProbe) or one.generates or one.items.fingerprint not in answered
        ]

    def probes(self, task: str, limit: int | None) -> Sequence[Probe]:
        """What a task puts to each model."""
        if task.startswith("lm_eval:"):
            from holdfast.integrations.lm_eval import harness_probes

            return harness_probes(task, tokenizer=self.tokenizer, limit=limit)
        name, _, of = task.partition(":")
        odds = name == LOG_ODDS
        items = read_items((of or "advbench") if odds else task)
        items = items.sample(OPEN_QUESTIONS if task == SIDE_BY_SIDE and limit is None else limit)
        if items.kind == "prompts":
            return [
                prompt_probe(
                    items, tokenizer=self.tokenizer, tokens=self.tokens, generates=not odds, shared=self.shared,
                    judge=self.judge,
                )
            ]  # fmt: skip
        if odds:
            raise DataError(f"got questions with choices, expected prompts, at {task}")
        wanted = [protocol for protocol in PROTOCOLS if protocol in self.protocols]
        return choice_probes(items, wanted, tokenizer=self.tokenizer, shared=self.shared)


class _Progress:
    """How much of the work is done, counted in tokens through a model. A class because it counts."""

    def __init__(self, tell: Tell, total: float) -> None:
        self._tell, self._total, self._done = tell, max(total, 1.0), 0.0

    def of(self, what: str, work: float) -> Callable[[float], None]:
        """What tells of a part of the work, given the share of it that is done."""
        before = self._done

        def told(share: float) -> None:
            self._done = before + share * work
            self._tell(what, min(self._done / self._total, 1.0))

        told(0.0)
        return told


class _Reference:
    """The base and what it answers. A class because it holds the loaded model for as long as it is needed."""

    def __init__(self, spec: str, *, dtype: str, device: str) -> None:
        self.spec, self.dtype, self.device = spec, dtype, device
        self.path, self.tokenizer = models.locate(spec), models.load_tokenizer(spec)
        self._model: Base | None = None
        self._identity = basecache.base_identity(
            weights=sources.files_fingerprint(self.path), tokenizer=checks.tokenizer_fingerprint(self.tokenizer),
            quantisation=None, dtype=dtype, device=device,
        )  # fmt: skip

    def model(self) -> Base:
        """The base itself, loaded when first needed."""
        if self._model is None:
            self._model = models.load_base(self.spec, dtype=self.dtype, device=self.device)
        return self._model

    def shares(self) -> bool:
        """Whether a text's continuations can stand in one row, see `answering.shares`; found once and kept."""
        found = answercache.kept({**self._identity, "probe": "shares"}, lambda: answering.shares(self.model()))
        return bool(found)

    def asker(self, name: str, progress: _Progress) -> AskBase:
        """How a probe of this name asks the base: what it answered is found as kept, or given now and kept."""

        def ask(
            identity: Mapping[str, str], work: float, ask: Callable[[Base | Tuned, Callable[[float], None]], Answers]
        ) -> Answers:
            told = progress.of(f"{self.spec} on {name}", work)
            found: Answers = answercache.kept({**self._identity, **identity}, lambda: ask(self.model(), told))
            told(1.0)  # what was found as kept is done as well
            return found

        return ask

    def release(self) -> None:
        """Let the loaded model go."""
        self._model = None


def _probe_one(
    candidate: Candidate, reference: _Reference, probes: Sequence[Probe], prepared: Sequence[Prepared],
    findings: Sequence[Finding], progress: _Progress, shared: bool,
) -> ProbedModel:  # fmt: skip
    """One tuned model on every probe."""
    model, merged, more = _load(candidate, reference)
    if shared and not answering.shares(model):
        raise ModelError(
            f"{candidate.name}: got a model whose tokens cannot be told what not to see, unlike its base's"
        )
    results: list[TaskResult] = []
    for one, ready in zip(probes, prepared, strict=True):
        told = progress.of(f"{candidate.name} on {one.name}", one.work)
        results += ready.results(model, told)
        told(1.0)
    return _probed(candidate, merged=merged, findings=(*findings, *more), results=tuple(results))


def _probed(
    candidate: Candidate, *, findings: Sequence[Finding], merged: bool = False, results: Sequence[TaskResult] = (),
    failure: str | None = None,
) -> ProbedModel:  # fmt: skip
    """What came of a candidate, with its run's own measurements of forgetting at that step, if one of ours made it."""
    folder, step = candidate.path.parent, candidate.step
    forgetting = {}
    if (folder / "records.jsonl").is_file():
        run = read_run(folder)
        step = run.config.steps if step is None else step
        forgetting = {
            one.corpus: Estimate(value=value, stderr=stderr, n=one.documents)
            for one in run.measurements
            for value, stderr in [one.values["kl_base_tuned"]]
            if one.step == step and one.role == "retain"
        }
    several = step is not None and candidate.path.is_dir()
    return ProbedModel(
        name=candidate.name, step=step, run=str(folder if several else candidate.path), forgetting=forgetting,
        merged=merged, findings=tuple(findings), results=tuple(results), failure=failure,
    )  # fmt: skip


def _load(candidate: Candidate, reference: _Reference) -> tuple[Base | Tuned, bool, tuple[Finding, ...]]:
    """A tuned model, whether its adapter was merged, and what its own weights gave away."""
    if not candidate.adapter:
        adapters.check_unchanged(candidate.path)
        return models.load_base(str(candidate.path), dtype=reference.dtype, device=reference.device), False, ()
    standing = models.load_base(reference.spec, dtype=reference.dtype, device=reference.device)
    more: tuple[Finding, ...] = ()
    if (candidate.path.parent / "provenance.json").is_file():
        more = checks.check_weights(candidate, models.weights_fingerprint(standing), reference.dtype)
    tuned = adapters.load_adapter(standing, str(candidate.path))
    whole = adapters.merged(tuned)
    return (tuned, False, more) if whole is None else (whole, True, more)
