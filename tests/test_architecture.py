"""The layout, held still: who imports whom, what is public, how long a file may be, and what analysis never loads."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import holdfast

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "holdfast"

# Every module and all it may import of ours. The model half and the analysis half share only the first group.
SHARED = {
    "errors": set(),
    "display": set(),
    "mistakes": {"errors"},
    "methods": set(),
    "series": {"mistakes"},
    "config": {"errors", "methods", "mistakes", "series"},
    "schemas": {"config", "methods", "series"},
    "stats": set(),
    "phrases": set(),
    "judging": {"phrases", "stats"},
    "costs": {"display", "errors", "stats"},
    "files": {"errors"},
    "interrupts": {"errors"},
    "store": {"config", "errors", "files", "methods"},
    "archive": {"config", "errors", "files", "store"},
    "progress": {"archive", "errors", "files", "methods", "store"},
    "sharing": {"errors", "files"},
    "mirrors": {"errors", "files", "store"},
    "evidence": {"stats", "store"},
    "forgetting": {"display", "evidence", "stats"},
    "proportions": {"stats"},
    "questions": set(),
    "refusals": {"proportions", "questions", "stats"},
    "behaviour": {"display", "forgetting", "proportions", "questions", "refusals", "stats"},
}
MODEL_HALF = {
    "builtin": {"errors"},
    "packed": set(),
    "kernels": {"packed"},
    "lora": set(),
    "metrics": {"kernels"},
    "sources": {"builtin", "errors", "mistakes"},
    "folders": {"errors", "mistakes", "sources"},
    "thawed": set(),
    "models": {"builtin", "errors", "folders", "metrics", "sources", "thawed"},
    "counts": {"costs", "models", "thawed"},
    "adapters": {"config", "errors", "files", "folders", "lora", "methods", "mistakes", "models", "sources", "thawed"},
    "kinds": {"evidence"},
    "wikitext": set(),
    "chats": {"errors", "models"},
    "rows": {"errors", "mistakes", "wikitext"},
    "corpora": {"builtin", "chats", "errors", "kinds", "mistakes", "models", "rows", "sources", "wikitext"},
    "sampling": {"corpora", "errors", "files", "meter", "models"},
    "basecache": {"builtin", "errors", "metrics"},
    "meter": {"basecache", "corpora", "errors", "evidence", "kernels", "metrics", "models", "store"},
    "checkpoints": {"errors", "files", "models"},
    "losses": {"corpora", "kernels", "lora", "meter", "models"},
    "sharding": {"config", "errors", "interrupts", "methods", "mistakes", "models", "thawed"},
    "updates": {"checkpoints", "config", "corpora", "errors", "lora", "losses", "models", "sharding"},
    "training": {"basecache", "checkpoints", "config", "corpora", "counts", "errors"}
    | {"evidence", "folders", "meter", "methods", "models", "sharding", "store", "updates"},
    "sweeps": {"adapters", "archive", "checkpoints", "config", "counts", "errors", "files"}
    | {"interrupts", "kernels", "mirrors", "models", "sharding", "store", "training", "updates"},
    "trials": {"adapters", "archive", "basecache", "checkpoints", "config", "corpora", "costs", "counts", "errors"}
    | {"files", "meter", "methods", "models", "sharding", "store", "sweeps", "training", "updates"},
    "settings": {"errors", "models"},
    "checks": {"errors", "folders", "forgetting", "mistakes", "models", "settings", "sources"},
    "items": {"builtin", "errors", "questions", "rows"},
    "answering": {"errors", "meter", "metrics", "models"},
    "answercache": {"builtin", "files"},
    "generating": {"errors", "meter", "models", "sampling"},
    "probes": {"answering", "behaviour", "items", "models", "questions"},
    "prompt_probes": {"answering", "behaviour", "errors", "generating", "items", "judging", "models", "probes"}
    | {"questions", "refusals"},
    "judges": {"answering", "errors", "judging", "models", "prompt_probes"},
    "probing": {"adapters", "answercache", "answering", "basecache", "behaviour", "checks", "errors"}
    | {"forgetting", "integrations.lm_eval", "items", "judges", "kernels", "models", "probes", "prompt_probes"}
    | {"questions", "sources", "stats", "store"},
    "audit": {"adapters", "basecache", "builtin", "checks", "corpora", "errors", "evidence", "folders"}
    | {"forgetting", "meter", "kernels", "models", "sampling", "settings", "sources", "store"},
}
ANALYSIS_HALF = {
    "formulas": {"stats"},
    "fitting": {"formulas", "stats"},
    "points": {"errors", "store"},
    "fits": {"display", "errors", "fitting", "formulas", "points", "stats"},
    "laws": {"display", "fits", "formulas", "points", "stats", "store"},
    "coupling": {"fits", "fitting", "formulas", "stats"},
    "validation": {"errors", "formulas", "laws", "stats"},
    "forms": {"coupling", "fits", "formulas", "laws", "stats", "validation"},
    "slopes": {"errors", "formulas", "laws", "points", "stats"},
    "groups": {"errors", "formulas", "laws", "points", "stats"},
    "tables": {"errors", "fits", "forms", "formulas", "groups", "laws", "points", "slopes", "stats", "validation"},
    "presets": {"errors", "formulas", "laws", "stats"},
    "choices": {"costs", "errors", "laws", "stats"},
    "planning": {"choices", "costs", "display", "errors", "laws", "stats"},
    "forecasting": {"errors", "laws", "stats"},
    "offers": {"costs", "errors", "laws"},
    "design": {"choices", "errors", "fits", "forecasting", "laws", "offers", "planning", "stats"},
    "pursuit": {"config", "costs", "design", "display", "errors", "laws", "methods", "offers", "stats", "store"},
    "legends": set(),
    "figures": {"errors", "laws", "legends", "stats"},
    "plan_figures": {"choices", "costs", "display", "errors", "figures", "legends", "planning", "stats"},
    "measured_figures": {"display", "figures", "forgetting", "legends", "stats"},
    "page": {"display", "figures", "legends", "stats"},
    "cards": {"display", "errors", "evidence", "files", "forgetting", "stats"},
    "papers": {"afterwards", "archive", "comparison", "display", "errors", "figures", "files", "laws", "planning"}
    | {"stats", "study_figures", "tables"},
    "comparison": {"fits", "forms", "formulas", "laws", "presets"},
    "afterwards": {"behaviour", "errors", "evidence", "files", "forgetting", "questions", "refusals", "stats", "store"},
    "study_answers": {"afterwards", "behaviour", "display", "evidence", "exchange", "figures", "forgetting_page"}
    | {"page", "probe_figures", "probe_page", "refusals"},
    "study_figures": {
        "behaviour",
        "display",
        "errors",
        "figures",
        "laws",
        "legends",
        "plan_figures",
        "planning",
        "points",
    }
    | {"stats", "study_answers", "validation"},
    "run_grids": {"page", "stats", "study_figures"},
    "reporting": {"afterwards", "comparison", "display", "errors", "forms", "groups", "laws", "page", "planning"}
    | {"run_grids", "stats", "study_answers", "study_figures", "validation"},
    "probe_figures": {"behaviour", "display", "exchange", "figures", "legends", "proportions", "refusals"},
    "exchange": {"behaviour", "proportions", "refusals", "stats"},
    "probe_page": {"behaviour", "display", "exchange", "page", "probe_figures", "proportions", "questions"}
    | {"refusals", "stats"},
    "forgetting_page": {"display", "evidence", "figures", "forgetting", "measured_figures", "page", "stats"},
    "publishing": {"afterwards", "archive", "behaviour", "cards", "comparison", "errors", "figures", "files"}
    | {"forgetting", "forgetting_page", "forms", "groups", "laws", "planning", "probe_page", "progress", "reporting"}
    | {"store", "study_figures", "validation"},
    "overview": {"afterwards", "archive", "display", "errors", "files", "groups", "laws", "page", "publishing"}
    | {"reporting", "run_grids", "slopes", "stats", "store", "study_figures"},
    "reproducing": {"behaviour", "config", "errors", "publishing"},
}
ENTRY = {
    "__init__": {"archive", "audit", "behaviour", "design", "exchange", "forecasting", "forgetting", "laws"}
    | {"planning", "presets", "probing", "reporting", "stats", "sweeps", "validation"},
    "terminal": {"display", "errors", "evidence", "forgetting", "planning", "publishing", "stats"},
    "following": {"display", "integrations.trackers", "methods", "sweeps", "terminal", "training"},
    "sweep_screens": {"adapters", "config", "costs", "display", "errors", "files", "following", "integrations.ray"}
    | {"integrations.trackers", "interrupts", "models", "progress", "pursuit"}
    | {"mirrors", "sharding", "status_screens", "store", "sweeps", "terminal", "trials", "workers"},
    "workers": {"adapters", "config", "costs", "errors", "files", "interrupts", "models", "remote", "sharding"}
    | {"following", "store", "sweeps", "terminal", "trials"},
    "remote": {"config", "errors", "files", "interrupts", "following", "sharing", "sweeps", "trials"},
    "status_screens": {"display", "progress", "terminal"},
    "probe_screens": {"behaviour", "exchange", "proportions", "questions", "refusals", "stats", "terminal"},
    "law_screens": {"choices", "design", "display", "forecasting", "forms", "groups", "laws", "planning"}
    | {"stats", "tables", "terminal", "validation"},
    "options": set(),
    "law_commands": {"archive", "design", "errors", "forecasting", "law_screens", "laws", "options", "planning"}
    | {"presets", "progress", "store", "tables"},
    "report_commands": {"audit", "cards", "errors", "options", "overview", "papers", "publishing", "terminal"},
    "cli": {"audit", "behaviour", "config", "display", "errors", "exchange", "files", "interrupts"}
    | {"law_commands", "options", "probe_screens", "probing", "progress", "publishing", "report_commands"}
    | {"reproducing", "schemas", "status_screens", "sweep_screens", "terminal"},
}
INTEGRATIONS = {
    "integrations.__init__": set(),
    "integrations.trackers": {"config", "errors", "evidence", "mistakes", "sweeps", "training", "updates"},
    "integrations.ray": {"adapters", "archive", "config", "costs", "errors", "interrupts", "methods", "remote"}
    | {"mirrors", "sharing", "store"},
    "integrations.lm_eval": {"answering", "behaviour", "errors", "meter", "models", "probes", "questions"},
}
ALLOWED = SHARED | MODEL_HALF | ANALYSIS_HALF | ENTRY | INTEGRATIONS

# The only modules that may import each of these libraries.
OWNED = {
    "transformers": {"models"},
    "peft": {"adapters", "lora", "models"},
    "datasets": {"rows"},
    "huggingface_hub": {"cards", "sources"},
    "typer": {"cli", "law_commands", "options", "report_commands"},
    "fsspec": {"mirrors"},
    "ray": {"integrations.ray"},
    "rich": {"following", "law_screens", "probe_screens", "status_screens", "sweep_screens", "terminal"},
    "altair": {"figures", "legends", "measured_figures", "plan_figures", "probe_figures", "study_figures"},
    "jinja2": {"page"},
    "yaml": {"mistakes"},
    "scipy": {"proportions", "slopes", "stats"},
    "lm_eval": {"integrations.lm_eval"},
    "accelerate": {"integrations.trackers"},
    "wandb": {"integrations.trackers"},
}

MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> set[str]:
    """Dotted names a file imports anywhere in it, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_table_names_every_module() -> None:
    assert set(MODULES) == set(ALLOWED)


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_are_those_of_the_table(module: str) -> None:
    names = (name.split(".") for name in imported(MODULES[module]) if name.startswith("holdfast."))
    ours = {".".join(parts[1:3]) if parts[1] == "integrations" else parts[1] for parts in names}
    assert ours == ALLOWED[module]


@pytest.mark.parametrize("library", OWNED)
def test_a_library_is_imported_by_its_owners_alone(library: str) -> None:
    users = {name for name, path in MODULES.items() if any(n.split(".")[0] == library for n in imported(path))}
    assert users <= OWNED[library]
    assert users


def test_reading_and_fitting_results_needs_no_torch() -> None:
    modules = [*SHARED, *ANALYSIS_HALF, "cli", "remote", "sweep_screens", "terminal"]
    code = (
        f"import sys, holdfast, holdfast.{', holdfast.'.join(modules)}; print(*(m.split('.')[0] for m in sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "holdfast" in loaded
    assert not {"torch", "transformers", "peft", "datasets"} & set(loaded)


def test_files_fit_in_a_sitting() -> None:
    long = {
        p.name: n
        for p in ROOT.glob("*/**/*.py")
        if "venv" not in str(p) and (n := len(p.read_text().splitlines())) > 400
    }
    assert not long


def test_the_public_names() -> None:
    assert holdfast.__all__ == [
        "Estimate", "Fit", "Forecast", "ForgettingReport", "Laws", "NextRuns", "Plan", "ProbeReport", "Validation",
        "exchanges", "fit", "forecast", "measure", "next_runs", "plan", "probe", "published", "report", "sweep",
        "table", "validate",
    ]  # fmt: skip
    for name in holdfast.__all__:
        assert getattr(holdfast, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = holdfast.nothing


RUNS_CODE = {
    "eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load",
    "np.load", "numpy.load", "pd.read_pickle", "joblib.load", "runpy.run_path", "os.system",
    "os.popen", "os.execv", "os.execvp", "os.spawnv", "os.startfile", "pty.spawn", "ctypes.CDLL",
}  # fmt: skip
RUNS_CODE_IF = {
    ("shell", "True"), ("trust_remote_code", "True"), ("weights_only", "False"), ("use_safetensors", "False"),
    ("allow_pickle", "True"), ("autoescape", "False"),
}  # fmt: skip
CODE_BEARERS = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "runpy", "code", "pty"}


def test_no_code_in_the_package_can_run_code_it_was_given() -> None:
    """No pickle, eval, exec, unsafe YAML, shell or remote code, anywhere in the syntax tree, by any name."""
    for path in MODULES.values():
        names = imported(path)
        assert not {n.split(".")[0] for n in names} & CODE_BEARERS, path
        assert not names & RUNS_CODE, path  # `from os import system`
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute | ast.Name):
                assert ast.unparse(node) not in RUNS_CODE, path  # called, or given another name
            if isinstance(node, ast.Call):
                given = {(keyword.arg, ast.unparse(keyword.value)) for keyword in node.keywords}
                assert not given & RUNS_CODE_IF, path
                if ast.unparse(node.func).endswith(".from_pretrained") and "AutoModel" in ast.unparse(node.func):
                    assert ("use_safetensors", "True") in given or "gguf_file" in {name for name, _ in given}, path


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {name.split(">")[0].split("=")[0].strip().lower().replace("_", "-") for name in wanted}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert names <= pinned
    assert "torch==2.13.0" in lines
