"""Sessions: what does not load, what is installed, where networks run."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import onnxruntime
import pytest

from dqs.errors import ConfigError, ModelError
from dqs.inference import sessions
from dqs.inference.sessions import Runtime, Session, check_packages
from dqs.models import ModelFolder, write_model
from dqs.scorers import build_scorers
from dqs.settings import load_settings
from tests.unit.networks import write_folder, write_graph

GPU_HERE = bool(sessions._gpus()) and "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def folder_of(root: Path) -> ModelFolder:
    return write_model(root, name="m", version="1", kind="classifier", languages=[], files={"graph": "model.onnx"})


def path_in(root: Path) -> Path:
    folder = root / "m" / "1"
    folder.mkdir(parents=True)
    return folder / "model.onnx"


def test_what_a_graph_takes_and_gives(tmp_path: Path) -> None:
    write_graph(path_in(tmp_path), rows=3, labels=4)

    session = Session(folder_of(tmp_path), "graph", Runtime())

    assert session.provider == "cpu"
    assert session.inputs == ("input_ids", "attention_mask")
    assert session.outputs == ("logits",)
    assert session.input_specs[0].shape == (3, None)
    assert str(session.input_specs[0].dtype) == "int64"
    assert session.output_specs[0].shape == (3, 4)


@pytest.mark.parametrize(
    ("operator", "name"),
    [(("", "Foo"), "Foo"), (("dqs.tests", "Foo"), "dqs.tests:Foo"), (("com.microsoft", "Foo"), "com.microsoft:Foo")],
)
def test_an_operator_that_is_not_there_is_named(tmp_path: Path, operator: tuple[str, str], name: str) -> None:
    write_graph(path_in(tmp_path), operator=operator)

    with pytest.raises(ModelError, match=f"m@1 does not load: the installed onnxruntime lacks the operator {name}:"):
        Session(folder_of(tmp_path), "graph", Runtime())


def test_an_operator_without_a_kernel_for_its_type_is_named(tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["" : 17]> g (bfloat16[N] x) => (bfloat16[N] y) { y = Erf(x) }'
    onnx.save_model(onnx.parser.parse_model(text), str(path_in(tmp_path)))

    with pytest.raises(ModelError, match="lacks the operator Erf"):
        Session(folder_of(tmp_path), "graph", Runtime())


def test_versions_from_the_future_are_named(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    write_graph(path, opset=99)
    with pytest.raises(ModelError, match="operator set is newer"):
        Session(folder_of(tmp_path), "graph", Runtime())

    write_graph(path)
    model = onnx.load(str(path))
    model.ir_version = 99
    onnx.save_model(model, str(path))
    with pytest.raises(ModelError, match="format is newer"):
        Session(folder_of(tmp_path), "graph", Runtime())


def test_damaged_and_missing_graphs(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    write_graph(path)
    folder = folder_of(tmp_path)
    whole = path.read_bytes()
    for content in (b"", b"no graph", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="does not load: restore the file"):
            Session(folder, "graph", Runtime())
    path.unlink()
    with pytest.raises(ModelError, match="does not load: restore the file"):
        Session(folder, "graph", Runtime())


def test_both_packages_at_once_are_refused_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages()
    for name in ("onnxruntime", "onnxruntime-gpu"):
        info = tmp_path / f"{name.replace('-', '_')}-1.31.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(ConfigError, match=r"both installed.*dqs\[server\].*dqs\[gpu\]"):
        check_packages()
    with pytest.raises(ConfigError, match="both installed"):
        build_scorers([write_folder(tmp_path / "models")], ["classifier"])


@pytest.mark.skipif(GPU_HERE, reason="a GPU can be reached, so nothing falls back")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_falling_back_is_said_once_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, provider: sessions.Provider
) -> None:
    folder = write_folder(tmp_path)
    sessions._warn.cache_clear()

    with caplog.at_level(logging.WARNING):
        used = [Session(folder, "graph", Runtime(provider)).provider for _ in range(3)]

    assert used == ["cpu"] * 3
    (record,) = caplog.records
    assert f"The provider {provider} cannot be used, networks run on the processor: " in record.getMessage()
    assert "install dqs[gpu]" in record.getMessage() or "no NVIDIA driver" in record.getMessage()


@pytest.mark.skipif(GPU_HERE or bool(sessions._gpus()), reason="there is a GPU")
def test_nobody_misses_a_gpu_that_was_not_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sessions._warn.cache_clear()

    with caplog.at_level(logging.WARNING):
        assert Session(write_folder(tmp_path), "graph", Runtime("auto")).provider == "cpu"

    assert "CUDAExecutionProvider" in onnxruntime.get_available_providers() or not caplog.records


def test_half_precision_is_for_gpus_alone(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    write_graph(path)
    write_graph(path.with_name("half.onnx"), rows=5)
    folder = write_model(
        tmp_path, name="m", version="1", kind="classifier", languages=[],
        files={"graph": "model.onnx", "graph_half": "half.onnx"},
    )  # fmt: skip

    assert Session(folder, "graph", Runtime("cpu")).input_specs[0].shape == (None, None)


def test_settings_say_how_networks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQS_PROVIDER", "cuda")
    monkeypatch.setenv("DQS_ONNX_THREADS", "3")
    monkeypatch.setenv("DQS_GPU_MEMORY_BYTES", str(1 << 30))
    monkeypatch.setenv("DQS_CLASSIFIERS", "one, two,")

    settings = load_settings()

    assert Runtime.of(settings) == Runtime("cuda", 3, 1 << 30)
    assert settings.classifiers == ("one", "two")
    monkeypatch.setenv("DQS_CLASSIFIERS", "")
    assert load_settings().classifiers == ()
    monkeypatch.delenv("DQS_CLASSIFIERS")
    assert load_settings().classifiers is None
    assert load_settings(classifiers=("one",)).classifiers == ("one",)
    monkeypatch.setenv("DQS_PROVIDER", "rocm")
    with pytest.raises(ConfigError, match="provider"):
        load_settings()
