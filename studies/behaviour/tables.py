"""Writes the tables of this folder's README from its results.json, between their marks.

python studies/behaviour/tables.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    """Fill every mark; one without a table is a mistake."""
    results = json.loads((HERE / "results.json").read_text("utf-8"))
    made = {"forgetting": forgetting(results), "choices": choices(results), "refusals": refusals(results),
            "odds": odds(results), "exchange": exchange(results)}  # fmt: skip
    readme = (HERE / "README.md").read_text("utf-8")
    for name, lines in made.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not mark.search(readme):
            raise SystemExit(f"got no mark {name!r} in README.md, expected one")
        readme = mark.sub(lambda found, lines=lines: found[1] + "\n".join(lines) + "\n" + found[2], readme)
    (HERE / "README.md").write_text(readme, encoding="utf-8")


def forgetting(results: dict[str, Any]) -> list[str]:
    """KL of each model."""
    rows = [(model["tuned"], *(estimate(kl) for kl in model["forgetting"].values())) for model in results["models"]]
    return table(("adapter", *results["models"][0]["forgetting"]), rows)


def choices(results: dict[str, Any]) -> list[str]:
    """Accuracy, its test, and what it hides."""
    rows = [
        (
            name, percent(of["accuracy"]["base"]), percent(of["accuracy"]["tuned"]), change(of["accuracy"]),
            f"{of['accuracy']['p_value']:.2f}", f"{of['lost']} / {of['gained']} / {of['moved_wrong']['count']}",
            percent(moved(of["agreement"])),
        )
        for name, of in kind(results, "choices")
    ]  # fmt: skip
    heads = ("adapter", "base", "tuned", "change", "McNemar's p", "lost / gained / wrong to wrong", "answers moved")
    return table(heads, rows)


def refusals(results: dict[str, Any]) -> list[str]:
    """Judged refusals, the proxy beside them, and answers that are none."""
    rows = [
        (
            name, called(of), percent(of["refusals"]["base"]), percent(of["refusals"]["tuned"]), change(of["refusals"]),
            f"{of['forgotten_refusals']['count']} of {of['forgotten_refusals']['n']}",
            f"{of['verdicts']['gibberish']['tuned'] + of['verdicts']['empty']['tuned']}",
            percent(of["proxy_string_match"]["tuned"]),
        )
        for name, of in kind(results, "refusals")
    ]  # fmt: skip
    heads = ("adapter", "prompts", "base refuses", "tuned refuses", "change", "refusals lost", "gibberish or empty",
             "by strings alone")  # fmt: skip
    return table(heads, rows)


def odds(results: dict[str, Any]) -> list[str]:
    """Log-odds of a refusal, without generating."""
    rows = [
        (name, called(of), of["of"], str(of["items"]), signed(of["change"]))
        for name, of in kind(results, "refusal log-odds")
    ]
    return table(("adapter", "prompts", "odds of", "n", "change of log-odds, nats"), rows)


def exchange(results: dict[str, Any]) -> list[str]:
    """What 0.1 nat goes with."""
    rows = [
        (one["task"], f"{one['quantity']}, {one['unit']}", estimate(one["per_0.1_nat"]), f"{one['correlation']:.2f}")
        for one in results["exchange"]
    ]
    return table(("task", "quantity", "with 0.1 nat", "correlation"), rows)


def kind(results: dict[str, Any], wanted: str) -> list[tuple[str, dict[str, Any]]]:
    """Each model's results of one kind."""
    return [(m["tuned"], of) for m in results["models"] for of in m["results"] if of["kind"] == wanted]


def called(of: dict[str, Any]) -> str:
    """A task and the part of it."""
    return " ".join(str(part) for part in (of["task"], of.get("group")) if part)


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Markdown."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def percent(share: dict[str, Any]) -> str:
    """A share with its 95 % interval."""
    low, high = share["interval_95"]
    return f"{100 * share['value']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def moved(same: dict[str, Any]) -> dict[str, Any]:
    """The rest of a share."""
    low, high = same["interval_95"]
    return {"value": 1 - same["value"], "interval_95": [1 - high, 1 - low]}


def change(paired: dict[str, Any]) -> str:
    """A paired change in points, with its 95 % interval."""
    low, high = paired["change_interval_95"]
    return f"{100 * paired['change']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}), {paired['verdict']}"


def signed(change: dict[str, Any]) -> str:
    """A mean change with its 95 % interval."""
    low, high = change["interval_95"]
    return f"{change['value']:+.2f} ({low:+.2f} to {high:+.2f})"


def estimate(held: dict[str, Any]) -> str:
    """A value and its standard error."""
    error = held["stderr"]
    return f"{held['value']:.4g}" if error is None else f"{held['value']:.4g} ± {error:.2g}"


if __name__ == "__main__":
    main()
