"""The results: JSON that appears whole or not at all, and the page that is nothing but the same as text."""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("torch", "triton", "cupy-cuda13x", "cupy-cuda12x", "numpy")
INTERPRETED = (
    "**No GPU: kernels ran in Triton's interpreter. The times say nothing; only that the script runs is shown.**"
)


def about(device, carried, command):
    """The machine, the versions and the command."""
    found = {"command": command, "python": platform.python_version(), "device": "cpu", "carried": carried}
    found["versions"] = {}
    for name in PACKAGES:
        try:
            found["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "memory_gib": properties.total_memory / 2**30}
        found["multiprocessors"] = properties.multi_processor_count
        found["l2_mib"] = getattr(properties, "L2_cache_size", 0) / 2**20
    return found


def clocks():
    """What nvidia-smi says of driver, clocks, power and temperature now; empty where there is none."""
    fields = "driver_version,clocks.sm,clocks.mem,clocks_throttle_reasons.active,power.draw,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields.split(","), done.stdout.strip().split(", "), strict=False)) if done.returncode == 0 else {}


def derive(report):
    """Writes into each row what follows from its times: shares of the copy's bandwidth, and the ratio to Liger.

    Nothing follows from those of an interpreter.
    """
    copy = report.get("ceilings", {}).get("copy_gbs")
    for case in report["cases"] if report["about"]["device"] != "cpu" else []:
        measured = [row for row in case["rows"] if row["status"] == "measured"]
        # Liger's first provider of a level, in place or in fp32, is what the others are compared with.
        liger = {row["level"]: _median(row) for row in reversed(measured) if row["provider"].startswith("Liger")}
        for row in measured:
            if row["level"] in liger:
                row["ratio_to_liger"] = liger[row["level"]] / _median(row)
            if copy and "elements" in case:
                whole = case["elements"] / _median(row) / 1e6 / copy
                row["floor_share"] = whole * case["floor_bytes_per_element"]
                if "bytes_per_element" in row:
                    row["bandwidth_share"] = whole * row["bytes_per_element"]
    report["goals"] = list(goals(report))


def _median(row):
    return row["total"]["quantiles"][1]


def goals(report):
    """Each goal: what was wanted, what was found and "met", "missed" or why neither can be said."""
    rows = {}
    for case in report["cases"] if report["about"]["device"] != "cpu" else []:
        if case["section"] in ("main", "linear"):
            about = {"gradients_mib": case.get("gradients_mib", 0)}
            rows |= {row["provider"]: row | about for row in case["rows"] if row["status"] == "measured"}

    def fastest(*names):
        return min((row for name, row in rows.items() if name.startswith(names)), key=_median, default={})

    def peak(row):
        return (row["peak_mib"] - row["gradients_mib"]) * 2**20 / 1e9 if row.get("peak_mib") else None

    def at(name):
        return lambda row: row.get(name)

    entropy = rows.get("grpokit two_kernel, in place, entropy term", {})
    one = fastest("grpokit one_kernel, in place")
    token = fastest("grpokit two_kernel, in place", "grpokit one_kernel")
    sequence, hidden = fastest("grpokit two_kernel, gspo"), fastest("grpokit from_hidden")
    # What, the row, its number, and what it must be; milliseconds are those of an H200.
    for what, row, number, least, most, unit in (
        ("two_kernel with an entropy term", entropy, _median, None, 3.9, "ms"),
        ("the same: its bytes at the copy's bandwidth, over its time", entropy, at("bandwidth_share"), 0.9, None, ""),
        ("one_kernel: one read and one write, likewise", one, at("floor_share"), 0.8, None, ""),
        ("our fastest at token level: Liger's time over its", token, at("ratio_to_liger"), 1.25, None, ""),
        ("our fastest at sequence level, likewise", sequence, at("ratio_to_liger"), 1.5, None, ""),
        ("from_hidden", hidden, _median, None, 95, "ms"),
        ("the same: the time of Liger's chunked loss over its", hidden, at("ratio_to_liger"), 6, None, ""),
        ("its peak memory over inputs and gradients", hidden, peak, None, 2.5, "GB"),
    ):
        found = number(row) if row else None
        wanted = f"≥ {least}" if most is None else f"≤ {most} {unit}"
        if found is None:
            verdict = "not measured"
        elif unit == "ms" and "H200" not in report["about"]["device"]:
            verdict = "measured on another GPU than an H200"
        else:
            verdict = "met" if (found >= least if most is None else found <= most) else "missed"
        provider = row.get("provider", "")
        yield {"goal": what, "provider": provider, "wanted": wanted, "found": found, "unit": unit, "verdict": verdict}


def page(report):
    """The report as Markdown."""
    who = report["about"]
    versions = ", ".join(f"{name} {v}" for name, v in who["versions"].items())
    lines = [
        "# The losses on a GPU",
        "",
        f"{who['device']}, Python {who['python']}, {versions}.",
        f"`{who['command']}`",
    ]
    if who["carried"]:
        lines += [f"Carried: {', '.join(f'{k} {v}' for k, v in who['carried'].items())}."]
    lines += ["", INTERPRETED if who["device"] == "cpu" else _how(), ""]
    if "ceilings" in report:
        c = report["ceilings"]
        found = f"copy {c['copy_gbs']:.0f} GB/s (read and written), read {c['read_gbs']:.0f} GB/s"
        lines += [f"Ceilings of this device: {found}, bf16 matrix product {c['matmul_tflops']:.0f} TFLOP/s.", ""]
    lines += ["## Goals", "", *goal_lines(report)]
    lines += ["", "## Sections", "", "| section | |", "|---|---|"]
    lines += [f"| {s['title']} | {s['status']} |" for s in report["sections"].values()]
    lines += ["", "## Checks", "", *_checks(report["checks"]), ""]
    for case in report["cases"]:
        lines += _case(report["sections"][case["section"]]["title"], case)
    if "first_calls" in report:
        lines += _first_calls(report["first_calls"])
    if "from_logps" in report:
        lines += ["## From log-probs, 8 × 2048 tokens", "", "| | median, µs | launches |", "|---|---:|---:|"]
        for r in report["from_logps"]:
            time = f"{1e3 * _median(r):.1f}" if r["status"] == "measured" else r["status"]
            lines.append(f"| {r['provider']} | {time} | {r.get('launches') or ''} |")
        lines.append("")
    counted = {r["provider"]: r["counted"] for c in report["cases"] for r in c["rows"] if "counted" in r}
    lines += [
        "## How bytes were counted",
        "",
        "Bytes an element of bf16 logits, 2 a read or a write of all of them.",
        "",
    ]
    lines += [f"- {name}: {how}." for name, how in counted.items()]
    return "\n".join(lines) + "\n"


def goal_lines(report):
    """The goals as a table."""
    yield from ("| goal | wanted | found | | by |", "|---|---|---:|---|---|")
    for g in report["goals"]:
        found = "" if g["found"] is None else f"{g['found']:.3g} {g['unit']}".strip()
        yield f"| {g['goal']} | {g['wanted']} | {found} | {g['verdict']} | {g['provider']} |"


def _how():
    return (
        "Milliseconds, median (10th to 90th percentile) of all calls in three rounds in which providers take turns;"
        " between two calls the logits are restored and 256 MB are written, outside of what is timed. B/el: bytes an"
        " element, counted. *Copy*: those bytes over the time, as a share of the copy's bandwidth; *floor*: the same of"
        " one read and one write of rows that have a gradient, one write of the others. *Liger*: its time, in place, at"
        " the same level over this one. *First*: the first call, compilation included. Peak memory is over the logits,"
        " or over hidden states and weight."
    )


def _checks(checks):
    yield "| provider | | loss off by | gradient off by | at most |"
    yield "|---|---|---:|---:|---:|"
    for c in checks:
        numbers = (c["loss_error"], c["gradient_error"], c["tolerance"])
        cells = " | ".join("" if x is None else f"{x:.1e}" for x in numbers)
        why = c["reason"] and ": " + c["reason"].replace("|", "/")
        yield f"| {c['provider']} | {c['status']}{why} | {cells} |"


def _case(title, case):
    levels = {row["level"] for row in case["rows"]}
    level = f", {levels.pop()} level" if len(levels) == 1 and "elements" in case else ""
    yield from (f"## {title[0].upper()}{title[1:]}: {case['case']}{level}", "")
    if not case["rows"]:
        return
    yield "| | total | forward | backward | B/el | copy | floor | Liger | peak MiB | launches | first |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"

    def times(q):
        return f"{q[1]:.3f} ({q[0]:.3f}–{q[2]:.3f})"

    def cell(row, name, form):
        return "" if row.get(name) is None else form.format(row[name])

    for row in case["rows"]:
        if row["status"] != "measured":
            yield f"| {row['provider']} | {row['status'].replace('|', '/')} |" + " |" * 9
            continue
        cells = [
            row["provider"],
            times(row["total"]["quantiles"]),
            f"{row['forward']['quantiles'][1]:.3f}",
            f"{row['backward']['quantiles'][1]:.3f}",
            cell(row, "bytes_per_element", "{:.1f}"),
            cell(row, "bandwidth_share", "{:.0%}"),
            cell(row, "floor_share", "{:.0%}"),
            cell(row, "ratio_to_liger", "{:.2f}"),
            cell(row, "peak_mib", "{:.0f}"),
            cell(row, "launches", "{}"),
            cell(row, "first_ms", "{:.0f}"),
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _first_calls(found):
    lengths = found["lengths"]
    yield from (f"## First calls of {len(lengths)} lengths, {lengths[0]} to {lengths[-1]}", "")
    yield from ("Milliseconds on the wall, the first with what is compiled once.", "")
    yield from ("| | first | median of the others | slowest of the others | all |", "|---|---:|---:|---:|---:|")
    for name, taken in found["milliseconds"].items():
        if len(taken) > 1:
            others = sorted(taken[1:])
            cells = taken[0], others[len(others) // 2], others[-1], sum(taken)
            yield f"| {name} | {' | '.join(f'{x:.0f}' for x in cells)} |"
    yield ""


def save(report, folder):
    """Writes gpu.json and gpu.md, each whole or not at all."""
    derive(report)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("gpu.json", json.dumps(report, indent=1)), ("gpu.md", page(report))):
        part = folder / f"{name}.part"
        part.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
        part.replace(folder / name)
