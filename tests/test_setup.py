"""tools/setup.sh: what a newcomer without cargo, with an old Python or a full disk is told."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path):
    """A fresh place with the script and the lock file, and a PATH that holds only what is linked into it."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "setup.sh", tmp_path / "tools")
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "dirname", "df", "awk", "mktemp", "cat", "rm", "touch", "env"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def run(checkout, step="dependencies", **environment):
    environment = {"PATH": str(checkout / "bin"), "HOME": os.environ["HOME"]} | environment
    return subprocess.run(
        ["sh", checkout / "tools" / "setup.sh", step], env=environment, capture_output=True, text=True, cwd=checkout
    )


def refused(done, *words):
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("grpokit: ")
    for word in words:
        assert word in done.stderr


def test_no_python(checkout):
    refused(run(checkout), "there is no python3", "make PYTHON=")


def test_an_old_python(checkout):
    old = [path for path in Path.home().glob(".pyenv/versions/3.[6-9]*/bin/python") if path.exists()]
    if not old:
        pytest.skip("there is no Python older than 3.11 here")
    refused(run(checkout, PYTHON=str(old[0])), "3.11 or newer is needed", "make PYTHON=")


def test_no_cargo(checkout):
    refused(run(checkout, PYTHON=sys.executable), "there is no cargo", "rustup")
    refused(run(checkout, "project"), "there is no cargo", "rustup")


def test_a_full_disk(checkout):
    (checkout / "bin" / "cargo").symlink_to(shutil.which("cargo"))
    refused(run(checkout, PYTHON=sys.executable, DISK_GIB="100000000"), "MiB of disk are free", "100000000 GiB")
    assert not (checkout / ".venv").exists()


def test_wrong_use(checkout):
    refused(run(checkout, "everything"), "usage: setup.sh dependencies | project")


def test_the_lock_holds_hashes_and_no_address():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    packages = [line for line in text.splitlines() if line and line[0].isalnum()]
    assert packages
    assert all(line.rstrip().endswith("\\") for line in packages), "a package without a hash"
