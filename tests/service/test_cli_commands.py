"""The other commands of `dqs`, as a person runs them."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dqs.cli import main
from dqs.index.embedded import EmbeddedRedis
from dqs.index.redis_store import connect
from dqs.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests" / "samples"
WAIT_S = 120.0


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DQS_")}
    return {**kept, "PYTHONPATH": str(ROOT), "DQS_DATA_DIR": str(folder / "data")}


def dqs(folder: Path, *arguments: object, **variables: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "dqs.cli", *map(str, arguments)],
        cwd=folder,
        env={**environment(folder), **variables},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def dqs_here(folder: Path, *arguments: object, **variables: str) -> tuple[int, str, str]:
    """As `dqs`, in this process, which has long loaded what a new one loads for seconds."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    said = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(buffer, encoding="utf-8", write_through=True) for buffer in said)
    variables_before, arguments_before = dict(os.environ), sys.argv
    its_variables = {**environment(folder), **variables}
    status: object = 0
    try:
        os.environ.clear()
        os.environ.update(its_variables)
        sys.argv = ["dqs", *map(str, arguments)]
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = arguments_before
        os.environ.clear()
        os.environ.update(variables_before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(status, int)
    return status, said[0].getvalue().decode(), said[1].getvalue().decode()


def assert_one_sentence(err: str) -> None:
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("dqs: ")


def test_version_and_help_load_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['dqs', sys.argv[1]]; import dqs.cli\n"
        "try: dqs.cli.main()\n"
        "finally: print([m for m in ('numpy', 'numba', 'pyarrow', 'grpc', 'pydantic') if m in sys.modules])"
    )
    for option, expected in (("--version", "dqs "), ("--help", "score")):
        done = subprocess.run(
            [sys.executable, "-c", code, option],
            cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=WAIT_S, check=True,
        )  # fmt: skip
        assert expected in done.stdout
        assert done.stdout.endswith("[]\n")


def test_a_wrong_option_has_exit_status_2(tmp_path: Path) -> None:
    status, out, err = dqs(tmp_path, "score", "--polcy", "x")
    assert (status, out) == (2, "")
    assert "Traceback" not in err


def test_help_shows_the_defaults_of_the_settings(tmp_path: Path) -> None:
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    shown = {"serve": ("host", "port", "data_dir", "workers", "gpu_workers", "log_format"), "score": ("workers",)}
    for command, names in shown.items():
        status, out, _ = dqs_here(tmp_path, command, "--help", COLUMNS="250")
        assert status == 0
        for name in names:
            option = f"--{name.replace('_', '-')} "
            (line,) = [line for line in out.splitlines() if option in line and "<" in line]
            assert f" [default: {defaults[name]}]" in line
        assert "default: (" not in out
    assert "[default: id, else FILE:ROW]" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serve", "--port", "70000"], "Setting port"),
        (["serve", "--port", "0", "--tokens", "empty.toml"], "dqs tokens new TENANT --file empty.toml"),
        (["serve", "--port", "0", "--max-workers", "2"], "add --workers or --gpu-workers"),
        (["warm", "--config", "nosuch.toml"], "The settings file nosuch.toml does not exist."),
        (["settings", "--config", "."], "Cannot read the settings file . (Is a directory)."),
        (["policy", "check", "nosuch.toml"], "nosuch.toml cannot be read: No such file or directory"),
        (["policy", "show", "nosuch"], "there is no policy 'nosuch'"),
        (["models", "list", "--models", "nosuch"], "models folder nosuch does not exist"),
        (["models", "eval", "nosuch", "--data", "empty.toml"], "There is no model 'nosuch'"),
        (["tokens", "new", "alpha"], "Give --file, or set `tokens`"),
        (["tokens", "list", "--file", "nosuch.toml"], "nosuch.toml (No such file or directory)"),
        (["top", "foo://x"], "is no address of metrics"),
    ],
)
def test_what_cannot_work_is_one_sentence(tmp_path: Path, arguments: list[str], expected: str) -> None:
    (tmp_path / "empty.toml").touch(0o600)
    # What begins to serve takes signals over, and is left to a process of its own.
    status, out, err = (dqs if arguments[0] == "serve" else dqs_here)(tmp_path, *arguments)
    assert (status, out) == (2, "")
    assert_one_sentence(err)
    assert expected in err
    assert "Errno" not in err


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["warm"], ["score", "in.jsonl", "-o", "out.jsonl"]])
def test_a_data_folder_that_cannot_be_written_is_said_before_anything_is_compiled(
    tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    for folder in ("in.jsonl", "/proc/dqs"):
        # Where no kernels are yet, the first line would be that they are compiled.
        status, _, err = dqs(tmp_path, *command, "--data-dir", folder, NUMBA_CACHE_DIR=str(tmp_path / "kernels"))
        assert status == 2
        assert_one_sentence(err)
        assert folder in err
        assert "--data-dir" in err


def test_policies_are_listed_shown_and_checked(tmp_path: Path) -> None:
    status, out, _ = dqs_here(tmp_path, "policy", "list")
    assert status == 0
    assert [line.partition("@")[0] for line in out.splitlines()] == ["default", "score-only"]
    status, out, _ = dqs_here(tmp_path, "policy", "show", "default")
    assert status == 0
    assert tomllib.loads(out)["name"] == "default"
    own = tmp_path / "mine.toml"
    own.write_text(out.replace('name = "default"', 'name = "mine"'))
    status, out, err = dqs_here(tmp_path, "policy", "check", own)
    assert status == 0, err
    assert "mine@" in out
    own.write_text(own.read_text().replace('signal = "toxicity"', 'signal = "toxicty"'))
    status, _, err = dqs_here(tmp_path, "policy", "check", own)
    assert status == 2
    assert_one_sentence(err)
    assert "rule 'toxic': unknown signal 'toxicty'; allowed are: " in err
    assert "duplicate_similarity" in err
    (tmp_path / "folder").mkdir()
    shutil.copy(own, tmp_path / "folder" / "mine.toml")
    status, out, _ = dqs_here(tmp_path, "policy", "list", "--policies", tmp_path / "folder")
    assert [line.partition("@")[0] for line in out.splitlines()] == ["default", "mine", "score-only"]


def test_models_are_listed_and_a_changed_file_is_named(tmp_path: Path) -> None:
    status, out, _ = dqs_here(tmp_path, "models", "list")
    assert status == 0
    folder = Path(out.splitlines()[0].split("\t")[-1])
    status, verified, _ = dqs_here(tmp_path, "models", "verify")
    assert status == 0
    assert len(verified.splitlines()) == len(out.splitlines())
    copy = tmp_path / "models" / folder.parent.name / folder.name
    shutil.copytree(folder, copy)
    weights = max((path for path in copy.iterdir() if path.suffix != ".md"), key=lambda path: path.stat().st_size)
    with weights.open("ab") as file:
        file.write(b"x")
    for command in (("models", "verify"), ("score", SAMPLES / "english.jsonl", "-o", "out.jsonl", "--no-dedup")):
        status, _, err = dqs_here(tmp_path, *command, "--models", tmp_path / "models")
        assert status == 2
        assert_one_sentence(err)
        assert weights.name in err
    assert not (tmp_path / "out.jsonl").exists()
    second = Path(out.splitlines()[1].split("\t")[-1])
    copy = tmp_path / "models" / second.parent.name / second.name
    shutil.copytree(second, copy)
    (copy / "CARD.md").unlink()
    other = next(path for path in copy.iterdir() if path.suffix not in (".md", ".toml"))
    other.unlink()
    status, verified, err = dqs_here(tmp_path, "models", "verify", "--models", tmp_path / "models")
    assert status == 2
    assert weights.name in err
    assert other.name in err
    assert len(verified.splitlines()) == len(out.splitlines()) - 2


def test_settings_are_toml_and_say_where_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "dqs.toml").write_text("max_batch_documents = 7\nport = 1\n")
    status, out, _ = dqs_here(tmp_path, "settings", "--redis", "redis://somewhere/0", DQS_PORT="2")
    assert status == 0
    values = tomllib.loads(out)
    assert (values["max_batch_documents"], values["port"]) == (7, 2)
    assert "max_batch_documents = 7  # dqs.toml" in out
    assert "port = 2  # environment" in out
    assert 'redis_url = "redis://somewhere/0"  # argument' in out
    assert 'host = "127.0.0.1"  # default' in out
    (tmp_path / "dqs.toml").write_text("prot = 1\n")
    status, _, err = dqs_here(tmp_path, "settings")
    assert status == 2
    assert_one_sentence(err)
    assert "prot" in err


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, out, err = dqs(tmp_path, "serve", "--port", taken.getsockname()[1])
    assert (status, out) == (2, "")
    assert_one_sentence(err)
    assert "--port" in err


def test_training_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    for kind in ("perplexity", "toxicity"):
        status, _, err = dqs_here(tmp_path, "train", kind, "--data", tmp_path / "absent", "--language", "zh")
        assert status == 2
        assert_one_sentence(err)


def test_a_terminal_gets_a_bar_and_data_stay_apart(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "dqs.cli", "score", str(SAMPLES / "chinese.jsonl"), "-o", "-", "--no-dedup"]
    env = {**environment(tmp_path), "TERM": "xterm", "COLUMNS": "100"}
    with (tmp_path / "out.jsonl").open("wb") as out:
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
    os.close(leader)
    assert process.wait(WAIT_S) == 0
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert len(lines) == 30
    assert all(line.startswith(b'{"id": "zh-') for line in lines)
    assert b"scoring" in shown
    assert b"MB/s" in shown
    assert b"100%" in shown


@pytest.mark.parametrize("policy", ["default", "score-only"])
def test_the_corpus_of_a_run_is_gone_with_it(tmp_path: Path, policy: str) -> None:
    status, _, err = dqs(tmp_path, "score", SAMPLES / "chinese.jsonl", "-o", "out.jsonl", "--policy", policy)
    assert status == 0, err
    with EmbeddedRedis(tmp_path / "data" / "redis") as server:
        client = connect(server.url)
        left = [key for key in client.scan_iter() if b"run-" in key]
        client.close()
    assert left == []
