"""What the default command promises, on real seeds: slow."""

import json
import os
import subprocess
import sys
from time import perf_counter

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_default_run_lifts_held_out_pass_at_1(seed, tmp_path, capsys):
    command = [sys.executable, "-m", "grpokit", "train", "--json", "--runs", str(tmp_path), "--set", f"seed={seed}"]
    started = perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    seconds = perf_counter() - started
    summary = json.loads(run.stdout)
    before, after = summary["before"], summary["after"]
    with capsys.disabled():
        print(
            f"\nseed {seed}: {before['pass_1']:.3f} ± {before['stderr']:.3f} -> {after['pass_1']:.3f} ± "
            f"{after['stderr']:.3f}, {seconds:.0f} s, of which warm start {summary['warm_start_seconds']:.0f} s"
        )
    assert summary["lift"] >= 0.25
