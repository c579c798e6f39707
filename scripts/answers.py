"""The paper's questions, answered by a folder of runs: tables for its README, from its `runs.parquet` alone.

    python scripts/answers.py studies/smollm2-135m       # writes the tables of its README.md

Of each kind of text learned, the runs trained as most were answer; other ways of training are held to their laws. The
first 15 % of each run's steps are left out of every fit. No model, no torch.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from holdfast.afterwards import read_afterwards
from holdfast.archive import table
from holdfast.behaviour import ChoiceResult
from holdfast.fits import Fit, fit_law
from holdfast.forms import Forms, compare_forms
from holdfast.formulas import LINE, MULTIPLICATIVE, SATURATING
from holdfast.points import points
from holdfast.presets import PUBLISHED, published
from holdfast.proportions import percent
from holdfast.refusals import RefusalOdds
from holdfast.slopes import prices, slope_equality
from holdfast.stats import Estimate, between_share
from holdfast.study_figures import with_series

sys.path.insert(0, str(Path(__file__).parent))
from next_run import replaced
from stored_study import interval, markdown

SKIP = 0.15
"""Share of each run's first steps that no fit uses."""

KL, HARD, LOSS = "kl_base_tuned", "hard_cross_entropy", "target_nll"
LEAST_RUNS = 3
"""Below which a group has no answers of its own."""

NAMES = {LOSS: "loss", KL: "forgetting", HARD: "hard forgetting"}


def main() -> None:
    """Write the tables that a study's README has a place for, and what the front page says of it."""
    folder = Path(sys.argv[1])
    runs, page = with_series(table(folder)), folder / "README.md"
    text = page.read_text(encoding="utf-8")
    for name, answer in {**answers(runs), "answered": partial(answered, folder, runs)}.items():
        text = replaced(text, name, answer()) if f"<!-- {name} -->" in text else text
    page.write_text(text, encoding="utf-8")
    front = Path(__file__).parent.parent / "README.md"
    said = front.read_text(encoding="utf-8")
    if f"<!-- {folder.name} -->" in said:
        front.write_text(replaced(said, folder.name, headline(runs)), encoding="utf-8")


def headline(runs: pd.DataFrame) -> str:
    """The study in four lines, for the front page."""
    every = dict(measured(runs))
    kinds, texts = (list(dict.fromkeys(names)) for names in zip(*every, strict=True))
    lines = [fit_law(LINE, part, KL, huber=math.inf) for part in every.values()]
    prices = [line.parameters["slope"].value / 10 for line in lines]
    doubled, r2 = [gap(part).value for part in every.values()], [line.r2 for line in lines]
    number = sum(part["run"].nunique() for part in every.values()) // len(texts)
    orders = [[_price(run) for _, run in part.groupby("seed")] for part in _repeated(runs)]
    return textwrap.fill(
        f"{number} runs of the built-in model that learned {' or '.join(kinds)} say so too, of {' and '.join(texts)}: "
        f"forgetting is a line in the loss (R² {min(r2):.2f} to {max(r2):.2f}), each 0.1 nat learned costs "
        f"{min(prices):.3f} to {max(prices):.3f} nats, and at equal loss each doubling of the rank adds "
        f"{min(doubled):.3f} to {max(doubled):.3f}. The order of batches, which such intervals do not count, moved one "
        f"run's price by up to {max(max(each) / min(each) for each in orders):.1f} times "
        "([studies/smollm2-135m](studies/smollm2-135m/README.md)).",
        width=120, break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def answers(runs: pd.DataFrame) -> dict[str, Callable[[], str]]:
    """What makes each table, as Markdown, by its name in a README."""
    of_laws = {
        "line": line, "rank": rank, "forms": best, "against": against, "equal": equal, "common": common
    }  # fmt: skip
    of_runs = {"made": made, "same": same, "seeds": seeds, "others": others, "early": early, "ends": ends}
    every = dict(measured(runs))
    return {name: partial(answer, every) for name, answer in of_laws.items()} | {
        name: partial(answer, runs) for name, answer in of_runs.items()
    }


def measured(runs: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """What each text learned and each text retained have for a law: runs trained as most were, of the first seed."""
    main = _as_most(runs)
    for _, part in main[main["seed"] == main["seed"].min()].groupby("target"):
        if part["run"].nunique() < LEAST_RUNS:
            continue
        for corpus in sorted(part.loc[part["role"] == "retain", "corpus"].unique(), reverse=True):
            found = points(part, corpus=corpus, skip_fraction=SKIP)
            yield (str(found["target"].iloc[0]), corpus), found


def _as_most(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows of finished runs that differ in rank and seed alone."""
    usual = runs["series"].astype(str).str.isdecimal() & (runs["learning_rate"] == runs["learning_rate"].mode()[0])
    return runs[usual & (runs["state"] == "done")]


def made(runs: pd.DataFrame) -> str:
    """Which runs there are."""
    done = runs[(runs["state"] == "done") & (runs["role"] == "target")].sort_values("step")
    last = done.drop_duplicates("run", keep="last")
    rows = [("learned", "runs", "rank or method", "loss before", "loss after, least to most")]
    for name, part in last.groupby("corpus"):
        after, series = part["nll"], part["series"].cat.remove_unused_categories().cat.categories
        ends = f"{after.min():.3f} to {after.max():.3f}"
        rows.append((str(name), str(len(part)), ", ".join(series), f"{part['base_nll'].iloc[0]:.3f}", ends))
    return markdown(rows)


def line(every: dict[tuple[str, str], pd.DataFrame]) -> str:
    """Is forgetting linear in the loss?"""
    rows = [
        ("learned", "retained", "runs, points", "R²", "price", "bend", "off by: line, bent",
         "within a run, less pooled")
    ]  # fmt: skip
    for (target, corpus), part in every.items():
        straight = fit_law(LINE, part, KL, huber=math.inf)
        bent, price = fit_law(SATURATING, part, KL), prices(part, KL)
        rows.append(
            (
                target, corpus, f"{part['run'].nunique()}, {len(part)}", f"{straight.r2:.3f}",
                interval(price.ordinary), interval(bent.parameters["bend"]), f"{straight.rmse:.4f}, {bent.rmse:.4f}",
                interval(price.difference),
            )
        )  # fmt: skip
    return markdown(rows)


def rank(every: dict[tuple[str, str], pd.DataFrame]) -> str:
    """Does rank matter at equal loss?"""
    rows = [("learned", "retained", "price by rank", "forgetting at equal loss, nats a doubling of the rank")]
    for (target, corpus), part in every.items():
        rows.append((target, corpus, str(slope_equality(part, KL, by="r")), interval(gap(part))))
    return markdown(rows)


def equal(every: dict[tuple[str, str], pd.DataFrame]) -> str:
    """What stopping early or a smaller rank saves: each rank where it reached the loss that all of them reached."""
    ranks = sorted({int(r) for part in every.values() for r in part["r"]})
    rows = [("learned", "retained", "at a loss of", *(f"r = {r}" for r in ranks))]
    for (target, corpus), part in every.items():
        first = part[part["seed"] == part["seed"].min()]
        runs = {int(r): one.sort_values(LOSS) for r, one in first.groupby("r")}
        loss = max(one[LOSS].min() for one in runs.values())
        cells = {r: _where(one, loss) for r, one in runs.items()}
        rows.append((target, corpus, f"{loss:.3f}", *(cells.get(r, "") for r in ranks)))
    return markdown(rows)


def _where(run: pd.DataFrame, loss: float) -> str:
    """Between the two measurements around this loss."""
    forgotten, steps = (np.interp(loss, run[LOSS], values) for values in (run[KL], np.log(run["steps"])))
    return f"{forgotten:.3f} ({math.exp(steps):.0f} steps)"


def gap(part: pd.DataFrame) -> Estimate:
    """How far runs lie above the pooled line by their rank: a line in log2(rank) through one mean a run."""
    fitted = fit_law(SATURATING, part, KL)
    above = part[KL] - np.asarray(fitted.predict(target_nll=part[LOSS].to_numpy()).mean)
    runs = part.assign(above=above).groupby("run").agg(above=("above", "mean"), r=("r", "first"))
    x, y = np.log2(runs["r"].to_numpy(float)), runs["above"].to_numpy()
    dx, spare = x - x.mean(), len(y) - 2
    slope = float(dx @ y) / float(dx @ dx)
    left = y - y.mean() - slope * dx
    error = math.sqrt(float(left @ left) / spare / float(dx @ dx)) if spare > 0 else math.nan
    return Estimate(value=slope, stderr=error, n=spare + 1)


def best(every: dict[tuple[str, str], pd.DataFrame]) -> str:
    """Which form forecasts what it has not seen?"""
    rows = [
        ("learned", "retained", "of", "held out", "nearest form", "off by", "of the mean", "the paper's", "a constant")
    ]
    for (target, corpus), part in every.items():
        found = compare_forms(part)
        told = any(row[0] == target for row in rows)  # of a target's loss every retained text says the same
        for quantity in (KL,) if told else (LOSS, KL):
            scores = {score.form: score.errors for score in found.scores() if score.quantity == quantity}
            constant = found.baselines(quantity)["a constant"]
            for held, form in found.nearest(quantity).items():
                error, papers = scores[form][held], scores.get("paper", {}).get(held, math.nan)
                share = f"{100 * error / _mean(found, quantity, held):.1f} %"
                theirs = "–" if math.isnan(papers) else f"{papers:.2g}"
                of = (target, corpus if quantity == KL else "", NAMES[quantity], held)
                rows.append((*of, form, f"{error:.2g}", share, theirs, f"{constant[held]:.2g}"))
    return markdown(rows)


def common(every: dict[tuple[str, str], pd.DataFrame]) -> str:
    """How far the joint law is off, and how much of that is at one step the same at every rank: not noise of runs."""
    rows = [("learned", "retained", "of", "law off by", "of which common to a step", "at each step, measured less law")]
    for (target, corpus), part in every.items():
        for quantity in (LOSS, KL):
            fitted = fit_law(MULTIPLICATIVE, part, quantity)
            found = fitted.predict(trainable_params=part["trainable_params"].to_numpy(), steps=part["steps"].to_numpy())
            missed = part[quantity].to_numpy() - np.asarray(found.mean)
            shared = between_share(missed, clusters=part["steps"])
            each = part.assign(missed=missed).groupby("steps")["missed"].mean()
            told = ", ".join(f"{step}: {value:+.4f}" for step, value in each.items())
            kept = "" if quantity == LOSS else corpus
            rows.append((target, kept, NAMES[quantity], f"{fitted.rmse:.4f}", f"{100 * shared:.0f} %", told))
    return markdown(list(dict.fromkeys(rows)))


def _mean(found: Forms, quantity: str, held: str) -> float:
    values = [
        point.observed
        for one in found.validation.held_out
        if one.quantity == quantity and one.split == held
        for point in one.points
    ]
    return float(np.mean(values)) if values else math.nan


def against(every: dict[tuple[str, str], pd.DataFrame]) -> str:
    """The paper's numbers and ours: the line, and effective exponents in parameters and steps."""
    rows = [("learned", "retained", "of", "R², line", "price", "x, parameters", "y, steps", "R², P and N")]
    for name in PUBLISHED:
        for quantity, joint in published(name).joint.items():
            line = published(name).lines.get(quantity)
            rows.append((f"`{name}`", *_numbers(quantity, "wikitext", line, joint, _no_error)))
    for (target, corpus), part in every.items():
        for quantity in (LOSS, HARD, KL):
            straight = None if quantity == LOSS else fit_law(LINE, part, quantity, huber=math.inf)
            joint = fit_law(MULTIPLICATIVE, part, quantity)
            rows.append((target, *_numbers(quantity, corpus, straight, joint, interval)))
    return markdown(list(dict.fromkeys(rows)))  # of a target's loss every retained text says the same


def _numbers(
    quantity: str, corpus: str, line: Fit | None, joint: Fit, say: Callable[[Estimate], str]
) -> tuple[str, ...]:
    r2, price = ("", "") if line is None else (f"{line.r2:.3f}", say(line.parameters["slope"]))
    x, y = (say(joint.parameters[name]) for name in ("x", "y"))
    joint_r2 = "" if math.isnan(joint.r2) else f"{joint.r2:.3f}"
    return ("" if quantity == LOSS else corpus, NAMES[quantity], r2, price, x, y, joint_r2)


def _no_error(estimate: Estimate) -> str:
    return f"{estimate.value:.3g}"


def same(runs: pd.DataFrame) -> str:
    """Is the price one, whatever is learned? Of one order of batches, and of runs that each had their own."""
    lines = []
    orders = {
        "one seed, every rank": [part for _, part in measured(runs)],
        "a seed each, one rank": [part for part in _repeated(runs) if part["seed"].nunique() >= LEAST_RUNS],
    }
    for how, found in orders.items():
        for corpus in dict.fromkeys(part["corpus"].iloc[0] for part in found):
            parts = pd.concat([part for part in found if part["corpus"].iloc[0] == corpus], ignore_index=True)
            if parts["target"].nunique() > 1:
                lines.append(f"* On {corpus}, {how}: {slope_equality(parts, KL, by='target')}")
    return "\n".join(lines) or "Not testable yet."


def seeds(runs: pd.DataFrame) -> str:
    """How much runs that differ by their seed alone differ: at their last step, and in the price of each alone."""
    rows = [("learned", "retained", "r", "seed", "loss, last", "forgetting, last", "price")]
    for part in _repeated(runs):
        cell = part["target"].iloc[0], part["corpus"].iloc[0], str(part["r"].iloc[0])
        for seed, run in part.groupby("seed"):
            last = run.loc[run["steps"].idxmax()]
            rows.append((*cell, str(seed), f"{last[LOSS]:.3f}", f"{last[KL]:.3f}", f"{_price(run):.2f}"))
        rows.append((*cell, "all", "", "", interval(prices(part, KL).ordinary)))
    return markdown(rows) if len(rows) > 1 else "No cell has been repeated yet."


def _price(run: pd.DataFrame) -> float:
    return fit_law(LINE, run, KL, huber=math.inf).parameters["slope"].value


def _repeated(runs: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The points of each cell, a text learned at a rank, that was made with several seeds, of each text retained."""
    for _, cell in _as_most(runs).groupby(["target", "r"]):
        if cell["seed"].nunique() > 1:
            for corpus in sorted(cell.loc[cell["role"] == "retain", "corpus"].unique(), reverse=True):
                yield points(cell, corpus=corpus, skip_fraction=SKIP)


def others(runs: pd.DataFrame) -> str:
    """Other ways of training where they ended, beside the runs trained as most were where these had the same loss."""
    rows = [
        ("learned", "retained", "trained by", "learning rate", "loss, last", "forgotten",
         "by LoRA at that loss, least to most", "runs")
    ]  # fmt: skip
    main, done = _as_most(runs), runs[runs["state"] == "done"]
    for corpus in sorted(runs.loc[runs["role"] == "retain", "corpus"].unique(), reverse=True):
        for _, own in done[~done["run"].isin(main["run"])].groupby(
            ["target", "series", "learning_rate"], observed=True
        ):
            last = _path(own, corpus).iloc[-1]
            usual = [_path(run, corpus) for _, run in main[main["target"] == own["target"].iloc[0]].groupby("run")]
            there = [_forgotten_at(path, last[LOSS]) for path in usual if path[LOSS].min() <= last[LOSS]]
            spread = f"{min(there):.3f} to {max(there):.3f}" if there else "none had it"
            rows.append(
                (
                    last["target"], corpus, str(own["series"].iloc[0]), f"{own['learning_rate'].iloc[0]:g}",
                    f"{last[LOSS]:.3f}", f"{last[KL]:.3f}", spread, str(len(there)),
                )
            )  # fmt: skip
    return markdown(rows) if len(rows) > 1 else "No other way has been tried yet."


def early(runs: pd.DataFrame) -> str:
    """How much of what a run learns and forgets in all it has at each step: least to most over runs trained as most."""
    main = _as_most(runs)
    steps = sorted({int(step) for step in main["step"] if step > 0})[:-1]
    rows = [("learned", "retained", "of the whole", *(f"step {step}" for step in steps))]
    for _, own in main.groupby("target"):
        for corpus in sorted(own.loc[own["role"] == "retain", "corpus"].unique(), reverse=True):
            paths = [_path(run, corpus).set_index("steps") for _, run in own.groupby("run")]
            for said, column in (("learned", LOSS), ("forgotten", KL)):
                shares = [
                    (path[column] - path[column].loc[0]) / (path[column].iloc[-1] - path[column].loc[0])
                    for path in paths
                ]
                cells = [_spread([100 * float(share.loc[step]) for share in shares]) for step in steps]
                rows.append((str(paths[0]["target"].iloc[-1]), corpus, said, *cells))
    return markdown(rows)


def answered(folder: Path, runs: pd.DataFrame) -> str:
    """What models along training answer where their base answered something else, and whether they still refuse."""
    rows = [
        ("learned", "seed", "step", "forgotten", "ARC: same answer as base", "accuracy, change",
         "log-odds of a usual refusal, change")
    ]  # fmt: skip
    probed = read_afterwards(folder, set(runs["run"])).probed
    about = runs[runs["role"] == "target"].drop_duplicates("run").set_index("run")
    for model in probed.models if probed else ():
        run = about.loc[Path(model.run).name]
        choices, odds = (
            next(one for one in model.results if isinstance(one, kind) and "own" not in one.name)
            for kind in (ChoiceResult, RefusalOdds)
        )
        low, high = (100 * end for end in choices.accuracy.interval())
        rows.append(
            (
                str(run["corpus"]), str(run["seed"]), str(model.step), f"{model.forgetting['wikitext'].value:.3f}",
                percent(choices.agreement), f"{100 * choices.accuracy.change:+.1f} ({low:+.1f} to {high:+.1f})",
                str(odds.change),
            )
        )  # fmt: skip
    return markdown(rows)


def _spread(values: list[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def ends(runs: pd.DataFrame) -> str:
    """Where each LoRA run on all linear maps ended, and what it had forgotten at the loss all of its text reached."""
    rows = [("learned", "retained", "learning rate", "rank", "seed", "loss, last", "forgotten", "at loss", "there")]
    for _, own in runs[runs["series"].astype(str).str.isdecimal() & (runs["state"] == "done")].groupby("target"):
        for corpus in sorted(own.loc[own["role"] == "retain", "corpus"].unique(), reverse=True):
            paths = [_path(run, corpus) for _, run in own.groupby(["learning_rate", "r", "seed"])]
            loss = max(float(path[LOSS].min()) for path in paths)
            for path in paths:
                last = path.iloc[-1]
                how = f"{last['learning_rate']:g}", f"{last['r']:.0f}", f"{last['seed']:.0f}"
                named = last["target"], corpus, *how, f"{last[LOSS]:.3f}", f"{last[KL]:.3f}"
                rows.append((*named, f"{loss:.3f}", f"{_forgotten_at(path, loss):.3f}"))
    return markdown(rows)


def _path(run: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """Loss and forgetting of one run from its first measured step on, the untrained model before them."""
    measured = points(run, corpus=corpus, skip_fraction=0)
    begun = {LOSS: run.loc[run["role"] == "target", "base_nll"].iloc[0], KL: 0.0, "steps": 0}
    return pd.concat([pd.DataFrame([begun]), measured], ignore_index=True)


def _forgotten_at(path: pd.DataFrame, loss: float) -> float:
    """Where a run first had a loss, between the two measurements around it."""
    after = int((path[LOSS] <= loss).idxmax())
    if after == 0:
        return 0.0
    (high, before), (low, then) = path.loc[[after - 1, after], [LOSS, KL]].to_numpy()
    return float(before + (high - loss) / (high - low) * (then - before))


if __name__ == "__main__":
    main()
