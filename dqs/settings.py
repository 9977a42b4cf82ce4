"""The one settings object. The environment is read here and nowhere else.

Order: arguments > environment (`DQS_*`) > `dqs.toml` > defaults. Names carry
their unit. Knows nothing of what uses the values.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
import tempfile
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from dqs.errors import ConfigError

MIB = 1 << 20

_PREFIX = "DQS_"
_INT32_MAX = (1 << 31) - 1
"""Of gRPC's options; it counts some times in milliseconds."""
_NO_SETTING = re.compile(rf"{_PREFIX}(SHARED|(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_\w+))")
"""Variables of our prefix that are none of ours: the folder of data of this repository's tests, and what Kubernetes
tells every pod of a service whose name begins like ours."""
_LINK = re.compile(r"(tcp|udp|sctp)://")
"""How Kubernetes begins the value of the one variable that has no such name, `DQS_…_PORT`."""


class Settings(BaseSettings):
    """Everything that can be set, with units; immutable once made.

    Make one with `load_settings`, which turns a bad value into a `ConfigError`.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)
    toml_file: ClassVar[Path | None] = None

    host: str = Field("127.0.0.1", min_length=1, description="Address that `dqs serve` binds.")
    port: int = Field(50051, ge=0, le=65535, description="Port that `dqs serve` binds; 0 picks a free one.")
    data_dir: Path = Field(
        Path("~/.local/share/dqs"),
        description="Folder for what DQS writes: compiled kernels, the private Redis, imported models.",
    )
    models: Path | None = Field(None, description="Folder of models that is searched before all others.")
    policies: Path | None = Field(None, description="Folder of policies that is searched before the shipped ones.")
    classifiers: Annotated[tuple[str, ...], NoDecode] | None = Field(
        None,
        description="Names of the imported classifiers that serve, with commas between; unset for all, empty for none.",
    )
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        "auto", description="What computes networks; auto takes a GPU where there is one."
    )
    onnx_threads: int = Field(1, ge=1, le=1024, description="Threads that one network computes a batch with.")
    gpu_memory_bytes: int | None = Field(
        None, ge=MIB, description="Most memory of the GPU that each network may take; unset for no limit."
    )
    redis_url: str | None = Field(
        None, description="Redis or Valkey to keep the duplicate index in; unset starts a private one."
    )
    redis_timeout_s: float = Field(
        2.0, gt=0, description="Longest wait for one answer of Redis, which is asked three times."
    )
    corpus_threshold: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Similarity from which a document is a near-duplicate, of corpora made from now on.",
    )
    corpus_normaliser: Literal["nfkc-lower/1", "nfkc-lower-simplified/1", "lower/1"] = Field(
        "nfkc-lower/1", description="What is done to texts before they are compared, in corpora made from now on."
    )
    corpus_window_s: float | None = Field(
        None, gt=0, description="How long a new corpus remembers a document; unset for ever."
    )
    corpus_window_documents: int | None = Field(
        None, ge=1, description="How many documents a new corpus remembers, the latest; unset for all."
    )
    corpus_retry_s: float = Field(
        86_400.0, ge=0, description="How long a new corpus remembers what it answered about documents it did not keep."
    )
    corpus_line_slots: int = Field(
        1 << 22, ge=0, le=1 << 28, description="Lines that a new corpus remembers at most, 4 bytes each; 0 for none."
    )
    max_message_bytes: int = Field(64 * MIB, ge=MIB, le=_INT32_MAX, description="Largest gRPC message taken.")
    max_document_bytes: int = Field(10 * MIB + 4096, ge=1024, description="Longest document scored.")
    max_batch_documents: int = Field(4096, ge=1, description="Most documents in one request message.")
    batch_bytes: int = Field(MIB, ge=1024, description="Text that is scored together.")
    batch_documents: int = Field(1024, ge=1, description="Most documents that are scored together.")
    batch_wait_ms: float = Field(2.0, ge=0, description="How long a batch waits to fill up.")
    max_pending_bytes: int = Field(256 * MIB, ge=MIB, description="Text that may wait for scoring, over all calls.")
    max_pending_documents: int = Field(
        262_144, ge=1, description="Documents that may wait for scoring, over all calls."
    )
    tenant_max_pending_bytes: int = Field(
        128 * MIB, ge=MIB, description="Text of one tenant that may wait for scoring."
    )
    tenant_max_pending_documents: int = Field(
        131_072, ge=1, description="Documents of one tenant that may wait for scoring."
    )
    max_calls: int = Field(1024, ge=1, description="Unary calls open at a time.")
    max_streams: int = Field(1024, ge=1, description="Streams open at a time.")
    tenant_max_streams: int = Field(256, ge=1, description="Streams of one tenant open at a time.")
    stream_window_documents: int = Field(4096, ge=1, description="Unanswered documents that one stream may hold.")
    stream_window_bytes: int = Field(16 * MIB, ge=1024, description="Unanswered text that one stream may hold.")
    stream_max_age_s: float = Field(
        1800.0, ge=0, description="After this time a stream is asked to reopen, so that load spreads; 0 for never."
    )
    stream_resume_s: float = Field(30.0, ge=0, description="How long a broken stream's answers wait for its client.")
    score_threads: int = Field(1, ge=1, description="Batches scored at the same time in this process.")
    workers: int = Field(0, ge=0, description="Ray actors that score; 0 scores in this process.")
    max_workers: int | None = Field(
        None, ge=1, description="Ray actors that may score when text waits; unset keeps their number at `workers`."
    )
    gpu_workers: int = Field(0, ge=0, description="Ray actors on GPUs that score besides.")
    max_gpu_workers: int | None = Field(
        None, ge=1, description="Ray actors on GPUs when text waits; unset keeps their number at `gpu_workers`."
    )
    worker_cpus: float = Field(1.0, ge=0, description="Processors that each Ray actor asks Ray for.")
    worker_gpus: float = Field(1.0, gt=0, description="GPUs that each Ray actor on a GPU asks Ray for.")
    worker_batches: int = Field(2, ge=1, description="Batches that one Ray actor holds: one in work, the others next.")
    worker_start_timeout_s: float = Field(120.0, gt=0, description="Longest start of a Ray actor, models included.")
    worker_batch_timeout_s: float = Field(
        60.0, gt=0, description="Longest scoring of one batch by a Ray actor; then the actor is started again."
    )
    worker_grow_bytes: int = Field(
        4 * MIB, ge=1, description="Waiting text per Ray actor from which on there are too few."
    )
    worker_grow_s: float = Field(2.0, ge=0, description="How long there must be too few before one more is started.")
    worker_shrink_s: float = Field(60.0, ge=0, description="How long one must be idle before it is stopped.")
    ray_address: str | None = Field(None, description="HOST:PORT of a running Ray cluster; unset starts Ray here.")
    ray_node_ip: str | None = Field(
        None, description="Address of the Ray node to join through, where this machine runs several."
    )
    ray_head_timeout_s: float = Field(
        40.0,
        ge=6,  # it is asked every second and may take three for an answer
        lt=60,  # after which Ray ends the process by itself
        description="How long the head of the Ray cluster may be silent before the service gives up.",
    )
    tls_cert: Path | None = Field(None, description="Certificate chain that `dqs serve` shows, PEM.")
    tls_key: Path | None = Field(None, description="Private key of that certificate, PEM.")
    tls_client_ca: Path | None = Field(None, description="Authorities whose client certificates are asked for, PEM.")
    tokens: Path | None = Field(None, description="File of tenants and the hashes of their tokens; see `dqs tokens`.")
    insecure: bool = Field(False, description="Serve a public address without TLS and tokens all the same.")
    reflection: bool = Field(True, description="Answer gRPC reflection.")
    health_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port for gRPC health checks without TLS and tokens; unset for none of its own.",
    )
    metrics_host: str = Field("127.0.0.1", min_length=1, description="Address that the metrics are served on.")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port for Prometheus metrics over HTTP; unset serves none."
    )
    log_format: Literal["text", "json"] = Field("text", description="Form of log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level of log lines.")
    trace_endpoint: str | None = Field(None, description="URL of an OTLP collector for traces; unset traces nothing.")
    keepalive_s: float = Field(
        60.0,
        ge=1,
        le=_INT32_MAX // 1000,
        description="A client that was silent this long is asked whether it is there.",
    )
    keepalive_timeout_s: float = Field(
        20.0, ge=1, le=_INT32_MAX // 1000, description="How long it has to answer before it is cut off."
    )
    drain_s: float = Field(20.0, ge=0, description="Time that open calls have to finish after a stop signal.")
    server_token_file: Path | None = Field(None, description="File with the token that `dqs score --server` sends.")
    server_ca: Path | None = Field(
        None, description="Authorities that the server's certificate is checked against, PEM."
    )
    server_cert: Path | None = Field(None, description="Certificate that `dqs score --server` shows, PEM.")
    server_key: Path | None = Field(None, description="Private key of that certificate, PEM.")

    @field_validator("classifiers", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        if value is not None and not (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)):
            raise ValueError('give names with commas between, or a list of names such as ["a", "b"]')
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the TOML file."""
        sources = (init_settings, env_settings)
        if cls.toml_file is None:
            return sources
        return (*sources, TomlConfigSettingsSource(settings_cls, cls.toml_file))


def load_settings(config: Path | None = None, **arguments: Any) -> Settings:
    """Reads the settings.

    Args:
        config: a TOML file; `dqs.toml` in the working directory if that exists and none is named.
        **arguments: values that win over everything; None means not given.

    Raises:
        ConfigError: a file cannot be read, or a name or value is not allowed.
    """
    if config is None and Path("dqs.toml").is_file():
        config = Path("dqs.toml")
    if config is not None:
        _check_file(config)
    _check_environment()
    # The file belongs to this call alone, so it lives on a class of its own.
    reader = type("Settings", (Settings,), {"toml_file": config, "__module__": __name__})
    try:
        values = reader(**{name: value for name, value in arguments.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        origin = settings_origins(config, **arguments).get(name, "argument")
        where = {"argument": "", "environment": f" ({_PREFIX}{name.upper()})"}.get(origin, f" (in {origin})")
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"Setting {name}{where}: {said}. `dqs settings` lists what there is.") from error
    settings = Settings.model_construct(**values.model_dump())
    return settings.model_copy(update={"data_dir": settings.data_dir.expanduser().absolute()})


def _check_file(config: Path) -> None:
    """Refuses a settings file that cannot be read or names what is no setting."""
    try:
        names = tomllib.loads(config.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"The settings file {config} does not exist.") from error
    except OSError as error:
        raise ConfigError(f"Cannot read the settings file {config} ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"Cannot read the settings file {config}: it is not UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"Cannot read the settings file {config}: {error}.") from error
    for name in names:
        if name not in Settings.model_fields:
            raise ConfigError(f"{config} has {name}, which is no setting{_nearest(name, list(Settings.model_fields))}")


def _check_environment() -> None:
    """Refuses a variable that looks like a setting and is none, which would else do nothing."""
    known = [f"{_PREFIX}{name.upper()}" for name in Settings.model_fields]
    for variable, value in os.environ.items():
        name = variable.upper()
        if not name.startswith(_PREFIX) or name in known or _NO_SETTING.fullmatch(name):
            continue
        if not (name.endswith("_PORT") and _LINK.match(value)):
            raise ConfigError(f"The environment has {variable}, which is no setting{_nearest(name, known)}")


def _nearest(name: str, known: list[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]}?" if found else "; `dqs settings` lists what there is."


def settings_origins(config: Path | None = None, **arguments: Any) -> dict[str, str]:
    """Where each value of `load_settings(config, **arguments)` comes from.

    Returns:
        Setting name -> "argument", "environment", the file's name, or "default".
    """
    if config is None and Path("dqs.toml").is_file():
        config = Path("dqs.toml")
    in_file = tomllib.loads(config.read_text("utf-8")) if config is not None else {}
    environment = {name.upper() for name in os.environ}
    origins = {}
    for name in Settings.model_fields:
        if arguments.get(name) is not None:
            origins[name] = "argument"
        elif f"{_PREFIX}{name.upper()}" in environment:
            origins[name] = "environment"
        elif name in in_file:
            origins[name] = str(config)
        else:
            origins[name] = "default"
    return origins


def use_kernel_cache(data_dir: Path) -> None:
    """Tells numba to keep compiled kernels under `data_dir`; must run before numba is imported.

    A value that the caller's environment already holds wins.
    """
    os.environ.setdefault("NUMBA_CACHE_DIR", str(data_dir / "kernels"))


def check_folders(settings: Settings) -> None:
    """Makes the folders that compiled kernels and the private Redis are written to; after `use_kernel_cache`.

    Raises:
        ConfigError: one cannot be written.
    """
    folders = [Path(os.environ["NUMBA_CACHE_DIR"])]
    if settings.redis_url is None:
        folders.append(settings.data_dir)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except FileExistsError as error:
            raise ConfigError(f"{folder} is a file: give --data-dir a folder.") from error
        except OSError as error:
            raise ConfigError(f"Cannot write in {folder} ({error.strerror}): give another --data-dir.") from error


def quiet_grpc() -> None:
    """Keeps gRPC's core from writing lines of its own and from joining in when we fork; before grpc is imported.

    Whoever fails a handshake would make it write one, in a form that is not that of our log.
    What it does at a fork is for processes that go on with gRPC; ours start other programs.
    Values that the caller's environment already holds win.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def kernels_are_compiled() -> bool:
    """Whether the folder of `use_kernel_cache` holds kernels; compiling them takes up to a minute."""
    return any(Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.nbi"))


def bound_tokenizers(threads: int) -> None:
    """Tells tokenizers how many threads one call may take; before its first call.

    By itself it would take every core in each of many calls at a time. Values that the caller's environment holds win.

    Args:
        threads: threads of one call.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))


def prepare_ray(*, local: bool) -> None:
    """Tells Ray what it must know before it is imported; values that the caller's environment holds win.

    Args:
        local: whether Ray is to be started here, for this process alone; then it gets a token that
            nobody else knows and that is written nowhere.
    """
    if local:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The actors without GPUs keep what the environment says of them; else Ray warns of its next version.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


__all__ = [
    "MIB",
    "Settings",
    "bound_tokenizers",
    "check_folders",
    "kernels_are_compiled",
    "load_settings",
    "prepare_ray",
    "quiet_grpc",
    "settings_origins",
    "use_kernel_cache",
]
