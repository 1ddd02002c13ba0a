"""What a report says, once, as plain data: the JSON twin, from which the page and the Markdown are made."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import grpokit
from grpokit.doctor import diagnose
from grpokit.output import SCHEMA_VERSION

from .configuration import differences, settings
from .from_rows import histograms, metrics_of
from .groups import groups
from .numbers import told
from .panels import panels
from .visible import line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpokit.doctor import Finding
    from grpokit.record import Metrics, Record

MOST_PROBLEMS = 30
SEVERITIES = ("error", "warning", "info")


def content(records: Sequence[Record], *, command: str = "", problems: Sequence[str] = ()) -> dict[str, Any]:
    """All that a report says.

    Parameters
    ----------
    records : sequence of Record
        One run, or two that are compared.
    command : str
        What made the report.
    problems : sequence of str
        What is to be said of inputs that could not be read at all.

    Returns
    -------
    dict
        Ready for JSON; ``schema_version`` grows when a name changes its meaning.
    """
    measured = [_metrics(record) for record in records]
    runs = [_run(record, metrics, at) for at, (record, metrics) in enumerate(zip(records, measured, strict=True))]
    drawn = panels(measured)
    for at, record in enumerate(records):
        if record.rows is not None:
            drawn += histograms(record.rows, at, several=len(records) > 1)
    configs = [record.config for record in records]
    return {
        "schema_version": SCHEMA_VERSION,
        "grpokit": grpokit.__version__,
        "command": command,
        "verdict": "; ".join(f"{run['letter']}: {run['verdict']}" if len(runs) > 1 else run["verdict"] for run in runs),
        "problems": list(problems),
        "runs": runs,
        "differences": differences(configs[0], configs[1])
        if len(configs) == 2 and configs[0] is not None and configs[1] is not None
        else None,
        "panels": drawn,
    }


def verdict(findings: Sequence[Finding]) -> str:
    """How many findings of which severity, or that there are none."""
    if not findings:
        return "nothing found"
    counted = {kind: sum(finding.severity == kind for finding in findings) for kind in SEVERITIES}
    names = {"error": ("error", "errors"), "warning": ("warning", "warnings"), "info": ("remark", "remarks")}
    return ", ".join(f"{n} {names[kind][n > 1]}" for kind, n in counted.items() if n)


def _metrics(record: Record) -> Metrics | None:
    if record.metrics is not None:
        return record.metrics
    return metrics_of(record.rows) if record.rows is not None else None


def _run(record: Record, metrics: Metrics | None, at: int) -> dict[str, Any]:
    findings = diagnose(record)
    rows, problems = record.rows, list(record.problems)
    read = None if rows is None else groups(rows, problems)
    return {
        "letter": "AB"[at],
        "path": str(record.path),
        "status": _status(record),
        "verdict": verdict(findings),
        "findings": [finding.to_dict() for finding in findings],
        "facts": _facts(record, metrics),
        "rows": None
        if rows is None
        else {"count": len(rows), "groups": rows.groups, "format": rows.format, "files": rows.files, "read": rows.read},
        "settings": None if record.config is None else settings(record.config),
        "summary": record.summary,
        "environment": record.environment,
        "problems": [line(text, 400) for text in problems[:MOST_PROBLEMS]],
        "problems_left_out": max(0, len(problems) - MOST_PROBLEMS),
        "groups": read,
        "reproduce": _reproduce(record),
    }


def _status(record: Record) -> str:
    if record.summary is not None:
        return line(str(record.summary.get("status", "unknown")), 40)
    if record.config is not None:
        return "has no summary: it goes on, or was killed"
    return "rollout files" if record.metrics is None else "log of a trainer"


def _facts(record: Record, metrics: Metrics | None) -> list[dict[str, str]]:
    """A few numbers for the head of the page, each with its name."""
    found: list[tuple[str, str]] = []
    if record.config is not None:
        found.append(("recipe", line(str(record.config.get("recipe", "–")), 40)))
        found.append(("seed", line(str(record.config.get("seed", "–")), 20)))
    if metrics is not None and len(metrics):
        found.append(("last step", told(float(metrics.steps_N[-1]))))
        held_out, errors = metrics.there("eval/pass@1")[1], metrics["eval/pass@1_stderr"]
        if len(held_out):
            known = errors[~(metrics["eval/pass@1"] != metrics["eval/pass@1"])]
            ends = [f"{held_out[i]:.3f}{f' ± {known[i]:.3f}' if known[i] == known[i] else ''}" for i in (0, -1)]
            found.append(("held-out pass@1", " → ".join(ends if len(held_out) > 1 else ends[:1])))
        rewards = metrics.trained().there("reward")[1]
        if len(rewards):
            found.append(("reward", f"{told(rewards[0])} → {told(rewards[-1])}"))
    summary = record.summary or {}
    if isinstance(summary.get("completions"), int) and isinstance(summary.get("used"), int):
        found.append(("completions used", f"{summary['used']:,} of {summary['completions']:,}"))
    elif record.rows is not None:
        found.append(("rows", f"{len(record.rows):,} in {record.rows.groups:,} groups"))
    if isinstance(summary.get("total_seconds"), int | float):
        found.append(("time", _duration(float(summary["total_seconds"]))))
    return [{"name": name, "value": value} for name, value in found]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _reproduce(record: Record) -> list[dict[str, str]]:
    """Commands, each with what it does."""
    place = shlex.quote(str(record.path))
    if record.config is None:
        return [{"what": "all findings, with what to do", "command": f"grpokit doctor {place}"}]
    found = []
    said = (record.environment or {}).get("command")
    if isinstance(said, str) and said:
        found.append({"what": "what was typed", "command": line(said, 2000)})
    file = shlex.quote(str(record.path / "config.toml"))
    what = "the same run again, to the bit with the same versions on the same kind of machine"
    found.append({"what": what, "command": f"grpokit train --config {file}"})
    if (record.path / "checkpoint").is_dir():
        found.append({"what": "its last evaluation again", "command": f"grpokit eval {place}"})
    found.append({"what": "all findings, with what to do", "command": f"grpokit doctor {place}"})
    return found
