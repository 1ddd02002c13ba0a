"""benches/gpu without a GPU: the script runs in Triton's interpreter, and what a CPU can know of it is right.

Nothing is measured here. The rivals are not looked for; tests/peers has Liger in the same script.
"""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parent.parent
RUN = ROOT / "benches" / "gpu" / "run.py"
RIGHT = (
    "grpokit two_kernel, in place, entropy term",
    "grpokit two_kernel, gspo",
    "grpokit one_kernel, in place",
    "grpokit one_kernel, in place, entropy term",
    "grpokit one_kernel_l2, in place",
    "grpokit from_hidden, 2 rows",
    "grpokit eager",
    "eager as TRL",
)
CASE = {"section", "case", "shape", "rows"}
MEASURED = {"provider", "level", "status", "first_ms", "calls", "forward", "backward", "total", "peak_mib", "launches"}


def child(*command, **environment):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "GRPOKIT_"))} | environment
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-W", "ignore", *map(str, command)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-1000:]
    return done.stdout


def refuse(constant):
    raise ValueError(f"{constant} is not JSON")


def strictly(path):
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Put back afterwards: the bench chooses the interpreter for its own process."""
    for name in ("TRITON_INTERPRET", "TRITON_CACHE_DIR", "TRITON_DEFAULT_FP_FUSION", "FLA_DISABLE_BACKEND_DISPATCH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def gpu():
    """The bench's modules; `grpokit` is the one that is tested."""
    sys.path.insert(0, str(ROOT / "benches"))
    try:
        from gpu import cases, cubin, eager_bytes, measure, providers, reference, report, rivals, sections

        modules = cases, cubin, eager_bytes, measure, providers, reference, report, rivals, sections
        yield SimpleNamespace(**{m.__name__.removeprefix("gpu."): m for m in modules})
    finally:
        sys.path.remove(str(ROOT / "benches"))
        for name in [name for name in sys.modules if name.partition(".")[0] == "gpu"]:
            del sys.modules[name]


@pytest.fixture
def run(gpu):
    def make(seconds=600):
        report = {"about": {"device": "cpu"}, "sections": {}, "checks": [], "cases": []}
        bench = gpu.measure.Bench("cpu", gpu.measure.Budget(seconds))
        return gpu.sections.Run(bench, gpu.sections.Shapes(small=True), report, None)

    return make


@pytest.mark.slow
def test_the_script_runs_in_the_interpreter(tmp_path):
    told = child(RUN, "--checkout", "--out", tmp_path, "--device", "cpu", "--small", "--minutes", "5")
    report, page = strictly(tmp_path / "gpu.json"), (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]
    assert report["about"]["device"] == "cpu"
    assert "Times say nothing" in page or "times say nothing" in page
    assert page in told

    status = {name: section["status"] for name, section in report["sections"].items()}
    on_cuda = ("ceilings", "first_calls", "slow_to_compile", "from_logps", "counters")
    assert {status[name] for name in on_cuda} == {"not measured: no CUDA device"}
    assert {status[name] for name in set(status) - set(on_cuda)} == {"measured"}

    checks = {check["provider"]: check for check in report["checks"]}
    assert not [c for c in checks.values() if c["status"] in ("wrong", "failed")]
    for name in RIGHT:
        assert checks[name]["status"] == "right"
        assert f"| {name} | right |" in page
    assert checks["grpokit one_kernel, in place, carried cubin"]["reason"].endswith(
        "no CUDA device to launch the cubin on"
    )

    rows = [(case, row) for case in report["cases"] for row in case["rows"]]
    assert {case["section"] for case, _ in rows} == {"main", "linear", "temperature", "masks", "shapes", "policies"}
    for case, row in rows:
        assert case.keys() >= CASE
        if row["status"] == "measured":
            assert row.keys() >= MEASURED
            low, middle, high = row["total"]["quantiles"]
            assert 0 < low <= middle <= high
            # An interpreter's time is compared with nothing.
            assert not row.keys() & {"ratio_to_liger", "bandwidth_share", "floor_share"}
        else:
            assert row["status"].startswith("not measured: ")
    assert {goal["verdict"] for goal in report["goals"]} == {"not measured"}


def test_without_time_everything_is_said_to_be_missing(tmp_path):
    child(RUN, "--checkout", "--out", tmp_path, "--device", "cpu", "--small", "--minutes", "0")
    report = strictly(tmp_path / "gpu.json")
    assert {s["status"] for s in report["sections"].values()} == {
        "not measured: out of time",
        "not measured: no CUDA device",
    }
    assert not report["cases"]
    assert not report["checks"]


def test_a_section_that_runs_out_of_time_keeps_what_it_has(gpu, run):
    run, now = run(), [0.0]
    run.bench.budget = gpu.measure.Budget(1, clock=lambda: now[0])
    slow = gpu.providers.TOKEN[-1]

    def make(data):
        now[0] += 2
        return slow.make(data)

    late = gpu.providers.Provider("late", make)
    run.time(run.shapes.main, [slow, late, gpu.providers.Provider("never", make)])
    (case,) = run.report["cases"]
    assert [row["status"] for row in case["rows"]] == ["not measured: out of time"] * 3
    assert [check["provider"] for check in run.report["checks"]] == [slow.name, "late"]


def spoilt(gpu, spoil):
    """Eager grpokit with something wrong in its gradient."""
    right = gpu.providers.TOKEN[-1]

    def make(data):
        call = right.make(data)
        return gpu.providers.Call(call.forward, lambda loss: (spoil(call.backward(loss)[0], data),))

    return gpu.providers.Provider("spoilt", make)


def one_logit(g, data):
    """The second largest entry of a row: beside the target's it is small."""
    g[0, 0, g[0, 0].abs().topk(2).indices[1]] *= 1.1
    return g


def left_out(g, data):
    g[:, -1] = torch.empty_like(g[:, -1])[0, 0] * torch.nan
    return g


@pytest.mark.parametrize(
    "spoil",
    [
        lambda g, _: 1.05 * g,
        one_logit,
        left_out,
        lambda g, data: g + 1e-6 * ~torch.nn.functional.pad(data.mask, (0, 1))[..., None],
    ],
    ids=["scaled", "one logit", "unwritten", "masked rows"],
)
def test_a_wrong_provider_is_reported_and_not_timed(gpu, run, spoil):
    run = run()
    run.time(run.shapes.main, [gpu.providers.TOKEN[-1], spoilt(gpu, spoil)])
    right, wrong = run.report["cases"][0]["rows"]
    assert right["status"] == "measured"
    assert wrong["status"].startswith("not measured: wrong, its gradient is off by ")
    assert "total" not in wrong
    (check,) = [c for c in run.report["checks"] if c["provider"] == "spoilt"]
    assert check["status"] == "wrong"
    assert check["gradient_error"] > check["tolerance"]


def test_what_raises_is_reported_and_not_timed(gpu, run):
    def make(_):
        raise ZeroDivisionError("of the provider")

    run = run()

    def late(data):
        """Only when it is timed."""
        call, left = gpu.providers.TOKEN[-1].make(data), [2]

        def forward():
            left[0] -= 1
            return call.forward() / (1 if left[0] else 1 // left[0])

        return gpu.providers.Call(forward, call.backward)

    run.time(
        run.shapes.main,
        [gpu.providers.Provider("broken", make), gpu.providers.Provider("late", late), gpu.providers.TOKEN[-1]],
    )
    broken, late, right = run.report["cases"][0]["rows"]
    assert broken["status"] == "not measured: failed: ZeroDivisionError: of the provider"
    assert late["status"].startswith("not measured: failed: ZeroDivisionError")
    assert right["status"] == "measured"


def test_a_loss_that_is_off_or_an_input_that_is_overwritten_is_wrong(gpu):
    right, data = gpu.providers.TOKEN[-1], gpu.cases.Data(gpu.cases.Case(8, 2, 50, 0.9, 0.6, "clipped"), "cpu")

    def off(data):
        call = right.make(data)
        return gpu.providers.Call(lambda: call.forward() + 0.1, call.backward)

    def overwrites(data):
        call = right.make(data)

        def backward(loss):
            found = call.backward(loss)
            data.logits.detach()[0, 0, 0] += 1
            return found

        return gpu.providers.Call(call.forward, backward)

    check = gpu.reference.check(gpu.providers.Provider("off", off), data)
    assert (check.status, round(check.loss_error, 3)) == ("wrong", 0.1)
    check = gpu.reference.check(gpu.providers.Provider("overwrites", overwrites), data)
    assert (check.status, check.reason) == ("wrong", "it overwrote the logits")


@pytest.mark.parametrize("policy", ["on", "off", "clipped"])
@pytest.mark.parametrize("live", [1.0, 0.6, 0.5])
def test_a_case_is_what_it_says(gpu, policy, live):
    data = gpu.cases.Data(gpu.cases.Case(8, 40, 60, 0.9, live, policy), "cpu")
    assert abs(data.mask.float().mean() - live) < 0.02
    assert math.isclose(sum(data.shares()), 1)
    assert (data.old_logps is None) == (policy == "on")
    assert data.beyond.float().mean() == (0.25 if policy == "clipped" else 0)
    value, (gradient,) = gpu.reference.gradients(data, "token", entropy=False)
    still = (gradient == 0).all(-1)[:, :-1] & data.mask
    assert torch.equal(still, data.mask & data.beyond[:, None])
    assert value.isfinite()


def test_bytes_of_eager_torch(gpu):
    """By hand: dividing reads and writes 4, and so on; the entropies are 16 more, as four operators' tensors."""
    plain = gpu.eager_bytes.count(lambda given: gpu.rivals.trl_loss(given, 1.0))
    also = gpu.eager_bytes.count(lambda given: gpu.rivals.trl_loss(given, 1.0, entropy=True))
    # Division 4, log-softmax 4; backward, zeros 2, log-softmax 6, stacking rows 4, division 4, the slice 4.
    assert abs(plain - 28) < 0.3
    assert abs(also - plain - 16) < 0.3


class Event:
    """Stands in for CUDA's: the host's clock."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


class Profile:
    """Stands in for torch's profiler: two kernels on the device and a copy, and what the host did."""

    def __init__(self, activities):
        assert len(activities) == 2

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def events(self):
        kinds = torch.autograd.DeviceType
        names = [("a", kinds.CUDA), ("Memcpy DtoD", kinds.CUDA), ("b", kinds.CUDA), ("aten::mm", kinds.CPU)]
        return [SimpleNamespace(name=name, device_type=kind) for name, kind in names]


@pytest.fixture
def pretended(gpu, run, monkeypatch):
    """A run that takes the CPU for a GPU: what it does there is done, with what stands in for torch.cuda."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name, value in (("synchronize", None), ("reset_peak_memory_stats", None), ("memory_allocated", 2**20)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    monkeypatch.setattr(torch.profiler, "profile", Profile)
    for name, value in (("ROUNDS", 2), ("LEAST_CALLS", 2), ("MOST_CALLS", 2)):
        monkeypatch.setattr(gpu.measure, name, value)
    run = run()
    run.bench.cuda, run.bench._flush = True, torch.empty(10)
    return run


def test_what_a_gpu_would_do(gpu, pretended, monkeypatch):
    run, eager = pretended, gpu.providers.TOKEN[-1]
    monkeypatch.setattr(gpu.sections, "_short", lambda _: [eager])
    gpu.sections.first_calls(run)
    lengths, taken = run.report["first_calls"]["lengths"], run.report["first_calls"]["milliseconds"]
    assert len(taken[eager.name]) == len(lengths) == 3
    gpu.sections.from_logps(run)
    ours, graph, *_ = run.report["from_logps"]
    assert (ours["status"], ours["calls"]) == ("measured", 4)
    assert graph["status"].startswith("not measured: ")  # a CPU has no graphs
    gpu.sections.slow_to_compile(run)
    statuses = {row["provider"]: row["status"] for case in run.report["cases"] for row in case["rows"]}
    assert statuses["fla, in place"] == "not measured: unavailable: Unavailable: fla tunes its kernels on a CUDA device"
    run.time(run.shapes.main, [eager])
    (row,) = run.report["cases"][-1]["rows"]
    assert (row["calls"], row["peak_mib"], row["launches"]) == (4, 2.0, 2)
    found = gpu.measure.ceilings(run.bench, 2**10, 8)
    assert found.keys() == {"copy_gbs", "read_gbs", "matmul_tflops"}
    assert min(found.values()) > 0


def test_a_device_that_fails_ends_the_run(gpu, pretended, monkeypatch):
    """After a fault nothing that is started on a GPU works: the rest says so."""

    def lost():
        raise RuntimeError("an illegal memory access was encountered")

    def make(_):
        monkeypatch.setattr(torch.cuda, "synchronize", lost)
        raise RuntimeError("an illegal memory access was encountered")

    pretended.time(pretended.shapes.main, [gpu.providers.Provider("fatal", make), gpu.providers.TOKEN[-1]])
    fatal, next_one = pretended.report["cases"][0]["rows"]
    assert fatal["status"].startswith("not measured: failed: RuntimeError")
    assert (
        next_one["status"]
        == pretended.broken
        == ("not measured: the device failed in an earlier call: an illegal memory access was encountered")
    )


def test_a_provider_is_tried_in_a_process_of_its_own(gpu, pretended, monkeypatch):
    """What the child prints last is its verdict; a child that dies, or hangs, is a failed provider."""
    apart = gpu.providers.Provider("grpokit one_kernel, in place, carried cubin", None, apart=True)
    found = gpu.reference.Check(apart.name, "a case", "right", 0.0, 0.0, 0.01)
    seen = []

    def answer(command, **_):
        seen.append(command)
        return SimpleNamespace(stdout="a warning\n" + json.dumps(found.asdict()))

    monkeypatch.setattr(subprocess, "run", answer)
    assert pretended.right(apart)
    assert seen[0][1:] == [str(RUN), "--check", apart.name]

    def dies(command, **_):
        raise subprocess.CalledProcessError(-11, command, stderr="Traceback\nCUDA error: misaligned address")

    def hangs(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    for problem, says in ((dies, "CUDA error: misaligned address"), (hangs, "timed out after 90 seconds")):
        pretended.checked.clear()
        monkeypatch.setattr(subprocess, "run", problem)
        assert not pretended.right(apart)
        assert says in pretended.checked[apart.name].reason


def made_up(name, milliseconds, level="token", **more):
    times = {"quantiles": [milliseconds] * 3, "rounds": [milliseconds] * 3}
    how = {"forward": times, "backward": times, "total": times, "calls": 9, "peak_mib": 0.0}
    return {"provider": name, "level": level, "status": "measured"} | how | more


@pytest.mark.parametrize("device", ["NVIDIA H200", "NVIDIA H100 80GB HBM3"])
def test_goals_follow_from_rows(gpu, device):
    """Numbers of no machine, to see the arithmetic."""
    elements, copy = 10**9, 4000.0
    token = [
        made_up("grpokit two_kernel, in place, entropy term", 2.0, bytes_per_element=6.0),
        made_up("grpokit one_kernel, in place", 1.25, bytes_per_element=4.0),
        made_up("Liger, in place", 2.0, bytes_per_element=6.0),
        made_up("Liger", 9.0),
        {"provider": "other", "level": "token", "status": "not measured: wrong"},
    ]
    sequence = [made_up("grpokit two_kernel, gspo, in place", 2.0, "sequence")]
    sequence += [made_up("Liger, sequence level, in place", 2.9, "sequence")]
    hidden = [
        made_up("grpokit from_hidden, 2048 rows", 99.0),
        made_up("grpokit from_hidden, 8192 rows", 90.0, peak_mib=2500.0),
    ]
    hidden += [made_up("Liger chunked, TF32 off", 720.0), made_up("Liger chunked, TF32 on", 300.0)]
    logits = {"shape": {}, "case": "", "elements": elements, "floor_bytes_per_element": 4.0}
    report = {
        "about": {"device": device, "python": "", "versions": {}, "command": "", "carried": None},
        "ceilings": {"copy_gbs": copy, "read_gbs": copy, "matmul_tflops": 700.0},
        "checks": [],
        "sections": {name: {"title": name, "status": "measured"} for name in ("main", "linear")},
        "cases": [
            {"section": "main", "rows": token} | logits,
            {"section": "main", "rows": sequence} | logits,
            {"section": "linear", "rows": hidden, "shape": {}, "case": "", "gradients_mib": 500.0},
        ],
    }
    gpu.report.derive(report)
    assert [round(row.get("ratio_to_liger", 0), 3) for row in token] == [1, 1.6, 1, 0.222, 0]
    assert [round(row.get("bandwidth_share", 0), 3) for row in token] == [0.75, 0.8, 0.75, 0, 0]
    assert [round(row.get("floor_share", 0), 3) for row in token] == [0.5, 0.8, 0.5, 0.111, 0]
    found = [(round(g["found"], 3), g["verdict"]) for g in report["goals"]]
    ms = "met" if "H200" in device else "measured on another GPU than an H200"
    assert found == [
        (2.0, ms),
        (0.75, "missed"),
        (0.8, "met"),
        (1.6, "met"),
        (1.45, "missed"),
        (90.0, ms),
        (8.0, "met"),
        (2.097, "met"),
    ]
    page = gpu.report.page(report)
    assert "| grpokit one_kernel, in place | 1.250 (1.250–1.250) |" in page
    assert "not measured: wrong" in page


# The cubin's arguments, against the parameters of the machine code and against a real call.
PACKED = """
import json, sys
import torch
from pathlib import Path
from gpu import cases, cubin
from gpu.providers import Unavailable

found = {"cubins": {}, "refused": {}}
for path in sorted(Path(sys.argv[1]).glob("*.json")):
    code = cubin.Cubin(path)
    packed = []
    code.start = lambda grid, numbers: packed.append((grid, numbers))
    V = code.about["vocabulary"]
    data = cases.Data(cases.Case(2, 3, V, 0.5), "cpu")
    call = cubin.one_kernel(data, code)
    call.forward()
    (grid, numbers), = packed
    found["cubins"][path.stem] = {
        "grid": grid, "widths": [type(x).__name__ for x in numbers], "numbers": [float(x) for x in numbers],
        "logits": data.logits.data_ptr(), "about": code.about, "code": code.path.read_bytes()[:4].hex(),
    }
    for name, change in (("on-policy", {"policy": "on"}), ("another vocabulary", {"vocabulary": V // 2})):
        try:
            cubin.one_kernel(cases.Data(data.case.but(**change), "cpu"), code).forward()
        except Unavailable as problem:
            found["refused"][f"{path.stem}, {name}"] = str(problem)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("carried")
    told = child(ROOT / "benches" / "gpu" / "carry.py", "--out", folder, "--only-cubins")
    assert str(folder) in told
    path = os.pathsep.join(str(ROOT / name) for name in ("benches", "python"))
    return json.loads(child("-c", PACKED, folder / "cubins", TRITON_INTERPRET="1", PYTHONPATH=path))


@pytest.mark.slow
@pytest.mark.parametrize("V", [151_936, 128_256])
def test_a_cubin_takes_what_its_launcher_packs(packed, gpu, V):
    found = packed["cubins"][f"row_kernel_{V}_sm_90"]
    about, numbers = found["about"], found["numbers"]
    assert bytes.fromhex(found["code"]) == b"\x7fELF"
    widths = {"uint64": "u64", "int64": "u64", "int32": "u32", "float32": "f32"}
    assert [widths[name] for name in found["widths"]] == about["ptx"]
    kept = [p for p in about["parameters"] if p["type"] != "constexpr"]
    assert [gpu.cubin.width(p["type"]) for p in kept] + ["u64"] * gpu.cubin.SCRATCH == about["ptx"]
    assert numbers[-gpu.cubin.SCRATCH :] == [0.0, 0.0]

    values = {}
    for entry, number in zip(kept, numbers, strict=False):
        values.setdefault(entry["name"], []).append(number)
    assert values["X"] == [found["logits"]]
    assert (values["length"], values["stride_b"], values["stride_t"]) == ([4], [4 * V], [V])
    assert (values["V"], values["origin"], values["cap"], values["inverse"]) == ([V], [0], [1], [2])
    assert math.isclose(values["c"][0], 2 * math.log2(math.e), rel_tol=1e-6)
    assert values["P"][:2] == pytest.approx([math.log(0.8), math.log(1.28)])
    assert values["P"][2] == math.inf
    assert len(values["constants"]) == 2
    assert (found["grid"], about["num_ctas"], 32 * about["num_warps"]) == ([6], 8, 512)


@pytest.mark.slow
def test_a_cubin_refuses_what_it_was_not_compiled_for(packed):
    for name, why in packed["refused"].items():
        assert "the cubin is for" in why, name
    assert len(packed["refused"]) == 4


def test_parameters_of_a_kernel(gpu):
    ptx = """
.visible .entry f(
	.param .u64 .ptr .global .align 16 f_param_0,
	.param .u32 f_param_1,
	.param .f32 f_param_2
)
{ ld.param.b64 %rd1, [f_param_0]; }"""
    assert gpu.cubin.parameters_of(ptx) == ["u64", "u32", "f32"]
    assert list(gpu.cubin.leaves("x", (3,), ("*fp32", ("i32", "constexpr"), ()))) == [
        ("x[0]", (3, 0), "*fp32"),
        ("x[1][0]", (3, 1, 0), "i32"),
        ("x[1][1]", (3, 1, 1), "constexpr"),
    ]
