"""benches/gpu with Liger, in Triton's interpreter: the script calls it as it must be called."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_liger_is_right_where_it_is_timed(tmp_path):
    command = [sys.executable, "-W", "ignore", ROOT / "benches" / "gpu" / "run.py"]
    command += ["--checkout", "--out", tmp_path, "--device", "cpu", "--small"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    status = {check["provider"]: check["status"] for check in report["checks"]}
    liger = [name for name in status if name.startswith("Liger")]
    assert {status[name] for name in liger} == {"right"}
    assert {*liger} == {
        "Liger",
        "Liger, in place",
        "Liger, sequence level, in place",
        "Liger chunked, TF32 off",
        "Liger chunked, TF32 on",
    }
    timed = {row["provider"] for case in report["cases"] for row in case["rows"] if row["status"] == "measured"}
    assert timed >= {*liger}
