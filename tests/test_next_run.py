"""Studies made again run by run: what is bought is there, is paid once, and the advice is worth its price."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import simulated
from holdfast.laws import fit
from simulated_runs import Runs

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from next_run import advised, at_random, interval, made_new, replay, simulated_rows, simulated_table, small_pilot

GRID = simulated.study(np.random.default_rng(5))
AT, EARLY = (32, 115), (8, 60)


@pytest.fixture(scope="module")
def bought():
    return replay(GRID, at=AT, pilot=small_pilot(GRID), buy=at_random(np.random.default_rng(0)), share=0.25)


def test_a_replay_buys_each_run_once_and_counts_every_step(bought):
    pilot = small_pilot(GRID)
    assert pilot == {"000008000000": 64, "000040000000": 64, "000100000000": 64}
    have = dict(pilot)
    for row in bought.iloc[1:-1].itertuples():
        assert row.steps in set(GRID.loc[GRID["run"] == row.run, "step"])
        assert row.run not in have
        have[row.run] = row.steps
        assert row.share == pytest.approx(sum(have.values()) / (18 * 260))
        assert row.n_runs == len(have)
    assert len(bought) > 4
    assert bought["share"].iloc[-2] <= 0.25


def test_the_last_row_is_the_whole_study(bought):
    last = bought.iloc[-1]
    assert last[["run", "share", "n_runs"]].tolist() == ["all", 1.0, 18]
    params = AT[0] * simulated.PARAMS_PER_RANK
    whole = fit(GRID).joint["kl_base_tuned"].predict(trainable_params=params, steps=AT[1])
    assert (last["low"], last["high"]) == (whole.run_quantile(0.05), whole.run_quantile(0.95))
    assert last["law_width"] == whole.interval(0.9)[1] - whole.interval(0.9)[0] < last["width"]


def test_a_quarter_of_the_tokens_does_for_an_early_plan_what_the_grid_does():
    """New runs as advised, against whole grids; and advised against random from the same stored grid."""
    ratios, law_ratios = [], []
    for seed in range(3):
        rows = made_new(Runs(np.random.default_rng(seed)), at=EARLY, share=0.25, everything=18 * 260)
        assert rows["share"].iloc[-1] <= 0.25
        grid = interval(fit(simulated.study(np.random.default_rng(seed))), EARLY)
        ratios.append(rows["width"].iloc[-1] / grid["width"])
        law_ratios.append(rows["law_width"].iloc[-1] / grid["law_width"])
    print(f"new runs, 25 % of the tokens: {ratios} of the grid's width, {law_ratios} of its law's")
    assert np.median(ratios) <= 1.05
    assert np.median(law_ratios) <= 1
    widths = [
        replay(GRID, at=EARLY, pilot=small_pilot(GRID), buy=buy, share=0.25)["law_width"].iloc[-2]
        for buy in (advised(EARLY), *(at_random(np.random.default_rng(seed)) for seed in range(3)))
    ]
    assert widths[0] < np.median(widths[1:])


def test_the_table_has_a_row_for_each_plan():
    rows = pd.DataFrame(simulated_rows(EARLY, range(1)))
    assert set(rows["way"]) == {"grid", "stored", "random", "new"}
    assert rows["held"].between(0.5, 1).all()
    assert rows.loc[rows["until"] == "stop", "share"].between(0.04, 0.4).all()
    head, _, line = simulated_table(rows).splitlines()
    assert head.count("|") == line.count("|")
    assert line.startswith("| r = 8, 60 steps |")
