"""What was probed and measured of a study's runs afterwards, as parts of the study's page.

Tables are short, a line per run: figures have every step, and a file inside the page every count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from holdfast.afterwards import Afterwards, Forgotten
from holdfast.behaviour import ChoiceResult, OutcomeResult, ProbeReport, TaskResult
from holdfast.display import short_names, visible
from holdfast.evidence import most_fallen
from holdfast.exchange import exchanges
from holdfast.figures import Chart
from holdfast.forgetting_page import SHOWN_PASSAGES, shown_passage
from holdfast.page import rows_file
from holdfast.probe_figures import Rows, by_task, task_figures
from holdfast.probe_page import CAPTION, answers_grid, asked, exchange_grid, judged, unprobed_grid
from holdfast.refusals import RefusalResult

PASSAGES = 20
"""Of each text."""


def answer_figures(report: ProbeReport, series: Mapping[str, str]) -> dict[str, Chart]:
    """The figures of what was probed, by name; see `probe_figures.task_figures`."""
    return task_figures(report, _names(report), series)


def answer_captions(report: ProbeReport) -> dict[str, str]:
    """What is said of each: choices are the paper's Figure 4."""
    said = {}
    for number, rows in enumerate(by_task(report).values()):
        papers = "The paper's Figure 4: against the truth, and against the base. "
        said[f"answers-{number}"] = f"{papers if isinstance(rows[0][1], ChoiceResult) else ''}{CAPTION}"
        said[f"answers-against-forgetting-{number}"] = f"The same against what each model had forgotten. {CAPTION}"
    return said


def answers(after: Afterwards, drawings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page says of what was probed; None where nothing was. `drawings` are the page's figures by name."""
    report = after.probed
    if report is None:
        return None
    names = _names(report)
    tasks = []
    for number, rows in enumerate(by_task(report).values()):
        last = _last(rows)
        shown = rows.index(max(last, key=_forgotten_of))
        grid = answers_grid(last, names, traced=True)
        tasks.append(asked(number, rows, names, drawings, shown=shown) | {"grid": grid})
    return {
        "tasks": tasks,
        "base": report.base,
        "models": len(report.models),
        "runs": len({model.run for model in report.models}),
        "findings": [str(finding) for finding in report.findings],
        "exchange": exchange_grid(exchanges(report)),
        "judged": judged(report),
        "failed": unprobed_grid(report, names),
        "others": after.others,
        "counts": rows_file(counts(report)),
    }


def passages(forgotten: Sequence[Forgotten]) -> list[dict[str, Any]]:
    """The passages of each text that fell most, over all models, each with its model; none where none was measured."""
    names = short_names([one.model for one in forgotten])
    shown = []
    for corpus in dict.fromkeys(one.corpus for one in forgotten):
        of = [one for one in forgotten if one.corpus == corpus]
        whose = {id(passage): names[one.model] for one in of for passage in one.passages}
        fallen = [
            shown_passage(passage, whose[id(passage)])
            for passage in most_fallen((each for one in of for each in one.passages), most=PASSAGES)
        ]
        shown.append(
            {"name": corpus, "models": len(of), "first": fallen[:SHOWN_PASSAGES], "more": fallen[SHOWN_PASSAGES:]}
        )
    return [text for text in shown if text["first"]]


def counts(report: ProbeReport) -> pd.DataFrame:
    """A row per model and task: the counts that every share of the page is made of, and its own forgetting, nats.

    Of `items`: `both`, `base_only`, `tuned_only`, `neither` have what `counted` says; `same_answer` are as the base's.
    """
    rows = []
    for model, result in report.rows():
        counted, shares, same = _counted(result)
        rows.append(
            {
                "run": visible(model.run), "model": visible(model.name), "step": model.step,
                "task": visible(result.name), "items": shares.n,
                "counted": counted, "both": shares.both, "base_only": shares.lost, "tuned_only": shares.gained,
                "neither": shares.neither, "same_answer": same,
                **{f"kl_base_tuned {visible(corpus)}": kl.value for corpus, kl in model.forgetting.items()},
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _counted(result: TaskResult) -> tuple[str, Any, int | None]:
    """What is counted of a result, its paired shares, and how many answers are the base's."""
    if isinstance(result, ChoiceResult | OutcomeResult):
        return "right", result.accuracy, result.agreement.count
    if isinstance(result, RefusalResult):
        return "refused", result.refusals, None
    return "refusal likelier", result.favoured, None


def _last(rows: Rows) -> Rows:
    """The last probed step of each run."""
    return list({model.run: (model, result) for model, result in rows}.values())


def _forgotten_of(row: Any) -> float:
    return max((kl.value for kl in row[0].forgetting.values()), default=0.0)


def _names(report: ProbeReport) -> dict[str, str]:
    return short_names([model.name for model in report.models])
