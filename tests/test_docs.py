"""The pages that tools/ writes from the register are fresh: who changes a recipe or a correction runs `make docs`."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import grpokit as gk
from grpokit.stages import of_papers

ROOT = Path(__file__).parent.parent


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool():
    return loaded("algorithms")


def test_the_page_on_off_policy_data_is_fresh(tmp_path):
    loaded("off_policy").write(tmp_path)
    for name in ("off_policy.md", "staleness.svg"):
        assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text(), "run `make docs`"


def test_the_page_on_off_policy_data_has_every_correction():
    """Formula, when it is made, every number's source; and the metrics that it names are there."""
    page = loaded("off_policy")
    text = (ROOT / "docs" / "off_policy.md").read_text()
    for name, cls in of_papers("correct").items():
        stage = cls(**cls.example)
        assert f"| {name} | {stage.equation.replace('|', chr(92) + '|')} | {page.made(stage)} |" in text
        assert set(stage.sources) == {f.name for f in dataclasses.fields(stage)}, name
    old = np.log(np.array([[0.5, 0.4]], np.float32))
    known = gk.mismatch_stats(old, old).metrics()
    named = re.findall(r"`(mismatch/(?:kl|ess|chi2)\w+)`", text)
    assert len(named) >= 5
    assert set(named) - {"mismatch/ess_current", "mismatch/ess_last"} <= set(known)


def test_the_page_and_its_plots_are_fresh(tool, tmp_path):
    tool.write(tmp_path)
    assert (tmp_path / "algorithms.md").read_text() == (ROOT / "docs" / "algorithms.md").read_text(), "run `make docs`"
    plots = sorted(path.name for path in (tmp_path / "gates").iterdir())
    assert plots == sorted(path.name for path in (ROOT / "docs" / "gates").iterdir())
    for name in plots:
        same = (tmp_path / "gates" / name).read_text() == (ROOT / "docs" / "gates" / name).read_text()
        assert same, f"{name} differs: run `make docs`"


def test_the_page_has_every_recipe_and_leads_where_it_says(tool):
    text = (ROOT / "docs" / "algorithms.md").read_text()
    for name in of_papers("recipe"):
        recipe = gk.recipe(name, **tool.EXAMPLES[name])
        section = text[text.index(f"### {name}\n") :].split("\n### ")[0]
        for part in (recipe.objective.gradient, recipe.leaves_out, *(what for _, what in recipe.elsewhere)):
            assert part in section
        assert text.count(f"](#{name})") >= 2  # the tree and the table
    headings = set(re.findall(r"^#+ (\S+)$", text, re.MULTILINE))
    for anchor in re.findall(r"\]\(#([\w-]+)\)", text):
        assert anchor in headings
    for path in re.findall(r"\]\((gates/[^)]+)\)", text):
        assert (ROOT / "docs" / path).is_file()


def test_the_identities_are_sentences(tool):
    lines = tool.identities()
    assert len(lines) >= 30
    assert all(line.endswith(".") for line in lines)


def test_the_page_on_conformance_has_every_law_and_every_mistake():
    from grpokit.testing.engine import LAWS
    from grpokit.testing.mistakes import SAYS
    from tests.conformance.mutants import MUTANTS

    text = (ROOT / "docs" / "conformance.md").read_text()
    for kind, laws in LAWS.items():
        for law in laws:
            assert re.search(
                rf"^\| `{law.name}` \| [^|]*{kind}[^|]* \| {re.escape(law.says)} \|$", text, re.MULTILINE
            ), law
    for name, says in SAYS.items():
        assert re.search(rf"^\| `{name}` \| [^|]* \| {re.escape(says)} \|$", text, re.MULTILINE | re.IGNORECASE), name
    assert f"{len(MUTANTS)} faults planted" in text
    assert f"{sum(bool(mutant[0]) for mutant in MUTANTS)} are named" in text
