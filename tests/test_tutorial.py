"""docs/tutorial.md: every command that it shows, as it stands, and what it says of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.slow
def test_the_tutorial(tmp_path):
    assert len(COMMANDS) == 8
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    said = {}
    for line in COMMANDS:
        expected = int(re.search(r"# exit code (\d)", line)[1]) if "# exit code" in line else 0
        run = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == expected, f"{line}: {run.stdout}{run.stderr}"
        said[line.partition("#")[0].strip()] = run.stdout
    assert "nothing found" in said["grpokit doctor runs/healthy"]
    found = said["grpokit doctor runs/collapse"]
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert shown in found
    assert "lower `learning_rate`" in found
    assert "D001" in (tmp_path / "runs" / "collapse" / "alerts.jsonl").read_text()
    assert not (tmp_path / "runs" / "healthy" / "alerts.jsonl").exists()
    both = (tmp_path / "both.html").read_text()
    assert "learning_rate" in both
    assert "1 error" in both
