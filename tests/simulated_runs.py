"""Studies with a run in progress, drawn from the truth of `simulated`, and how one run in a study is cut."""

import numpy as np
import pandas as pd

import simulated


def cut(table, run, *, after=0.3):
    """The table while `run` was at this share of its steps."""
    seen = (table["run"] != run) | (table["step"] <= after * table["total_steps"])
    return table[seen].assign(state=table["state"].where(table["run"] != run, "in progress"))


def shifted(table, shifts):
    """A study in which each run's forgetting is moved by what a function of its steps gives."""
    table = table.copy()
    for run, shift in shifts.items():
        rows = (table["run"] == run) & (table["step"] > 0)
        for quantity in ("kl_base_tuned", "hard_cross_entropy"):
            table.loc[rows, quantity] += shift(table.loc[rows, "step"].to_numpy(dtype=float))
        table.loc[rows & (table["role"] == "target"), "nll"] -= shift(
            table.loc[rows & (table["role"] == "target"), "step"].to_numpy(dtype=float)
        )
    return table


def sloping(rng, *, slope_sd, **settings):
    """A noisy study whose runs differ in their slope in ln N as well."""
    table = simulated.study(rng, **settings)
    draws = {run: slope_sd * rng.normal() for run in table["run"].unique()}
    return shifted(table, {run: lambda steps, b=b: b * np.log(steps / simulated.N0) for run, b in draws.items()})


class Runs:
    """Runs made one at a time as a buyer asks, from the truth; each keeps its own level, slope and fading noise."""

    def __init__(self, rng, *, run_sd=0.004, slope_sd=0.0, checkpoint_sd=0.003, memory=0.7):
        self.rng, self.memory, self.checkpoint_sd = rng, memory, checkpoint_sd
        self.sds = np.array([run_sd, slope_sd, 1.0])
        self.hidden, self.rows = {}, []

    def make(self, r, steps, measured):
        """Run to `steps`, measured at `measured`; the table of all runs so far."""
        name = f"{r:06x}{len(self.hidden):06x}"
        self.hidden[name] = {quantity: self.sds * self.rng.normal(size=3) for quantity in simulated.TRUTH}
        self._measure(name, r, 0, steps, fresh=False)
        for step in measured:
            self._measure(name, r, step, steps)
        return pd.DataFrame(self.rows)

    def _measure(self, name, r, step, steps, *, fresh=True):
        now = dict.fromkeys(simulated.TRUTH, 0.0)
        for quantity, (level, slope, fading) in self.hidden[name].items() if fresh else ():
            value = simulated.truth(quantity, trainable_params=r * simulated.PARAMS_PER_RANK, steps=step)
            now[quantity] = value + level + slope * np.log(step / simulated.N0) + self.checkpoint_sd * fading
            self.hidden[name][quantity][2] = self.memory * fading + np.sqrt(1 - self.memory**2) * self.rng.normal()
        for role in ("target", "retain"):
            row = simulated._row(r=r, seed=0, step=float(step), total_steps=steps, role=role, now=now)
            self.rows.append(row | {"run": name})
