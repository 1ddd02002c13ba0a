"""Writes the table of rules and its proof into docs/doctor.md: `PYTHONPATH=. python tools/doctor.py [DIR]`.

In: the rules and the cases of tests/doctor, each of which is made and looked at, in three minutes. DIR holds default runs of the seeds 0 to
9 as `seed0` to `seed9`; what is not there is trained there, 45 seconds each.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from tests.doctor.cases import FAULTS, HEALTHY, RECIPES, default_run, perturbed
from tests.doctor.trained import warm_start

from grpokit.doctor import RULES, diagnose
from grpokit.record import Record, read_record

ROOT = Path(__file__).parent.parent
SEEDS = range(10)
BEGIN, END = "<!-- Written by tools/doctor.py. -->\n", "<!-- End of what tools/doctor.py writes. -->\n"


def wrong(record: Record) -> set[str]:
    """The codes above `info`."""
    return {finding.code for finding in diagnose(record) if finding.severity != "info"}


def proof(place: Path, runs: Path) -> tuple[Counter[str], Counter[str], int]:
    """Of each rule how many faults it found, and its false alarms; how many healthy records there were."""
    warnings.simplefilter("ignore")
    warm, found, alarms, healthy = warm_start(place / "warm"), Counter(), Counter(), 0
    for number, case in enumerate(FAULTS):
        found[case.code] += case.code in wrong(case.make(place / f"fault{number}", warm))
    for number, case in enumerate((*RECIPES, *HEALTHY)):
        alarms.update(wrong(case.make(place / f"healthy{number}", warm)))
        healthy += 1
    for seed in SEEDS:
        run = runs / f"seed{seed}"
        record = read_record(run) if run.exists() else default_run(run, seed)
        for other in (record, *(other for _, other in perturbed(record))):
            alarms.update(wrong(other))
            healthy += 1
    return found, alarms, healthy


def table(found: Counter[str], alarms: Counter[str], healthy: int) -> str:
    """One row a rule."""
    lines = ["| rule | severity | faults found | false alarms | bounds, and why |", "|---|---|---:|---:|---|"]
    for code, rule in RULES.items():
        faults = sum(case.code == code for case in FAULTS)
        bounds = "; ".join(f"{name} {bound:g}: {reason}" for name, (bound, reason) in rule.bounds.items())
        cells = (f"**{code}** {rule.title}", rule.severity, f"{found[code]} / {faults}", f"{alarms[code]} / {healthy}")
        lines.append("| " + " | ".join((*cells, bounds.replace("|", "\\|"))) + " |")
    return "\n".join(lines) + "\n"


def write(text: str) -> None:
    """Puts the table where it belongs."""
    page = ROOT / "docs" / "doctor.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(before + BEGIN + "\n" + text + "\n" + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        write(table(*proof(Path(made), Path(sys.argv[1]) if len(sys.argv) > 1 else Path(made))))
