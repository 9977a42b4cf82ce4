"""What the codec writes column by column parses to what protobuf's own classes would have written."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqs.data import Document, Documents, Label, Missing
from dqs.errors import DocumentError, DocumentErrorCode, RequestError
from dqs.pipeline import ModelInfo, ModelSet, Results
from dqs.policy import OPERATORS, Policy, Rule
from dqs.scorer import Direction, ScoreColumns, Signal
from dqs.server import wire
from dqs.server.codec import Encoder, Limits, Options, Piece, Request, parse_batch_request, parse_stream_request
from dqs.settings import load_settings
from dqs.v1 import decision_pb2
from dqs.v1 import scoring_pb2 as pb

NAMES = ("alpha", "beta", "gamma")
SIGNALS = [Signal(name, "share", 0, 1, Direction.NEUTRAL, "One of three.", version=7) for name in NAMES]
MODEL_SETS = [
    ModelSet.of([ModelInfo("one", "1", "toxicity", ("en",), "a" * 64), ModelInfo("two", version, "quality", (), "b")])
    for version in ("1", "2")
]
LIMITS = Limits.of(load_settings(max_batch_documents=300))

names = st.text(string.printable + "é中\U0001f600", min_size=1, max_size=200)
numbers = st.one_of(st.floats(0, 1, width=32), st.sampled_from([code for code in Missing if code != Missing.PRESENT]))
errors = st.builds(DocumentError, st.sampled_from(DocumentErrorCode), st.text(max_size=40))
spans = st.one_of(st.just((-1, -1)), st.tuples(st.integers(0, 1 << 24), st.integers(0, 1 << 24)))
rules = st.builds(
    Rule,
    id=st.text(string.ascii_lowercase, min_size=1, max_size=150),
    signal=st.sampled_from(NAMES),
    operator=st.sampled_from(OPERATORS),
    threshold=st.sampled_from((0.0, -1.0, 0.1, 1e30)),
    label=st.sampled_from((Label.DROP, Label.REVIEW)),
    missing=st.dictionaries(
        st.sampled_from([code for code in Missing if code != Missing.PRESENT]),
        st.sampled_from((Label.DROP, Label.KEEP)),
    ),
)
optional_errors, optional_names = st.none() | errors, st.none() | names
languages = st.sampled_from(("en", "zh", ""))
rows = st.tuples(names, st.tuples(numbers, numbers, numbers), languages, spans, optional_names, optional_errors)


def results_of(policy: Policy, documents: list[Any], span: bool, models: ModelSet | None) -> Results:
    """Results of documents as `rows` draws them, decided by the policy."""
    columns = ScoreColumns(len(documents), language=[row[2] for row in documents])
    for at, name in enumerate(NAMES):
        cells = [row[1][at] for row in documents]
        columns.put(
            name,
            np.array([np.nan if isinstance(cell, Missing) else cell for cell in cells], dtype=np.float32),
            np.array([cell if isinstance(cell, Missing) else 0 for cell in cells], dtype=np.uint8),
        )
    if span:
        columns.toxicity_span = np.array([row[3] for row in documents], dtype=np.int32).reshape(len(documents), 2)
    decision = policy.decide(columns)
    faults = [row[5] for row in documents]
    labels = np.array([0 if e else label for e, label in zip(faults, decision.labels, strict=True)], dtype=np.int8)
    return Results(
        [row[0] for row in documents], columns, labels, decision.reasons, [row[4] for row in documents], faults,
        policy.label, {"score": 0.25, "index": 0.5, "policy": 0.125}, "cpu-1", models,
    )  # fmt: skip


def written_by_protobuf(request: Request, pieces: list[Piece], timings: bool) -> pb.ScoredDocuments:
    """The same answer, field by field."""
    scored = pb.ScoredDocuments(signals=NAMES, signal_versions=[7] * len(NAMES))
    values: list[float] = []
    missing: list[int] = []
    answered: list[ModelSet | None] = []
    for piece in pieces:
        models = piece.outcome.models if isinstance(piece.outcome, Results) else None
        if answered and answered[-1] == models:
            scored.model_runs[-1].documents += piece.stop - piece.start
        else:
            answered.append(models)
            run = scored.model_runs.add(documents=piece.stop - piece.start)
            if models is not None:
                run.models.extend(f"{model.name}@{model.version}" for model in models.models)
                run.digest = models.digest
        for i in range(piece.start, piece.stop):
            outcome = piece.outcome
            error = outcome if isinstance(outcome, DocumentError) else outcome.errors[i]
            result = scored.results.add(id=request.documents[len(scored.results)].id)
            if error is not None:
                result.error.code = pb.DocumentErrorCode.Value(f"DOCUMENT_ERROR_CODE_{error.code.value}")
                result.error.message = error.message
                values += [float("nan")] * len(NAMES)
                missing += [0] * len(NAMES)
                continue
            assert isinstance(outcome, Results)
            result.label = int(outcome.labels[i])
            result.language = outcome.columns.language[i]
            if outcome.columns.toxicity_span is not None and outcome.columns.toxicity_span[i, 0] >= 0:
                result.toxicity_span_start, result.toxicity_span_end = map(int, outcome.columns.toxicity_span[i])
            for reason in outcome.reasons[i]:
                added = result.reasons.add(
                    rule=reason.rule,
                    signal=reason.signal,
                    value=reason.value,
                    operator=wire.OPERATORS[reason.operator],
                    threshold=reason.threshold,
                    missing=decision_pb2.MissingReason.ValueType(reason.missing),
                )
                assert added.HasField("value") == (reason.value is not None)
            if outcome.duplicate_of[i] is not None:
                result.duplicate_of = outcome.duplicate_of[i]
            values += [float(outcome.columns.values[name][i]) for name in NAMES]
            missing += [int(outcome.columns.missing[name][i]) for name in NAMES]
        if isinstance(piece.outcome, Results):
            scored.policy = piece.outcome.policy
        if timings:
            timing = scored.timings.add(documents=piece.stop - piece.start, queue_seconds=piece.queue_s)
            if isinstance(piece.outcome, Results):
                timing.score_seconds, timing.index_seconds, timing.policy_seconds = 0.25, 0.5, 0.125
                timing.replica = "cpu-1"
    scored.values.extend(values)
    if any(missing):
        scored.missing.extend(missing)
    return scored


@given(
    st.lists(st.tuples(st.lists(rows, min_size=1, max_size=6), st.none() | errors), max_size=4),
    st.lists(rules, max_size=4),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1 << 40),
    st.data(),
)
def test_answers_parse_to_what_protobuf_would_have_written(
    batches: list[Any], some: list[Rule], span: bool, timings: bool, sequence: int, data: st.DataObject
) -> None:
    policy = Policy("p", 3, tuple(some))
    encoder = Encoder(SIGNALS)
    documents: list[Document] = []
    pieces: list[Piece] = []
    for batch, failure in batches:
        start = data.draw(st.integers(0, len(batch) - 1))
        stop = data.draw(st.integers(start + 1, len(batch)))
        models = data.draw(st.sampled_from([*MODEL_SETS, None]))
        pieces.append(Piece(start, stop, failure or results_of(policy, batch, span, models), queue_s=0.5))
        documents += [Document(row[0], b"") for row in batch[start:stop]]
    request = Request(Options(timings=timings), sequence, Documents.of(documents), 0)
    expected = written_by_protobuf(request, pieces, timings)
    unary = pb.ScoreBatchResponse.FromString(encoder.batch_response(request, pieces))
    stream = pb.ScoreStreamResponse.FromString(encoder.stream_response(request, pieces, sequence, timings=timings))
    assert (stream.sequence, stream.acknowledged) == (sequence, sequence)
    for scored in (unary.scored, stream.scored):
        # NaN equals nothing, so that the matrix is compared by its bits.
        assert np.array(scored.values, "<f4").tobytes() == np.array(expected.values, "<f4").tobytes()
        rest, wanted = pb.ScoredDocuments.FromString(scored.SerializeToString()), pb.ScoredDocuments()
        wanted.CopyFrom(expected)
        del rest.values[:], wanted.values[:]
        assert rest == wanted


@pytest.mark.parametrize("number", [0, 1, 127, 128, 16383, 16384, (1 << 32) + 5, (1 << 64) - 1])
def test_varints_are_those_of_protobuf(number: int) -> None:
    field = wire.tag(pb.ScoreStreamRequest.SEQUENCE_FIELD_NUMBER, 0) + wire.varint(number)
    assert pb.ScoreStreamRequest.FromString(field).sequence == number


def test_options_carry_the_tenant_and_the_wish_for_timings() -> None:
    raw = pb.ScoreBatchRequest(options=pb.ScoreOptions(timings=True, corpus="c")).SerializeToString()
    assert parse_batch_request(raw, LIMITS, "acme").options == Options(corpus="c", timings=True, tenant="acme")
    assert parse_batch_request(b"", LIMITS, "acme").options == Options(tenant="acme")
    assert parse_stream_request(b"", LIMITS, "acme").options is None


def test_options_carry_the_choice_of_classifiers() -> None:
    def parsed(options: pb.ScoreOptions) -> frozenset[str] | None:
        chosen = parse_batch_request(pb.ScoreBatchRequest(options=options).SerializeToString(), LIMITS).options
        assert chosen is not None
        return chosen.classifiers

    assert parsed(pb.ScoreOptions()) is None
    assert parsed(pb.ScoreOptions(classifiers=pb.ClassifierChoice())) == frozenset()
    assert parsed(pb.ScoreOptions(classifiers=pb.ClassifierChoice(names=["b", "a", "b"]))) == frozenset("ab")


def test_an_acknowledgement_alone_asks_nothing() -> None:
    alone = parse_stream_request(pb.ScoreStreamRequest(acknowledged=4).SerializeToString(), LIMITS)
    assert (alone.only_acknowledges, alone.acknowledged, alone.sequence, len(alone.documents)) == (True, 4, 0, 0)
    document = pb.Document(id="a", text=b"x")
    for asks in (
        pb.ScoreStreamRequest(acknowledged=4, sequence=5),
        pb.ScoreStreamRequest(acknowledged=4, documents=[document]),
        pb.ScoreStreamRequest(),
    ):
        assert not parse_stream_request(asks.SerializeToString(), LIMITS).only_acknowledges


@pytest.mark.parametrize("stream_id", ["x" * 15, "x" * 65, "x" * 16 + " ", "x" * 16 + "\n", "é" * 16, "\0" * 16])
def test_a_stream_id_that_is_short_long_or_not_printable_is_refused(stream_id: str) -> None:
    raw = pb.ScoreStreamRequest(stream_id=stream_id, sequence=1).SerializeToString()
    with pytest.raises(RequestError) as caught:
        parse_stream_request(raw, LIMITS)
    assert caught.value.field == "stream_id"


@pytest.mark.parametrize("stream_id", ["", "x" * 16, "~!" * 32])
def test_a_stream_id_of_16_to_64_printable_characters_or_none_is_taken(stream_id: str) -> None:
    raw = pb.ScoreStreamRequest(stream_id=stream_id, sequence=1).SerializeToString()
    assert parse_stream_request(raw, LIMITS).stream_id == stream_id
