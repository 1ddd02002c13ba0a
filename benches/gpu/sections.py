"""What is measured, in the order of its worth: each section is a function of the run and writes into its report."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from . import providers, rivals
from .cases import Case, Data, LinearCase, LinearData
from .measure import ceilings, freed
from .providers import Unavailable
from .reference import Check, check
from .token_loss import token_loss

OUT_OF_TIME = "not measured: out of time"
NO_CUDA = "not measured: no CUDA device"
# A first try of a provider in a process of its own, in seconds: what hangs is stopped.
APART = 90


@dataclass
class Shapes:
    """The shapes of a run; `small` ones are for Triton's interpreter, in which a row takes some milliseconds."""

    small: bool
    main: Case = field(init=False)
    others: tuple = field(init=False)
    checks: tuple = field(init=False)
    linear: LinearCase = field(init=False)
    linear_check: LinearCase = field(init=False)
    workspaces: tuple = field(init=False)
    lengths: range = field(init=False)

    def __post_init__(self):
        V = 200 if self.small else 151_936
        self.main = Case(2, 2, V) if self.small else Case(8, 2048, V)
        self.others = (
            (Case(2, 2, 40),) if self.small else (Case(2, 2048, V), Case(8, 2048, 128_256), Case(4, 2048, 248_320))
        )
        # fla tunes by the number of sequences: its small case must not tune for the large one.
        on_policy = Case(4, 4 if self.small else 16, V, live=0.6, policy="on")
        self.checks = (Case(8, 2 if self.small else 8, V, 0.9, 0.6, "clipped"), on_policy)
        self.linear = LinearCase(2, 3, 16, V) if self.small else LinearCase(8, 2048, 4096, V)
        self.linear_check = LinearCase(2, 3, 16, V) if self.small else LinearCase(8, 8, 256, V)
        self.workspaces = (2, 4) if self.small else (2048, 4096, 8192)
        self.lengths = range(3, 6) if self.small else range(101, 101 + 20 * 17, 17)


class Run:
    """What the sections share.

    Parameters
    ----------
    bench : Bench
        The clock, the device and the time that there is.
    shapes : Shapes
        What is measured.
    report : dict
        What was found so far.
    carried : Path or None
        The folder of `carry.py`.
    """

    def __init__(self, bench, shapes, report, carried):
        self.bench, self.shapes, self.report, self.carried = bench, shapes, report, carried
        self.broken, self.checked, self.section = "", {}, ""

    def log(self, text):
        """A line on the console."""
        print(f"[{self.bench.budget.spent():6.1f} s] {text}", flush=True)

    def right(self, provider, linear=False):
        """Whether a provider computes what it should, on a small case; found out once and written down."""
        if provider.name not in self.checked:
            found = self._apart(provider) if provider.apart and self.bench.cuda else self.check(provider, linear)
            self.checked[provider.name] = found
            self.report["checks"].append(found.asdict())
            errors = "" if found.gradient_error is None else f", gradient off by {found.gradient_error:.1e}"
            self.log(f"{provider.name}: {found.status}{errors}{found.reason and ': ' + found.reason}")
        return self.checked[provider.name].status == "right"

    def check(self, provider, linear=False):
        """`reference.check`, with what was raised as a result."""
        cases = (self.shapes.linear_check,) if linear else self.shapes.checks
        case = next((case for case in cases if not provider.refuses(case)), None)
        if case is None:
            return Check(provider.name, "", "unavailable", reason=provider.refuses(cases[0]))
        try:
            with freed(self.bench.device):
                return check(provider, (LinearData if linear else Data)(case, self.bench.device))
        except Exception as problem:  # noqa: BLE001
            return Check(provider.name, case.name, *self.why(problem))

    def why(self, problem):
        """The status and numbers of a check that raised, and the reason."""
        import grpokit as gk

        status = "unavailable" if isinstance(problem, (Unavailable, gk.InputError)) else "failed"
        try:
            self.bench.wait()
        except Exception as lost:  # noqa: BLE001
            self.broken = f"not measured: the device failed in an earlier call: {lost}".splitlines()[0]
        return status, None, None, None, f"{type(problem).__name__}: {problem}".splitlines()[0][:300]

    def _apart(self, provider):
        command = [sys.executable, str(Path(__file__).with_name("run.py")), "--check", provider.name]
        command += ["--carried", str(self.carried)] if self.carried else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=APART, check=True)
            return Check(**json.loads(done.stdout.splitlines()[-1]))
        except (subprocess.SubprocessError, ValueError, IndexError) as problem:
            last = (getattr(problem, "stderr", None) or str(problem)).strip().splitlines()[-1:]
            return Check(provider.name, "", "failed", reason=f"in a process of its own: {' '.join(last)}"[:300])

    def time(self, case, found, data_of=Data, linear=False):
        """Times providers on a case, in turn, and writes the rows down; wrong ones are left out, with the reason."""
        entry = {"section": self.section, "case": case.name, "shape": vars(case) | {"small": self.shapes.small}}
        self.report["cases"].append(entry)
        entry["rows"] = [{"provider": p.name, "level": p.level, "status": self._status(p, case, linear)} for p in found]
        try:
            with freed(self.bench.device):
                self._time({p.name: p for p in found}, entry, data_of(case, self.bench.device))
        finally:
            for row in entry["rows"]:
                row["status"] = row["status"] or self.broken or OUT_OF_TIME

    def _time(self, by_name, entry, data):
        rows, calls = {row["provider"]: row for row in entry["rows"]}, {}

        def failed(name, problem):
            status, *_, reason = self.why(problem)
            rows[name]["status"] = f"not measured: {status}: {reason}"

        for name, row in rows.items():
            if not row["status"] and not self.broken and self.bench.budget.has(0):
                try:
                    call = by_name[name].make(data)
                    row["first_ms"] = self.bench.first(call, data)
                    calls[name] = call
                except Exception as problem:  # noqa: BLE001
                    failed(name, problem)
        self.log(f"{entry['case']}: {len(calls)} providers")
        for name, statistics in self.bench.rounds(calls, data, failed).items():
            rows[name] |= statistics | {"status": "measured", "peak_mib": None, "launches": None}
        if hasattr(data, "hidden"):
            entry["gradients_mib"] = sum(x.numel() * x.element_size() for x in (data.hidden, data.weight)) / 2**20
        else:
            live, still, masked = data.shares()
            entry |= {"elements": data.logits.numel(), "floor_bytes_per_element": 4 * live + 2 * (still + masked)}
        for name, row in rows.items():
            if row["status"] == "measured":
                if by_name[name].moved:
                    moved = zip(by_name[name].moved, data.shares(), strict=True)
                    row |= {"bytes_per_element": sum(a * b for a, b in moved), "counted": by_name[name].counted}
                row["peak_mib"] = self.bench.memory(calls[name], data)
                row["launches"] = self.bench.launches(calls[name], data)

    def _status(self, provider, case, linear):
        """Why a provider is not timed; empty if it is."""
        if self.broken:
            return self.broken
        if not self.bench.budget.has(0):
            return OUT_OF_TIME
        why = provider.refuses(case)
        if why:
            return f"not measured: {why}"
        if self.right(provider, linear):
            return ""
        found = self.checked[provider.name]
        if found.status == "wrong":
            return "not measured: wrong, " + (found.reason or f"its gradient is off by {found.gradient_error:.2g}")
        return f"not measured: {found.status}: {found.reason}"


def measure_ceilings(run):
    """The copy, the read and the matrix product."""
    run.report["ceilings"] = ceilings(run.bench)


def main_case(run):
    """Token and sequence level, off-policy, τ = 1, nothing masked."""
    cubin = providers.one_kernel_from_cubin(run.carried)
    run.time(run.shapes.main, [*providers.TOKEN, *rivals.token_level(), cubin])
    run.time(run.shapes.main, [*providers.SEQUENCE, *rivals.sequence_level()])


def linear(run):
    """From hidden states."""
    found = [*providers.linear(run.shapes.workspaces), *rivals.linear(compiled=run.bench.cuda)]
    run.time(run.shapes.linear, found, LinearData, linear=True)


def first_calls(run):
    """What a new length costs: the first call's milliseconds for twenty of them."""
    found = [p for p in _short(run) if run.right(p)]
    table = {p.name: [] for p in found}
    run.report["first_calls"] = {"lengths": list(run.shapes.lengths), "milliseconds": table}
    for length in run.shapes.lengths:
        if not run.bench.budget.has(0):
            break
        with freed(run.bench.device):
            data = Data(run.shapes.main.but(sequences=2, length=length), run.bench.device)
            for p in list(found):
                try:
                    table[p.name].append(run.bench.first(p.make(data), data))
                except Exception as problem:  # noqa: BLE001
                    found.remove(p)
                    run.log(f"{p.name} at length {length}: {run.why(problem)[-1]}")
        if run.broken:
            break


def _short(run):
    """Those that are timed on every case: the fast ones of ours, and Liger."""
    ours = [p for p in (*providers.TOKEN, *providers.SEQUENCE) if p.inplace and "anew" not in p.name]
    liger = [p for p in (*rivals.token_level(), *rivals.sequence_level()) if p.inplace]
    return [*ours, *liger, providers.one_kernel_from_cubin(run.carried)]


def slow_to_compile(run):
    """fla, on-policy as it must be, and torch.compile."""
    fla, *compiled = rivals.slow_to_compile()
    on_policy = [p for p in _short(run) if p.level == "token" and not p.entropy]
    run.time(run.shapes.main, [providers.TOKEN[0], *compiled])
    run.time(run.shapes.main.but(policy="on"), [*on_policy, fla])


def temperature(run):
    """τ = 0.9."""
    run.time(run.shapes.main.but(temperature=0.9), _short(run))


def masks(run):
    """Half of the places masked."""
    run.time(run.shapes.main.but(live=0.5), _short(run))


def shapes(run):
    """Fewer rows, and smaller and larger vocabularies."""
    for case in run.shapes.others:
        run.time(case, _short(run))


def policies(run):
    """A fourth of the sequences beyond the clip."""
    run.time(run.shapes.main.but(policy="clipped"), _short(run))


def from_logps(run):
    """The loss from log-probs: launches, not bandwidth."""
    token_loss(run)


# Name, what the section is called, the least seconds it needs, whether on CUDA alone, what does it.
SECTIONS = (
    ("ceilings", "what the device can do", 8, True, measure_ceilings),
    ("main", "the loss from logits", 25, False, main_case),
    ("linear", "the loss from hidden states", 25, False, linear),
    ("first_calls", "first calls", 15, True, first_calls),
    ("slow_to_compile", "fla and torch.compile", 90, True, slow_to_compile),
    ("temperature", "a temperature", 12, False, temperature),
    ("masks", "masked places", 12, False, masks),
    ("shapes", "other shapes", 12, False, shapes),
    ("policies", "rows without a gradient", 12, False, policies),
    ("from_logps", "the loss from log-probs", 8, True, from_logps),
    ("counters", "hardware counters by ncu", 0, True, None),
)
