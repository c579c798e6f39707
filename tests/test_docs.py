"""What the documents say is what the project does: README's study, commands and Python run; its tree is the tree."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from holdfast import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


PAGES = [ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def typed(text: str) -> list[list[str]]:
    """What a reader would type: every command of a page's console blocks, without its comment."""
    lines = "".join(blocks("console", text)).splitlines()
    return [shlex.split(line.removeprefix("$ ").split("  #")[0])[1:] for line in lines if line.startswith("$ holdfast")]


def test_the_tree_names_every_module_and_no_other() -> None:
    tree = re.split(r"^(src/holdfast|benchmarks|scripts|tests)/", README, flags=re.MULTILINE)
    for folder, lines in zip(tree[1:6:2], tree[2:7:2], strict=True):
        named = set(re.findall(r"^  (\w+\.py) ", lines, flags=re.MULTILINE))
        assert named == {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}, folder


def test_relative_links_lead_somewhere() -> None:
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_no_page_promises_a_command_that_is_not_there() -> None:
    commands = {
        command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback
    }
    text = "".join(path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
    assert set(re.findall(r"`holdfast (\w+)", text)) <= commands


def test_readmes_study_python_and_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the built-in model, with the study's sizes made small and nothing else changed."""
    (study,) = blocks("yaml")
    small = yaml.safe_load(study)
    small["target"]["held_out"] = 4
    small |= {"steps": 6, "context": 64, "batch_size": 1, "measure": {"points": 4, "first": 3, "documents": 2}}
    small["grid"] = {"adapter.r": [2, 8]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(small))
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code.replace("documents=8", "documents=2").replace("limit=40", "limit=4"), "README.md", "exec"), {})  # noqa: S102
    printed = capsys.readouterr().out
    assert "Each 0.1 nat of improvement on gsm8k" in printed
    assert "±" in printed.splitlines()[-1]
    commands = typed(README)
    commands += [command for page in PAGES for command in typed(page.read_text("utf-8")) if command not in commands]
    assert len(commands) > 10
    for command in commands:
        run = [sys.executable, "-c", "from holdfast.cli import main; main()", *command]
        outcome = subprocess.run(run, capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, (command, outcome.stderr)
    assert (tmp_path / "runs" / "report.html").is_file()
    assert list((tmp_path / "runs" / "figures").glob("*.pdf"))


def test_the_tutorials_study_is_readmes_with_fewer_ranks() -> None:
    """So that running README's commands has run the tutorial's."""
    (readmes,), (tutorials,) = blocks("yaml"), blocks("yaml", PAGES[0].read_text(encoding="utf-8"))
    ours, theirs = yaml.safe_load(readmes), yaml.safe_load(tutorials)
    assert set(theirs.pop("grid")["adapter.r"]) < set(ours.pop("grid")["adapter.r"])
    assert theirs == ours


def test_the_citation_names_this_version_and_the_paper() -> None:
    held = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert held["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "version", "license"} <= set(held)
    assert held["version"] == version("holdfast")
    (paper,) = held["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2401.05605"
    assert paper["title"] in README


def test_the_library_takes_twelve_lines() -> None:
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) == 12
