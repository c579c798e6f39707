"""Runs become a page and figures, measurements a page, a table and a model card, whatever became of them."""

import math
from pathlib import Path

import huggingface_hub
import pandas as pd
import pytest
from huggingface_hub import EvalResult, ModelCardData

import measured
from holdfast import files, publishing
from holdfast.config import Optimizer, RunConfig, Target
from holdfast.display import visible
from holdfast.errors import DataError, ResourceError, StoreError
from holdfast.methods import Full, Lora
from holdfast.publishing import RELOAD_S, Published, keep_current, publish, publish_measurement
from holdfast.store import Measurement, owning
from payloads import PAYLOADS


def made(root: Path, *, r: int, end: str = "done", points: int = 6, seed: int = 0, whole: bool = False) -> None:
    """A run whose target loss falls and whose forgetting rises along a line."""
    config = RunConfig(
        model="m", dtype="float32", target=Target(data="learn"), retain=("keep",), steps=60,
        adapter=Full(method="full") if whole else Lora(r=r), seed=seed,
        optimizer=Optimizer(learning_rate=1e-3), batch_size=1, context=16,
    )  # fmt: skip
    origin = {"trainable_params": 100 * r, "versions": {"torch": "2.13.0"}, "device": f"machine {r % 2}"}
    with owning(config, root=root) as recorder:
        assert recorder is not None
        recorder.begin(origin)
        for step in (0, *range(60 // points, 61, 60 // points)):
            loss = 2.0 - 0.3 * (step / 60) ** 0.5 * r**0.05
            for role, corpus, values in (
                ("target", "learn", {"nll": loss, "base_nll": 2.0, "kl_base_tuned": 0.1, "hard_cross_entropy": 1.0}),
                ("retain", "keep", {"nll": 3.0, "base_nll": 3.0, "hard_cross_entropy": 1.0 + 0.2 * (2.0 - loss),
                                    "kl_base_tuned": 0.4 * (2.0 - loss) + 0.001 * (step % 7)}),
            ):  # fmt: skip
                values |= {"cross_entropy": 1.0, "base_entropy": 1.0, "excess_nll": 0.0, "agreement": 0.9}
                recorder.append(
                    Measurement(
                        step=step, tokens=16 * step, corpus=corpus, role=role, documents=9, scored_tokens=99,
                        values={name: (value, 0.01) for name, value in values.items()},
                    )
                )  # fmt: skip
        if end == "done":
            recorder.finish({})
        elif end == "diverged":
            recorder.fail("diverged", "step 3: got loss nan")


def test_a_page_of_runs_without_ranks_says_why_it_recommends_nothing(tmp_path: Path) -> None:
    """Of one LoRA run and three of all weights the laws are of the three, and the page says which it leaves out."""
    for seed in range(3):
        made(tmp_path / "runs", r=1, seed=seed, whole=True)
    made(tmp_path / "runs", r=4)
    published = publish(tmp_path / "runs", tmp_path, commands=[], max_forgetting=0.1, reload_s=1)
    assert published.laws is not None
    assert (published.laws.method, published.laws.n_runs) == ("full", 3)
    page = published.page.read_text("utf-8")
    assert "Nothing is recommended: <bdi>got runs that have no rank" in page
    assert "1 of 4 finished runs is trained in another way" in page
    assert "and runs trained in another way, which the fit drawn does not use" in page


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
    with pytest.raises(ResourceError, match="cannot be written"):
        publish(tmp_path / "runs", tmp_path / "file", commands=[])


def test_a_page_is_kept_current_until_every_run_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written anew when something was measured and not else; a browser is told to look again until the last."""
    for r in (1, 2, 4):
        made(tmp_path / "runs", r=r)
    made(tmp_path / "runs", r=8, end="under way")
    pages, folders = [], sorted((tmp_path / "runs").glob("*/records.jsonl"))

    def write(reload_s: int | None) -> Published:
        done = publish(tmp_path / "runs", tmp_path, commands=[], reload_s=reload_s)
        pages.append((reload_s, done.page.read_text()))
        return done

    waits = iter([None, "measure", "fail"])  # nothing happens; then a run ends

    def sleep(_: float) -> None:
        if next(waits) == "fail":
            (unfinished,) = [p.parent for p in folders if not (p.parent / "done.json").exists()]
            files.write_json(unfinished / "failed.json", {"state": "failed", "reason": "a storm"})

    monkeypatch.setattr(publishing.time, "sleep", sleep)
    last = keep_current(tmp_path / "runs", write)
    assert [reload_s for reload_s, _ in pages] == [RELOAD_S, None]
    assert f'<meta http-equiv="refresh" content="{RELOAD_S}">' in pages[0][1]
    assert "A sweep is under way: 3 runs have finished" in pages[0][1]
    assert "refresh" not in pages[1][1].split("<style>")[0]
    assert "a storm" in pages[1][1]
    assert last.figures


def published(report, folder, **about):
    files = {"html": folder / "page.html", "parquet": folder / "sums.parquet", "model_card": folder / "README.md"}
    publish_measurement(report, **files | {"max_forgetting": 0.1, "commands": ["holdfast measure a b"]} | about)
    return files


def test_a_measurement_becomes_a_page_that_says_where_its_numbers_come_from(tmp_path: Path) -> None:
    page = published(measured.trajectory(), tmp_path / "new" / "folder")["html"].read_text(encoding="utf-8")
    for part in ("holdfast measure a b", "versions / torch", "2.13.0", "float32", "512 tokens",
                 "cached vectors, merged",
                 "What outputs/checkpoint-100 to outputs/checkpoint-500 forgot of builtin:smollm2"):  # fmt: skip
        assert part in page
    assert not list((tmp_path / "new" / "folder").glob(".*"))


def test_every_mean_is_a_ratio_of_column_sums_of_the_table(tmp_path: Path) -> None:
    report = measured.trajectory()
    table = pd.read_parquet(published(report, tmp_path)["parquet"])
    assert len(table) == sum(len(text.places) for _, text in report.rows())
    for point, text in report.rows():
        of = table[(table["tuned"] == point.name) & (table["corpus"] == text.corpus)]
        assert (of["step"] == point.step).all()
        assert of["document"].tolist() == list(text.places)
        for quantity in ("kl_base_tuned", "agreement", "nll", "hard_cross_entropy"):
            assert of[quantity].sum() / of["scored_tokens"].sum() == text.estimate(quantity).value
        excess = (of["nll"].sum() - of["base_nll"].sum()) / of["scored_tokens"].sum()
        assert excess == pytest.approx(text.excess_nll.value, rel=1e-9)


def test_a_model_card_has_forgetting_and_agreement_of_the_last_checkpoint_on_each_text(tmp_path: Path) -> None:
    report = measured.trajectory()
    metadata = huggingface_hub.metadata_load(published(report, tmp_path)["model_card"])
    results = ModelCardData(**metadata).eval_results
    assert [(result.dataset_name, result.metric_type) for result in results] == [
        (text, metric) for text in ("wikipedia", "code") for metric in ("kl_base_tuned", "agreement")
    ]
    assert metadata["model-index"][0]["name"] == "outputs/checkpoint-500"
    for result in results:
        estimate = report[result.dataset_name].estimate(result.metric_type)
        assert result.metric_value == estimate.value
        assert result.metric_args["interval_95"] == list(estimate.interval())
        assert result.metric_args["documents"] == 40
        assert "nats per token" in result.metric_name or "share of tokens" in result.metric_name


def test_one_document_has_no_interval_on_a_model_card(tmp_path: Path) -> None:
    card = published(measured.report(measured.checkpoint(measured.corpus(documents=1))), tmp_path)["model_card"]
    (result,) = huggingface_hub.metadata_load(card)["model-index"][0]["results"]
    assert {metric["args"]["documents"] for metric in result["metrics"]} == {1}
    assert not any("stderr" in metric["args"] or math.isnan(metric["value"]) for metric in result["metrics"])


def test_a_model_card_that_is_there_keeps_all_else_it_says(tmp_path: Path) -> None:
    card, report = tmp_path / "README.md", measured.report(measured.checkpoint(measured.corpus(documents=2)))
    own = ModelCardData(
        license="mit", base_model="org/base", model_name="mine",
        eval_results=[EvalResult(task_type="text-generation", dataset_type="gsm8k", dataset_name="GSM8K",
                                 metric_type="accuracy", metric_value=0.5)],
    )  # fmt: skip
    card.write_text(f"---\n{own.to_yaml()}\n---\n# Mine\n\nWords with `---` in them.\n")
    for _ in range(2):  # measuring again replaces what was measured
        published(report, tmp_path)
        metadata = huggingface_hub.metadata_load(card)
        assert (metadata["license"], metadata["base_model"]) == ("mit", "org/base")
        (index,) = metadata["model-index"]
        assert index["name"] == "mine"
        found = [(r["dataset"]["name"], metric["type"]) for r in index["results"] for metric in r["metrics"]]
        assert found == [("GSM8K", "accuracy"), ("wikipedia", "kl_base_tuned"), ("wikipedia", "agreement")]
        assert "---\n# Mine\n\nWords with `---` in them.\n" in card.read_text()
    card.write_text("# Words alone\n")
    published(report, tmp_path)
    assert huggingface_hub.metadata_load(card)["model-index"][0]["name"] == "4f1c/adapter"
    assert "# Words alone\n" in card.read_text()
    card.write_text("---\na: [\n---\n")
    with pytest.raises(DataError, match=r"(?s)got a model card that cannot be read .*README\.md"):
        published(report, tmp_path)
    assert card.read_text() == "---\na: [\n---\n"


@pytest.mark.parametrize("payload", [*PAYLOADS, "a\n---\nb: c", "---", "key: value", "- item", "'\"#|>&*!%@`"])
def test_a_model_card_holds_any_name_as_it_is_shown(payload: str, tmp_path: Path) -> None:
    named = measured.checkpoint(measured.corpus(documents=2, quote=lambda text: f"{text}{payload}"), name=payload)
    publish_measurement(
        measured.report(named), html=None, parquet=None, model_card=tmp_path / "card.md", max_forgetting=None,
        commands=[],
    )  # fmt: skip
    (index,) = huggingface_hub.metadata_load(tmp_path / "card.md")["model-index"]
    assert index["name"] == visible("/".join(payload.rstrip("/").split("/")[-2:]))
    assert index["results"][0]["dataset"]["name"] == visible(f"wikipedia{payload}")


def test_without_a_measured_checkpoint_there_is_a_page_and_a_refusal_of_the_rest(tmp_path: Path) -> None:
    nothing = measured.report(
        measured.checkpoint(name="a", failure="why"), measured.checkpoint(name="b", failure="not")
    )
    with pytest.raises(DataError, match=r"got no checkpoint that could be measured, expected one, for .*sums\.parquet"):
        published(nothing, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_measurement_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for part in ("html", "parquet", "model_card"):
        asked = dict.fromkeys(("html", "parquet", "model_card")) | {part: tmp_path / "file" / "x"}
        with pytest.raises(ResourceError, match="cannot be written"):
            published(measured.report(measured.checkpoint(measured.corpus(documents=2))), tmp_path, **asked)
