"""The folder that Ray writes into."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dqs.executors.ray_start import RayFolder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_closed_to_others_and_gone_at_the_end() -> None:
    folder = RayFolder()
    (folder.path / "r").mkdir(mode=0o777)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.remove()
    assert not folder.path.exists()


def test_what_a_killed_process_left_is_removed_by_the_next(temporary: Path) -> None:
    code = "import os, sys; from dqs.executors.ray_start import RayFolder; f = RayFolder(); (f.path / 'r').mkdir();"
    code += "print(f.path, flush=True); os.kill(os.getpid(), 9)"
    killed = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(temporary)}, stdout=subprocess.PIPE, text=True
    )
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    folder = RayFolder()
    assert not left.exists()
    folder.remove()


def test_a_folder_in_use_stays_and_so_does_what_is_not_ours(temporary: Path) -> None:
    first = RayFolder()
    (first.path / "r").mkdir()
    (temporary / "dqs-ray-file").touch()
    second = RayFolder()
    assert first.path.is_dir()
    assert second.path.is_dir()
    assert (temporary / "dqs-ray-file").exists()
    first.remove()
    second.remove()
