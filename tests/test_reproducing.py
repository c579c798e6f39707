"""The paper's own study: its settings are those of the paper, and a miniature of the same file runs to its pages."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from holdfast import presets, reproducing
from holdfast.cli import app
from holdfast.config import read_study
from holdfast.errors import ConfigError

STUDY = Path(reproducing.__file__).parent / "data" / "kalajdzievski2024" / "study.yaml"


def test_the_studys_settings_are_the_papers() -> None:
    runs = read_study(STUDY).runs
    assert tuple(run.adapter.r for run in runs) == presets.RANKS
    for run in runs:
        assert run.steps == presets.STEPS[1]
        assert run.batch_tokens == presets.TOKENS_PER_STEP
        assert (run.adapter.lora_alpha, run.adapter.use_rslora, run.optimizer.name) == (1, True, "adafactor")
        assert run.retain == ("wikitext",)
    assert 0.19 < presets.STEPS[0] / presets.STEPS[1] < 0.2  # the fits leave out a fifth


def test_what_is_no_paper_or_learns_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of kalajdzievski2024"):
        reproducing.studies("kalajdzievski2025", data={"news": "x.jsonl"}, overrides=[])
    with pytest.raises(ConfigError, match="at least one"):
        reproducing.studies("kalajdzievski2024", data={}, overrides=[])


@pytest.mark.filterwarnings("ignore")
def test_a_miniature_runs_from_the_command_to_its_pages_and_goes_on_after_a_stop(
    tiny: Path, texts: tuple[Path, Path], tmp_path: Path, cache: Path
) -> None:
    orca = tmp_path / "orca.jsonl"
    orca.write_text(
        "".join(
            json.dumps(
                {"id": str(i), "system_prompt": "Be brief." * (i % 2), "question": f"{i} + 1?", "response": str(i + 1)}
            )
            + "\n"
            for i in range(40)
        )
    )
    small = {
        "model": tiny, "dtype": "float32", "target.held_out": 4, "retain": f"[{texts[1]}]", "steps": 8,
        "batch_size": 1, "gradient_accumulation_steps": 2, "context": 64, "measure.points": 3, "measure.first": 2,
        "grid.adapter.r": "[1, 2, 4]", "optimizer.learning_rate": 0.01,
    }  # fmt: skip
    command = ["reproduce", "kalajdzievski2024", "--openorca", str(orca), "--news", str(texts[0]), "--limit", "2"]
    command += ["--output-dir", str(tmp_path / "out"), *(f"--set={key}={value}" for key, value in small.items())]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    for name in ("openorca", "news"):
        folder = tmp_path / "out" / name
        assert "<html" in (folder / "report.html").read_text()
        for task in reproducing.ITEMS:
            items = pd.read_parquet(folder / f"{task}.parquet")
            assert set(items["step"]) == {2, 4, 8}
            assert items["model"].nunique() == 3 * 3
            assert (items.groupby("model")["item"].nunique() == 2).all()
            assert "against forgetting" in (folder / f"{task}.html").read_text()
        assert len(list((folder / "runs").glob("*/done.json"))) == 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("records.jsonl")}
    assert CliRunner().invoke(app, command).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("records.jsonl")}


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_diverged_is_told_by_the_exit_code(
    tiny: Path, texts: tuple[Path, Path], tmp_path: Path, cache: Path
) -> None:
    small = {
        "model": tiny, "dtype": "float32", "target.held_out": 4, "retain": f"[{texts[1]}]", "steps": 3, "batch_size": 1,
        "gradient_accumulation_steps": 1, "context": 64, "measure.points": 1, "grid.adapter.r": "[2]",
        "grid.optimizer.learning_rate": "[0.01, 1.0e+30]",
    }  # fmt: skip
    command = ["reproduce", "kalajdzievski2024", "--openorca", "none", "--news", str(texts[0]), "--limit", "2"]
    command += ["--output-dir", str(tmp_path / "out"), *(f"--set={key}={value}" for key, value in small.items())]
    said = CliRunner().invoke(app, command)
    states = {json.loads(path.read_text())["state"] for path in tmp_path.glob("out/news/runs/*/failed.json")}
    assert (said.exit_code, states) == (4, {"diverged"})
    assert (tmp_path / "out" / "news" / "advbench.html").is_file()
