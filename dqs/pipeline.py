"""The way of a batch: score, decide, look up and insert, decide. Read this second.

The pipeline joins what is stateless (an executor that turns text into columns)
with what has state (the duplicate index) and with the policy. It checks
documents one by one before any work, so that a bad one is answered with an
error and its neighbours with verdicts. It knows nothing of files or the wire.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dqs.data import Document, Documents, Label, Missing, Verdict, parse_language
from dqs.errors import DocumentError, DocumentErrorCode, IndexUnavailable, PolicyError, RequestError
from dqs.index.bands import MAX_BANDS
from dqs.index.lines import SeenLines, share_seen
from dqs.index.redis_store import Duplicates, DuplicateStore
from dqs.index.signature import SignatureParameters, Signatures, sign
from dqs.policy import Policy, Reasons
from dqs.scorer import Direction, ScoreColumns, Signal
from dqs.text import TextBatch

MAX_ID_BYTES = 512
DEFAULT_TENANT = "default"
"""Who calls where nobody is told apart."""

DUPLICATE_SIGNALS = (
    Signal("duplicate_similarity", "Jaccard similarity", 0, 1, Direction.HIGHER_IS_WORSE,
           "Estimated similarity to the most similar document that the corpus kept before."),
    Signal("exact_duplicate", "0 or 1", 0, 1, Direction.HIGHER_IS_WORSE,
           "1 where the corpus kept the same text before, up to case, width and white space."),
    Signal("duplicate_bands", "bands", 0, MAX_BANDS, Direction.NEUTRAL,
           "In how many bands of its signature the document met the one that it repeats; 0 where it repeats none."),
    Signal("seen_line_share", "share", 0, 1, Direction.HIGHER_IS_WORSE,
           "Share of the lines that the corpus had kept before, of all or of a sample of 16, digits and punctuation "
           "aside."),
)  # fmt: skip
_DUPLICATE_NAMES = frozenset(("duplicate_similarity", "exact_duplicate", "duplicate_bands"))
"""Signals that are known only after the atomic step; the share of seen lines is known before."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that answers: its name, version, kind and the digest of its files."""

    name: str
    version: str
    kind: str
    languages: tuple[str, ...]
    digest: str

    @property
    def label(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class ModelSet:
    """The models that answer together.

    Attributes:
        models: in any order.
        digest: 16 hexadecimal digits over the digests of all; equal for equal models, whatever their order.
    """

    models: tuple[ModelInfo, ...]
    digest: str

    @classmethod
    def of(cls, models: Sequence[ModelInfo]) -> ModelSet:
        """The set of these models."""
        parts = sorted(f"{model.label} {model.digest}" for model in models)
        return cls(tuple(models), hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16])


@dataclass(slots=True)
class Swaps:
    """What became of models that were promoted while the service ran. Written by one thread, read by any.

    Attributes:
        done: how often other models have taken over.
        refused: how often models were refused.
        refusal: why the models that were promoted last do not serve; "" where they do.
    """

    done: int = 0
    refused: int = 0
    refusal: str = ""


@dataclass(slots=True, eq=False)
class Scored:
    """What an executor returns for n documents.

    Attributes:
        columns: signals of every scorer.
        valid: bool[n]; false where the text is not UTF-8.
        signatures: for the duplicate index, or None where not asked for.
        seconds: time spent per stage.
        failed: bool[n]; true where scoring the document broke the scorer; None where none did.
        replica: who scored, "inline" or the name of a worker.
        models: what answered, the same for all n; None where nothing did.
    """

    columns: ScoreColumns
    valid: NDArray[np.bool_]
    signatures: Signatures | None
    seconds: dict[str, float] = field(default_factory=dict)
    failed: NDArray[np.bool_] | None = None
    replica: str = "inline"
    models: ModelSet | None = None


@dataclass(slots=True, eq=False)
class Undecided:
    """n documents on their way through the pipeline: scored, and neither looked up nor decided.

    Attributes:
        ids: id per document.
        scored: what the executor returned.
        errors: the document's error, or None.
        seconds: time spent per stage so far.
    """

    ids: list[str]
    scored: Scored
    errors: list[DocumentError | None]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Replica:
    """One scorer process.

    Attributes:
        name: unique within the executor.
        pool: "inline", "cpu" or "gpu".
        node: where it runs, as a person would name it.
        ready: whether a real batch has passed through it since it started.
        pending_bytes: text that it holds.
        restarts: how often it has died.
    """

    name: str
    pool: str
    node: str
    ready: bool
    pending_bytes: int
    restarts: int


@dataclass(frozen=True, slots=True)
class ExecutorStatus:
    """How an executor is.

    Attributes:
        slots: how many batches it takes at once now; 0 while it cannot score.
        replicas: every scorer process, those that are starting included.
        lost: why it will never score again, or None.
        slots_per_scorer: slots that are one scorer's: it works at one batch, and holds the others until then.
    """

    slots: int
    replicas: tuple[Replica, ...]
    lost: str | None = None
    slots_per_scorer: int = 1


class Executor(Protocol):
    """Runs the stateless part; the same columns for the same documents, wherever it runs. Thread-safe.

    Attributes:
        signals: what its columns hold; never changes.
        max_slots: the most batches that it ever takes at once.
    """

    signals: list[Signal]
    max_slots: int

    @property
    def models(self) -> list[ModelInfo]:
        """What it answers with now."""
        ...

    @property
    def classifiers(self) -> list[str]:
        """Names of the classifiers that a caller may choose among now."""
        ...

    def score(
        self,
        utf8: NDArray[np.uint8],
        byte_offsets: NDArray[np.int64],
        languages: Sequence[str],
        *,
        signature: SignatureParameters | None = None,
        classifiers: frozenset[str] | None = None,
    ) -> Scored:
        """Scores documents that lie end to end in one buffer, all with the same models; blocks until they are scored.

        Args:
            utf8: uint8[bytes].
            byte_offsets: int64[n + 1].
            languages: the caller's language per document, "" where unknown.
            signature: how to sign them for the duplicate index; None for no signatures.
            classifiers: names of those that run; None for all.

        Raises:
            Unavailable: there is nobody to score them now.
        """
        ...

    def swap(self, versions: Mapping[str, str], timeout_s: float) -> None:
        """Answers with other models from some batch on; blocks until then, while scoring goes on.

        They are loaded and have a batch pass through them beside the old ones. Where anything is wrong
        with them, the old ones stay.

        Args:
            versions: model name -> version, of all models that are to serve.
            timeout_s: longest time for loading them, in seconds, for each scorer process.

        Raises:
            DqsError: they do not serve; the message says why.
        """
        ...

    def status(self) -> ExecutorStatus:
        """How it is now."""
        ...

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Has `changed` called, from any thread, whenever `slots` or `lost` of the status have changed."""
        ...

    def note_waiting(self, text_bytes: int) -> None:
        """Takes down how much text waits for a slot, from which it may choose how many replicas to have."""
        ...


@dataclass(slots=True, eq=False)
class Results:
    """Verdicts of n documents as columns.

    Attributes:
        ids: id per document.
        columns: every signal, duplication included.
        labels: int8[n] of `Label`; UNSPECIFIED exactly where there is an error.
        reasons: broken rules per document.
        duplicate_of: id of the kept document that it repeats, or None.
        errors: the document's error, or None.
        policy: `name@version`.
        seconds: time spent per stage; "score" is the whole stay in the executor.
        replica: who scored.
        models: what answered; None where nothing did.
    """

    ids: list[str]
    columns: ScoreColumns
    labels: NDArray[np.int8]
    reasons: Reasons
    duplicate_of: list[str | None]
    errors: list[DocumentError | None]
    policy: str
    seconds: dict[str, float]
    replica: str
    models: ModelSet | None = None
    _rows: tuple[tuple[str, ...], NDArray[np.float32], NDArray[np.uint8]] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, signals: tuple[str, ...]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Signals document by document; made when first asked for.

        Args:
            signals: names, in the order of the matrices' columns.

        Returns:
            float32[n, signals], NaN where there is no score, and uint8[n, signals] of `Missing`,
            why not; NaN and PRESENT in the rows of documents with an error.
        """
        if self._rows is None or self._rows[0] != signals:
            shape = (len(signals), len(self))
            values = np.concatenate([self.columns.values[name] for name in signals]).reshape(shape).T.copy()
            missing = np.concatenate([self.columns.missing[name] for name in signals]).reshape(shape).T.copy()
            failed = np.flatnonzero(self.labels == Label.UNSPECIFIED)
            values[failed] = np.nan
            missing[failed] = Missing.PRESENT
            self._rows = (signals, values, missing)
        return self._rows[1:]

    def verdict(self, i: int) -> Verdict:
        """One document's answer as an object."""
        error = self.errors[i]
        models = () if self.models is None else tuple(model.label for model in self.models.models)
        if error is not None:
            return Verdict(
                self.ids[i], Label.UNSPECIFIED, policy=self.policy, error=(error.code, error.message), models=models
            )
        codes = {name: int(column[i]) for name, column in self.columns.missing.items()}
        missing = {name: Missing(code) for name, code in codes.items() if code}
        signals = {name: None if name in missing else float(values[i]) for name, values in self.columns.values.items()}
        span = None
        if self.columns.toxicity_span is not None and self.columns.toxicity_span[i, 0] >= 0:
            span = (int(self.columns.toxicity_span[i, 0]), int(self.columns.toxicity_span[i, 1]))
        return Verdict(
            id=self.ids[i],
            label=Label(int(self.labels[i])),
            reasons=self.reasons[i],
            language=self.columns.language[i],
            signals=signals,
            missing=missing,
            duplicate_of=self.duplicate_of[i],
            toxicity_span=span,
            policy=self.policy,
            models=models,
        )


class Pipeline:
    """Scores batches and decides. Thread-safe; blocks; meant for batches of about a megabyte.

    Args:
        executor: the stateless part.
        policies: by name.
        store: the duplicate index; None serves only calls without duplication.
        max_document_bytes: longer documents are answered with TOO_LARGE.
    """

    def __init__(
        self,
        executor: Executor,
        policies: Mapping[str, Policy],
        store: DuplicateStore | None,
        max_document_bytes: int,
    ) -> None:
        self.signals: list[Signal] = [*executor.signals, *DUPLICATE_SIGNALS]
        self.swaps = Swaps()
        """What became of models that were promoted while the service ran."""
        self.policies = dict(policies)
        self.max_document_bytes = max_document_bytes
        self.executor = executor
        self._store = store

    @property
    def models(self) -> list[ModelInfo]:
        """What answers now."""
        return self.executor.models

    def policy(self, name: str) -> Policy:
        """The policy of that name.

        Raises:
            PolicyError: there is none.
        """
        try:
            return self.policies[name]
        except KeyError:
            raise PolicyError(f"There is no policy {name!r}; there are: {', '.join(sorted(self.policies))}.") from None

    def run(
        self,
        documents: Sequence[Document],
        *,
        policy: str = "default",
        corpus: str | None = "default",
        degrade: bool = False,
        replace: bool = False,
        tenant: str = DEFAULT_TENANT,
        classifiers: frozenset[str] | None = None,
    ) -> Results:
        """Scores and decides; one verdict or one error per document, in their order.

        Args:
            documents: any number; the whole batch is in memory several times over.
            policy: name of the policy that decides.
            corpus: namespace of the duplicate index; None leaves duplication out.
            degrade: where the index cannot be reached, answer with duplication marked
                UNAVAILABLE instead of failing.
            replace: a document whose id the corpus has with another text takes its place,
                instead of being answered with ID_REUSED.
            tenant: whose corpus it is; corpora of one name of two tenants never meet.
            classifiers: names of the classifiers that run, the signals of all others are NOT_ASKED; None for all.

        Raises:
            PolicyError: there is no such policy.
            RequestError: there is no such classifier.
            Unavailable: there is nobody to score now.
            IndexUnavailable: the index cannot be reached and `degrade` is false.
            CorpusMismatch: the corpus was made with other parameters.
        """
        self.policy(policy)
        scored = self.score(documents, corpus=corpus, tenant=tenant, classifiers=classifiers)
        return self.decide(scored, policy=policy, corpus=corpus, degrade=degrade, replace=replace, tenant=tenant)

    def score(
        self,
        documents: Sequence[Document],
        *,
        corpus: str | None = "default",
        tenant: str = DEFAULT_TENANT,
        classifiers: frozenset[str] | None = None,
    ) -> Undecided:
        """The first half of `run`: everything that depends on nothing but the documents.

        Several batches may be scored at once and ahead of their turn.

        Args:
            documents: any number.
            corpus: where `decide` will look for duplicates; None for nowhere.
            tenant: whose corpus it is.
            classifiers: as for `run`.

        Raises:
            RequestError: there is no such classifier.
            Unavailable: there is nobody to score now.
            IndexUnavailable: there is no index.
            CorpusMismatch: this version cannot read the corpus.
        """
        self.check_classifiers(classifiers)
        signature = None if corpus is None else self._signature(corpus, tenant)
        columns = Documents.of(documents)
        errors = self._check(columns)
        languages = _languages(columns.languages, errors)
        texts = columns.texts
        if any(errors):
            texts = [b"" if error else text for text, error in zip(texts, errors, strict=True)]
        byte_offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)), out=byte_offsets[1:])
        utf8 = np.frombuffer(b"".join(texts), dtype=np.uint8)
        begin = time.perf_counter()
        scored = self.executor.score(utf8, byte_offsets, languages, signature=signature, classifiers=classifiers)
        seconds = {**scored.seconds, "score": time.perf_counter() - begin}
        if scored.failed is not None:
            for i in np.flatnonzero(scored.failed).tolist():
                errors[i] = errors[i] or DocumentError(
                    DocumentErrorCode.INTERNAL, "Scoring this document stopped the workers that tried; it is left out."
                )
        for i in np.flatnonzero(~scored.valid).tolist():
            errors[i] = errors[i] or DocumentError(
                DocumentErrorCode.INVALID_UTF8, "The text is not valid UTF-8; send it as UTF-8 bytes."
            )
        return Undecided(columns.ids, scored, errors, seconds)

    def decide(
        self,
        undecided: Undecided,
        *,
        policy: str = "default",
        corpus: str | None = "default",
        degrade: bool = False,
        replace: bool = False,
        tenant: str = DEFAULT_TENANT,
    ) -> Results:
        """The second half of `run`: looks up, inserts and decides.

        Verdicts about duplicates depend on the order of these calls. After an
        `IndexUnavailable` it may be called again with the same documents.

        Args:
            undecided: what `score` returned, with signatures where there is a corpus.
            policy: as for `run`.
            corpus: as for `run`.
            degrade: as for `run`.
            replace: as for `run`.
            tenant: as for `run`.

        Raises:
            PolicyError: there is no such policy.
            IndexUnavailable: the index cannot be reached and `degrade` is false.
            CorpusMismatch: the corpus was made with other parameters.
        """
        chosen = self.policy(policy)
        if corpus is not None:
            self.index()
        scored, ids, errors = undecided.scored, undecided.ids, list(undecided.errors)
        seconds = dict(undecided.seconds)
        answerable = np.array([error is None for error in errors], dtype=np.bool_)

        begin = time.perf_counter()
        duplicate_of = self._deduplicate(scored, ids, answerable, errors, chosen, corpus, degrade, replace, tenant)
        answerable = np.array([error is None for error in errors], dtype=np.bool_)
        seconds["index"] = time.perf_counter() - begin

        begin = time.perf_counter()
        decision = chosen.decide(scored.columns)
        labels = np.where(answerable, decision.labels, np.int8(Label.UNSPECIFIED)).astype(np.int8)
        seconds["policy"] = time.perf_counter() - begin
        return Results(
            ids, scored.columns, labels, decision.reasons, duplicate_of, errors, chosen.label, seconds, scored.replica,
            scored.models,
        )  # fmt: skip

    def check_classifiers(self, classifiers: frozenset[str] | None) -> None:
        """Refuses names of classifiers that do not serve.

        Raises:
            RequestError: there is no such classifier.
        """
        if not classifiers:
            return
        serving = self.executor.classifiers
        unknown = sorted(classifiers.difference(serving))
        if unknown:
            raise RequestError(
                f"There is no classifier {unknown[0]!r}; there are: {', '.join(sorted(serving)) or 'none'}.",
                field="options.classifiers",
            )

    def drop_corpus(self, corpus: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Forgets every document of a corpus; does nothing if there is no such corpus.

        Raises:
            IndexUnavailable: the index cannot be reached, or there is none.
            RequestError: the name is empty or too long.
        """
        self.index().of(tenant).drop_corpus(corpus)

    def remember(self, documents: Sequence[Document], corpus: str) -> None:
        """Puts documents into a corpus without scoring them, as if they had been kept.

        Rebuilds a corpus from what an earlier run kept, at a small part of the cost of scoring.

        Args:
            documents: scored and kept before, in the order of that time.
            corpus: namespace of the duplicate index.

        Raises:
            IndexUnavailable: the index cannot be reached.
            CorpusMismatch: the corpus was made with other parameters.
        """
        store = self.index()
        batch = TextBatch.from_bytes([document.text for document in documents])
        signatures = sign(batch, store.parameters(corpus))
        everything = np.ones(len(documents), dtype=np.bool_)
        seen = store.see_lines(corpus, signatures.lines)
        found = store.check_and_insert(corpus, [document.id for document in documents], signatures, everything)
        if seen is not None:
            store.remember_lines(corpus, seen, np.array([name is None for name in found.duplicate_of], dtype=np.bool_))

    def _signature(self, corpus: str, tenant: str) -> SignatureParameters:
        """How documents are signed for a corpus."""
        store = self.index()
        try:
            return store.of(tenant).parameters(corpus)
        except IndexUnavailable:
            # `decide` says so, or does without; should the index be back by then, these are most often right.
            return store.default_parameters

    def index(self) -> DuplicateStore:
        """The duplicate index.

        Raises:
            IndexUnavailable: there is none.
        """
        if self._store is None:
            raise IndexUnavailable("This service runs without a duplicate index; switch duplication off in the call.")
        return self._store

    def _check(self, documents: Documents) -> list[DocumentError | None]:
        """What is wrong with each document, before anything looks into its text."""
        longest = max(map(len, documents.texts), default=0)
        # No character has more than four bytes, and ASCII has no surrogates.
        if (
            longest <= self.max_document_bytes
            and all(documents.ids)
            and "".join(documents.ids).isascii()
            and max(map(len, documents.ids), default=0) <= MAX_ID_BYTES
        ):
            return [None] * len(documents)
        return [self._check_one(*document) for document in zip(documents.ids, documents.texts, strict=True)]

    def _check_one(self, document_id: str, text: bytes) -> DocumentError | None:
        if len(text) > self.max_document_bytes:
            return DocumentError(
                DocumentErrorCode.TOO_LARGE,
                f"The text has {len(text)} bytes, more than the limit of {self.max_document_bytes}; split it.",
            )
        try:
            id_bytes = len(document_id.encode())
        except UnicodeEncodeError:  # a lone surrogate, as JSON can spell one
            id_bytes = 0
        if not 1 <= id_bytes <= MAX_ID_BYTES:
            return DocumentError(
                DocumentErrorCode.INVALID_ID, f"A document id has 1 to {MAX_ID_BYTES} bytes of UTF-8; give it another."
            )
        return None

    def _deduplicate(
        self,
        scored: Scored,
        ids: list[str],
        answerable: NDArray[np.bool_],
        errors: list[DocumentError | None],
        policy: Policy,
        corpus: str | None,
        degrade: bool,
        replace: bool,
        tenant: str,
    ) -> list[str | None]:
        """Fills the duplicate columns; marks reused ids in `errors`; returns whom each document repeats."""
        found = _Found(len(ids))
        rows = np.flatnonzero(answerable)
        if corpus is not None and self._store is not None and scored.signatures is not None and rows.size:
            store, signatures = self._store.of(tenant), scored.signatures[rows]
            try:
                seen = store.see_lines(corpus, signatures.lines)
                if seen is not None:
                    found.put_lines(rows, seen.counts, signatures)
                    # For rules that read it, which decide what is kept.
                    found.put_into(scored.columns)
                insert = self._kept(policy, scored.columns)[rows]
                answers = store.check_and_insert(
                    corpus,
                    [ids[i] for i in rows],
                    signatures,
                    insert,
                    lines_seen=None if seen is None else seen.counts,
                    replace=replace,
                )
                found.put(rows, answers, signatures, seen)
                if seen is not None:
                    is_new = np.array([name is None for name in answers.duplicate_of], dtype=np.bool_)
                    store.remember_lines(corpus, seen, insert & is_new & ~answers.reused_id)
            except IndexUnavailable:
                if not degrade:
                    raise
                found.unavailable(rows)
            else:
                for k in np.flatnonzero(answers.reused_id).tolist():
                    errors[rows[k]] = DocumentError(
                        DocumentErrorCode.ID_REUSED,
                        "An earlier document has the same id and another text; give each an id of its own.",
                    )
        found.put_into(scored.columns)
        return found.duplicate_of

    @staticmethod
    def _kept(policy: Policy, columns: ScoreColumns) -> NDArray[np.bool_]:
        """bool[n]: what enters the index if it repeats nothing. Decide first, insert after."""
        if policy.index_dropped:
            return np.ones(columns.size, dtype=np.bool_)
        decision = policy.decide(columns, ignore=_DUPLICATE_NAMES, reasons=False)
        kept: NDArray[np.bool_] = decision.labels != Label.DROP
        return kept


class _Found:
    """What the index says of the n documents of a batch, as columns; nothing was asked at first."""

    def __init__(self, n: int) -> None:
        self.duplicate_of: list[str | None] = [None] * n
        self._similarity, self._exact, self._bands, self._lines = np.full((4, n), np.nan, dtype=np.float32)
        self._missing, self._lines_missing = np.full((2, n), Missing.NOT_ASKED, dtype=np.uint8)

    def put_lines(self, rows: NDArray[np.int64], counts: NDArray[np.uint8], signatures: Signatures) -> None:
        """Takes down how many of their lines some documents had in common with earlier ones."""
        self._lines[rows] = share_seen(counts, signatures.lines)
        self._lines_missing[rows] = np.where(np.isnan(self._lines[rows]), Missing.TOO_SHORT, Missing.PRESENT)

    def put(self, rows: NDArray[np.int64], answers: Duplicates, signatures: Signatures, seen: SeenLines | None) -> None:
        """Takes down what the index has answered."""
        if seen is not None:
            # Of a document that came before, its first answer.
            self.put_lines(rows, answers.lines_seen, signatures)
        self._similarity[rows] = answers.similarity
        self._exact[rows] = answers.exact
        self._bands[rows] = answers.bands_met
        self._missing[rows] = np.where(np.isnan(answers.similarity), Missing.UNAVAILABLE, Missing.PRESENT)
        for k, i in enumerate(rows.tolist()):
            self.duplicate_of[i] = answers.duplicate_of[k]

    def unavailable(self, rows: NDArray[np.int64]) -> None:
        """Takes down that the index could not be asked; whatever it has said is not said."""
        self.duplicate_of = [None] * len(self.duplicate_of)
        for column in (self._similarity, self._exact, self._bands, self._lines):
            column[rows] = np.nan
        self._missing[rows] = self._lines_missing[rows] = Missing.UNAVAILABLE

    def put_into(self, columns: ScoreColumns) -> None:
        """Makes them signals of the batch."""
        for name, values in (
            ("duplicate_similarity", self._similarity),
            ("exact_duplicate", self._exact),
            ("duplicate_bands", self._bands),
        ):
            columns.put(name, values, self._missing)
        columns.put("seen_line_share", self._lines, self._lines_missing)


def _languages(codes: list[str], errors: list[DocumentError | None]) -> list[str]:
    """The callers' languages as scorers know them; documents with what is none get an error."""
    parsed = {code: parse_language(code) for code in set(codes)}
    if all(code == language for code, language in parsed.items()):
        return codes
    for i, code in enumerate(codes):
        if parsed[code] is None:
            errors[i] = errors[i] or DocumentError(
                DocumentErrorCode.INVALID_LANGUAGE,
                "The language is no ISO 639-1 code such as en or zh; leave it empty to have it detected.",
            )
    return [parsed[code] or "" for code in codes]
