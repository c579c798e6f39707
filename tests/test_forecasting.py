"""Forecasts of runs in progress: against a mixed model by hand, at their limits, and scored on simulated studies."""

import json
import math

import numpy as np
import pandas as pd
import pytest

import simulated
from holdfast.errors import ConfigError, FitError
from holdfast.forecasting import (
    forecast,
    law_jacobian,
    line_alone,
    power_alone,
    run_points,
    run_scatter,
    score_forecasts,
    score_summary,
)  # fmt: skip
from holdfast.laws import fit, points
from simulated_runs import cut, shifted, sloping

KL = "kl_base_tuned"
NOISY = simulated.study(np.random.default_rng(0), seeds=(0,))
RUN = "000020000000"
AHEAD = np.array([150, 200, 260])


def of(table, run=RUN, *, after=0.3, steps=AHEAD, quantity=KL):
    seen = cut(table, run, after=after)
    return forecast(fit(seen), seen, run, steps=steps, quantity=quantity)


def residuals(law, measured):
    at = {name: measured[name].to_numpy() for name in ("trainable_params", "steps")}
    return measured[law.quantity].to_numpy() - law.predict(**at).mean


def dense(law, measured, *, level, slope, noise, memory):
    """Design, residuals and the whole covariance of a study's points, written out."""
    runs, logs = measured["run"].to_numpy(), np.log(measured["steps"].to_numpy(float))
    logs = logs - logs.mean()
    place = measured.groupby("run").cumcount().to_numpy()
    same = runs[:, None] == runs
    covariance = same * (
        level**2 + slope**2 * np.outer(logs, logs) + noise**2 * memory ** np.abs(place[:, None] - place)
    )
    at = {name: measured[name].to_numpy() for name in ("trainable_params", "steps")}
    grows = (law.predict(**at).mean / law.scatter.reference) ** law.scatter.power
    return law_jacobian(law, **at), residuals(law, measured), covariance * np.outer(grows, grows)


def likelihood(law, measured, **scatter):
    """The penalised restricted log likelihood at its own scale of noise, by textbook."""
    x, r, v = dense(law, measured, **scatter)
    x = x / np.linalg.norm(x, axis=0)
    inverse = np.linalg.inv(v)
    normal = x.T @ inverse @ x
    left = r @ inverse @ r - r @ inverse @ x @ np.linalg.solve(normal, x.T @ inverse @ r)
    logs = np.linalg.slogdet(v)[1] + np.linalg.slogdet(normal)[1]
    return -0.5 * (logs + left) + math.log(scatter["level"] / scatter["noise"])


@pytest.mark.parametrize("seed", range(4))
def test_the_scatter_is_where_the_likelihood_is_highest(seed):
    rng = np.random.default_rng(seed)
    table = sloping(rng, slope_sd=0.01, seeds=(0, 1), run_sd=0.006)
    measured, law = points(table), fit(table).joint[KL]
    found = run_scatter(law, measured)
    best = {"level": found.level, "slope": found.slope, "noise": found.noise, "memory": found.memory}
    peak = likelihood(law, measured, **best)
    for name, value in best.items():
        for factor in (0.9, 1.1):
            assert likelihood(law, measured, **best | {name: value * factor}) < peak + 1e-3, (name, factor)


def test_the_scatter_of_many_runs_is_the_truths():
    rng = np.random.default_rng(1)
    tables = [sloping(rng, slope_sd=0.008, run_sd=0.006) for _ in range(8)]
    found = [run_scatter(fit(table).joint[KL], points(table)) for table in tables]
    truth = {"level": 0.006, "slope": 0.008, "noise": 0.003, "memory": 0.7}
    for name, value in truth.items():
        assert np.median([getattr(each, name) for each in found]) == pytest.approx(value, rel=0.2), name


def test_a_forecast_is_the_mixed_models_by_hand():
    """Henderson's equations: the law's parameters, a level and a slope, all unknown at once, in one least squares.

    Where the law is higher, runs differ by more and their noise is larger, by what the fit found.
    """
    seen = cut(NOISY, RUN, after=0.5)
    laws = fit(seen)
    law, measured = laws.joint[KL], run_points(laws, seen, RUN)
    own = measured[~measured["skipped"]]
    scatter = run_scatter(law, points(seen))
    made = forecast(laws, seen, RUN, steps=AHEAD)

    def grows(params, steps):
        return (law.predict(trainable_params=params, steps=steps).mean / law.scatter.reference) ** law.scatter.power

    def design(params, steps):
        curves = (
            np.column_stack([np.ones(len(steps)), np.log(steps / scatter.reference)]) * grows(params, steps)[:, None]
        )
        return np.column_stack([law_jacobian(law, trainable_params=params, steps=steps), curves])

    params, steps = float(own["trainable_params"].iloc[0]), own["steps"].to_numpy(float)
    place = np.arange(len(steps))
    own_noise = scatter.noise * grows(params, steps)
    noise = np.linalg.inv(np.outer(own_noise, own_noise) * scatter.memory ** np.abs(place[:, None] - place))
    prior = np.zeros((6, 6))
    prior[:4, :4] = np.linalg.inv(np.array(law.covariance))
    prior[4, 4], prior[5, 5] = scatter.level**-2, scatter.slope**-2
    x, at = design(params, steps), design(params, AHEAD.astype(float))
    posterior = np.linalg.inv(x.T @ noise @ x + prior)
    moved = posterior @ x.T @ noise @ residuals(law, own)
    assert made.prediction.mean == pytest.approx(made.law.mean + at @ moved, abs=1e-7)
    assert made.prediction.stderr == pytest.approx(np.sqrt(np.diag(at @ posterior @ at.T)), rel=1e-4)


@pytest.mark.parametrize("quantity", ["target_nll", "kl_base_tuned", "hard_cross_entropy"])
def test_without_noise_a_forecast_is_the_truth(quantity):
    made = of(simulated.study(), quantity=quantity)
    truth = simulated.truth(quantity, trainable_params=32 * simulated.PARAMS_PER_RANK, steps=AHEAD)
    assert made.prediction.mean == pytest.approx(truth, abs=1e-6)
    low, high = made.interval()
    assert (high - low < 1e-5).all()


def test_where_runs_do_not_differ_the_law_is_believed():
    rng = np.random.default_rng(2)
    moves, noise = [], []
    for _ in range(8):
        table = simulated.study(rng, run_sd=0.0, checkpoint_sd=0.003)
        made = of(table)
        moves.append(made.prediction.mean - made.law.mean)
        noise.append(line_alone(points(table[table["run"] == RUN]), KL, AHEAD) - made.law.mean)
    assert np.sqrt(np.mean(np.square(moves))) < 0.001
    assert np.sqrt(np.mean(np.square(moves))) < 0.5 * np.sqrt(np.mean(np.square(noise)))


def test_where_runs_differ_hugely_the_run_is_believed():
    rng = np.random.default_rng(3)
    table = simulated.study(rng, run_sd=1.0, checkpoint_sd=1e-4)
    seen = cut(table, RUN)
    laws = fit(seen)
    measured = run_points(laws, seen, RUN)
    own = measured[~measured["skipped"]]
    made = forecast(laws, seen, RUN, steps=AHEAD)
    mine = table[(table["run"] == RUN) & (table["role"] == "retain")].set_index("step")[KL]
    assert abs(made.law.mean[-1] - mine.loc[260]) > 0.1
    assert made.prediction.mean[-1] == pytest.approx(mine.loc[260], abs=0.05)
    assert abs(np.mean(residuals(laws.joint[KL], own))) > 0.1


def test_one_finished_run_gives_a_forecast_and_no_interval():
    table = simulated.study(np.random.default_rng(4), ranks=(16, 32), seeds=(0,), run_sd=0.05)
    made = of(table)
    truth = table[(table["run"] == RUN) & (table["step"] == 260) & (table["role"] == "retain")][KL].item()
    assert abs(made.prediction.mean[-1] - truth) < abs(made.law.mean[-1] - truth), "its own level is believed"
    assert np.isnan(made.interval()).all()
    assert np.isnan(made.probability_above(0.5)).all()
    assert any("1 finished runs do not tell how runs differ" in warning for warning in made.warnings)
    assert "(no interval)" in str(made)
    assert "nan" not in str(made)
    assert json.loads(json.dumps(made.to_dict(), allow_nan=False))["prediction"]["stderr"] == [None] * 3


def test_more_of_the_run_narrows_the_interval():
    widths = [np.subtract(*of(NOISY, after=share, steps=[260]).interval()[::-1]).item() for share in (0.1, 0.3, 0.6)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.9 * widths[0]


def test_a_run_that_has_shown_nothing_is_forecast_by_the_law():
    made = of(NOISY, after=0.1)
    assert made.n_points == 0
    assert made.prediction.mean == pytest.approx(made.law.mean)
    assert np.isnan(made.alone).all()
    assert (made.interval()[1] - made.interval()[0] > 2 * 1.6 * np.asarray(made.law.stderr)).all()
    assert str(made).endswith("has shown nothing yet past the steps left out.")


def test_the_sentence_says_it_in_numbers():
    made = of(NOISY, steps=[260])
    low, high = (end.item() for end in made.interval())
    sentence = str(made)
    assert sentence.startswith(f"At step 260 run {RUN} should forget 0.")
    assert "nats per token on wikipedia (90 % 0." in sentence
    assert f"{low:.3f} to {high:.3f}" in sentence
    assert f"the law alone says {made.law.mean.item():.3f}" in sentence
    assert "has shown its first 75 steps." in sentence
    assert "reach a loss of" in str(of(NOISY, quantity="target_nll"))


def test_a_budget_is_exceeded_as_often_as_the_interval_says():
    made = of(NOISY)
    low, high = made.interval(0.8)
    assert made.probability_above(float(low[-1]))[-1] == pytest.approx(0.9)
    assert made.probability_above(float(high[-1]))[-1] == pytest.approx(0.1)


SIZES = {3: ((8, 32, 128), (0,)), 6: (simulated.RANKS, (0,)), 18: (simulated.RANKS, (0, 1, 2))}


def test_forecasts_beat_the_law_and_the_run_alone_and_cover():
    """Three more runs of each of many studies, cut at 30 %; the run alone has its best of three ways."""
    rng, scores = np.random.default_rng(5), []
    for study in range(24):
        runs = (3, 6, 18)[study % 3]
        ranks, seeds = SIZES[runs]
        finished = simulated.study(rng, ranks=ranks, seeds=seeds)
        laws = fit(finished)
        for r in (16, 32, 64):
            more = simulated.study(rng, ranks=(r,), seeds=(9,))
            scores.append(_squares(laws, finished, more).assign(study=study, runs=runs))
    every = pd.concat(scores)
    alone = every[["line", "power", "power_all"]].mean().idxmin()
    for runs, some in every.groupby("runs"):
        errors = {name: math.sqrt(some[name].mean()) for name in ("own", "law", alone)}
        print(f"{runs} runs: rmse {errors}; nominal 90 % covers {some['covered'].mean():.1%}")
    means = every.groupby("study").mean()
    for other in ("law", alone):
        better = means[other] - means["own"]
        assert better.mean() > 3 * better.std() / math.sqrt(len(better)), other
    assert 0.85 <= every["covered"].mean() <= 0.95


def _squares(laws, finished, more):
    """Squared errors at each checkpoint after the cut."""
    run = more["run"].iloc[0]
    table = pd.concat([finished, cut(more, run)], ignore_index=True)
    truth = points(more, skip_fraction=0.3)
    steps, value = truth["steps"].to_numpy(), truth[KL].to_numpy()
    made = forecast(laws, table, run, steps=steps)
    low, high = made.interval()
    measured = run_points(laws, table, run)
    own = measured[~measured["skipped"]]
    answers = {
        "own": made.prediction.mean,
        "law": made.law.mean,
        "line": line_alone(own, KL, steps),
        "power": power_alone(own, KL, steps),
        "power_all": power_alone(measured, KL, steps),
    }
    squares = {name: (answer - value) ** 2 for name, answer in answers.items()}
    return pd.DataFrame(squares | {"covered": (low <= value) & (value <= high)})


def test_the_score_leaves_each_run_out_and_looks_at_nothing_after_the_cut():
    table = simulated.study(np.random.default_rng(6), ranks=(8, 16, 64, 128), seeds=(0,))
    scores = score_forecasts(table, quantities=(KL,))
    assert set(scores["run"]) == set(table["run"])
    assert (scores["n_points"] == 3).all()
    changed = shifted(table, {"000008000000": lambda steps: np.where(steps > 78, 5.0, 0.0)})
    again = score_forecasts(changed, quantities=(KL,)).set_index("run")
    before = scores.set_index("run")
    assert again.loc["000008000000", "width"] == before.loc["000008000000", "width"]
    assert again.loc["000008000000", "rmse"] == pytest.approx(5.0, abs=0.1)
    summary = score_summary(scores)
    assert summary["runs"].item() == 4
    assert summary["rmse"].item() == pytest.approx(math.sqrt((scores["rmse"] ** 2).mean()))
    ways = ["rmse_line", "rmse_power", "rmse_power_all"]
    assert summary["rmse_alone"].item() == pytest.approx(np.sqrt((scores[ways] ** 2).mean()).min())


def test_a_setting_no_run_of_the_laws_has_is_told():
    table = NOISY.copy()
    table.loc[table["run"] == RUN, "learning_rate"] = 1e-3
    assert any("learning_rate 0.001, which no run of the laws has" in warning for warning in of(table).warnings)
    assert any("is used beyond" in warning for warning in of(NOISY, steps=[500]).warnings)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"run": "nothing"}, "no such run"),
        ({"run": "000008000000"}, "(done), expected one in progress (000020000000)"),
        ({"quantity": "agreement"}, "got quantity 'agreement', expected one of target_nll"),
        ({"steps": [70]}, "expected some after 75, the last measured"),
        ({"steps": []}, "expected some after 75"),
    ],
)
def test_forecasts_that_cannot_be_made_are_refused(asked, words):
    seen = cut(NOISY, RUN)
    asked = {"run": RUN, "steps": [260]} | asked
    with pytest.raises(ConfigError) as refusal:
        forecast(fit(seen), seen, asked.pop("run"), **asked)
    assert words in str(refusal.value)


@pytest.mark.parametrize("column", ["model", "target"])
def test_a_run_of_another_study_is_not_forecast(column):
    seen = cut(NOISY, RUN)
    mixed = seen.assign(**{column: seen[column].where(seen["run"] != RUN, "another")})
    with pytest.raises(ConfigError, match=f"whose {column} no finished run has"):
        forecast(fit(mixed), mixed, RUN, steps=[260])


def test_a_run_that_measured_nothing_is_refused():
    seen = cut(NOISY, RUN, after=0.01)
    with pytest.raises(FitError, match="no step past"):
        forecast(fit(seen), seen, RUN, steps=[260])
