"""A package of somebody else's, built and installed, brings an estimator, a selection and a recipe."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent / "package"
USE = """
import grpokit as gk
rows = {
    "group_id": ["a", "a", "a", "a", "b", "b"],
    "reward": [0.0, 1.0, 3.0, 9.0, 1.0, 1.0],
    "judge": [0.9, 0.5, 0.8, 0.1, 1.0, 1.0],
}
out = gk.process(rows, "median", at_least=0.5)
print(out.counts, out.advantages.tolist())
print(out.explain(3))
recipe = gk.recipe("median")
assert gk.Recipe.from_dict(recipe.to_dict()) == recipe
print([line.split()[1] for line in recipe.explain().splitlines() if line.startswith(("  select", "  advantage"))])
try:
    gk.process({name: column for name, column in rows.items() if name != "judge"}, "median")
except gk.InputError as problem:
    print(problem.kind, problem.context["reader"], problem.context["column"])
"""


def install(package, target):
    uv = Path(sys.prefix) / "bin" / "uv"
    where = ["--python", sys.executable, "--target", str(target), "--no-deps", "--offline", "--quiet"]
    subprocess.run([str(uv), "pip", "install", *where, str(package)], check=True)


def test_a_broken_package_takes_nothing_away(tmp_path):
    package = tmp_path / "broken"
    shutil.copytree(PACKAGE, package)
    (package / "median_baseline.py").write_text("import no_such_module\n", encoding="utf-8")
    install(package, tmp_path / "site")
    code = "import grpokit as gk; print(gk.recipe('grpo').name)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "grpo\n"
    # The kind "broken_package", as a warning.
    for word in ("median-baseline offers stages", "'median_baseline'", "no_such_module"):
        assert word in done.stderr


def test_an_installed_package_brings_stages(tmp_path):
    install(PACKAGE, tmp_path)
    assert (tmp_path / "median_baseline-1.0.dist-info" / "entry_points.txt").exists()
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", USE], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines() == [
        "{'in': 6, 'kept': 3, 'no_signal': 2, 'other:Judged': 1} [-1.0, 0.0, 2.0, 0.0, 0.0, 0.0]",
        "Row 3 (group 'a', outcome 9) is dropped, other:Judged: the stage Judged says so.",
        "['Judged', 'HasSignal', 'MedianBaseline']",
        "missing_column Judged judge",
    ]
