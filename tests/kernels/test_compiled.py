"""The kernels as compiled, without a GPU: what is promised of their SASS, and that it is not worse than was recorded.

`make sass` measures all of it again and writes benches/results/sass.json, which these tests hold fresh counts to.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import grpokit

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benches" / "results" / "sass.json"
OLD_TRITON = ROOT / ".triton36"
PROMISED = ("sm_80", "sm_90", "sm_100")
# Twenty batches of one vocabulary: rows, lengths, layouts, temperatures, all rows or some; targets, columns, gradients
# that start anywhere, as parts of a batch do; and rows so far apart that it takes 64 bits to say.
LAUNCHES = """
import json, torch
from compiled.launches import recorded
from grpokit.kernels.gradient import gradient
from grpokit.kernels.one_pass import one_pass, scale
from grpokit.kernels.stats import stats

SHAPES = [(1,), (2,), (3,), (16,), (17,), (31,), (64,), (1, 1), (1, 2), (1, 16), (16, 1), (9, 1), (2, 3), (3, 2)]
SHAPES += [(4, 16), (5, 17), (1, 33), (7, 7), (8, 8), (2, 64)]
ids = torch.zeros(200, dtype=torch.int64)
ones = torch.ones(200)
variants = {}
for entropy in (True, False):
    with recorded("sm_90") as launches:
        for i, shape in enumerate(SHAPES):
            logits = torch.zeros(*shape, V, dtype=torch.bfloat16)
            total = logits.numel() // V
            n = total if i % 2 else max(1, total - 1)
            places, targets, g = ids[i % 5 :][:n], ids[i % 3 :][:n], ones[i % 7 :][:n]
            places.copy_(torch.arange(n))
            how = places, targets, [1, 1.0, 0.6, 0.9][i % 4], None
            _, entropies, state = stats(logits, *how, first=i, entropy=entropy)
            out = logits if i % 2 else torch.empty_like(logits)
            h = g if entropy else None
            gradient(logits, out, *how[:2], state, entropies, g, h, *how[2:], first=i)
            known, whole = (g, ones[i % 4 :][:n]), (ones, None, ones, None)
            shares, bounds = (ones.double(), ones.double()), (-0.2 * (i % 3), 1.0, float("inf") if i % 5 else 3.0)
            for formulas, arguments in (
                ({"GATE": None, "BASE": "old", "TERMS": ()}, (known, (None,) * 4, None, None, (), (), (), ())),
                (
                    {"GATE": "Clip", "BASE": "old", "TERMS": ("k3", "ref", False)},
                    ((), whole, ones, None, shares, (0.5 * (i % 3),), (None,), bounds),
                ),
            ):
                more = {"formulas": formulas, "arguments": arguments, "origin": i, "entropy": entropy}
                one_pass(logits, *how, **more, hold=True)
                one_pass(logits, *how, **more, hold=False)
            scale(logits, places, ones[i % 2])
        apart = torch.empty_strided((2, 2, V), (2**32, 2**31, 1), dtype=torch.bfloat16, device="meta")
        stats(apart, ids[:4], ids[:4], 1.0, entropy=entropy)
        gradient(apart, apart, ids[:4], ids[:4], state, entropies, g, h, 1.0)
    for launch in launches:
        names = launch.kernel.arg_names
        gate = launch.constants[names.index("GATE"),] if "GATE" in names else ""
        variants.setdefault(f"{launch.kernel.__name__}, entropy {entropy}, {gate}", set()).add(launch.key)
print(json.dumps({name: sorted(keys) for name, keys in variants.items()}))
"""


def run(tmp_path, *command, triton=None):
    """The JSON that a child prints: without the interpreter, and without settings that a user has for Triton or us."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "GRPOKIT_"))}
    places = [triton, ROOT / "benches", Path(grpokit.__file__).parent.parent]
    environment["PYTHONPATH"] = os.pathsep.join(str(place) for place in places if place)
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "triton")
    command = [sys.executable, "-W", "ignore", *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def keeps_what_is_promised(row):
    at = ", ".join(row[x] for x in ("kernel", "case", "arch", "triton"))
    for name in ("stack", "local", "spills", "atomics"):
        assert row[name] == 0, f"{at}: {row[name]} {name}"
    if row["most"] is not None:
        assert row["instructions"] <= row["most"], f"{at}: {row['instructions']} instructions an element"
    if row["wide"]:
        widths = {x.split(" × ")[1] for kind in ("loads", "stores") for x in row[kind].split(", ") if x}
        assert widths <= {"16", "32"}, f"{at}: loads {row['loads']}, stores {row['stores']}"
    assert row["occupancy"] >= row["least occupancy"], f"{at}: {row['registers']} registers, {row['occupancy']:.0%}"


def differences(rows):
    """What is not as recorded, a line each."""
    names = ("triton", "arch", "kernel", "case")
    recorded = {tuple(row[x] for x in names): row for row in json.loads(RECORD.read_text(encoding="utf-8"))["rows"]}
    for row in rows:
        at = tuple(row[x] for x in names)
        if at not in recorded:
            yield f"{', '.join(at)}: not recorded; run `make sass`"
            continue
        for name, was in recorded[at].items():
            now = row.get(name)
            if now != was:
                counts = isinstance(now, int | float) and isinstance(was, int | float)
                better = counts and ((now > was) if name in ("occupancy", "blocks") else (now < was))
                yield f"{', '.join(at)}: {name} was {was} and is {now}" + (
                    ", better; run `make sass`" if better else ""
                )


def check(rows):
    for row in rows:
        if row["arch"] in PROMISED:
            keeps_what_is_promised(row)
    assert not list(differences(rows))


def test_the_main_kernels(tmp_path):
    found = run(tmp_path, ROOT / "tools" / "sass.py", "--here", "--main", "--arch", "sm_90")
    assert found["rows"]
    check(found["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("triton", [None, OLD_TRITON], ids=["installed", "3.6"])
def test_every_kernel_on_every_architecture(tmp_path, triton):
    """gfx942, where nothing is promised, compiles."""
    assert triton is None or triton.exists(), "`make .triton36/.installed` installs Triton 3.6 beside the project"
    found = run(tmp_path, ROOT / "tools" / "sass.py", "--here", triton=triton)
    assert found["triton"]["version"].startswith("3.6." if triton else "3.")
    assert {*PROMISED, "gfx942"} <= {row["arch"] for row in found["rows"]}
    check(found["rows"])


@pytest.mark.parametrize("V", [64, 50])
def test_rows_lengths_and_temperatures_share_a_kernel(tmp_path, V):
    """Two variants at most, for rows that are aligned or not; one, as long as V alone decides that."""
    variants = run(tmp_path, "-c", f"V = {V}\n{LAUNCHES}")
    # stats, gradient, two kernels of one pass by two formulas, zero and scale; with entropies and without.
    assert len(variants) == 16
    for name, keys in variants.items():
        assert len(keys) <= 2, f"{name} is compiled {len(keys)} times: {keys}"
    if V == 64:
        assert all(len(keys) == 1 for keys in variants.values())


def test_a_worse_count_is_named():
    """The record against itself, changed."""
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    assert not list(differences(rows))
    row = next(row for row in rows if row["arch"] == "sm_90")
    (line,) = differences([row | {"instructions": row["instructions"] + 1}])
    for word in (row["kernel"], "sm_90", f"was {row['instructions']}", f"is {row['instructions'] + 1}"):
        assert word in line
    (line,) = differences([row | {"registers": 1}])
    assert "make sass" in line
    (line,) = differences([row | {"triton": "4.0.0"}])
    assert "not recorded" in line
    with pytest.raises(AssertionError, match="1 spills"):
        keeps_what_is_promised(row | {"spills": 1})
    with pytest.raises(AssertionError, match="8 × 4"):
        keeps_what_is_promised(row | {"loads": "8 × 4"})
    with pytest.raises(AssertionError, match="99 instructions"):
        keeps_what_is_promised(row | {"instructions": 99})


def test_the_page_is_what_was_measured(tmp_path):
    code = "import json, sass; print(json.dumps(sass.page(json.loads(sass.RESULTS.read_text(encoding='utf-8')))))"
    text = run(tmp_path, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r})\n{code}")
    assert text == RECORD.with_suffix(".md").read_text(encoding="utf-8")
