"""Writes the rules and their proof into docs/doctor.md: `make docs`, or `python tools/doctor.py [PATH]`.

In: the register of rules, and the cases of tests/doctor, each of which a test runs. Out: the page, between its marks.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.doctor.cases import FAULTS, HEALTHY, RECIPES  # noqa: E402

from grpokit.doctor import RULES  # noqa: E402

BEGIN, END = "<!-- Written by tools/doctor.py (make docs); a test keeps it fresh. -->", "<!-- Up to here. -->"


def rules() -> str:
    """The tables of rules and of the faults that each must find."""
    lines = [
        "| code | what | severity | while it runs | reads | bounds, each with its reason |",
        "|---|---|---|---|---|---|",
    ]
    for code, rule in RULES.items():
        bounds = "<br>".join(f"{name} {bound:g}: {reason}" for name, (bound, reason) in rule.bounds.items())
        online = "yes" if rule.online else ""
        lines.append(f"| {code} {rule.name} | {rule.title} | {rule.severity} | {online} | {rule.reads} | {bounds} |")
    lines += ["", "| code | faults that it must find: trained | made to their definition |", "|---|---|---|"]
    for code in RULES:
        made = [[case.name for case in FAULTS if case.code == code and case.trained is kind] for kind in (True, False)]
        lines.append(f"| {code} | {'; '.join(made[0])} | {'; '.join(made[1])} |")
    trained = sum(case.trained for case in FAULTS)
    lines += [
        "",
        f"{len(FAULTS)} faults, {trained} of them by training; healthy: {len(RECIPES)} short runs, one of each recipe, "
        f"{len(HEALTHY)} dumps, and the default run with eight perturbed ones. Each is a test: its rule must find it, and no "
        "other above `info`, but for those that are named with a reason in `tests/doctor/cases.py`.",
    ]
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with what is between the marks written anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{rules()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "doctor.md"
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
