"""How the measurements are taken: rivals take turns in one run, results are compared before they are timed.

Each figure is the best of its calls. Ours and a rival take turns in short bursts, so that a ratio holds while the
machine's speed drifts.
"""

import gc
import json
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

import grpokit as gk

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benches" / "results"


def burst(call, times, seconds):
    """Some calls in a row, so that each rival finds its own data in the caches."""
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        result = call()
        times.append(1e3 * (time.perf_counter() - start))
        del result
        if time.perf_counter() > end:
            return


def pair(ours, rival, seconds):
    """The best and the median of ours and the rival's, in bursts that take turns, in milliseconds."""
    times = [], []
    ours(), rival()
    gc.disable()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for call, taken in zip((ours, rival), times, strict=True):
            burst(call, taken, seconds / 20)
    gc.enable()
    return [{"best": min(taken), "median": float(np.median(taken)), "calls": len(taken)} for taken in times]


def same(name, given, expected, tolerance):
    if not np.allclose(given, expected, rtol=tolerance, atol=tolerance):
        raise SystemExit(
            f"{name} disagrees by {np.abs(given - expected).max():.2e}: the bench compares different things"
        )


def machine(command, packages):
    model = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), ": ?")
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "cpu": model.split(":")[1].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {"grpokit": gk.__version__} | {name: version(name) for name in packages},
        "commit": commit.stdout.strip(),
        "command": command,
    }


def heading(title, about):
    """The first lines of a page of results."""
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items())
    return [
        f"# {title}",
        "",
        f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, {versions}; commit {about['commit']};",
        f"`{about['command']}`. Best of bursts that take turns, in one run; a ratio is the rival's time over ours.",
        "",
    ]


def save(name, report, lines):
    """Writes benches/results/NAME.json and NAME.md."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
