"""What tuned models forgot, as one HTML page for a reader who knows neither us nor the models.

First the number and what may be said of it, then what could be mistaken for it, then where it is. A section whose data
do not exist is not there.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from holdfast.display import short_names
from holdfast.evidence import QUANTILES, UNMEASURABLE, CorpusReport, Passage
from holdfast.figures import Chart
from holdfast.forgetting import Checkpoint, ForgettingReport
from holdfast.measured_figures import along_training, by_kind, by_text
from holdfast.page import Cell, Grid, figure_entries, heads, interval, render, unbroken
from holdfast.stats import Estimate, rounded

KINDS_OF_VERDICT = {
    "over budget": "over", UNMEASURABLE: "unknown", "within budget": "within", "forgetting measured": "measured",
    "identical": "within",
}  # fmt: skip
"""Of each verdict in the style sheet."""

NAMED = 3
"""Measurements named in a sentence; of more it says how many they are."""

SHOWN_PASSAGES = 5
"""Of each text, before a reader asks for more."""

Measurement = tuple[Checkpoint, CorpusReport]


def forgetting_page(
    report: ForgettingReport,
    *,
    max_forgetting: float | None,
    title: str,
    commands: Sequence[str],
    provenance: Mapping[str, Any],
) -> str:
    """A measurement as one self-contained HTML page.

    `max_forgetting` is the budget in nats per token, None without one. `commands` are what a reader types to make the
    page again; `provenance` is whatever says where the numbers come from, nested as it likes.

    The page makes no request and runs one script, which its content security policy names by its hash. The same
    arguments give the same page, byte for byte.
    """
    names = short_names([checkpoint.name for checkpoint in report.checkpoints])
    measured = [checkpoint for checkpoint in report.checkpoints if checkpoint.texts]
    last = measured[-1] if measured else None
    texts = {name for checkpoint in measured for name in checkpoint.texts}
    runs = _runs(measured)
    compared = measured[-1:] if runs else measured
    charts = _charts(measured[-1:], compared, runs, max_forgetting)
    entries = figure_entries(charts, _captions(measured, compared, names))
    return render(
        "forgetting.html.j2",
        style="forgetting.css",
        title=title,
        drawings=entries,
        commands=commands,
        provenance=provenance,
        content={
            "headline": unbroken(_headline(last, names)),
            "verdict": _verdict(report, max_forgetting, names) if last else None,
            "measured": f"{_counted(len(measured), 'tuned model')} on {_counted(len(texts), 'text')}",
            "unmeasured": len(report.checkpoints) - len(measured),
            "base": report.base,
            "quantised": report.quantised,
            "in_words": unbroken(_in_words(_most_forgotten(last).kl_base_tuned) or "") if last else None,
            "facts": _facts(last) if last else [],
            "findings": _findings(report, names),
            "measurements": _measurements(report, max_forgetting, names),
            "judged_apart": any(text.role == "target" for _, text in report.rows()),
            "drawn": dict.fromkeys(("along", "texts", "kinds"))
            | {entry["name"]: entry | {"number": i + 1} for i, entry in enumerate(entries)},
            "last_within": [] if max_forgetting is None else _last_within(runs, max_forgetting, names),
            "quantisation": _quantisation(report, last),
            "passages": _passages(last) if last else [],
            "of_model": names[last.name] if last and len(measured) > 1 else None,
            "failed": _failed(report, names),
        },
    )


def _headline(last: Checkpoint | None, names: Mapping[str, str]) -> str:
    """What the last checkpoint forgot, in a sentence that can be quoted."""
    if last is None:
        return "No tuned model could be measured, so what was forgotten is not known."
    judged, name = _judged(last), names[last.name]
    most, texts = _most_forgotten(last), len(judged)
    if most.identical:
        return f"{name} forgot nothing on {most.corpus if texts == 1 else f'{texts} texts'}: not one prediction moved."
    kl = most.kl_base_tuned
    known = f"95 % interval {_interval(kl)}" if math.isfinite(kl.stderr) else "no interval from one document"
    return (
        f"{name} forgot {_value(kl)} nats per token on {most.corpus} ({known})"
        f"{'' if texts == 1 else f', the most of {texts} texts'}; "
        f"{_percent(most.agreement)} of its next-token choices are still the base’s."
    )


def _judged(last: Checkpoint) -> list[CorpusReport]:
    """The texts to be retained, if there are any: what was learned is meant to move."""
    texts = list(last.texts.values())
    return [text for text in texts if text.role == "retain"] or texts


def _most_forgotten(last: Checkpoint) -> CorpusReport:
    return max(_judged(last), key=lambda text: text.kl_base_tuned.value)


def _verdict(report: ForgettingReport, max_forgetting: float | None, names: Mapping[str, str]) -> dict[str, str]:
    """The gravest verdict of all, whose it is, and why."""
    verdict = report.verdict(max_forgetting)
    judged = [(checkpoint, text) for checkpoint, text in report.rows() if text.role == "retain"]
    those = [(checkpoint, text) for checkpoint, text in judged if text.verdict(max_forgetting) == verdict]
    budget = "" if max_forgetting is None else f"the budget of {max_forgetting:g} nats per token"
    asked = f"it is within {budget}" if budget else "anything was forgotten"
    said = {
        "over budget": f"Over {budget}.",
        "within budget": f"Within {budget}.",
        UNMEASURABLE: f"Whether {asked} is not measurable with this much text.",
        "forgetting measured": "Forgetting measured: more than chance.",
        "identical": "Identical to the base.",
    }
    why = [_whose(those, judged, names)] if len(judged) > 1 else []
    if verdict == UNMEASURABLE and those:
        why.append(_why_unmeasurable([text for _, text in those], max_forgetting))
    return {"kind": KINDS_OF_VERDICT[verdict], "short": said[verdict], "why": " ".join(why)}


def _whose(those: Sequence[Measurement], judged: Sequence[Measurement], names: Mapping[str, str]) -> str:
    if len(those) == len(judged):
        return f"That holds for {'both' if len(judged) == 2 else f'all {len(judged)}'} measurements."
    if len(those) > NAMED:
        return f"That holds for {len(those)} of {len(judged)} measurements."
    several = len({checkpoint.name for checkpoint, _ in judged}) > 1
    said = [f"{names[point.name]} on {text.corpus}" if several else text.corpus for point, text in those]
    return f"That holds for {', '.join(said)}."


def _why_unmeasurable(texts: Sequence[CorpusReport], max_forgetting: float | None) -> str:
    if any(text.documents < 2 for text in texts):
        return "One document gives no interval; more documents would."
    if max_forgetting is not None:
        return f"The interval reaches from below the budget of {max_forgetting:g} to above it; more text narrows it."
    least = max(text.minimum_detectable_effect for text in texts)
    return f"Less than {least:.2g} nats per token cannot be told from chance here; more text shows less."


def _in_words(kl: Estimate) -> str | None:
    """Forgetting as a fall in probability: p's geometric mean of q/p is exp(−KL)."""
    if not kl.value > 0:
        return None
    fall = -100 * math.expm1(-kl.value)
    return (
        f"{rounded(kl.value, kl.stderr)} nats mean that what the base would say next has become {fall:.2g} % less "
        "probable, on (geometric) average."
    )


def _facts(last: Checkpoint) -> list[tuple[str, Cell]]:
    """The last checkpoint at a glance: one text by its parts, several by their forgetting."""
    texts = list(last.texts.values())
    if len(texts) > 1:
        return [(f"Forgetting on {text.corpus}, nats per token", _estimated(text.kl_base_tuned)) for text in texts]
    (text,) = texts
    facts = [
        ("Forgetting, nats per token", _estimated(text.kl_base_tuned)),
        ("Next-token choices still the base’s", _share(text.agreement)),
    ]
    if text.tokens is not None:
        facts.append(("One token in 100 moved by more than this many nats", Cell(_tail(text, 0.99))))
    amount = f"{_counted(text.documents, 'document')}, {text.scored_tokens:,} tokens"
    return [*facts, ("Smallest forgetting that this much text shows", Cell(_detectable(text), amount))]


def _findings(report: ForgettingReport, names: Mapping[str, str]) -> list[dict[str, str]]:
    """Each finding once, and of which models where it is not of all."""
    holders = {
        finding: [names[point.name] for point in report.checkpoints if finding in point.findings]
        for finding in report.findings
    }
    alone = len(report.checkpoints) == 1
    return [
        {
            "what": finding.what,
            "consequence": finding.consequence,
            "where": "" if alone or len(who) in (0, len(report.checkpoints)) else f"of {', '.join(who)}",
        }
        for finding, who in holders.items()
    ]


def _measurements(report: ForgettingReport, max_forgetting: float | None, names: Mapping[str, str]) -> Grid | None:
    """Every model on every text; a model that is alone is named above."""
    several = sum(bool(point.texts) for point in report.checkpoints) > 1
    rows = [
        [
            *([Cell(names[point.name], _step(point, names), kind="name")] if several else []),
            Cell(text.corpus, "not judged" if text.role == "target" else "", kind="text"),
            _estimated(text.kl_base_tuned),
            Cell(verdict, kind=KINDS_OF_VERDICT[verdict]),
            *(Cell(_tail(text, q)) for q in QUANTILES),
            _share(text.agreement),
            Cell(_value(text.excess_nll), _interval(text.excess_nll)),
            Cell(_detectable(text)),
            Cell(f"{text.documents:,}", f"{text.scored_tokens:,}"),
        ]
        for point, text in report.rows()
        for verdict in [text.verdict(max_forgetting if text.role == "retain" else None)]
    ]
    quantiles = [f"{100 * q:g}th" if q != 0.5 else "Median" for q in QUANTILES]
    numbers = heads([*quantiles, "Agreement", "Change of loss", "Detectable", "Documents, tokens"], texts=0)
    columns = [
        *heads(["Model", "Text"] if several else ["Text"], texts=2),
        Cell("Forgetting"),
        Cell("Verdict", kind="text"),
        *numbers,
    ]
    return Grid("Measurements", columns, rows) if rows else None


def _charts(
    last: Sequence[Checkpoint],
    compared: Sequence[Checkpoint],
    runs: Mapping[str, Sequence[Checkpoint]],
    max_forgetting: float | None,
) -> dict[str, Chart]:
    """The figures there are data for: along training where a run has two checkpoints, bars where there are two."""
    charts = {}
    if runs:
        charts["along"] = along_training(runs, max_forgetting=max_forgetting)
    if sum(len(point.texts) for point in compared) + (max_forgetting is not None) > 1:
        charts["texts"] = by_text(compared, max_forgetting=max_forgetting)
    if any(text.tokens is not None for point in last for text in point.texts.values()):
        charts["kinds"] = by_kind(last[0])
    return charts


def _captions(
    measured: Sequence[Checkpoint], compared: Sequence[Checkpoint], names: Mapping[str, str]
) -> dict[str, str]:
    """Under each figure, saying of which model it is where there are several."""
    bars = "Whiskers are 95 % intervals over documents, cut at 0, which no KL is below"
    of_last = f"Of {names[measured[-1].name]}, the last. " if len(measured) > 1 else ""
    return {
        "along": "A mark per checkpoint, with its 95 % interval over documents. Nothing was measured between them.",
        "texts": (of_last if len(compared) == 1 else "") + f"{bars}.",
        "kinds": f"{of_last}{bars}; a kind with few tokens has a wide one.",
    }


def _runs(measured: Iterable[Checkpoint]) -> dict[str, list[Checkpoint]]:
    """Runs that were measured after two different steps at least; a checkpoint's run is the folder it lies in."""
    found: dict[str, list[Checkpoint]] = {}
    for checkpoint in measured:
        if checkpoint.step is not None:
            found.setdefault(checkpoint.name.rpartition("/checkpoint-")[0] or checkpoint.name, []).append(checkpoint)
    return {run: points for run, points in found.items() if len({point.step for point in points}) > 1}


def _last_within(
    runs: Mapping[str, Sequence[Checkpoint]], max_forgetting: float, names: Mapping[str, str]
) -> list[str]:
    """How far each run could go: its last checkpoint that is within the budget on every text to be retained."""
    sentences = []
    for run, points in runs.items():
        within = [
            point
            for point in points
            if {t.verdict(max_forgetting) for t in point.texts.values() if t.role == "retain"} == {"within budget"}
        ]
        of_run = f" of {run}" if len(runs) > 1 else ""
        sentences.append(
            f"The last checkpoint{of_run} that is within the budget on every text is {names[within[-1].name]}."
            if within
            else f"No checkpoint{of_run} is within the budget on every text."
        )
    return sentences


def _quantisation(report: ForgettingReport, last: Checkpoint | None) -> Grid | None:
    """What quantising changed beside what tuning changed, a line per text."""
    if not report.quantisation:
        return None
    rows = [
        [
            Cell(name, kind="text"),
            _estimated(damage.kl_base_tuned),
            _share(damage.agreement),
            *([Cell("–"), Cell("–")] if tuned is None else [_estimated(tuned.kl_base_tuned), _share(tuned.agreement)]),
        ]
        for name, damage in report.quantisation.items()
        for tuned in [last.texts.get(name) if last else None]
    ]
    columns = ("Text", "Quantising changed, nats per token", "agreement", "Tuning forgot, nats per token", "agreement")
    return Grid("Quantisation", heads(columns, texts=1), rows)


def _passages(last: Checkpoint) -> list[dict[str, Any]]:
    return [
        {"name": text.corpus, "first": fallen[:SHOWN_PASSAGES], "more": fallen[SHOWN_PASSAGES:]}
        for text in last.texts.values()
        for fallen in [[shown_passage(passage) for passage in text.passages]]
        if fallen
    ]


def shown_passage(passage: Passage, model: str = "") -> dict[str, str]:
    """A passage as a page shows it, and of which model where there are several."""
    return {
        "place": passage.place,
        "model": model,
        "before": passage.before.lstrip(" "),
        "token": _shown(passage.token),
        "after": passage.after,
        "base_probability": _chance(math.exp(-passage.base_nll)),
        "probability": _chance(math.exp(-passage.nll)),
        "base_says": _shown(passage.base_says),
        "base_says_probability": _chance(passage.base_says_probability),
        "tuned_says": _shown(passage.tuned_says),
        "tuned_says_probability": _chance(passage.tuned_says_probability),
    }


def _shown(token: str) -> str:
    """A token as it is; one of nothing but white space by signs for it."""
    return token if token.strip() else token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or "nothing"


def _failed(report: ForgettingReport, names: Mapping[str, str]) -> Grid | None:
    rows = [
        [Cell(names[point.name], _step(point, names), kind="name"), Cell(point.failure, kind="words")]
        for point in report.checkpoints
        if point.failure is not None
    ]
    columns = [Cell("Model", kind="text"), Cell("Reason", kind="words")]
    return Grid("Models that could not be measured", columns, rows) if rows else None


def _step(checkpoint: Checkpoint, names: Mapping[str, str]) -> str:
    """Unless the name says it."""
    known = checkpoint.step is None or str(checkpoint.step) in names[checkpoint.name]
    return "" if known else f"step {checkpoint.step:,}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _estimated(estimate: Estimate) -> Cell:
    return Cell(str(estimate) if math.isfinite(estimate.stderr) else _value(estimate), _interval(estimate))


def _share(share: Estimate) -> Cell:
    percent = _hundredfold(share)
    return Cell(_percent(share), interval(*percent.interval(), percent.stderr))


def _percent(share: Estimate) -> str:
    return f"{_value(_hundredfold(share))} %"


def _hundredfold(share: Estimate) -> Estimate:
    return Estimate(value=100 * share.value, stderr=100 * share.stderr, n=share.n)


def _interval(estimate: Estimate) -> str:
    return interval(*estimate.interval(), estimate.stderr)


def _value(estimate: Estimate) -> str:
    return rounded(estimate.value, estimate.stderr)


def _tail(text: CorpusReport, probability: float) -> str:
    """A percentile of single tokens, where there are tokens enough to have one."""
    found = None if text.tokens is None else text.quantile(probability)
    return "–" if found is None or math.isnan(found.value) else _value(found)


def _detectable(text: CorpusReport) -> str:
    effect = text.minimum_detectable_effect
    return "unknown" if math.isnan(effect) else f"{effect:.2g}"


def _chance(probability: float) -> str:
    """A probability in per cent, with two digits wherever it lies."""
    percent = 100 * probability
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %" if percent >= 0.01 else "below 0.01 %"
