"""Stored studies: the table is what its study file asked for, its page what the table says; bought again run by run."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import simulated
from holdfast import archive
from holdfast.config import read_study
from holdfast.laws import fit
from holdfast.study_figures import with_series
from holdfast.tables import examine

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from answers import (
    against,
    answered,
    common,
    early,
    ends,
    equal,
    headline,
    line,
    made,
    measured,
    others,
    rank,
    same,
    seeds,
)
from next_run import advised, replay, small_pilot
from stored_study import constants, forms, read, said

TEXTS = Path(__file__).parent.parent / "studies" / "smollm2-135m"
LARGER = TEXTS.parent / "qwen2.5-coder-0.5b"
SEEDS = Path(__file__).parent.parent / "studies" / "gsm8k-seeds"


@pytest.fixture(scope="module")
def table():
    return read(SEEDS)


@pytest.fixture(scope="module")
def found(table):
    return examine(table)


def test_the_table_is_of_the_studys_runs_and_starts_at_nothing_forgotten(table):
    configs = read_study(SEEDS / "study.yaml").runs
    asked = {(config.adapter.r, config.seed, config.steps) for config in configs}
    assert set(table[["r", "seed", "total_steps"]].itertuples(index=False, name=None)) == asked
    untouched = table[table["step"] == 0]
    assert (untouched["kl_base_tuned"] == 0).all()
    assert (untouched["agreement"] == 1).all()


def test_the_page_says_what_the_table_does(found):
    page = (SEEDS / "README.md").read_text(encoding="utf-8")
    for content in (said(found), forms(found), constants(found)):
        assert content in page


def test_the_page_of_three_texts_says_what_its_rows_do():
    """All but the forms held out, which take a minute."""
    runs = with_series(archive.table(TEXTS))
    every, page = dict(measured(runs)), (TEXTS / "README.md").read_text(encoding="utf-8")
    assert headline(runs) in (TEXTS.parent.parent / "README.md").read_text(encoding="utf-8")
    for content in (made(runs), same(runs), seeds(runs), others(runs), early(runs), answered(TEXTS, runs)):
        assert content in page
    for answer in (line, rank, against, equal, common):
        assert answer(every) in page


def test_the_page_of_the_larger_model_says_what_its_rows_do():
    runs = with_series(archive.table(LARGER))
    page = (LARGER / "README.md").read_text(encoding="utf-8")
    for content in (made(runs), ends(runs), seeds(runs), early(runs)):
        assert content in page
    asked = {run.name for name in ("study", "rates", "seeds") for run in read_study(LARGER / f"{name}.yaml").runs}
    assert set(runs["run"]) <= asked


def test_the_study_can_be_made_again_run_by_run(table):
    laws = fit(table)
    at = (laws.ranks[0], 20)
    rows = replay(table, at=at, pilot=small_pilot(table), buy=advised(at), share=0.4)
    assert rows["share"].iloc[-2] <= 0.4
    assert rows["run"].iloc[-1] == "all"
    assert rows["n_runs"].iloc[-1] == laws.n_runs
    assert rows["share"].is_monotonic_increasing
    assert np.isfinite(rows["mean"]).all()


def test_a_stored_table_loses_no_digit(tmp_path):
    held = simulated.study(np.random.default_rng(0), ranks=(8, 16), seeds=(0,))
    held.to_csv(tmp_path / "runs.csv", index=False)
    pd.testing.assert_frame_equal(
        read(tmp_path)[["run", "step", "nll"]], held[["run", "step", "nll"]], check_exact=True
    )
