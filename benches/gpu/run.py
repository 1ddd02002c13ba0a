"""The losses on a GPU: ours, Liger's, fla's and eager torch, from logits, from hidden states and from log-probs.

    make carry                                        here: .carried/, which git ignores
    python benches/gpu/run.py --out DIR               there: gpu.json and gpu.md in DIR, in less than 9 minutes
    python benches/gpu/run.py --out DIR --device cpu --small    anywhere: that the script runs, half a minute

There, the machine needs a Hopper GPU (any CUDA one, without the cubin), Python 3.11 or newer, torch 2.11, Triton 3.6
and CuPy, and nothing is fetched or installed: our package, Liger's and fla's sources and the cubins come from
``.carried`` in this repository, or from ``--carried``. Where there is no such folder, or with ``--checkout``, the
checkout's package is measured, against the rivals that can be imported (``PYTHONPATH=.peers``).

Every provider is first compared with float64 on a small case, loss and gradient, on memory full of NaN. One that is
wrong is reported and not timed. Then the sections of `sections.py` follow in the order of their worth, until the time
is spent; results are written after each, so that a run that is cut off leaves what it had. What was not measured says
so.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

BEGAN = time.monotonic()
ROOT = Path(__file__).resolve().parents[2]
CARRIED = ROOT / ".carried"


def main():
    """Reads the command, prepares the process and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder for gpu.json and gpu.md")
    parser.add_argument("--carried", type=Path, default=CARRIED if CARRIED.exists() else None)
    parser.add_argument(
        "--checkout", dest="carried", action="store_const", const=None, help="instead of what is carried"
    )
    parser.add_argument("--minutes", type=float, default=8.5, help="what may be spent, from the start on")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="shapes for Triton's interpreter")
    parser.add_argument("--check", metavar="PROVIDER", help="only compare one provider with float64, as JSON")
    typed = parser.parse_args()
    if not typed.out and not typed.check:
        parser.error("--out DIR: where the results go")
    prepare(typed.carried, typed.device)
    if typed.check:
        print(json.dumps(one_check(typed)))
    else:
        measure(typed)


def prepare(carried, device):
    """Settles where imports come from and how Triton runs, before anything is imported."""
    sys.path[0] = str(ROOT / "benches")  # in place of this folder: its modules are `gpu.*`
    if carried:
        sys.path.insert(0, str(carried / "site"))
    else:
        sys.path.insert(1, str(ROOT / "python"))
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="gpu-bench-"))
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    os.environ.setdefault("FLA_DISABLE_BACKEND_DISPATCH", "1")
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"


def differs(carried, checkout):
    """Whether any module of the checkout is another in what was carried."""
    names = [path.relative_to(checkout) for path in checkout.rglob("*.py")]
    return any(not (carried / x).exists() or (carried / x).read_bytes() != (checkout / x).read_bytes() for x in names)


def start(typed, report):
    """What the sections share."""
    from gpu.measure import Bench, Budget
    from gpu.sections import Run, Shapes

    bench = Bench(typed.device, Budget(60 * typed.minutes - (time.monotonic() - BEGAN)))
    return Run(bench, Shapes(small=typed.small), report, typed.carried)


def one_check(typed):
    """What came of one provider, by its name."""
    from gpu import providers, rivals

    run = start(typed, {"checks": [], "cases": []})
    found = [*providers.TOKEN, *providers.SEQUENCE, *rivals.token_level(), *rivals.sequence_level()]
    found += [*rivals.slow_to_compile(), providers.one_kernel_from_cubin(typed.carried)]
    return run.check({p.name: p for p in found}[typed.check]).asdict()


def measure(typed):
    """All sections, in order."""
    import torch

    from gpu.report import about, clocks, goal_lines, page, save
    from gpu.sections import NO_CUDA, OUT_OF_TIME, SECTIONS

    if typed.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --device cpu --small shows that the script runs")
    manifest = typed.carried and json.loads((typed.carried / "manifest.json").read_text(encoding="utf-8"))
    if manifest and differs(typed.carried / "site" / "grpokit", ROOT / "python" / "grpokit"):
        manifest["note"] = "the carried package is not this checkout's"
    command = "python benches/gpu/run.py " + " ".join(sys.argv[1:])
    report = {"about": about(typed.device, manifest, command), "sections": {}, "checks": [], "cases": [], "goals": []}
    run = start(typed, report)
    for name, title, seconds, cuda, function in SECTIONS:
        before = run.bench.budget.spent()
        entry = report["sections"][name] = {"title": title, "status": "measured"}
        if run.broken:
            entry["status"] = run.broken
        elif cuda and not run.bench.cuda:
            entry["status"] = NO_CUDA
        elif function is None:
            entry["status"] = "not measured: not by this script"
        elif not run.bench.budget.has(0 if typed.small else seconds):
            entry["status"] = OUT_OF_TIME
        else:
            run.section = name
            run.log(title)
            report["about"].setdefault("clocks", {})[name] = clocks() if run.bench.cuda else {}
            try:
                function(run)
            except Exception as problem:  # noqa: BLE001
                *_, reason = run.why(problem)
                entry["status"] = f"not measured: {reason}"
        entry["seconds"] = run.bench.budget.spent() - before
        run.log(f"{title}: {entry['status']}")
        save(report, typed.out)
    # Where only the end of the output is kept, it is the goals.
    print(page(report), *goal_lines(report), sep="\n")


if __name__ == "__main__":
    main()
