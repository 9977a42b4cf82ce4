from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dqs.errors import ConfigError
from dqs.settings import Settings, check_folders, load_settings, settings_origins

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
        ("prot = 1", r"dqs\.toml has prot, which is no setting; did you mean port\?"),
        ("zebra = 1", "zebra, which is no setting; `dqs settings` lists"),
        ("port = ", "Cannot read the settings file"),
        ("classifiers = 5", r"Setting classifiers .*: give names with commas between"),
        ("classifiers = [5]", "Setting classifiers"),
        ("drain_s = inf", "Setting drain_s"),
        ("drain_s = nan", "Setting drain_s"),
        ("ray_head_timeout_s = 60", "Setting ray_head_timeout_s"),
        ("ray_head_timeout_s = 5", "Setting ray_head_timeout_s"),
        ("keepalive_s = 0.9", "Setting keepalive_s"),
        ("keepalive_timeout_s = 0.9", "Setting keepalive_timeout_s"),
        ("keepalive_s = 3e6", "Setting keepalive_s"),
        ("max_message_bytes = 2147483648", "Setting max_message_bytes"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dqs.toml").write_text(text)

    with pytest.raises(ConfigError, match=message) as caught:
        load_settings()
    assert "\n" not in caught.value.message


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"host = '\xe9'")
    for name, reason in (("nowhere.toml", "does not exist"), ("", "Is a directory"), ("latin.toml", "is not UTF-8")):
        with pytest.raises(ConfigError, match=reason) as caught:
            load_settings(tmp_path / name)
        assert str(tmp_path / name) in caught.value.message
        assert "Errno" not in caught.value.message


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("DQS_WORKER", r"has DQS_WORKER, which is no setting; did you mean DQS_WORKERS\?"),
        ("dqs_prot", r"has dqs_prot, which is no setting; did you mean DQS_PORT\?"),
        ("DQS_METRIC_PORT", "DQS_METRICS_PORT"),
        ("DQS_", "which is no setting"),
    ],
)
def test_a_variable_that_would_do_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    monkeypatch.setenv(variable, "4")

    with pytest.raises(ConfigError, match=message):
        load_settings()


def test_variables_of_others_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQS_SHARED", "/data")
    # What Kubernetes says of the services `dqs` and `dqs-redis` of a namespace.
    for name, port in (("DQS", 50051), ("DQS_REDIS", 6379)):
        monkeypatch.setenv(f"{name}_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv(f"{name}_SERVICE_PORT_GRPC", str(port))
        monkeypatch.setenv(f"{name}_PORT_{port}_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("DQS_REDIS_PORT", "tcp://10.0.0.1:6379")
    assert load_settings().port == 50051

    # This one has a setting's name.
    monkeypatch.setenv("DQS_PORT", "tcp://10.0.0.1:50051")
    with pytest.raises(ConfigError, match=r"Setting port \(DQS_PORT\)"):
        load_settings()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    check_folders(load_settings(data_dir=tmp_path / "data"))
    for folder in (tmp_path / "file", tmp_path / "file" / "data", Path("/proc/dqs")):
        with pytest.raises(ConfigError, match=r"give .*--data-dir") as caught:
            check_folders(load_settings(data_dir=folder))
        assert str(folder) in caught.value.message
        # Nothing is written there where Redis is elsewhere and the kernels too.
        check_folders(load_settings(data_dir=folder, redis_url="redis://127.0.0.1:1/0"))


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
