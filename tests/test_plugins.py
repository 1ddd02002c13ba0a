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


TRAIN = """
import sys
import torch
import grpokit as gk
from grpokit.testing import laws
from grpokit.trainer import TrainConfig, Trainer

recipe = gk.recipe("median_soft", width=0.2)
assert gk.Recipe.from_dict(recipe.to_dict()) == recipe
for line in recipe.explain().splitlines():
    if "SoftClip" in line or "g = " in line or "counts as" in line or "width =" in line:
        print(" ".join(line.split()))
laws.check(recipe.objective)
batch = gk.TokenBatch(torch.zeros(1, 2, dtype=torch.int64), advantages=[2.0], old_logps=torch.zeros(1, 2))
logps = torch.zeros(1, 2, requires_grad=True)
gk.loss.from_logps(logps, batch, recipe).loss.backward()
print(logps.grad.tolist())
settings = ["recipe=median_soft", "steps=2", "prompts_per_step=4", "num_generations=4", "warm_start.steps=40",
            "tiny.hidden_size=16", "tiny.layers=1", "evaluation.prompts=4", "evaluation.samples=2"]
summary = Trainer(TrainConfig().with_settings(settings), directory=sys.argv[1]).train()
print(summary.status, summary.recipe, summary.steps)
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


def test_an_installed_objective_explains_itself_and_runs_everywhere(tmp_path):
    """In `explain`, in a loss, under the laws and in the trainer: nothing of ours has to know it."""
    install(PACKAGE, tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "objective SoftClip −A (1 + width atan((r − 1) / width))",
        "g = −A r / (1 + ((r − 1) / width)²)",
        "width = 0.2 given",
        "the ratio counts as 1.31 at most",
        "[[-1.0, -1.0]]",
        "finished median_soft 2",
    ]
