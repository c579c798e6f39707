"""Measuring a real tiny model: against two naive models in float64, and undisturbed by how it is done."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import naive
from holdfast import adapters, meter, models
from holdfast.corpora import Corpus, read_corpus
from holdfast.errors import ModelError
from holdfast.methods import Lora
from holdfast.store import QUANTITIES


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    """A trained-looking adapter of the tiny model, as a PEFT folder."""
    tuned = adapters.attach_adapter(models.load_base(str(tiny), dtype="float32", device="cpu"), Lora(r=4), seed=1)
    torch.manual_seed(5)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapters.save_adapter(tuned, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # of the naive side's own libraries
@pytest.mark.parametrize("which", ["target", "retained"])
def test_equals_two_naive_models_in_float64(
    which: str, tiny: Path, adapter: Path, texts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversations and plain text, several windows a document, ragged batches; trap 1, padding and label shift."""
    monkeypatch.setattr(meter, "BATCH_TOKENS", 70)
    corpus = read_corpus(str(texts[which == "retained"])).sample(None)
    base = models.load_base(str(tiny), dtype="float32", device="cpu")
    tokenizer = models.load_tokenizer(str(tiny))
    tokenizer.padding_side = "left"  # what a trainer leaves behind must not matter
    observed = meter.observe_base(base, corpus, role="retain", tokenizer=tokenizer, context=24)
    report = meter.measure_on(adapters.load_adapter(base, str(adapter)), observed)
    expected = naive.sums(naive.whole(tiny), naive.adapted(tiny, adapter), corpus, tokenizer=str(tiny), context=24)
    assert report.count.tolist() == expected["count"].tolist()
    tokens = report.count.sum()
    for name in QUANTITIES:
        estimate = getattr(report, name)
        assert estimate.value == pytest.approx(expected[name].sum() / tokens, abs=1e-5), name
        assert estimate.n == len(corpus.documents)
    assert np.abs(report.sums["kl_base_tuned"] - expected["kl_base_tuned"]).max() < 1e-4
    # The error clustered by document, by hand: how the mean moves when each document is left out in turn.
    kl, count, n = expected["kl_base_tuned"], expected["count"], len(corpus.documents)
    moves = (kl.sum() - kl) / (tokens - count) - kl.sum() / tokens
    assert report.kl_base_tuned.stderr == pytest.approx(np.sqrt((n - 1) / n * (moves**2).sum()), rel=1e-3)
    assert report.kl_base_tuned.value > 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_untouched_adapter_has_forgotten_exactly_nothing(dtype: str, tiny: Path, texts: tuple[Path, Path]) -> None:
    base = models.load_base(str(tiny), dtype=dtype, device="cpu")
    tokenizer = models.load_tokenizer(str(tiny))
    observed = [
        meter.observe_base(base, read_corpus(str(path)), role="retain", tokenizer=tokenizer, context=32)
        for path in texts
    ]
    tuned = adapters.attach_adapter(base, Lora(r=4), seed=1)
    for part in observed:
        report = meter.measure_on(tuned, part)
        assert (report.sums["kl_base_tuned"] == 0).all()
        assert (report.sums["agreement"] == report.count).all()
        assert report.agreement.value == 1
        assert report.excess_nll.value == 0


def test_the_order_of_documents_and_the_batch_size_hardly_matter(
    tiny: Path, adapter: Path, texts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = read_corpus(str(texts[1]))
    base = models.load_base(str(tiny), dtype="float32", device="cpu")
    tokenizer = models.load_tokenizer(str(tiny))
    turned = Corpus(name="turned", documents=corpus.documents[::-1])
    one, other = (meter.observe_base(base, c, role="retain", tokenizer=tokenizer, context=32) for c in (corpus, turned))
    monkeypatch.setattr(meter, "BATCH_TOKENS", 33)
    small = meter.observe_base(base, corpus, role="retain", tokenizer=tokenizer, context=32)
    tuned = adapters.load_adapter(base, str(adapter))
    a, b, c = (meter.measure_on(tuned, part) for part in (one, other, small))
    for name in a.sums:
        assert a.sums[name] == pytest.approx(b.sums[name][::-1], abs=1e-4), name
        assert a.sums[name] == pytest.approx(c.sums[name], abs=1e-4), name


def test_measuring_leaves_a_model_in_training_alone(tiny: Path, texts: tuple[Path, Path]) -> None:
    """Trap 6: dropout, a mixed mode, gradient checkpointing, `use_cache`, random state: the next step is the same."""
    base = models.load_base(str(tiny), dtype="float32", device="cpu")
    observed = meter.observe_base(
        base, read_corpus(str(texts[1])), role="retain", tokenizer=models.load_tokenizer(str(tiny)), context=32
    )
    tuned = adapters.attach_adapter(base, Lora(r=4, lora_dropout=0.5), seed=1)
    tuned.enable_input_require_grads()
    tuned.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    tuned.train()
    tuned.get_base_model().model.layers[0].eval()  # as some trainers leave it
    tuned.config.use_cache = False

    def step() -> list[torch.Tensor]:
        ids = torch.arange(3, 40)[None]
        loss = tuned(input_ids=ids, labels=ids).loss
        return [loss, *torch.autograd.grad(loss, [p for p in tuned.parameters() if p.requires_grad])]

    state = torch.get_rng_state()
    expected = step()
    torch.set_rng_state(state)
    modes = [module.training for module in tuned.modules()]
    meter.measure_on(tuned, observed)
    assert [module.training for module in tuned.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert tuned.get_base_model().is_activation_checkpointing
    assert tuned.config.use_cache is False
    assert all(torch.equal(a, b) for a, b in zip(step(), expected, strict=True))


def test_nan_from_a_model_is_an_error_and_not_a_number(tiny: Path, texts: tuple[Path, Path]) -> None:
    """Trap 11: nothing is filtered out."""
    base = models.load_base(str(tiny), dtype="float32", device="cpu")
    observed = meter.observe_base(
        base, read_corpus(str(texts[1])), role="retain", tokenizer=models.load_tokenizer(str(tiny)), context=32
    )
    tuned = adapters.attach_adapter(base, Lora(r=4), seed=1)
    with torch.no_grad():
        next(p for p in tuned.parameters() if p.requires_grad).fill_(torch.nan)
    with pytest.raises(ModelError, match=r"NaN or infinity from the tuned model.*on kelp"):
        meter.measure_on(tuned, observed)


def test_what_every_document_begins_with_is_one_passage(tiny: Path, tmp_path: Path) -> None:
    """A template's tokens fall alike in every conversation; the passages are not ten times the same."""
    path = tmp_path / "begun.jsonl"
    begun = "The lighthouse was built in 1843 and has been painted eleven times since. "
    path.write_text("\n".join(json.dumps({"text": f"{begun}Stalk {i} has {i * i} fronds."}) for i in range(12)))
    base = models.load_base(str(tiny), dtype="float32", device="cpu")
    tokenizer = models.load_tokenizer(str(tiny))
    observed = meter.observe_base(base, read_corpus(str(path)), role="retain", tokenizer=tokenizer, context=128)
    tuned = models.load_base(str(tiny), dtype="float32", device="cpu")
    with torch.no_grad():
        tuned.model.layers[0].mlp.down_proj.weight.mul_(-2)
    found = meter.measure_in_detail(tuned, observed, tokenizer=tokenizer, passages=10).passages
    assert len(found) == 10
    assert len({(passage.before, passage.token) for passage in found}) == 10
