"""Model folders: search path, versions, digests, and what model.toml may say."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqs.errors import ModelError
from dqs.models import ModelFolder, find_models, load_model, model_roots, to_toml, version_key, write_model


def make(root: Path, name: str, version: str, *, kind: str = "perplexity", content: bytes = b"weights") -> ModelFolder:
    folder = root / name / version
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(content)
    return write_model(
        root,
        name=name,
        version=version,
        kind=kind,
        languages=["en", "zh"],
        files={"weights": "weights.bin"},
        normaliser="dqs",
        licence="Apache-2.0",
        training_data=["self-written text (CC0-1.0)"],
        tables={"perplexity": {"order": 4, "quantiles": [0.5, 1.0], "bands": [{"low": 1}, {"low": 2}]}},
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    model = make(tmp_path, "one", "1")
    assert model == load_model(tmp_path / "one" / "1")
    assert model.label == "one@1"
    assert model.languages == ("en", "zh")
    assert model.training_data == ("self-written text (CC0-1.0)",)
    assert model.table("perplexity") == {
        "order": 4,
        "quantiles": [0.5, 1.0],
        "bands": [{"low": 1}, {"low": 2}],
    }
    assert model.table("absent") == {}
    assert model.file("weights").read_bytes() == b"weights"
    assert model.has_file("weights")
    assert not model.has_file("tokeniser")
    assert len(model.digest) == 64
    model.verify()


def test_the_first_root_wins_and_in_it_the_highest_version(tmp_path: Path) -> None:
    strong, weak = tmp_path / "strong", tmp_path / "weak"
    make(strong, "shared", "9")
    make(strong, "shared", "10")
    make(weak, "shared", "11")
    make(weak, "other", "1", kind="toxicity")
    roots = [strong, tmp_path / "absent", weak]
    assert [model.label for model in find_models(roots)] == ["shared@10", "other@1"]
    assert [model.label for model in find_models(roots, kind="perplexity")] == ["shared@10"]
    assert [model.label for model in find_models(roots, versions={"shared": "11"}, kind="perplexity")] == ["shared@11"]
    with pytest.raises(ModelError, match="shared@12"):
        find_models(roots, versions={"shared": "12"})


def test_a_model_that_lost_its_description_is_no_reason_to_serve_another(tmp_path: Path) -> None:
    place = tmp_path / "strong" / "toxicity-en" / "3"
    place.mkdir(parents=True)
    find_models([tmp_path / "strong"])  # an empty folder is no model
    (place / "model.onnx").write_bytes(b"graph")
    with pytest.raises(ModelError, match=r"toxicity-en/3 has no model\.toml: restore it"):
        find_models([tmp_path / "strong"])


def test_versions_order_by_number() -> None:
    versions = ["1", "1.2", "1.10", "2-rc", "2", "10", "2026.11"]
    assert sorted(["10", "1.10", "2", "2026.11", "1"], key=version_key) == ["1", "1.10", "2", "10", "2026.11"]
    assert len({version_key(version) for version in versions}) == len(versions)


def test_a_changed_file_is_named_with_both_digests(tmp_path: Path) -> None:
    model = make(tmp_path, "one", "1")
    expected = model.files[0].sha256
    model.file("weights").write_bytes(b"other weights")
    with pytest.raises(ModelError) as caught:
        model.verify()
    assert str(model.file("weights")) in caught.value.message
    assert expected[:12] in caught.value.message
    assert expected not in caught.value.message
    model.file("weights").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin cannot be read"):
        model.verify()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "no valid TOML"),
        ('name = "one"\nversion = "1"\n', "kind"),
        ('name = "two"\nversion = "1"\nkind = "perplexity"\n', "make them equal"),
        ('name = "one"\nversion = "1"\nkind = "k"\nlanguages = "en"\n', "languages"),
        (
            'name = "one"\nversion = "1"\nkind = "k"\n[[files]]\nrole = "r"\nname = "../x"\n',
            "plain file name",
        ),
        ('name = "one"\nversion = "1"\nkind = "k"\n[[files]]\nrole = "r"\nname = "x"\n', "sha256sum x"),
        ('name = "one"\nversion = "1"\nkind = "k"\nfiles = "x"\n', r"\[\[files\]\]"),
    ],
)
def test_a_malformed_folder_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    folder = tmp_path / "one" / "1"
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_a_missing_role_or_folder_is_said(tmp_path: Path) -> None:
    model = make(tmp_path, "one", "1")
    with pytest.raises(ModelError, match="'tokeniser'"):
        model.file("tokeniser")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(tmp_path / "one" / "2")
    with pytest.raises(ModelError, match="does not exist"):
        model_roots(tmp_path / "absent")


def test_names_that_leave_the_root_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot name a model"):
        write_model(tmp_path, name="../up", version="1", kind="k", languages=[], files={})


def test_roots_stand_in_order(tmp_path: Path) -> None:
    chosen, data = tmp_path / "chosen", tmp_path / "data"
    chosen.mkdir()
    (data / "models").mkdir(parents=True)
    assert model_roots(chosen, data)[:2] == [chosen, data / "models"]
    assert model_roots(chosen, tmp_path / "absent")[0] == chosen
    assert model_roots(chosen, chosen.parent / "data").count(chosen) == 1


plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.one_of(
    plain_text, st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False)
)
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(scalars, st.lists(scalars, max_size=30)),
    lambda inner: st.one_of(
        st.dictionaries(plain_text, inner, max_size=4),
        st.lists(st.dictionaries(plain_text, inner, max_size=3), max_size=3),
    ),
    max_leaves=12,
)


@given(st.dictionaries(plain_text, values, max_size=6))
def test_toml_says_what_it_was_given(data: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(data)) == data


@pytest.mark.parametrize("value", [None, math.nan, math.inf, {1, 2}, b"bytes"])
def test_toml_refuses_what_it_cannot_say(value: object) -> None:
    with pytest.raises(TypeError):
        to_toml({"key": value})
