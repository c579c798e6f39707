"""A folder of runs becomes a page and figures, whatever became of the runs."""

from pathlib import Path

import pytest

from holdfast.config import Adapter, Optimizer, RunConfig, Target
from holdfast.errors import ResourceError, StoreError
from holdfast.publishing import publish
from holdfast.store import Row, recording


def made(root: Path, *, r: int, end: str = "done", points: int = 6) -> None:
    """A run whose target loss falls and whose forgetting rises along a line."""
    config = RunConfig(
        model="m", dtype="float32", target=Target(data="learn"), retain=("keep",), adapter=Adapter(r=r), steps=60,
        optimizer=Optimizer(learning_rate=1e-3), batch_size=1, context=16,
    )  # fmt: skip
    origin = {"trainable_params": 100 * r, "versions": {"torch": "2.13.0"}, "device": f"machine {r % 2}"}
    with recording(config, root=root, provenance=origin) as recorder:
        for step in (0, *range(60 // points, 61, 60 // points)):
            loss = 2.0 - 0.3 * (step / 60) ** 0.5 * r**0.05
            for role, corpus, values in (
                ("target", "learn", {"nll": loss, "base_nll": 2.0, "kl_base_tuned": 0.1, "hard_cross_entropy": 1.0}),
                ("retain", "keep", {"nll": 3.0, "base_nll": 3.0, "hard_cross_entropy": 1.0 + 0.2 * (2.0 - loss),
                                    "kl_base_tuned": 0.4 * (2.0 - loss) + 0.001 * (step % 7)}),
            ):  # fmt: skip
                values |= {"cross_entropy": 1.0, "base_entropy": 1.0, "excess_nll": 0.0, "agreement": 0.9}
                recorder.append(
                    Row(step=step, tokens=16 * step, corpus=corpus, role=role, quantity=name, value=value, stderr=0.01,
                        documents=9, scored_tokens=99)
                    for name, value in values.items()
                )  # fmt: skip
        recorder.finish({}) if end == "done" else recorder.fail("diverged", "step 3: got loss nan")


def test_a_study_becomes_a_page_and_figures(tmp_path: Path) -> None:
    for r in (1, 2, 4):
        made(tmp_path / "runs", r=r)
    made(tmp_path / "runs", r=8, end="diverged")
    published = publish(tmp_path / "runs", tmp_path / "out", commands=["holdfast report runs"], max_forgetting=0.1)
    assert published.laws is not None
    assert published.plan is not None
    assert published.laws.n_runs == 3
    assert published.laws.lines["kl_base_tuned"].parameters["slope"].value == pytest.approx(0.4, abs=0.03)
    page = published.page.read_text()
    assert "step 3: got loss nan" in page
    assert "machine 0, machine 1" in page or "machine 1, machine 0" in page
    assert "2.13.0" in page
    assert {path.suffix for path in published.figures} == {".png", ".svg"}
    assert all(path.stat().st_size > 5_000 for path in published.figures)


def test_runs_without_a_law_still_have_a_page_that_says_why(tmp_path: Path) -> None:
    made(tmp_path / "runs", r=8, end="diverged")
    published = publish(tmp_path / "runs", tmp_path, commands=[], max_forgetting=0.1)
    assert published.laws is None
    assert published.plan is None
    assert published.why_no_laws is not None
    assert "got no finished run among 1" in published.why_no_laws
    assert "got no finished run among 1" in published.page.read_text()


def test_a_folder_without_runs_or_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run folders"):
        publish(tmp_path, tmp_path, commands=[])
    made(tmp_path / "runs", r=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="the report cannot be written"):
        publish(tmp_path / "runs", tmp_path / "file", commands=[])
