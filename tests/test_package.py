"""What an import costs, what the package says of itself, and that every name resolves."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import grpokit as gk

HEAVY = ("torch", "triton", "pyarrow", "pandas", "polars", "transformers", "rich", "hypothesis")


def modules_after(code):
    """The modules that a fresh interpreter has loaded after some code."""
    code += "\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import grpokit",
        "import grpokit as gk; gk.process({'group_id': [1, 1], 'reward': [0.0, 1.0]}, 'grpo')",
        "import grpokit as gk, numpy as np; x = np.zeros((2, 2)); print(gk.mismatch_stats(x, x, lag=[0, 1]))",
        "import grpokit as gk; gk.recipe('dapo', max_len=9).explain(); gk.recipe_names(); gk.Clip; gk.TIS; gk.KL",
    ],
)
def test_numpy_users_load_nothing_heavy(code):
    assert modules_after(code).isdisjoint(HEAVY)


def test_importing_loads_no_numpy():
    assert modules_after("import grpokit").isdisjoint({*HEAVY, "numpy"})


def test_all_names_resolve():
    for name in gk.__all__:
        assert getattr(gk, name) is not None
    assert set(gk.__all__) <= set(dir(gk))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gk.nothing  # noqa: B018


def test_the_stub_names_what_the_package_has():
    stub = Path(gk.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    names = {
        alias.asname for node in ast.walk(ast.parse(stub)) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert names == {*gk.__all__, "__version__"}


def test_reference_stands_alone():
    """The reference and the kernels import nothing else of grpokit."""
    root = Path(gk.__file__).parent
    for path in [*(root / "reference").glob("*.py"), *(root / "kernels").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, (path, ast.unparse(node))
                assert not (node.module or "").startswith("grpokit"), (path, ast.unparse(node))
            elif isinstance(node, ast.Import):
                assert all(not alias.name.startswith("grpokit") for alias in node.names), path


def test_version_is_the_same_everywhere():
    cargo = Path(__file__).parents[1] / "Cargo.toml"
    assert re.search(rf'^version = "{re.escape(gk.__version__)}"$', cargo.read_text(encoding="utf-8"), re.MULTILINE)
