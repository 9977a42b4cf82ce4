"""The one settings object. The environment is read here and nowhere else.

Order: arguments > environment (`DQS_*`) > `dqs.toml` > defaults. Names carry
their unit. Knows nothing of what uses the values.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from dqs.errors import ConfigError

MIB = 1 << 20


class Settings(BaseSettings):
    """Everything that can be set, with units; immutable once made.

    Make one with `load_settings`, which turns a bad value into a `ConfigError`.
    """

    model_config = SettingsConfigDict(env_prefix="DQS_", frozen=True, extra="forbid")
    toml_file: ClassVar[Path | None] = None

    host: str = Field("127.0.0.1", description="Address that `dqs serve` binds.")
    port: int = Field(50051, ge=0, le=65535, description="Port that `dqs serve` binds; 0 picks a free one.")
    data_dir: Path = Field(
        Path("~/.local/share/dqs"),
        description="Folder for what DQS writes: compiled kernels, the private Redis, imported models.",
    )
    models: Path | None = Field(None, description="Folder of models that is searched before all others.")
    policies: Path | None = Field(None, description="Folder of policies that is searched before the shipped ones.")
    redis_url: str | None = Field(
        None, description="Redis or Valkey to keep the duplicate index in; unset starts a private one."
    )
    redis_timeout_s: float = Field(5.0, gt=0, description="Longest wait for one answer of Redis.")
    max_message_bytes: int = Field(64 * MIB, ge=MIB, description="Largest gRPC message taken.")
    max_document_bytes: int = Field(10 * MIB + 4096, ge=1024, description="Longest document scored.")
    max_batch_documents: int = Field(4096, ge=1, description="Most documents in one request message.")
    batch_bytes: int = Field(MIB, ge=1024, description="Text that is scored together.")
    batch_documents: int = Field(1024, ge=1, description="Most documents that are scored together.")
    batch_wait_ms: float = Field(2.0, ge=0, description="How long a batch waits to fill up.")
    max_pending_bytes: int = Field(256 * MIB, ge=MIB, description="Text that may wait for scoring, over all calls.")
    stream_window_documents: int = Field(4096, ge=1, description="Unanswered documents that one stream may hold.")
    stream_window_bytes: int = Field(16 * MIB, ge=1024, description="Unanswered text that one stream may hold.")
    score_threads: int = Field(1, ge=1, description="Batches scored at the same time.")
    drain_s: float = Field(20.0, ge=0, description="Time that open calls have to finish after a stop signal.")

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
        try:
            tomllib.loads(config.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"Cannot read the settings file {config}: {error}") from error
    # The file belongs to this call alone, so it lives on a class of its own.
    reader = type("Settings", (Settings,), {"toml_file": config, "__module__": __name__})
    try:
        values = reader(**{name: value for name, value in arguments.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"Setting {name}: {first['msg']}. `dqs settings` lists what there is.") from error
    settings = Settings.model_construct(**values.model_dump())
    return settings.model_copy(update={"data_dir": settings.data_dir.expanduser().absolute()})


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
        elif f"DQS_{name.upper()}" in environment:
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


def kernels_are_compiled() -> bool:
    """Whether the folder of `use_kernel_cache` holds kernels; compiling them takes up to a minute."""
    return any(Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.nbi"))


__all__ = ["MIB", "Settings", "kernels_are_compiled", "load_settings", "settings_origins", "use_kernel_cache"]
