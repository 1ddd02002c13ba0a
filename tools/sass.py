"""What the compiler makes of the Triton kernels, with the installed Triton and with 3.6: `make sass`. Needs no GPU.

    python tools/sass.py                        everything, a few minutes
    python tools/sass.py --here --arch sm_90    one architecture with this process's Triton, as JSON on stdout; writes nothing
    python tools/sass.py --render               the page from what was measured before

In: benches/compiled. Out: benches/results/sass.json and the page, which is nothing but the former as text.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benches" / "results" / "sass.json"
PAGE = ROOT / "benches" / "results" / "sass.md"
# Beside the installed one: what torch 2.11, the oldest that is supported, comes with.
OLD_TRITON = ROOT / ".triton36"
ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
HEADER = """# What the compiler makes of the kernels

`make sass`, on any machine: the kernels are compiled ahead of time with the arguments of a real launch and the
configurations of `kernels/table.py`, and counted in the SASS that cuobjdump shows. None of this is a measurement on
hardware. `tests/kernels/test_compiled.py` holds the numbers: a count that is worse than here fails.

Two numbers are Triton {versions}; one is both. The counts are of the hot loop, of an element (a logit): instructions of
all kinds, and of those what the MUFU executes (2^x, 1/x), at an eighth of the rate of the others on sm_80 to sm_100. *At
most* is promised. Loads and stores are those of a thread in one turn of the loop, n × bytes. An SM holds `blocks` of
`warps` warps by registers and shared memory: that is the occupancy.

What is promised is promised for sm_80, sm_90 and sm_100: no stack, local memory, spills or atomics, loads and stores of
16 bytes, and half of an SM's warps (a quarter for one pass: sweep, row), wherever rows are aligned to 16 bytes; without
that ("V odd") the first of these alone. For sm_120 the kernels are compiled with the configuration of sm_100, for gfx942 with that of sm_90."""


def main() -> None:
    """Measures, and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", action="store_true", help="with this process's Triton, as JSON on stdout")
    parser.add_argument("--main", action="store_true", help="the first two cases of each kernel, bf16")
    parser.add_argument("--arch", action="append", choices=ARCHS, help="one of several; all without it")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    typed = parser.parse_args()
    if typed.here:
        print(json.dumps(here(typed.arch or ARCHS, 2 if typed.main else None)))
        return
    if not typed.render:
        found = [child(path) for path in (None, OLD_TRITON)]
        about = {"command": "make sass", "triton": [each["triton"] for each in found], "rows": []}
        # A row a line: so a change of the compiler can be read.
        rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for each in found for row in each["rows"])
        text = json.dumps(about, indent=1).replace('"rows": []', f'"rows": [\n  {rows}\n ]')
        RESULTS.write_text(text + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


def here(archs: list[str], cases: int | None) -> dict[str, Any]:
    """The versions, and a row for each case."""
    sys.path.insert(0, str(ROOT / "benches"))
    import triton
    from triton.backends.nvidia.compiler import get_ptxas

    from compiled.launches import ENTRIES
    from compiled.sass import measured

    rows = []
    for arch in archs:
        for entry in ENTRIES:
            for case in entry.cases[:cases]:
                if not case.where(arch, triton.__version__):
                    continue
                row = {"triton": triton.__version__, "arch": arch, "kernel": entry.name, "case": case.name}
                promised = {"most": case.most, "wide": case.wide, "least occupancy": case.occupancy}
                rows.append(row | measured(case, arch) | (promised if arch.startswith("sm_") else {}))
                print(arch, entry.name, case.name, file=sys.stderr)
    ptxas = {arch: get_ptxas(int(arch[3:])).version for arch in archs if arch.startswith("sm_")}
    return {"triton": {"version": triton.__version__, "ptxas": ptxas}, "rows": rows}


def child(triton: Path | None) -> dict[str, Any]:
    """`here` in a process of its own, with another Triton; what the user has set for either is left out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "GRPOKIT_"))}
    places = [str(triton) if triton else "", environment.get("PYTHONPATH", "")]
    with tempfile.TemporaryDirectory() as cache:
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, places)), "TRITON_CACHE_DIR": cache}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--here"], env=environment, stdout=subprocess.PIPE, check=True
        )
    return json.loads(done.stdout)


def page(results: dict[str, Any]) -> str:
    """The results as text, a table an architecture."""
    versions = [each["version"] for each in results["triton"]]
    lines = [HEADER.format(versions=" / ".join(versions))]
    for arch in ARCHS:
        ptxas = " / ".join(each["ptxas"].get(arch, "") for each in results["triton"])
        lines += ["", f"## {arch}" + (f", ptxas {ptxas}" if arch.startswith("sm_") else ""), ""]
        columns = COLUMNS if arch.startswith("sm_") else COLUMNS_AMD
        lines += ["| kernel | case | " + " | ".join(columns) + " |", "|---|---|" + "---:|" * len(columns)]
        cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in results["rows"]:
            if row["arch"] == arch:
                cases.setdefault((row["kernel"], row["case"]), []).append(row)
        for names, rows in cases.items():
            cells = (dict.fromkeys(text(row) for row in rows) for text in columns.values())
            lines.append("| " + " | ".join([*names, *(" / ".join(cell) for cell in cells)]) + " |")
    return "\n".join(lines) + "\n"


COLUMNS = {
    "instructions": lambda row: f"{row['instructions']:.2f}",
    "at most": lambda row: f"{row['most']:g}" if row["most"] is not None else "",
    "of the MUFU": lambda row: f"{row['exponentials']:.2f}",
    "loads": lambda row: row["loads"],
    "stores": lambda row: row["stores"],
    "registers": lambda row: str(row["registers"]),
    "blocks × warps": lambda row: f"{row['blocks']} × {row['warps']}",
    "occupancy": lambda row: f"{row['occupancy']:.0%}",
    "shared, bytes": lambda row: str(row["shared"]),
    "stack, local, spills, atomics": lambda row: ", ".join(
        str(row[x]) for x in ("stack", "local", "spills", "atomics")
    ),
}
COLUMNS_AMD = {
    "vector registers": lambda row: str(row["registers"]),
    "stack": lambda row: str(row["stack"]),
    "spills": lambda row: str(row["spills"]),
}


if __name__ == "__main__":
    main()
