"""`dqs settings` and `dqs warm`."""

from __future__ import annotations

import json
from pathlib import Path

from dqs.commands.options import Config, DataDir, Models, Policies, Redis, make_settings, prepare_folders


def settings(
    config: Config = None,
    data_dir: DataDir = None,
    models: Models = None,
    policies: Policies = None,
    redis: Redis = None,
) -> None:
    """Print every setting as TOML, with its meaning and where its value comes from."""
    from dqs.settings import Settings, load_settings, settings_origins

    arguments = {"data_dir": data_dir, "models": models, "policies": policies, "redis_url": redis}
    values = load_settings(config, **arguments)
    origins = settings_origins(config, **arguments)
    for name, info in Settings.model_fields.items():
        print(f"# {info.description}")
        value = getattr(values, name)
        if value is None:
            print(f"# {name} is not set")
        else:
            print(f"{name} = {_toml(value)}  # {origins[name]}")


def _toml(value: object) -> str:
    # JSON's numbers, strings and booleans are TOML's as well.
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def warm(config: Config = None, data_dir: DataDir = None, models: Models = None) -> None:
    """Compile all kernels, so that the next start is quick."""
    made = make_settings(config, data_dir=data_dir, models=models)
    prepare_folders(made)
    from dqs import app

    with app.build_pipeline(made, dedup=True) as pipeline:
        app.warm(pipeline)
    print(f"Kernels are compiled in {made.data_dir}.")
