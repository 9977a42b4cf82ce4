"""Models are promoted while a service runs on them: in its process, and in Ray workers.

The models are real and tiny: every weight is 0, so that each version answers one
probability for every text, and an answer tells which version gave it.
"""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqs import Client
from dqs.models import ModelFolder, load_model, write_model
from dqs.promoted import promote
from dqs.text.ngrams import NgramShape
from dqs.training.toxicity import LinearModel, Recipe, write_toxicity_model
from dqs.v1 import scoring_pb2 as pb
from tests.cluster.workers import PATIENCE_S, worker_processes
from tests.service.serving import ENGLISH, ServerProcess
from tests.service.serving import wait_until as wait_until_in_time
from tests.service.test_cli_commands import assert_one_sentence, dqs_here

NAME = "toxicity-en"
PROBABILITIES = {"1": 0.25, "2": 0.75, "3": 0.5}
SHAPE = NgramShape(word_sizes=1, character_sizes=(), bits=8, block_words=8)


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for something that must come true, for as long as two noisy cores need to start a worker."""
    wait_until_in_time(condition, PATIENCE_S)


def write_version(root: Path, version: str) -> ModelFolder:
    """A toxicity model that gives every English text the same probability."""
    share = PROBABILITIES[version]
    model = LinearModel(np.zeros(1 << SHAPE.bits, dtype=np.float32), offset=float(np.log(share / (1 - share))))
    return write_toxicity_model(model, Recipe(shape=SHAPE), root, name=NAME, version=version, language="en")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models folder with two versions, of which the first one was promoted."""
    root = tmp_path / "models"
    for version in ("1", "2"):
        write_version(root, version)
    promote(root, [], NAME, "1")
    return root


@pytest.fixture(params=[0, pytest.param(2, id="ray")])
def workers(request: pytest.FixtureRequest) -> int:
    chosen: int = request.param
    return chosen


@pytest.fixture
def service(models: Path, tmp_path: Path, workers: int) -> Iterator[ServerProcess]:
    more: dict[str, Any] = {"workers": workers, "worker_cpus": 0.5} if workers else {}
    with ServerProcess(port=0, data_dir=tmp_path / "data", models=models, **more) as process:
        yield process


@pytest.fixture
def client(service: ServerProcess) -> Iterator[Client]:
    with Client(service.address) as client:
        yield client


def serving(client: Client) -> str:
    """Version that the service says it serves."""
    versions = [str(model.version) for model in client.info().models if model.name == NAME]
    return versions[0]


def answering(client: Client) -> str:
    """Version that answers, as the answer says and as its score tells."""
    (verdict,) = client.score_batch([("a", ENGLISH)], corpus=None, policy="score-only", language="en")
    assert verdict.error is None
    (version,) = (label.partition("@")[2] for label in verdict.models if label.startswith(f"{NAME}@"))
    assert verdict.signals["toxicity"] == pytest.approx(PROBABILITIES[version], abs=1e-5)
    return version


def promoted(models: Path, *arguments: object) -> tuple[int, str, str]:
    return dqs_here(models.parent, "models", "promote", *arguments, "--models", models)


class Load:
    """A thread with a stream that never ends until told, and takes apart what comes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._sent = 0
        self.answered: list[str] = []
        self.versions: list[str] = []
        """Of each batch, as it was scored."""
        self.replicas: list[str] = []
        """Who scored it."""
        self.error: BaseException | None = None

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def has(self, batches: int) -> Callable[[], bool]:
        """Whether so many more batches have been answered."""
        wanted = len(self.versions) + batches
        return lambda: len(self.versions) >= wanted or self.error is not None

    @property
    def lately(self) -> tuple[set[str], int]:
        """Versions that scored the last 20 batches, and how many processes did."""
        return set(self.versions[-20:]), len(set(self.replicas[-20:]))

    def check(self) -> None:
        """Every document was answered once, in order."""
        assert self.error is None
        assert self.answered == [str(number) for number in range(self._sent)]

    def _documents(self) -> Iterator[tuple[str, str]]:
        for number in itertools.count():
            if self._stop.is_set():
                return
            self._sent = number + 1
            yield str(number), f"{ENGLISH} {number}"

    def _work(self) -> None:
        try:
            for scored in self._client.score_batches(
                self._documents(), corpus=None, policy="score-only", language="en", timings=True
            ):
                self._take(scored)
        except BaseException as error:
            self.error = error

    def _take(self, scored: pb.ScoredDocuments) -> None:
        """Each batch has one version, named in the answer and told by every one of its scores."""
        self.answered += [result.id for result in scored.results]
        assert not any(result.HasField("error") for result in scored.results)
        assert sum(run.documents for run in scored.model_runs) == len(scored.results)
        column = np.array(scored.values).reshape(len(scored.results), -1)[:, list(scored.signals).index("toxicity")]
        named = [label for run in scored.model_runs for label in [_version(run)] * run.documents]
        np.testing.assert_allclose(column, [PROBABILITIES[version] for version in named], atol=1e-5)
        begin = 0
        for timing in scored.timings:
            (version,) = set(named[begin : begin + timing.documents])
            begin += timing.documents
            self.replicas.append(timing.replica)
            self.versions.append(version)


def _version(run: pb.ModelRun) -> str:
    assert len(run.digest) == 16
    (label,) = (label for label in run.models if label.startswith(f"{NAME}@"))
    return str(label.partition("@")[2])


def test_under_load_no_batch_mixes_versions_and_every_answer_names_its_own(
    client: Client, models: Path, service: ServerProcess, workers: int
) -> None:
    with Load(client) as load:
        wait_until(lambda: len(set(load.replicas)) >= max(1, workers))
        for version in ("2", "1", "2"):
            before = serving(client)
            status, out, err = promoted(models, NAME, version)
            assert status == 0, err
            assert out.startswith(f"{NAME}: {before} -> {version}, written to ")
            wait_until(lambda version=version: serving(client) == version)  # type: ignore[misc]
            # A worker changes over behind the batches that it holds, and after the one before it.
            wait_until(lambda version=version: load.lately == ({version}, max(1, workers)))  # type: ignore[misc]
        if workers:
            before_pids = {process.pid for process in worker_processes(service.pid)}
            worker_processes(service.pid)[0].kill()
            wait_until(lambda: bool({process.pid for process in worker_processes(service.pid)} - before_pids))
            killed = len(load.versions)
            wait_until(lambda: len(set(load.replicas[killed:])) == workers)
            assert set(load.versions[killed:]) == {"2"}, "the worker that came back has what serves now"

    load.check()
    assert set(load.versions) == {"1", "2"}
    assert client.info().model_refusal == ""
    assert answering(client) == "2"


def cut_off(folder: Path) -> None:
    graph = next(folder.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-20])


def corrupt(folder: Path) -> None:
    graph = next(folder.glob("*.onnx"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 0xFF
    graph.write_bytes(content)


def take_away(folder: Path) -> None:
    next(folder.glob("*.onnx")).unlink()


def name_no_graph(folder: Path) -> None:
    """Whole by its digest, and nothing that can be loaded."""
    graph = next(folder.glob("*.onnx"))
    graph.write_bytes(b"no graph at all")
    known = load_model(folder)
    write_model(
        folder.parent.parent,
        name=known.name,
        version=known.version,
        kind=known.kind,
        languages=known.languages,
        files={file.role: file.name for file in known.files},
        tables=known.tables,
    )


DAMAGES = [
    (cut_off, "is not the file that model.toml names"),
    (corrupt, "is not the file that model.toml names"),
    (take_away, "cannot be read"),
    (name_no_graph, "does not load"),
]


def test_a_damaged_version_leaves_the_old_one_in_place(client: Client, models: Path, workers: int) -> None:
    """Promoted behind the back of the command, which would refuse it; as where another machine has damaged files."""
    for damage, said in DAMAGES:
        shutil.rmtree(models / NAME / "3", ignore_errors=True)
        damage(write_version(models, "3").path)
        with Load(client) as load:
            wait_until(load.has(2))
            promote(models, [], NAME, "3")
            wait_until(lambda said=said: said in client.info().model_refusal)  # type: ignore[misc]
            wait_until(load.has(5))
        load.check()
        assert set(load.versions) == {"1"}
        assert serving(client) == answering(client) == "1"

    shutil.rmtree(models / NAME / "3")
    write_version(models, "3")
    promote(models, [], NAME, "3")
    wait_until(lambda: serving(client) == "3")
    # The refusal stands until every worker has changed over.
    wait_until(lambda: client.info().model_refusal == "")
    assert answering(client) == "3"


class TestTheCommand:
    def test_it_tries_a_version_before_anything_changes(self, models: Path) -> None:
        for damage, said in DAMAGES:
            shutil.rmtree(models / NAME / "3", ignore_errors=True)
            damage(write_version(models, "3").path)
            before = (models / "serving.toml").read_bytes()

            status, out, err = promoted(models, NAME, "3")

            assert (status, out) == (2, "")
            assert_one_sentence(err)
            assert said in err
            assert (models / "serving.toml").read_bytes() == before

    def test_it_says_what_serves_and_gives_the_choice_back(self, models: Path) -> None:
        def states() -> dict[str, str]:
            status, out, _ = dqs_here(models.parent, "models", "list", "--all", "--models", models)
            assert status == 0
            rows = [line.split("\t") for line in out.splitlines()]
            return {row[0]: row[4] for row in rows if Path(row[5]).is_relative_to(models)}

        assert states() == {f"{NAME}@1": "serves, promoted", f"{NAME}@2": "-"}
        assert promoted(models, NAME, "--latest")[1].startswith(f"{NAME}: 1 -> 2")
        assert states() == {f"{NAME}@1": "-", f"{NAME}@2": "serves"}

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([NAME], "Say which version"),
            ([NAME, "1", "--latest"], "Say which version"),
            ([NAME, "9"], f"model {NAME}@9 is in no models folder"),
            (["nosuch", "1"], "model nosuch@1 is in no models folder"),
            (["nosuch", "--latest"], "There is no model 'nosuch'"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, models: Path, arguments: list[str], said: str) -> None:
        status, out, err = promoted(models, *arguments)
        assert (status, out) == (2, "")
        assert_one_sentence(err)
        assert said in err
