"""What a plan's interval costs when runs are made as `holdfast next` advises, against making a whole grid.

Simulated studies: the paper's law as KL, a grid of 6 ranks, 3 seeds and 260 steps. Once runs are bought from a stored
grid, whose runs may be cut short, by the advice and at random; once they are made new, as many as the advice wants.
Laws are refitted after every purchase. A real study is made again by `stored_study.py`.

    python scripts/next_run.py                   # half an hour of a core; writes a table of docs/theory.md
    python scripts/next_run.py --studies 4       # a shorter one, printed only
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from holdfast.choices import measure_of_forgetting
from holdfast.costs import cost
from holdfast.design import Place, next_runs
from holdfast.laws import Laws, fit
from holdfast.offers import Candidate, possible_runs

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import simulated
from simulated_runs import Runs

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "theory.md"

PLACES = ((8, 60), (32, 115), (256, 150), (32, 200))
STUDIES = 40
SHARES = (0.15, 0.25, 0.4)
LEVEL = 0.9
RUN_SD = math.hypot(0.004, 0.003)
"""Of what one simulated run measures, as `simulated.study` draws it: as a whole, and at a checkpoint."""

LENGTHS = math.sqrt(2)
"""Ratio of the lengths at which a stored run may be cut."""

Buyer = Callable[[Laws, pd.DataFrame, Sequence[Candidate]], Candidate]
"""Chooses among candidates, given the laws and the runs so far."""


def replay(table: pd.DataFrame, *, at: Place, pilot: Mapping[str, int], buy: Buyer, share: float) -> pd.DataFrame:
    """A finished study made again, run by run, as `buy` chooses among the runs the table has and their first parts.

    Begins with `pilot`, run names and their steps, refits every law after each purchase, and ends when no candidate
    fits into `share` of the table's tokens. A run cut at N steps stands for one of N steps, and is bought once: with
    more steps it would be another run, made from its start.

    A row per purchase: `run`, `steps`, `share` of the table's tokens so far, `mean`, `low`, `high` and `width` of the
    plan's 90 % interval, of what one run at `at` forgets, `law_width` of the law's own, and `n_runs`. The last row,
    `run` "all", is the whole table.
    """
    done = table[table["state"] == "done"]
    everything = int(done.groupby("run")["total_steps"].first().sum())
    bought, rows, last = dict(pilot), [], next(iter(pilot))
    while True:
        until = done["run"].map(bought)
        have = done[done["step"] <= until]
        have = have.assign(total_steps=until[have.index].astype(int))
        laws, spent = fit(have), sum(bought.values())
        rows.append({"run": last, "steps": bought[last], "share": spent / everything} | interval(laws, at))
        offers = stored(laws, done, bought, shortest=min(pilot.values()))
        affordable = tuple(offer for offer in offers if offer.steps <= share * everything - spent)
        if not affordable:
            break
        choice = buy(laws, have, affordable)
        last = offers[choice]
        bought[last] = choice.steps
    rows.append({"run": "all", "steps": int(done["total_steps"].max()), "share": 1.0} | interval(fit(done), at))
    return pd.DataFrame(rows)


def made_new(runs: Runs, *, at: Place, share: float, everything: int) -> pd.DataFrame:
    """Runs made as advised, new ones, until `share` of a grid of `everything` steps is spent; rows as of `replay`.

    `stop` is whether the advice was to stop there, which is not followed.
    """
    rows = []
    for r in (8, 64, 256):
        table = runs.make(r, 65, checkpoints(65))
    while True:
        laws, spent = fit(table), int(table.groupby("run")["total_steps"].first().sum())
        offers = [
            Candidate(r=each.r, steps=each.steps, finishes=None, tokens=each.tokens, flop=each.flop,
                      measured=checkpoints(each.steps))
            for each in possible_runs(laws, table) if 8 <= each.r <= 256 and each.steps <= 260
        ]  # fmt: skip
        found = next_runs(laws, table, at=at, candidates=offers)
        rows.append({"share": spent / everything, "stop": found.stop} | interval(laws, at))
        best = found.ranked[0].candidate
        if spent + best.steps > share * everything:
            return pd.DataFrame(rows)
        table = runs.make(best.r, best.steps, best.measured)


def checkpoints(steps: int) -> tuple[int, ...]:
    """As densely as the simulated grid is measured."""
    return tuple(np.unique(np.rint(np.geomspace(10, steps, 22))).astype(int).tolist())


def interval(laws: Laws, at: Place) -> dict[str, float]:
    """Of forgetting at a place: of one run, as a plan prints it, and how wide the law's own is."""
    law = laws.joint[measure_of_forgetting(laws)]
    found = law.predict(trainable_params=at[0] * (laws.params_per_rank or math.nan), steps=at[1])
    low, high = (float(found.run_quantile(end)) for end in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    own = [float(end) for end in found.interval(LEVEL)]
    return {
        "mean": float(found.mean), "low": low, "high": high, "width": high - low, "law_width": own[1] - own[0],
        "n_runs": laws.n_runs,
    }  # fmt: skip


def stored(laws: Laws, done: pd.DataFrame, bought: Mapping[str, int], *, shortest: int) -> dict[Candidate, str]:
    """What is left to buy, and the run that has it: of runs alike the first, in ratios of √2 from `shortest` on."""
    offers: dict[Candidate, str] = {}
    for run, rows in done[(done["step"] > 0) & ~done["run"].isin(bought)].groupby("run"):
        r, measured = int(rows["r"].iloc[0]), sorted({int(step) for step in rows["step"]})
        wanted = shortest * LENGTHS ** np.arange(1 + math.ceil(2 * math.log2(measured[-1] / shortest)))
        for steps in sorted({nearest(measured, length) for length in wanted}):
            spent = cost(
                steps=steps, tokens_per_step=laws.tokens_per_step, trainable_params=r * (laws.params_per_rank or 0),
                base_params=laws.base_params, seconds_per_token=None,
            )  # fmt: skip
            places = tuple(step for step in measured if step <= steps)
            offer = Candidate(
                r=r, steps=steps, finishes=None, tokens=spent.tokens or 0, flop=spent.flop, measured=places
            )
            offers.setdefault(offer, str(run))
    return offers


def nearest(steps: Sequence[int], wanted: float) -> int:
    """In ratio."""
    return min(steps, key=lambda step: abs(math.log(step / wanted)))


def small_pilot(table: pd.DataFrame) -> dict[str, int]:
    """Three short runs to begin with: of the lowest, middle and highest rank, to a quarter of its steps."""
    done = table[(table["state"] == "done") & (table["step"] > 0)]
    ranks, pilot = sorted(set(done["r"].tolist())), {}
    for r in {ranks[0], ranks[len(ranks) // 2], ranks[-1]}:
        rows = done[done["run"] == min(done.loc[done["r"] == r, "run"])]
        pilot[str(rows["run"].iloc[0])] = nearest(
            sorted(set(rows["step"].astype(int))), float(rows["total_steps"].iloc[0]) / 4
        )
    return dict(sorted(pilot.items()))


def advised(at: Place) -> Buyer:
    """Buys what narrows the interval at a place most for its cost."""
    return lambda laws, table, offers: next_runs(laws, table, at=at, candidates=offers).ranked[0].candidate


def at_random(rng: np.random.Generator) -> Buyer:
    """Buys anything."""
    return lambda laws, table, offers: offers[int(rng.integers(len(offers)))]


def simulated_rows(at: Place, studies: Iterable[int]) -> list[dict[str, object]]:
    """A row per study, way of buying and share: widths, and the chance that one more run is inside."""
    truth = float(simulated.truth("kl_base_tuned", trainable_params=at[0] * simulated.PARAMS_PER_RANK, steps=at[1]))
    rows: list[dict[str, object]] = []
    for seed in studies:
        table = simulated.study(np.random.default_rng(seed))
        everything = int(table.groupby("run")["total_steps"].first().sum())
        bought = {
            name: replay(table, at=at, pilot=small_pilot(table), buy=buy, share=SHARES[-1])
            for name, buy in (("stored", advised(at)), ("random", at_random(np.random.default_rng(seed))))
        }
        whole = bought["stored"].iloc[-1]
        bought = {name: each.iloc[:-1] for name, each in bought.items()}
        bought["new"] = made_new(Runs(np.random.default_rng(seed)), at=at, share=SHARES[-1], everything=everything)
        stops = bought["new"][bought["new"]["stop"].cummax()]
        ways = [("grid", "whole", whole), ("new", "stop", bought["new"].iloc[-1] if stops.empty else stops.iloc[0])]
        for name, each in bought.items():
            ways += [(name, str(share), each[each["share"] <= share].iloc[-1]) for share in SHARES]
        for name, until, row in ways:
            inside = norm.cdf(row["high"], truth, RUN_SD) - norm.cdf(row["low"], truth, RUN_SD)
            rows.append(
                {
                    "at": at, "study": seed, "way": name, "until": until, "share": row["share"], "held": inside,
                    "width": row["width"], "law_width": row["law_width"], "error": row["mean"] - truth,
                    "n_runs": row["n_runs"],
                }
            )  # fmt: skip
        print(at, seed, file=sys.stderr, flush=True)
    return rows


def simulated_table(found: pd.DataFrame) -> str:
    """Markdown: median widths over the grids', where the advice is to stop, and the chance that a run is inside."""
    shares = [f"{share:.0%}".replace("%", " %") for share in SHARES]
    head = ["plan", *(f"new runs, {share}" for share in shares), "told to stop at", f"stored grid, {shares[1]}"]
    head += [shares[2], f"at random, {shares[1]}", f"law alone, new runs, {shares[2]}"]
    head += [f"new holds, {shares[1]}", f"stored holds, {shares[1]}", "grid holds"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    _, quarter, most = map(str, SHARES)
    for (r, steps), rows in found.groupby("at", sort=False):
        by = rows.groupby(["way", "until"])
        medians, held = by[["width", "law_width", "share"]].median(), 100 * by["held"].mean()
        ratio, own = (medians[name] / medians[name]["grid", "whole"] for name in ("width", "law_width"))
        cells = [f"{ratio['new', str(share)]:.2f}" for share in SHARES]
        cells.append(f"{100 * medians['share']['new', 'stop']:.0f} %: {ratio['new', 'stop']:.2f}")
        cells += [f"{ratio[place]:.2f}" for place in (("stored", quarter), ("stored", most), ("random", quarter))]
        cells.append(f"{own['new', most]:.2f}")
        cells += [f"{held[way]:.0f} %" for way in (("new", quarter), ("stored", quarter), ("grid", "whole"))]
        lines.append(f"| r = {r}, {steps} steps | {' | '.join(cells)} |")
    return "\n".join(lines)


def replaced(page: str, name: str, content: str) -> str:
    """The page with what stands between a table's marks replaced; one without them is a mistake."""
    marks = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    made, found = re.subn(f"{marks[0]}.*?{marks[1]}", lambda _: f"{marks[0]}{content}\n{marks[1]}", page, flags=re.S)
    if found != 1:
        raise ValueError(f"got {found} places marked {name!r}, expected one, at the page")
    return made


def main() -> None:
    """Replay, print, and write the page unless it is a shorter run."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--studies", type=int, default=STUDIES, help="simulated for each plan")
    studies = asked.parse_args().studies
    table = simulated_table(pd.DataFrame([row for at in PLACES for row in simulated_rows(at, range(studies))]))
    print(table)
    if studies == STUDIES:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(replaced(page, "next simulated", table), encoding="utf-8")


if __name__ == "__main__":
    main()
