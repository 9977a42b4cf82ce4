"""Which version of a model serves: the file that says so, and what is found by it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dqs.data import Document, Missing
from dqs.errors import ConfigError, ModelError, RequestError
from dqs.executors.columns import MixedModels, blank, join
from dqs.executors.inline import InlineExecutor
from dqs.executors.loading import check_signals, describe
from dqs.executors.pool import Member, Roster, State
from dqs.executors.promotions import Promotions
from dqs.models import ModelFolder, find_exactly, find_models, find_versions, model_roots
from dqs.observability.metrics import Metrics
from dqs.pipeline import ModelInfo, ModelSet, Pipeline, Scored
from dqs.promoted import SERVING_FILE, first_writable, promote, promoted_versions, promotions_state
from dqs.scorer import Direction, Scorer, Signal
from dqs.scorers import build_scorers
from tests.cluster.killing import ChoosingScorer
from tests.cluster.workers import score
from tests.unit.pipelines import plain_pipeline
from tests.unit.test_models import make


def test_what_is_promoted_serves_instead_of_the_highest_version(tmp_path: Path) -> None:
    for version in ("1", "2", "10"):
        make(tmp_path, "one", version)
    make(tmp_path, "two.zh", "1")
    assert [model.label for model in find_models([tmp_path])] == ["one@10", "two.zh@1"]

    promote(tmp_path, [], "one", "2")
    promote(tmp_path, [], "two.zh", "1")
    assert promoted_versions([tmp_path]) == {"one": "2", "two.zh": "1"}
    assert [model.label for model in find_models([tmp_path])] == ["one@2", "two.zh@1"]
    assert [model.label for model in find_models([tmp_path], versions={"one": "1"})] == ["one@1", "two.zh@1"]
    assert [model.label for model in find_versions([tmp_path])] == ["one@1", "one@2", "one@10", "two.zh@1"]

    promote(tmp_path, [], "one", None)
    assert [model.label for model in find_models([tmp_path])] == ["one@10", "two.zh@1"]


def test_the_strongest_folder_that_names_a_model_counts(tmp_path: Path) -> None:
    strong, weak = tmp_path / "strong", tmp_path / "weak"
    make(strong, "one", "3")
    make(weak, "one", "2")
    promote(weak, [strong], "one", "2")
    assert [model.path for model in find_models([strong, weak])] == [weak / "one" / "2"]

    promote(strong, [], "one", "3")
    assert [model.label for model in find_models([strong, weak])] == ["one@3"]
    with pytest.raises(ModelError, match="it counts more than"):
        promote(weak, [strong], "one", "2")


def test_a_promoted_version_that_is_gone_is_said(tmp_path: Path) -> None:
    make(tmp_path, "one", "1")
    promote(tmp_path, [], "one", "7")
    with pytest.raises(ModelError, match=r"serving.toml says that one@7 serves, which is in no models folder"):
        find_models([tmp_path])


def test_exactly_these_versions_in_this_order(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make(tmp_path, name, "1")
    promote(tmp_path, [], "c", "9")
    found = find_exactly([tmp_path / "absent", tmp_path], {"b": "1", "a": "1"})
    assert [model.label for model in found] == ["b@1", "a@1"]
    with pytest.raises(ModelError, match="model a@2 is in no models folder"):
        find_exactly([tmp_path], {"a": "2"})


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'"one" = 2\n', "names no version of one"), (b"[one", "no valid TOML"), (b"\xff", "no valid TOML")],
)
def test_a_malformed_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / SERVING_FILE).write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        promoted_versions([tmp_path])
    assert str(tmp_path / SERVING_FILE) in caught.value.message


def test_those_who_promote_at_a_time_lose_nothing_and_readers_never_see_half(tmp_path: Path) -> None:
    names = [f"model-{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        writing = [threads.submit(promote, tmp_path, [], name, "1") for name in names]
        read = [len(promoted_versions([tmp_path])) for _ in range(200)]
        for done in writing:
            done.result()
    assert read == sorted(read)
    assert promoted_versions([tmp_path]) == dict.fromkeys(names, "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".serving.lock", SERVING_FILE]


def test_promoting_the_same_again_is_noticed(tmp_path: Path) -> None:
    promote(tmp_path, [], "one", "1")
    before = promotions_state([tmp_path])
    promote(tmp_path, [], "one", "1")
    assert promotions_state([tmp_path]) != before


def test_the_first_folder_that_can_be_written_is_taken_and_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    candidates = model_roots(None, tmp_path / "data", missing=True)
    assert candidates[0] == tmp_path / "data" / "models"
    assert first_writable([tmp_path / "file" / "models", *candidates]) == candidates[0]
    assert candidates[0].is_dir()
    with pytest.raises(ConfigError, match="No models folder can be written"):
        first_writable([tmp_path / "file" / "models"])


def signal(name: str, version: int = 1) -> Signal:
    return Signal(name, "share", 0, 1, Direction.NEUTRAL, f"Version {version} of it.", version)


def test_other_signals_are_refused_by_name() -> None:
    check_signals([signal("a"), signal("b")], [signal("b"), signal("a")])
    with pytest.raises(ModelError, match=r"\(new: c; gone: a; changed: b\)"):
        check_signals([signal("a"), signal("b")], [signal("b", 2), signal("c")])


def scored_with(version: str | None) -> Scored:
    part = blank(["a"], None)
    part.models = None if version is None else ModelSet.of([ModelInfo("one", version, "toxicity", (), version)])
    return part


def test_parts_of_a_batch_never_mix_models() -> None:
    """A part that no scorer survived was scored with none."""
    joined = join([scored_with("1"), scored_with(None), scored_with("1")])
    assert joined.models == scored_with("1").models
    with pytest.raises(MixedModels):
        join([scored_with("1"), scored_with("2")])


def test_a_set_of_models_has_one_name_whatever_its_order() -> None:
    one, two = ModelInfo("one", "1", "toxicity", (), "x"), ModelInfo("two", "1", "quality", (), "y")
    assert ModelSet.of([one, two]).digest == ModelSet.of([two, one]).digest
    assert ModelSet.of([one]).digest != ModelSet.of([one, two]).digest


def test_a_scorer_that_builds_again_takes_nothing_until_it_is_ready() -> None:
    roster = Roster(2)
    member = Member("cpu-0", "cpu", 0.0)
    roster.members.append(member)
    roster.became_ready(member, "life", "node", 1.0)
    assert roster.take(10) is member

    roster.start_again(member, 2.0)

    assert (member.state, member.token, member.restarts) == (State.STARTING, "", 0)
    assert roster.take(10) is None
    roster.release(member, 10, 3.0)
    roster.became_ready(member, "life 2", "node", 4.0)
    assert roster.take(10) is member


class Loads:
    """Loads models that are nothing but their names, slowly, badly, or with other signals."""

    def __init__(self, tmp_path: Path) -> None:
        self._root = tmp_path
        self.hold_s = 0.0
        self.more: list[Scorer] = []
        self.error: Exception | None = None

    def __call__(self, *, versions: object = None) -> tuple[list[ModelFolder], list[Scorer]]:
        time.sleep(self.hold_s)
        if self.error is not None:
            raise self.error
        found = find_exactly([self._root], versions) if isinstance(versions, dict) else find_models([self._root])
        return found, [*build_scorers([]), *self.more]


def test_an_executor_keeps_its_models_whatever_is_wrong_with_others(tmp_path: Path) -> None:
    make(tmp_path, "one", "1")
    make(tmp_path, "one", "2")
    loads = Loads(tmp_path)
    executor = InlineExecutor(loads()[1], [ModelInfo("one", "1", "perplexity", (), "x")], load=loads)

    def versions() -> list[str]:
        answered = score(executor, [b"A text."]).models
        assert answered is not None
        assert list(answered.models) == executor.models
        return [model.version for model in answered.models]

    loads.hold_s = 0.5
    with pytest.raises(ModelError, match=r"did not load within 0\.05 s"):
        executor.swap({"one": "2"}, 0.05)
    loads.hold_s = 0.0
    loads.error = RuntimeError("of a library")
    with pytest.raises(ModelError, match=r"do not load or do not score \(RuntimeError\)"):
        executor.swap({"one": "2"}, 30)
    loads.error = None
    loads.more = [ChoosingScorer()]
    with pytest.raises(ModelError, match="new: long, longer, short"):
        executor.swap({"one": "2"}, 30)
    assert versions() == ["1"]

    loads.more = []
    executor.swap({"one": "2"}, 30)
    assert versions() == ["2"]


def test_what_is_promoted_is_tried_once_and_counted(tmp_path: Path) -> None:
    root = tmp_path / "models"
    for version in ("1", "2", "3"):
        make(root, "one", version)
    make(root, "two", "1")
    promote(root, [], "one", "1")
    loads = Loads(root)
    found, scorers = loads()
    executor = InlineExecutor(scorers, describe(found), load=loads)
    pipeline = Pipeline(executor, {}, None, 1 << 20)
    metrics = Metrics()
    metrics.watch_models(lambda: pipeline.models, lambda: pipeline.swaps)
    promotions = Promotions(pipeline, root, tmp_path, 30.0)

    def looked() -> tuple[list[str], int, int, bool]:
        for _ in range(3):
            promotions.look()
        shown = metrics.registry.get_sample_value
        assert shown("dqs_models_refused") == bool(pipeline.swaps.refusal)
        assert shown("dqs_model_swaps_total", {"outcome": "done"}) == pipeline.swaps.done
        assert shown("dqs_model_swaps_total", {"outcome": "refused"}) == pipeline.swaps.refused
        for model in pipeline.models:
            assert shown("dqs_model_info", {"model": model.name, "version": model.version}) == 1
        labels = [model.label for model in pipeline.models]
        return labels, pipeline.swaps.done, pipeline.swaps.refused, bool(pipeline.swaps.refusal)

    assert looked() == (["one@1", "two@1"], 0, 0, False)
    make(root, "two", "2")
    promote(root, [], "one", "2")
    assert looked() == (["one@2", "two@1"], 1, 0, False), "what nobody promoted stays"
    promote(root, [], "one", "9")
    assert looked() == (["one@2", "two@1"], 1, 1, True)
    promote(root, [], "one", "9")
    assert looked() == (["one@2", "two@1"], 1, 2, True), "who promotes again is heard"
    promote(root, [], "one", "2")
    assert looked() == (["one@2", "two@1"], 1, 2, False)
    promote(root, [], "one", None)
    assert looked() == (["one@3", "two@1"], 2, 2, False)
    (root / SERVING_FILE).write_text("one = 3")
    assert looked() == (["one@3", "two@1"], 2, 3, True)


def test_an_unknown_classifier_is_refused_with_those_that_serve() -> None:
    pipeline = plain_pipeline(ChoosingScorer())
    with pytest.raises(RequestError, match=r"There is no classifier 'bref'; there are: brief, wordy\.") as caught:
        pipeline.score([], corpus=None, classifiers=frozenset({"bref", "wordy"}))
    assert caught.value.field == "options.classifiers"
    with pytest.raises(RequestError, match="there are: none"):
        plain_pipeline().score([], corpus=None, classifiers=frozenset({"brief"}))


def test_what_was_not_asked_for_is_not_run_and_marked() -> None:
    scorer = ChoosingScorer()
    pipeline = plain_pipeline(scorer)
    results = pipeline.run(
        [Document("a", b"Short.")], corpus=None, policy="score-only", classifiers=frozenset({"brief"})
    )
    verdict = results.verdict(0)
    assert scorer.runs == [{"brief"}]
    assert (verdict.signals["short"], verdict.signals["long"]) == (1.0, None)
    assert verdict.missing["longer"] == Missing.NOT_ASKED
