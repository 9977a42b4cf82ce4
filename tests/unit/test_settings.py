from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dqs.errors import ConfigError
from dqs.settings import Settings, load_settings, settings_origins

PACKAGE = Path(__file__).resolve().parent.parent.parent / "dqs"


@pytest.fixture(autouse=True)
def _nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"DQS_{name.upper()}", raising=False)


def test_arguments_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "dqs.toml"
    config.write_text("port = 1\nhost = '::1'\nscore_threads = 3\n")
    monkeypatch.setenv("DQS_PORT", "2")
    monkeypatch.setenv("DQS_HOST", "127.0.0.2")

    settings = load_settings(port=3)
    assert (settings.port, settings.host, settings.score_threads, settings.batch_documents) == (3, "127.0.0.2", 3, 1024)
    origins = settings_origins(port=3)
    assert origins["port"] == "argument"
    assert origins["host"] == "environment"
    assert origins["score_threads"] == "dqs.toml"
    assert origins["batch_documents"] == "default"


def test_a_named_file_is_read_instead_of_the_one_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "dqs.toml").write_text("port = 1\n")
    (tmp_path / "other.toml").write_text("port = 2\n")

    assert load_settings(tmp_path / "other.toml").port == 2
    assert load_settings().port == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = 'many'", "Setting port"),
        ("port = 70000", "Setting port"),
        ("prot = 1", "Setting prot"),
        ("port = ", "Cannot read the settings file"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dqs.toml").write_text(text)

    with pytest.raises(ConfigError, match=message) as caught:
        load_settings()
    assert "\n" not in caught.value.message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()

    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_environment_is_read_in_one_place() -> None:
    readers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = getattr(node, "attr", getattr(node, "id", ""))
            if name in ("environ", "getenv"):
                readers.add(path.relative_to(PACKAGE).as_posix())
    assert readers <= {"settings.py"}
