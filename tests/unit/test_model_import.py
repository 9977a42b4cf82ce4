"""Import of classifiers: what is read, what is tried, what is refused."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers
from typer.testing import CliRunner

from dqs.commands.root import app
from dqs.errors import ModelError
from dqs.inference.importing import Imported, Request, import_model
from dqs.inference.onnx_file import read_onnx
from dqs.inference.transformer import Transformer
from dqs.models import load_model
from dqs.scorers.classifier import model_signals
from tests.unit.networks import expected_logits, write_export, write_graph, write_tokenizer


def run(tmp_path: Path, request: Request | None = None, *, source: Path | None = None, **export: Any) -> Imported:
    folder = write_export(tmp_path / "tiny", **export) if source is None else source
    root = tmp_path / "models"
    root.mkdir(exist_ok=True)
    return import_model(folder, root, request)


def signals(imported: Imported) -> list[str]:
    return [signal.name for signal in model_signals(imported.folder)]


def test_everything_is_read(tmp_path: Path) -> None:
    imported = run(tmp_path)

    shape = imported.shape
    assert imported.folder.label == "tiny@1"
    assert imported.folder.kind == "classifier"
    assert (shape.labels, shape.head, shape.output) == (("fine", "rude"), "single_label", "logits")
    assert (shape.max_tokens, shape.window_tokens, shape.stride_tokens) == (16, 16, 2)
    assert (shape.rows, shape.tokens, shape.alone, shape.precision) == (0, 0, False, "fp32")
    assert shape.inputs == {"ids": "input_ids", "mask": "attention_mask"}
    assert shape.aggregation == "mean"
    assert signals(imported) == ["tiny_fine", "tiny_rude"]
    found = dict(imported.found)
    assert found["opset"] == "17"
    assert found["producer"] == "tests"
    assert "--language" in found["languages"]
    imported.folder.verify()
    assert load_model(imported.folder.path) == imported.folder
    card = (imported.folder.path / "CARD.md").read_text("utf-8")
    assert "| labels | fine, rude |" in card
    assert str(tmp_path) not in card
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny"]

    logits = np.exp(expected_logits(["good", "bad"], 2))
    np.testing.assert_allclose(
        Transformer(imported.folder).score_texts(["good bad"])[0][0], logits / logits.sum(), atol=1e-5
    )


@pytest.mark.parametrize(
    ("config", "labels", "head"),
    [
        ({"problem_type": "multi_label_classification"}, 2, "multi_label"),
        ({"problem_type": None}, 2, "single_label"),
        ({"problem_type": None, "id2label": {"0": "grade"}}, 1, "regression"),
        ({"problem_type": "regression", "id2label": {"0": "grade"}}, 1, "regression"),
        ({"problem_type": "single_label_classification", "id2label": {"0": "grade"}}, 1, "multi_label"),
        ({"id2label": {"1": "b", "0": "a", "2": "c"}}, 3, "single_label"),
        ({"id2label": None}, 2, "single_label"),
    ],
)
def test_heads_and_the_order_of_labels(tmp_path: Path, config: dict[str, Any], labels: int, head: str) -> None:
    shape = run(tmp_path, labels=labels, config=config).shape

    assert shape.head == head
    named = config.get("id2label", {"0": "fine", "1": "rude"}) or {"0": "LABEL_0", "1": "LABEL_1"}
    assert shape.labels == tuple(named[str(at)] for at in range(labels))


@pytest.mark.parametrize(("rows", "tokens"), [(1, 16), (4, "tokens"), (2, 8)])
def test_fixed_shapes_are_kept_to(tmp_path: Path, rows: int, tokens: int | str) -> None:
    shape = run(tmp_path, rows=rows, tokens=tokens).shape

    assert (shape.rows, shape.tokens) == (rows, tokens if isinstance(tokens, int) else 0)
    assert shape.window_tokens == (tokens if isinstance(tokens, int) else 16)


@pytest.mark.parametrize(("precision", "alone"), [("fp16", False), ("int8", True)])
def test_precisions(tmp_path: Path, precision: str, alone: bool) -> None:
    shape = run(tmp_path, precision=precision, config={"problem_type": "multi_label_classification"}).shape

    assert (shape.precision, shape.alone) == (precision, alone)


def test_a_graph_of_half_precision_is_taken_along_where_it_agrees(tmp_path: Path) -> None:
    source = write_export(tmp_path / "tiny")
    write_graph(source / "model_fp16.onnx", precision="fp16")
    assert run(tmp_path, source=source).folder.has_file("graph_half")

    write_graph(source / "model_fp16.onnx", precision="fp16", factor=-1)
    other = run(tmp_path, source=source).folder
    assert other.version == "2"
    assert not other.has_file("graph_half")
    assert not (other.path / "model_fp16.onnx").exists()


def test_shards_and_the_folder_onnx(tmp_path: Path) -> None:
    source = write_export(tmp_path / "tiny")
    (source / "model.onnx").unlink()
    (source / "onnx").mkdir()
    write_graph(source / "onnx" / "model.onnx", shards=True)

    imported = run(tmp_path, source=source)

    assert {file.role for file in imported.folder.files} == {"graph", "graph_data_0", "graph_data_1", "tokenizer"}
    imported.folder.verify()
    (source / "onnx" / "head").unlink()
    with pytest.raises(ModelError, match="keeps weights in head, which is missing"):
        run(tmp_path, source=source)


def test_a_chosen_graph(tmp_path: Path) -> None:
    source = write_export(tmp_path / "tiny")
    write_graph(source / "model_quantized.onnx", precision="int8")

    assert run(tmp_path, Request(graph="model_quantized.onnx"), source=source).shape.precision == "int8"
    (source / "model.onnx").unlink()
    write_graph(source / "other.onnx")
    with pytest.raises(ModelError, match=r"choose a graph with --graph, of: model_quantized\.onnx, other\.onnx"):
        run(tmp_path, source=source)


@pytest.mark.parametrize(
    ("labels", "request_", "main", "names"),
    [
        ({"0": "non-toxic", "1": "toxic"}, Request(task="toxicity"), "toxic", ["tiny_non_toxic", "tiny_toxicity"]),
        ({"0": "toxic", "1": "insult"}, Request(task="toxicity"), "toxic", ["tiny_toxicity", "tiny_insult"]),
        ({"0": "OFFENSIVE", "1": "NOT-OFFENSIVE"}, Request(task="toxicity"), "OFFENSIVE", None),
        ({"0": "a", "1": "b"}, Request(task="toxicity", label="a"), "a", ["tiny_toxicity", "tiny_b"]),
        ({"0": "Low", "1": "High"}, Request(task="quality"), "High", ["tiny_low", "tiny_quality"]),
        ({"0": "a", "1": "b"}, Request(label="a"), "a", ["tiny_a", "tiny_b"]),
    ],
)
def test_tasks_bind_their_label(
    tmp_path: Path, labels: dict[str, str], request_: Request, main: str, names: list[str] | None
) -> None:
    imported = run(tmp_path, request_, config={"id2label": labels})

    assert imported.shape.main_label == main
    assert imported.shape.aggregation == ("max" if request_.task == "toxicity" else "mean")
    assert names is None or signals(imported) == names


def test_versions_names_and_languages(tmp_path: Path) -> None:
    source = write_export(tmp_path / "My Model!")
    (source / "README.md").write_text("---\nlanguage:\n- en\n- zh\nlicense: mit\ntags: [a]\n---\n# Model\n", "utf-8")

    first = run(tmp_path, source=source).folder
    second = run(tmp_path, Request(languages=["zh"]), source=source).folder
    third = run(tmp_path, Request(name="other", version="2026.11"), source=source).folder

    assert (first.label, first.languages, first.licence) == ("My-Model@1", ("en", "zh"), "mit")
    assert (second.label, second.languages) == ("My-Model@2", ("zh",))
    assert third.label == "other@2026.11"
    with pytest.raises(ModelError, match=r"other@2026\.11 is in .* already"):
        run(tmp_path, Request(name="other", version="2026.11"), source=source)
    with pytest.raises(ModelError, match="'english' is no ISO 639-1 code"):
        run(tmp_path, Request(languages=["english"]), source=source)
    with pytest.raises(ModelError, match="cannot name a model"):
        run(tmp_path, Request(name="../up"), source=source)


def test_lengths(tmp_path: Path) -> None:
    source = write_export(tmp_path / "tiny", config={"model_type": "roberta", "pad_token_id": 1})
    assert run(tmp_path, source=source).shape.max_tokens == 14

    (source / "tokenizer_config.json").write_text('{"model_max_length": 12}', "utf-8")
    assert run(tmp_path, source=source).shape.max_tokens == 12
    shape = run(tmp_path, Request(window_tokens=9, aggregation="max"), source=source).shape
    assert (shape.max_tokens, shape.window_tokens, shape.stride_tokens, shape.aggregation) == (12, 9, 1, "max")


@pytest.mark.parametrize(
    ("export", "message"),
    [
        ({"config": {"id2label": {"0": "entailment", "1": "contradiction"}}}, "compares pairs of texts"),
        ({"config": {"sentence_transformers": {"activation_fn": "x"}}}, "cross-encoder"),
        ({"inputs": ("input_ids", "attention_mask", "pixel_values")}, "needs the input pixel_values"),
        ({"inputs": ("tokens", "attention_mask")}, "needs the input tokens"),
        ({"outputs": ("start", "end")}, "no output logits, only start, end"),
        ({"config": {"architectures": ["BertForTokenClassification"]}}, "BertForTokenClassification"),
        ({"config": {"id2label": {"0": "a", "1": "b", "2": "c"}}}, "names 3 labels but the graph gives 2"),
        ({"config": {"id2label": {"0": "a", "2": "b"}}}, "leaves out numbers"),
        ({"config": {"id2label": {"0": "a", "1": "a"}}}, "names a label twice"),
        ({"config": {"id2label": ["a", "b"]}}, "does not map numbers to labels"),
        ({"config": {"id2label": None}, "free_width": True}, "how many labels"),
        ({"config": {"problem_type": "ranking"}}, "problem_type in config.json is 'ranking'"),
        ({"operator": ("dqs.tests", "Foo")}, "lacks the operator dqs.tests:Foo"),
        ({"opset": 99}, "operator set is newer"),
        ({"factor": float("nan")}, "with what is no number"),
        ({"free_width": True, "labels": 3, "config": {"id2label": {"0": "a", "1": "b"}}}, "its graph gives 3 numbers"),
    ],
)
def test_what_cannot_serve_is_refused_and_leaves_nothing_behind(
    tmp_path: Path, export: dict[str, Any], message: str
) -> None:
    if "inputs" in export and "input_ids" not in export["inputs"]:
        source = write_export(tmp_path / "tiny")
        model = onnx.load(str(source / "model.onnx"))
        model.graph.input[0].name = "tokens"
        model.graph.node[0].input[1] = "tokens"
        onnx.save_model(model, str(source / "model.onnx"))
        export = {"source": source}

    with pytest.raises(ModelError, match=message) as refused:
        run(tmp_path, **export)

    assert ".import-" not in str(refused.value)  # a folder that is gone by now
    assert list((tmp_path / "models").iterdir()) == []


def test_a_tokenizer_of_another_model_is_found_out(tmp_path: Path) -> None:
    source = write_export(tmp_path / "tiny")
    text = (source / "tokenizer.json").read_text("utf-8")
    # A number that the table of embeddings does not reach to, for every word of the trial.
    (source / "tokenizer.json").write_text(re.sub(r'("\[UNK\]": ?)1\b', r"\g<1>7000", text), "utf-8")

    with pytest.raises(ModelError, match="export graph and tokenizer of the same model"):
        run(tmp_path, source=source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", "is no tokenizer.json"),
        ("config.json", None, "has no config.json"),
        ("config.json", "{", "is no JSON"),
        ("config.json", "[]", "is no JSON object"),
        ("model.onnx", None, "holds no ONNX graph"),
        ("model.onnx", "no graph", "is no ONNX graph"),
        ("model.onnx", "", "is no ONNX graph"),
    ],
)
def test_incomplete_exports(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    source = write_export(tmp_path / "tiny")
    if content is None:
        (source / name).unlink()
    else:
        (source / name).write_text(content, "utf-8")

    with pytest.raises(ModelError, match=message) as refused:
        run(tmp_path, source=source)
    assert ".import-" not in str(refused.value)
    assert list((tmp_path / "models").iterdir()) == []


def test_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    source = write_export(tmp_path / "tiny", shards=True)
    model = onnx.load(str(source / "model.onnx"), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../table"
    onnx.save_model(model, str(source / "model.onnx"))

    with pytest.raises(ModelError, match="export it with its weights beside it"):
        run(tmp_path, source=source)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_onnx_file_is_read_as_onnx_reads_it(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "model.onnx"
    write_graph(path, precision=precision, shards=precision == "fp32")
    model = onnx.load(str(path), load_external_data=False)

    found = read_onnx(path)

    versions = {entry.domain: entry.version for entry in model.opset_import}
    assert {"": found.opset, **found.domains} == versions
    assert found.producer == model.producer_name
    assert {name.rpartition(":")[2] for name in found.operators} == {node.op_type for node in model.graph.node}
    assert found.external == (("head", "table") if precision == "fp32" else ())
    assert found.precision == precision


def test_the_command(tmp_path: Path) -> None:
    source = write_export(tmp_path / "tiny", config={"id2label": {"0": "clean", "1": "toxic"}})
    arguments = ["models", "import", str(source), "--data-dir", str(tmp_path / "data"), "--language", "en"]

    done = CliRunner().invoke(app, [*arguments, "--task", "toxicity", "--name", "mine"])

    assert done.exit_code == 0, done.output
    for part in ("single_label", "clean, toxic", "mine_toxicity (probability, higher_is_worse)", "mine@1 is in"):
        assert part in done.output
    place = tmp_path / "data" / "models" / "mine" / "1"
    table = tomllib.loads((place / "model.toml").read_text("utf-8"))
    assert (table["kind"], table["languages"]) == ("classifier", ["en"])

    shutil.rmtree(source)
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, ModelError)


def test_labels_that_make_one_signal_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = write_export(tmp_path / "tiny", config={"id2label": {"0": "a b", "1": "a-b"}})

    done = CliRunner().invoke(app, ["models", "import", str(source), "--data-dir", str(tmp_path / "data")])

    assert isinstance(done.exception, ModelError)
    assert "both give the signal tiny_a_b" in str(done.exception)
    assert list((tmp_path / "data" / "models").iterdir()) == []


def test_a_signal_that_is_there_already_is_refused(tmp_path: Path) -> None:
    source = write_export(tmp_path / "tiny", config={"id2label": {"0": "percentile", "1": "b"}})
    data = ["--data-dir", str(tmp_path / "data")]

    done = CliRunner().invoke(app, ["models", "import", str(source), "--name", "perplexity", *data])

    assert isinstance(done.exception, ModelError)
    assert "perplexity_percentile" in str(done.exception)


def test_a_tokenizer_for_pairs_alone_is_no_hindrance(tmp_path: Path) -> None:
    source = write_export(tmp_path / "tiny")
    write_tokenizer(source / "tokenizer.json", truncation=None)
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps({**config, "_name_or_path": "someone/base-model"}), "utf-8")

    assert run(tmp_path, source=source).folder.name == "base-model"


@pytest.mark.parametrize(("name", "version"), [("../escaped", "1"), ("mine", "../../escaped"), ("a/b", "1")])
def test_names_that_are_no_folders_leave_nothing_behind(tmp_path: Path, name: str, version: str) -> None:
    source, root = write_export(tmp_path / "place" / "export"), tmp_path / "place" / "models"
    root.mkdir()
    with pytest.raises(ModelError, match="cannot name a"):
        import_model(source, root, Request(name=name, version=version))
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert list(root.iterdir()) == []


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    source, root = write_export(tmp_path / "export"), tmp_path / "models"
    root.mkdir()
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_tokens(["later", "latest"])
    tokenizer.save(str(source / "tokenizer.json"))
    with pytest.raises(ModelError, match="export graph and tokenizer of the same model"):
        import_model(source, root, Request(name="mine"))
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"), [("toxicity-en", "is a model of kind toxicity"), ("toxicity", "the scorer toxicity")]
)
def test_the_place_of_shipped_models_is_not_taken(tmp_path: Path, name: str, message: str) -> None:
    root = tmp_path / "models"
    root.mkdir()
    source = write_export(tmp_path / "export", config={"id2label": {"0": "fine", "1": "insult"}})
    done = CliRunner().invoke(app, ["models", "import", str(source), "--models", str(root), "--name", name])
    assert done.exit_code != 0
    assert message in str(done.exception)
    assert list(root.iterdir()) == []
