"""The Python snippets of README and docs run, in order, and print what they say."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import grpokit as gk
from grpokit.columns import WORDS
from grpokit.lint import CODES
from grpokit.stages import REGISTRY, load

load()
ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md")))]


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", text, re.DOTALL)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """By page: where its snippets run, what they have defined, and how many have run."""
    return {page: (tmp_path_factory.mktemp("page"), {}, []) for page in PAGES}


@pytest.mark.parametrize(("page", "number"), [(page, n) for page in PAGES for n in range(len(blocks(page)))])
def test_snippet(page, number, begun, monkeypatch):
    """A snippet may use what the earlier ones defined; a text block right after it is what it prints."""
    place, namespace, done = begun[page]
    monkeypatch.chdir(place)
    if len(done) > number:
        namespace.clear()
        done.clear()
    for code, printed in blocks(page)[len(done) : number + 1]:
        done.append(code)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, page, "exec"), namespace)
        if printed:
            assert "".join(out.getvalue().split()) == "".join(printed.split())


def test_contributing_runs():
    """In an interpreter of its own, since what it registers stays registered."""
    (code,) = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
    code += """
rows = {"group_id": [1, 1, 1], "reward": [0.0, 1.0, 3.0]}
assert gk.process(rows, "mine").advantages.tolist() == [-1.0, 0.0, 2.0]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_commands_are_there():
    assert len(blocks("README.md")) >= 3
    for command in ("make train", "make test", "make test-slow", "make bench"):
        assert command in TEXT


def test_the_page_of_reasons_and_findings_is_complete():
    page = (ROOT / "docs" / "rollouts.md").read_text(encoding="utf-8")
    listed = {name: 1 << int(bit) for bit, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    assert listed == {reason.name: reason.value for reason in gk.Reason}
    stages = set(re.findall(r"`(\w+)\(", page))
    assert {name for name, stage in REGISTRY["select"].items() if stage.__module__.startswith("grpokit.")} <= stages
    findings = page[page.index("## Lint") :]
    assert tuple(re.findall(r"^\| `(\w+)` \|", findings, re.MULTILINE)) == CODES
    for column in WORDS:
        assert f"`{column}`" in page


def test_the_tree_names_every_module():
    """One line a file, and no file that is gone."""
    tree = re.search(r"```text\n(Cargo\.toml.*?)```", TEXT, re.DOTALL).group(1)
    package = ROOT / "python" / "grpokit"
    for path in package.glob("*.py"):
        if path.name not in ("__init__.py", "__main__.py"):
            assert re.search(rf"\b{path.name}\b", tree), f"{path.name} is not in README's tree"
    for name in re.findall(r"[\w./]+\.(?:py|rs|toml|sh)\b", tree):
        assert list(ROOT.glob(f"**/{name.split('/')[-1]}")), f"README's tree names {name}, which is not there"
