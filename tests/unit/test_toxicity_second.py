"""The second look of the toxicity scorer, on small models made by hand: who is looked at, and what comes of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqs.data import Missing
from dqs.errors import ModelError
from dqs.inference.symbols import name_symbols
from dqs.models import ModelFolder, write_model
from dqs.scorer import ScoreColumns
from dqs.scorers.toxicity import SIGNS, ToxicityModel, ToxicityScorer, ngram_check
from dqs.text import TextBatch
from dqs.text.ngrams import FIRST_SOUND, SOUNDS, NgramShape, hash_ngrams, sound_table, take_windows
from dqs.training.toxicity import LinearModel, build_graph
from tests.unit.networks import expected_logits, write_graph, write_tokenizer

SHAPE = NgramShape(word_sizes=1, character_sizes=(), bits=12, block_words=4)
FIRST = LinearModel(np.random.default_rng(3).normal(size=1 << 12).astype(np.float32), scale=1.0, offset=0.0)
POST = LinearModel(np.zeros(1 << 12, dtype=np.float32), scale=1.0, offset=1.0)
LIMITS = {"low_short": 0.0, "low_long": 0.0, "limit_short": 0.0, "limit_long": 0.0, "most_windows": 8}
SIGN_WEIGHTS = dict.fromkeys(SIGNS, 0.0) | {"post": 1.0}
MIX = {"first_scale": 0.25, "scales": {"toxic": 0.75, "insult": 0.5}, "offset": -0.5}
ATTRIBUTES = {"insult": {"scale": 2.0, "offset": -1.0}}


def write(root: Path, limits: dict[str, Any] | None = None, **changes: Any) -> ModelFolder:
    place = root / "toxicity-en" / "1"
    place.mkdir(parents=True, exist_ok=True)
    (place / "model.onnx").write_bytes(build_graph(FIRST))
    (place / "post.onnx").write_bytes(build_graph(POST))
    write_graph(place / "second.onnx", labels=2)
    write_tokenizer(place / "tokenizer.json")
    discount = changes.pop("discount", 0.0)
    second = {**LIMITS, **(limits or {}), **MIX, "signs": SIGN_WEIGHTS, "attributes": ATTRIBUTES} | changes.pop(
        "second", {}
    )
    classifier = {
        "labels": ["toxic", "insult"], "main_label": "toxic", "head": "multi_label", "max_tokens": 64,
        "window_tokens": 64, "inputs": {"ids": "input_ids", "mask": "attention_mask"},
    } | changes.pop("classifier", {})  # fmt: skip
    return write_model(
        root,
        name="toxicity-en",
        version="1",
        kind="toxicity",
        languages=["en"],
        files={"graph": "model.onnx", "post": "post.onnx", "second": "second.onnx", "tokenizer": "tokenizer.json"},
        tables={
            "toxicity": {
                "threshold": 0.5, "discount": discount, "word_sizes": 1, "character_sizes": [], "bits": 12,
                "block_words": 4, "ngram_check": ngram_check(SHAPE), "second": second,
            },
            "classifier": classifier,
        },
    )  # fmt: skip


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def by_hand(first: float, words: list[str]) -> tuple[float, float]:
    """What both models say of a window, and its attribute."""
    toxic, insult = expected_logits(words, 2)
    both = sigmoid(0.25 * log_odds(first) + 0.75 * float(toxic) + 0.5 * float(insult) - 0.5)
    return both, both * sigmoid(2.0 * float(insult) - 1.0)


def test_a_window_that_is_looked_at_has_the_answer_of_both(tmp_path: Path) -> None:
    model = ToxicityModel(write(tmp_path))
    texts = ["good bad vile", "plain word", "fine"]
    batch = TextBatch.from_bytes([text.encode() for text in texts])
    found = model.score(batch, np.arange(3))
    first = model.score(batch, np.arange(3), second_look=False)
    assert found.looked_at == 3
    assert first.looked_at == 0
    for i, text in enumerate(texts):
        toxic, insult = by_hand(float(first.probability[i]), text.split())
        assert found.probability[i] == pytest.approx(toxic, abs=1e-5)
        assert found.attributes[i, 0] == pytest.approx(insult, abs=1e-5)
    assert np.isnan(first.attributes).all()  # nobody looked


def test_below_the_band_only_the_ngrams_speak(tmp_path: Path) -> None:
    texts = [f"{word} plain".encode() for word in ("good", "fine", "word", "bad", "vile", "else", "other", "more")]
    batch = TextBatch.from_bytes(texts)
    everything = np.arange(len(texts))
    first = ToxicityModel(write(tmp_path / "all")).score(batch, everything, second_look=False).probability
    low = float(np.median(first))
    found = ToxicityModel(write(tmp_path / "some", {"low_short": low})).score(batch, everything)
    assert found.looked_at == int((first >= low).sum()) == len(texts) // 2
    np.testing.assert_array_equal(found.probability[first < low], first[first < low])
    assert (found.probability[first >= low] != first[first >= low]).all()


def test_long_documents_have_a_limit_of_their_own(tmp_path: Path) -> None:
    short, long = b"good bad", b"good bad fine word " * 5
    batch = TextBatch.from_bytes([short, long])
    model = ToxicityModel(write(tmp_path, {"limit_long": POST.offset + 0.01}))
    assert model.score(batch, np.array([0])).looked_at == 1
    assert model.score(batch, np.array([1])).looked_at == 0


def test_how_a_text_is_written_decides_who_is_looked_at(tmp_path: Path) -> None:
    signs = dict.fromkeys(SIGNS, 0.0) | {"starts_upper": -1.0, "marks": 2.0, "handles": 2.0, "emoji": 2.0}
    texts = ["Good bad word.", "good bad word", "Good bad word!", "Good bad @word", "Good bad word 🙂", "Good, Bad"]
    batch = TextBatch.from_bytes([text.encode() for text in texts])
    model = ToxicityModel(write(tmp_path, second={"signs": signs}))
    first = model.score(batch, np.arange(len(texts)), second_look=False).probability
    looked = model.score(batch, np.arange(len(texts))).probability != first
    assert looked.tolist() == [False, True, True, True, True, False]


def test_the_worst_of_many_windows_counts_for_less(tmp_path: Path) -> None:
    texts = [b"good bad", b"good bad fine word " * 5]
    batch = TextBatch.from_bytes(texts)
    plain = ToxicityModel(write(tmp_path / "plain")).score(batch, np.arange(2))
    model = ToxicityModel(write(tmp_path / "less", discount=0.5))
    found = model.score(batch, np.arange(2))
    windows = np.diff(hash_ngrams(batch, np.arange(2), SHAPE).window_offsets)
    assert windows[0] == 1 < windows[1]
    assert found.probability[0] == plain.probability[0]
    expected = sigmoid(log_odds(float(plain.probability[1])) - 0.5 * math.log(windows[1]))
    assert found.probability[1] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_array_equal(found.span, plain.span)


def test_of_many_windows_the_likeliest_are_looked_at(tmp_path: Path) -> None:
    words = [
        "good",
        "fine",
        "plain",
        "word",
        "bad",
        "vile",
        "good",
        "bad",
        "word",
        "fine",
        "vile",
        "plain",
        "else",
        "more",
        "other",
        "words",
        "here",
        "now",
        "then",
        "so",
    ]
    batch = TextBatch.from_bytes([" ".join(words).encode()])
    model = ToxicityModel(write(tmp_path, {"most_windows": 2}))
    ngrams = hash_ngrams(batch, np.arange(1), SHAPE)
    first = model.score_windows(ngrams)
    likeliest = sorted(np.argsort(-first, kind="stable")[:2].tolist())
    found = model.score(batch, np.arange(1))
    assert found.looked_at == 2
    expected = []
    for window in likeliest:
        begin = 4 * window
        expected.append(by_hand(float(first[window]), words[begin : begin + 8])[0])
    # The others were ranked below these two by the first model, and count no more.
    assert found.probability[0] == pytest.approx(max(expected), abs=1e-5)
    best = likeliest[int(np.argmax(expected))]
    text = " ".join(words)
    begin, end = found.span[0].tolist()
    assert text[begin:end].split() == words[4 * best : 4 * best + 8]


def test_batches_and_neighbours_change_nothing(tmp_path: Path) -> None:
    model = ToxicityModel(write(tmp_path))
    random = np.random.default_rng(5)
    words = ["good", "fine", "plain", "word", "bad", "vile"]
    texts = [" ".join(random.choice(words, size=random.integers(1, 40))).encode() for _ in range(40)]
    whole = TextBatch.from_bytes(texts)
    found = model.score(whole, np.arange(len(texts)))
    for i, text in enumerate(texts):
        alone = model.score(TextBatch.from_bytes([text]), np.arange(1))
        assert alone.probability[0] == pytest.approx(found.probability[i], abs=1e-5)
        assert alone.attributes[0, 0] == pytest.approx(found.attributes[i, 0], abs=1e-5)
        np.testing.assert_array_equal(alone.span[0], found.span[i])


def test_attributes_are_signals_and_never_exceed_toxicity(tmp_path: Path) -> None:
    scorer = ToxicityScorer([write(tmp_path)])
    assert [signal.name for signal in scorer.signals] == ["toxicity", "toxicity_insult"]
    texts = [b"bad vile", b"", "坏".encode()]
    columns = ScoreColumns(3, language=["en", "en", "zh"])
    scorer.score(TextBatch.from_bytes(texts), columns)
    assert columns.missing["toxicity_insult"].tolist() == [Missing.PRESENT, Missing.TOO_SHORT, Missing.NO_MODEL]
    assert 0 < columns.values["toxicity_insult"][0] <= columns.values["toxicity"][0]
    scorer = ToxicityScorer([write(tmp_path / "none", {"limit_short": 1e6})])
    scorer.score(TextBatch.from_bytes(texts), columns)
    assert columns.missing["toxicity_insult"].tolist() == [Missing.NOT_LOOKED_AT, Missing.TOO_SHORT, Missing.NO_MODEL]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier": {"labels": ["toxic", "spam"]}}, "labels"),
        ({"second": {"attributes": {"rude": {"scale": 1.0, "offset": 0.0}}}}, "attributes other than"),
        ({"second": {"low_long": "much"}}, "low_long"),
        ({"second": {"signs": {"post": 1.0}}}, "a number for each of"),
        ({"second": {"scales": {"threat": 1.0}}}, "numbers for some of toxic, insult"),
        ({"second": {"scales": {"toxic": "much"}}}, "no number 'toxic'"),
    ],
)
def test_a_second_model_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ToxicityModel(write(tmp_path, **changes))


def test_windows_alone_are_what_they_are_among_others() -> None:
    words = [f"w{number}" for number in range(30)]
    batch = TextBatch.from_bytes([" ".join(words).encode(), b"a b", " ".join(words[:11]).encode()])
    ngrams = hash_ngrams(batch, np.arange(3), SHAPE)
    chosen = np.array([1, 2, ngrams.window_first.size - 1])
    alone = take_windows(ngrams, chosen)
    padding = SHAPE.padding

    def ids_of(parts: Any, *blocks: int) -> set[int]:
        return set(parts.ids[np.isin(parts.row_block, blocks)].reshape(-1).tolist()) - {padding}

    def ids(parts: Any, window: int) -> set[int]:
        return ids_of(parts, parts.window_first[window], parts.window_second[window])

    for at, window in enumerate(chosen.tolist()):
        assert ids(alone, at) == ids(ngrams, window)
        assert alone.window_start[at] == ngrams.window_start[window]
    np.testing.assert_array_equal(
        alone.block_ngrams, [len(ids_of(alone, block)) for block in range(alone.block_ngrams.size)]
    )  # fmt: skip


def test_sounds_join_characters_that_sound_alike() -> None:
    shape = NgramShape(word_sizes=1, character_sizes=(), bits=20, block_words=8, sound_sizes=2, simplified=True)
    sounds = np.zeros(SOUNDS, dtype=np.uint16)
    for character in "沙杀纱":
        sounds[ord(character) - FIRST_SOUND] = 7

    def ids(text: str) -> set[int]:
        found = hash_ngrams(TextBatch.from_bytes([text.encode()]), np.arange(1), shape, sound_table(sounds))
        assert int(found.block_ngrams.sum()) == np.count_nonzero(found.ids != shape.padding)
        return set(found.ids.reshape(-1).tolist()) - {shape.padding}

    # Both have the sounds of one and of two characters in common, and the second character.
    assert len(ids("沙门") & ids("杀门")) == 3
    assert len(ids("沙门") & ids("河门")) == 1
    assert ids("紗門") == ids("纱门")
    with pytest.raises(ValueError, match="table of sounds"):
        hash_ngrams(TextBatch.from_bytes([b"a"]), np.arange(1), shape)


def test_many_short_documents_of_sounds_have_room() -> None:
    shape = NgramShape(word_sizes=2, character_sizes=(), bits=20, block_words=64, sound_sizes=3, simplified=True)
    sounds = (np.arange(SOUNDS) % 400 + 1).astype(np.uint16)
    random = np.random.default_rng(1)
    texts = ["".join(map(chr, random.integers(0x4E00, 0x9FA5, 4))).encode() for _ in range(500)]
    found = hash_ngrams(TextBatch.from_bytes(texts), np.arange(500), shape, sound_table(sounds))
    assert found.ids.shape[0] == found.row_block.size
    np.testing.assert_array_equal(found.block_ngrams, (found.ids != shape.padding).sum(axis=1))


def test_pictures_have_names() -> None:
    assert name_symbols("plain text") == "plain text"
    assert name_symbols("so \U0001f600!") == "so  grinning face !"
    assert name_symbols("坏\ufe0f事") == "坏事"
