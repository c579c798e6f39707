"""`holdfast.measure` from end to end: find the models, check the pairs, observe the base once, measure every tuned one.

The base is loaded only for what is not yet kept of it, and let go before a tuned model is loaded. (With `precision`
nobody knows beforehand how much text is needed, so the two may then stand in memory side by side.)
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from holdfast import adapters, basecache, builtin, checks, folders, models, sampling, settings, sources
from holdfast.basecache import Batch, Kind
from holdfast.corpora import Block, Corpus, Part, read_corpus
from holdfast.errors import ConfigError, DataError, ModelError
from holdfast.evidence import CorpusReport, joined
from holdfast.forgetting import Checkpoint, Finding, ForgettingReport
from holdfast.kernels import fastest_dtype
from holdfast.meter import BATCH_TOKENS, ObservedBase, batch_plan, measure_in_detail, observe
from holdfast.models import Base, Tokenizer, Tuned
from holdfast.sources import Candidate
from holdfast.store import Role

log = logging.getLogger(__name__)

FIRST_DOCUMENTS = 32
"""Documents in the first part of a text; each further part doubles the whole, so a longer text reuses a shorter's. With
fewer to begin with, stopping as soon as an interval is narrow would choose those that are too narrow by chance."""

SELF_DOCUMENTS, SELF_TOKENS = 32, 256
"""What `self` samples from the base unless told how many documents."""

PASSAGES = 10

Tell = Callable[[str, float], None]
"""Given what is being done, and the share of all work that is done."""


@dataclass(frozen=True, kw_only=True)
class _Text:
    """A text to be measured: its documents in a fixed random order, and which part of them is scored."""

    corpus: Corpus
    role: Role
    part: Part

    def parts(self) -> list[Corpus]:
        """Disjoint parts, each as large as all before it."""
        documents, cut, found = self.corpus.documents, [0, FIRST_DOCUMENTS], []
        while cut[-1] < len(documents):
            cut.append(2 * cut[-1])
        for low, high in itertools.pairwise(cut):
            found.append(Corpus(name=self.corpus.name, documents=documents[low:high]))
        return found


def measure(
    *,
    tuned: str | Sequence[str],
    base: str | None = None,
    texts: Sequence[str] = ("builtin:wikipedia",),
    task: str | None = None,
    quantised: str | None = None,
    context: int = 512,
    documents: int | None = None,
    precision: float | None = None,
    dtype: str = "auto",
    device: str = "auto",
    tell: Tell = lambda _what, _share: None,
) -> ForgettingReport:
    """What tuned models forgot of their base, on each text.

        report = holdfast.measure(base="builtin:smollm2", tuned="outputs", texts=["wikitext", "notes.jsonl"])

    Args:
        tuned: PEFT adapter folders, whole models (folders, hub ids, GGUF files), or a trainer's folder of
            `checkpoint-*`.
        base: the untuned model; None where the adapters' own configs name it. It is always loaded as itself, never as
            a tuned model with its adapter switched off.
        texts: data specs (see `read_corpus`); `self` is text sampled from the base.
        task: the fine-tuning data; forgetting is measured on its prompts too.
        quantised: what the tuned models stand on, where that is not the base as it is: `4bit`, `8bit` (bitsandbytes) or
            a model spec. Forgetting is then against the quantised base, and quantisation damage a number of its own.
        context: tokens in a window.
        documents: of each text, the same ones however many more there are; None: all.
        precision: half the width of the 95 % interval to reach, nats per token: each text is read in random order until
            then, instead of to its end.
        dtype: `float32`, `bfloat16`, or `auto`, the faster here. Rounding in bfloat16 is about 0.001 nats.
        device: `auto`, `cpu`, `cuda`, …
        tell: is told of progress.

    Raises:
        ConfigError: an argument is not one of those.
        ModelError: a model cannot be loaded, or no number about the pair could mean anything.
        DataError: a text cannot be used, or two have the same name.
    """
    if dtype not in ("auto", "bfloat16", "float32"):
        raise ConfigError(f"got {dtype!r}, expected auto, bfloat16 or float32, at dtype")
    if precision is not None and not precision > 0:
        raise ConfigError(f"got {precision}, expected a width above 0, at precision")
    place = models.choose_device(device)
    dtype = fastest_dtype(place) if dtype == "auto" else dtype
    specs = [tuned] if isinstance(tuned, str) else list(tuned)
    found = [candidate for spec in specs for candidate in sources.candidates(models.locate(spec), spec=spec)]
    base = base or sources.named_base(found)
    path = models.locate(base)
    folders.read_files(path, adapter=False)
    tokenizer = models.load_tokenizer(base)
    findings, refused = checks.check_pairs(found, base=base, path=path, quantised=quantised, tokenizer=tokenizer)
    reference = _Reference(base, None, dtype=dtype, device=place, tokenizer=tokenizer, context=context)
    wanted = [_text(spec, reference, documents) for spec in texts]
    wanted += [] if task is None else [_prompts(task, documents)]
    names = [text.corpus.name for text in wanted]
    if not names or len(set(names)) < len(names):
        raise DataError(f"got texts named {names}, expected at least one, each with a name of its own")

    once = sum(_characters(text.corpus) for text in wanted)
    progress = _Progress(tell, once * (len(findings) + (1 if quantised is None else 3)))
    damage: dict[str, CorpusReport] = {}
    if quantised is not None:
        _prepare(reference, wanted, {reference.usual_kind()}, precision, progress)
        spec, bits = (base, quantised) if quantised in models.QUANTISATIONS else (quantised, None)
        damaged = models.load_base(spec, dtype=dtype, device=place, quantisation=bits)
        damage = {
            text.corpus.name: _measure_text(damaged, reference, text, precision, progress, quantised)[0]
            for text in wanted
        }
        del damaged
        reference = _Reference(spec, bits, dtype=dtype, device=place, tokenizer=tokenizer, context=context)
    usable = [candidate for candidate in found if candidate.name not in refused]
    _prepare(reference, wanted, {_likely_kind(c, reference) for c in usable}, precision, progress)
    checkpoints = []
    for candidate in found:
        noted = findings.get(candidate.name, ())
        try:
            if why := refused.get(candidate.name):
                raise ModelError(why)
            one = _measure_one(candidate, reference, wanted, precision, noted, progress)
        except ModelError as error:
            if len(found) == 1:
                raise
            one = Checkpoint(
                name=candidate.name, step=candidate.step, method=None, merged=False, findings=noted, texts={},
                failure=str(error),
            )  # fmt: skip
        checkpoints.append(one)
    return ForgettingReport(
        base=base, quantised=quantised, dtype=dtype, device=place, context=context, quantisation=damage,
        checkpoints=tuple(checkpoints),
    )  # fmt: skip


def base_and_tuned(specs: Sequence[str]) -> tuple[str | None, list[str]]:
    """A command line's models: the first is the base, unless it is an adapter or alone; an adapter names its base.

    Raises:
        ModelError: the first is nothing that can be read.
    """
    first = models.locate(specs[0])
    adapter = len(specs) == 1 or all(candidate.adapter for candidate in sources.candidates(first, spec=specs[0]))
    return (None, list(specs)) if adapter else (specs[0], list(specs[1:]))


class _Progress:
    """How much of the work is done, counted in characters of text passed through a model. A class because it counts."""

    def __init__(self, tell: Tell, total: int) -> None:
        self._tell, self._total, self.done = tell, max(total, 1), 0.0

    def say(self, what: str) -> None:
        """Say what begins."""
        self._tell(what, min(self.done / self._total, 1.0))

    def count(self, what: str, characters: float) -> None:
        """Count what was done."""
        self.done += characters
        self.say(what)

    def through(self, batches: Iterable[Batch], blocks: Sequence[Block], characters: int, what: str) -> Iterator[Batch]:
        """Batches as they come, each counted by its share of the blocks' tokens once it has been used."""
        tokens = sum(block.ids.size for block in blocks)
        for batch, block in zip(batches, blocks, strict=True):
            yield batch
            self.count(what, characters * block.ids.size / tokens)


class _Reference:
    """One base and what it says of the texts. A class because it holds the loaded model for as long as it is needed."""

    def __init__(
        self, spec: str, quantisation: str | None, *, dtype: str, device: str, tokenizer: Tokenizer, context: int
    ) -> None:
        self.quantisation, self.dtype, self.device = quantisation, dtype, device
        self.tokenizer, self.context = tokenizer, context
        self.path = models.locate(spec)
        self.head: str | None = None
        self._model: Base | None = None
        self._identity = {
            **basecache.base_identity(
                weights=sources.files_fingerprint(self.path), tokenizer=checks.tokenizer_fingerprint(tokenizer),
                quantisation=quantisation, dtype=dtype, device=device,
            ),
            "context": str(context),
            "batch_tokens": str(BATCH_TOKENS),
        }  # fmt: skip

    def model(self) -> Base:
        """The base itself, loaded when first needed."""
        if self._model is None:
            self._model = models.load_base(
                str(self.path), dtype=self.dtype, device=self.device, quantisation=self.quantisation
            )
        return self._model

    def usual_kind(self) -> Kind:
        """What its files say a tuned model of the same head will need: vectors where the head is a matrix alone."""
        capped = self.path.is_dir() and settings.read(self.path).get("final_logit_softcapping")
        return "states" if capped or sources.head_bias_in_files(self.path) else "vectors"

    def release(self) -> None:
        """Let the loaded model go."""
        self._model = None

    def observed(self, text: _Text, documents: Corpus, kind: Kind, progress: _Progress) -> ObservedBase:
        """What the base says of some documents of a text: found as kept, or observed now and kept."""
        blocks = batch_plan(documents, self.tokenizer, context=self.context, part=text.part)
        identity = {**self._identity, "text": documents.fingerprint, "part": text.part, "plan": _plan_digest(blocks)}
        stored = basecache.find(identity, kind=kind, device=self.device)
        if stored is None:
            model = self.model()
            head = models.head_of(model)
            what = f"what the base says of {documents.name}"
            batches = observe(model, blocks, kind=kind, corpus=documents.name)
            batches = progress.through(batches, blocks, _characters(documents), what)
            basecache.keep(identity, batches, kind=kind, head=head)
            stored = basecache.find(identity, kind=kind, device=self.device)
            if stored is None:
                raise ModelError(f"what the base says of {documents.name} could not be read back from the cache")
        self.head = stored.fingerprint
        places = tuple(document.place for document in documents.documents)
        return ObservedBase(corpus=documents.name, role=text.role, places=places, blocks=blocks, batches=stored)

    def sampled(self, documents: int) -> Corpus:
        """`self`: text sampled from the base, made once for a seed of 0 and then read back."""
        identity = f"{sorted(self._identity.items())}{documents}{SELF_TOKENS}"
        name = hashlib.sha256(identity.encode()).hexdigest()[:32]
        path = builtin.cache_folder() / "self" / f"{name}.jsonl"
        if not path.is_file():
            log.info("sampling %d documents of up to %d tokens from the base, once", documents, SELF_TOKENS)
            corpus = sampling.sample_corpus(
                self.model(), tokenizer=self.tokenizer, documents=documents, tokens=SELF_TOKENS, seed=0
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            sampling.write_corpus(corpus, path)
        documents_read = enumerate(read_corpus(str(path)).documents, 1)
        named = tuple(replace(document, place=f"self, sample {k}") for k, document in documents_read)
        return Corpus(name=sampling.NAME, documents=named)


def _text(spec: str, reference: _Reference, documents: int | None) -> _Text:
    corpus = reference.sampled(documents or SELF_DOCUMENTS) if spec == "self" else read_corpus(spec)
    return _Text(corpus=corpus.sample(documents), role="retain", part="answer")


def _prompts(spec: str, documents: int | None) -> _Text:
    corpus = read_corpus(spec).sample(documents)
    return _Text(corpus=Corpus(name=f"{corpus.name} prompts", documents=corpus.documents), role="target", part="prompt")


def _prepare(
    reference: _Reference, texts: Sequence[_Text], kinds: set[Kind], precision: float | None, progress: _Progress
) -> None:
    """Observe the base on all that is sure to be needed, and let it go."""
    for kind in sorted(kinds):
        for text in texts:
            for part in text.parts()[: None if precision is None else 1]:
                progress.say(f"what the base says of {text.corpus.name}")
                after = progress.done + _characters(part)
                reference.observed(text, part, kind, progress)
                progress.done = after  # what was found as kept is done as well
    reference.release()


def _measure_one(
    candidate: Candidate, reference: _Reference, texts: Sequence[_Text], precision: float | None,
    findings: Sequence[Finding], progress: _Progress,
) -> Checkpoint:  # fmt: skip
    """One tuned model on every text."""
    progress.say(candidate.name)
    model, merged, more = _load(candidate, reference)
    reports: dict[str, CorpusReport] = {}
    kind: Kind = "vectors"
    late: list[Finding] = []
    for text in texts:
        report, kind = _measure_text(model, reference, text, precision, progress, candidate.name)
        reports[text.corpus.name] = report
        low, high = report.kl_base_tuned.interval()
        if precision is not None and not (high - low) / 2 <= precision:
            late.append(
                Finding(
                    what=f"precision {precision:g} not reached on {text.corpus.name}",
                    consequence=f"all {report.documents} documents give ± {(high - low) / 2:.2g}; it takes more text",
                )
            )
    reference.release()
    return Checkpoint(
        name=candidate.name, step=candidate.step,
        method={"vectors": "cached vectors", "states": "cached hidden states"}[kind], merged=merged,
        findings=(*findings, *more, *late), texts=reports, failure=None,
    )  # fmt: skip


def _measure_text(
    model: Base | Tuned, reference: _Reference, text: _Text, precision: float | None, progress: _Progress, name: str
) -> tuple[CorpusReport, Kind]:
    """One tuned model on one text, part by part, until the text or the wish for precision ends."""
    fingerprint, plain = (head := models.head_of(model)).fingerprint, head.plain
    parts: list[CorpusReport] = []
    kind: Kind = "vectors" if plain and reference.head in (None, fingerprint) else "states"
    for documents in text.parts():
        observed = reference.observed(text, documents, kind, progress)
        if kind == "vectors" and reference.head != fingerprint:
            kind, observed = "states", reference.observed(text, documents, "states", progress)
        what = f"{name} on {text.corpus.name}"
        batches = progress.through(observed.batches, observed.blocks, _characters(documents), what)
        told = replace(observed, batches=batches)
        parts.append(measure_in_detail(model, told, tokenizer=reference.tokenizer, passages=PASSAGES))
        low, high = joined(parts, passages=0).kl_base_tuned.interval()
        if precision is not None and (high - low) / 2 <= precision:
            break
    return joined(parts, passages=PASSAGES), kind


def _characters(documents: Corpus) -> int:
    return sum(len(str(document.content)) for document in documents.documents)


def _load(candidate: Candidate, reference: _Reference) -> tuple[Base | Tuned, bool, tuple[Finding, ...]]:
    """A tuned model, whether its adapter was merged, and what its own weights gave away."""
    if not candidate.adapter:
        adapters.check_unchanged(candidate.path)
        model = models.load_base(str(candidate.path), dtype=reference.dtype, device=reference.device)
        return model, False, ()
    standing = models.load_base(
        str(reference.path), dtype=reference.dtype, device=reference.device, quantisation=reference.quantisation
    )
    more: tuple[Finding, ...] = ()
    if reference.quantisation is None and (candidate.path.parent / "provenance.json").is_file():
        more = checks.check_weights(candidate, models.weights_fingerprint(standing), reference.dtype)
    tuned = adapters.load_adapter(standing, str(candidate.path))
    whole = adapters.merged(tuned)
    return (tuned, False, more) if whole is None else (whole, True, more)


def _likely_kind(candidate: Candidate, reference: _Reference) -> Kind:
    """What a tuned model will need of the base, as far as its files tell; what it does need is decided once loaded."""
    if candidate.adapter:
        return "states" if sources.changes_head(candidate) else reference.usual_kind()
    own = sources.head_in_files(candidate.path)
    return reference.usual_kind() if own is not None and own == sources.head_in_files(reference.path) else "states"


def _plan_digest(blocks: Sequence[Block]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        for part in (block.ids, block.scored, block.positions, block.document):
            digest.update(f"{part.shape}{part.dtype}".encode())
            digest.update(part.tobytes())
    return digest.hexdigest()
