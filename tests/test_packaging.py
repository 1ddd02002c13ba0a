"""The artefacts that users install: sdist, the wheel that it gives, and the pipeline door with NumPy alone."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOOR = """
import sys, grpokit as gk
from pathlib import Path
assert Path(gk.__file__).is_relative_to(sys.prefix), gk.__file__
out = gk.process({"group_id": ["a", "a", "b"], "reward": [1.0, 0.0, 1.0], "response_len": [5, 7, 9]}, "dapo", max_len=9)
assert out.keep.tolist() == [True, True, False], out.keep
assert not {"torch", "pyarrow", "pandas", "polars"} & set(sys.modules)
print(out)
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel that is built from the sdist, and not from the checkout."""
    out = tmp_path_factory.mktemp("dist")
    maturin = [sys.executable, "-m", "maturin"]
    subprocess.run([*maturin, "sdist", "-o", out], cwd=ROOT, check=True)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    unpacked = next(path for path in out.iterdir() if path.is_dir())
    # The compiled dependencies of the checkout may be used again; the sources are the sdist's.
    environment = os.environ | {"CARGO_TARGET_DIR": str(ROOT / "target")}
    subprocess.run([*maturin, "build", "--release", "--locked", "-o", out], cwd=unpacked, env=environment, check=True)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_the_wheel_holds_what_it_must(wheel):
    assert "-cp311-abi3-" in wheel.name
    assert wheel.stat().st_size <= 3_000_000
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("py.typed", "__init__.pyi", "_native.pyi", "kernels/__init__.py", "trainer/loop.py", "cli.py"):
        assert f"grpokit/{name}" in names
    for name in ("plugin.py", "session.py", "strategies.py"):
        assert f"grpokit_pytest/{name}" in names
    entry_points = zipfile.ZipFile(wheel).read(next(x for x in names if x.endswith("entry_points.txt"))).decode()
    for group in ("pytest11", "hypothesis", "verl.plugins"):
        assert f"[{group}]" in entry_points
    assert sum(name.endswith(".so") for name in names) == 1
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "kernels", "rust"))]


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_an_empty_environment_with_numpy_alone(wheel, python, tmp_path):
    interpreter = find(python)
    if interpreter is None:
        pytest.skip(f"there is no Python {python} here")
    uv = Path(sys.prefix) / "bin" / "uv"
    subprocess.run([uv, "venv", "--quiet", "--python", interpreter, tmp_path / "env"], check=True)
    inside = tmp_path / "env" / "bin" / "python"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", inside, wheel], check=True)
    listed = subprocess.run([uv, "pip", "list", "--python", inside], capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines()[2:]} == {"grpokit", "numpy"}
    environment = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [inside, "-c", DOOR], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "no_signal               1   33.33%" in done.stdout
    # The command line says what is missing, in one line.
    trained = subprocess.run(
        [tmp_path / "env" / "bin" / "grpokit", "train"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert trained.returncode == 2
    assert trained.stderr.count("\n") == 1
    assert "pip install 'grpokit[train]'" in trained.stderr
    # With hypothesis, and no torch, NumPy functions are held against the reference.
    (tmp_path / "mine.py").write_text("def centred(rewards, group_ids):\n    return rewards - rewards.mean()\n")
    conform = [
        tmp_path / "env" / "bin" / "grpokit",
        "conform",
        "mine:centred",
        "--recipe",
        "dr_grpo",
        "--set",
        "max_len=9",
    ]
    asked = subprocess.run(conform, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (asked.returncode, "pip install 'grpokit[conform]'" in asked.stderr) == (2, True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", inside, "hypothesis"], check=True)
    asked = subprocess.run([*conform, "--law", "value"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (asked.returncode, "looks like batch_statistics" in asked.stdout) == (1, True), asked.stderr


def find(python):
    """An interpreter of that version that runs: a pyenv shim may exist without its version being chosen."""
    candidates = [shutil.which(f"python{python}"), *sorted(Path.home().glob(f".pyenv/versions/{python}*/bin/python"))]
    for candidate in filter(None, candidates):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == python:
            return candidate
    return None
