"""Runs the conformance kit over TRL, verl, Liger-Kernel and grpokit and writes docs/scoreboard.md: `make scoreboard`.

    python tools/scoreboard.py              everything, some minutes
    python tools/scoreboard.py --only trl:  what begins so; the rest is kept
    python tools/scoreboard.py --render     the page from what was measured before

In: benches/scoreboard. Out: benches/results/scoreboard.json and the page, which is nothing but the former as text.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benches" / "results" / "scoreboard.json"
PAGE = ROOT / "docs" / "scoreboard.md"
# The package scoreboard, and not this file; for the processes that are started as well.
sys.path[:] = [str(ROOT / "benches"), *(place for place in sys.path if Path(place).resolve() != ROOT / "tools")]


def main() -> None:
    """Measures, and writes both files."""
    from scoreboard.entries import ENTRIES
    from scoreboard.measure import measured, versions
    from scoreboard.page import page

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="what begins so: trl:, verl:gspo")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    typed = parser.parse_args()
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"entries": {}}
    results = old | ({} if typed.render else {"versions": versions()})
    names = [e.name for e in ENTRIES if any(e.name.startswith(x) for x in typed.only or [""])]
    found = dict(old["entries"])
    for name, verdicts in measured([] if typed.render else names):
        found[name] = verdicts
        told = [law for law, v in verdicts["laws"].items() if v["verdict"] in ("departs", "choice")]
        print(f"{name}: {', '.join(told) or 'all hold'}", file=sys.stderr, flush=True)
    results["entries"] = {e.name: found[e.name] for e in ENTRIES if e.name in found}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
