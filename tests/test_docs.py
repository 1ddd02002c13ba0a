"""docs/algorithms.md is what tools/algorithms.py writes from the register: who changes a recipe runs `make docs`."""

import importlib.util
import re
from pathlib import Path

import pytest

import grpokit as gk

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("algorithms", ROOT / "tools" / "algorithms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    for name in tool.EXAMPLES:
        if tool.REGISTRY["recipe"][name].__module__.startswith("grpokit."):
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


def test_the_decision_table_names_recipes(tool):
    words = {word for _, which, _ in tool.DECISIONS for word in re.findall(r"\b[a-z][a-z_]*\b", which)}
    stages = {name for _, which, _ in tool.DECISIONS for name in re.findall(r"[A-Z]\w+", which)}
    assert words - {"or", "any", "recipe", "with"} <= set(tool.EXAMPLES)
    assert all(hasattr(gk, name) for name in stages)


def test_the_identities_are_sentences(tool):
    lines = tool.identities()
    assert len(lines) >= 30
    assert all(line.endswith(".") for line in lines)
