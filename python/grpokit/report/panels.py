"""The curves of a report: which metrics go together, and what is seen in them in a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .decimate import decimated
from .numbers import finite, told
from .visible import line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpokit.record import Metrics

# Names that somebody else chose may be many.
MOST_SERIES = 6


@dataclass(frozen=True)
class Curve:
    """A metric, its label, and the metric that its band has above and below it."""

    metric: str
    label: str = ""
    spread: str | None = None


@dataclass(frozen=True)
class Panel:
    """What is drawn together.

    ``kind`` is ``lines`` or ``stack``; ``top`` is the highest value that there can be; ``log`` draws logarithms where
    all values are above 0; ``points`` marks each value, where there are few.
    """

    id: str
    title: str
    note: str
    curves: tuple[Curve, ...]
    kind: str = "lines"
    top: float | None = None
    log: bool = False
    points: bool = False
    zero: bool = field(default=True)


REASONS = "sampling/dropped/"
TIMES = ("generate", "reward", "logps", "backward", "optimizer", "sync", "other")
PANELS = (
    Panel("reward", "Reward", "mean of a step, ± the groups’ standard deviation", (Curve("reward", "", "reward_std"),)),
    Panel("functions", "Reward by function", "mean of a step", ()),
    Panel(
        "held_out",
        "Held-out pass@1",
        "± standard error over prompts",
        (Curve("eval/pass@1", "", "eval/pass@1_stderr"),),
        top=1.0,
        points=True,
    ),
    Panel("held_out_reward", "Held-out reward", "mean", (Curve("eval_reward", "", "eval_reward_std"),), points=True),
    Panel(
        "zero_variance",
        "Groups without signal",
        "share whose rewards are all equal",
        (Curve("frac_reward_zero_std"),),
        top=1.0,
    ),
    Panel("kept", "Kept and dropped", "share of the sampled completions, by first reason", (), kind="stack", top=1.0),
    Panel(
        "length",
        "Completion length",
        "tokens",
        (
            Curve("completions/mean_length", "mean"),
            Curve("completions/length_p90", "90 %"),
            Curve("completions/max_length", "longest"),
        ),
    ),
    Panel(
        "truncated",
        "Truncated",
        "share that was cut at the length limit",
        (Curve("completions/clipped_ratio"),),
        top=1.0,
    ),
    Panel("entropy", "Entropy", "nats a token", (Curve("entropy"),)),
    Panel(
        "clip",
        "Clipped tokens",
        "share whose gate is closed, by side",
        (Curve("clip_ratio/low_mean", "low"), Curve("clip_ratio/high_mean", "high")),
        top=1.0,
    ),
    Panel("kl", "KL to the reference", "nats a token", (Curve("kl"),)),
    Panel("gradient", "Gradient norm", "before it is cut", (Curve("grad_norm"),)),
    Panel(
        "gap",
        "Trainer and sampler apart",
        "difference of a token’s log-probs",
        (
            Curve("sampling/sampling_logp_difference/mean", "mean"),
            Curve("sampling/sampling_logp_difference/max", "largest"),
        ),
        log=True,
    ),
    Panel(
        "ratio",
        "Ratio to the sampler",
        "of a token, quantiles",
        (
            Curve("mismatch/ratio_max", "largest"),
            Curve("mismatch/ratio_p99", "99 %"),
            Curve("mismatch/ratio_p50", "median"),
            Curve("mismatch/ratio_p1", "1 %"),
            Curve("mismatch/ratio_min", "smallest"),
        ),
        zero=False,
    ),
    Panel(
        "ess",
        "Effective sample size",
        "share of the sample",
        (
            Curve("mismatch/ess_token", "tokens"),
            Curve("mismatch/ess_sequence", "sequences"),
            Curve("mismatch/ess_current", "after updates"),
        ),
        top=1.0,
        zero=False,
    ),
    Panel(
        "staleness",
        "Staleness",
        "updates between sampling and learning",
        (Curve("staleness/mean", "mean"), Curve("staleness/max", "largest")),
    ),
    Panel("rate", "Learning rate", "", (Curve("learning_rate"),)),
    Panel(
        "time",
        "Time of a step",
        "seconds",
        tuple(Curve(f"time/{name}", name) for name in TIMES),
        kind="stack",
    ),
)
HELD_OUT = ("eval/pass@1", "eval_reward")


def panels(runs: Sequence[Metrics | None]) -> list[dict[str, Any]]:
    """All panels that the metrics fill, as plain data; of two runs each curve is there twice.

    Parameters
    ----------
    runs : sequence of Metrics or None
        None where a run has none.
    """
    made = []
    for panel in PANELS:
        parts = [(at, _series(panel, of, at)) for at, of in enumerate(runs) if of is not None]
        if panel.kind == "stack":
            # Areas cannot lie over each other.
            split = [([at], series) for at, series in parts]
        else:
            split = [([at for at, _ in parts], [one for _, series in parts for one in series])]
        made += [_panel(panel, at, series, several=len(runs) > 1) for at, series in split if series]
    return made


def _panel(panel: Panel, runs: list[int], series: list[dict[str, Any]], *, several: bool) -> dict[str, Any]:
    # Of two runs each curve says whose it is, and areas do in their title.
    alone = several and panel.kind == "stack"
    return {
        "id": panel.id if panel.kind != "stack" or runs == [0] else f"{panel.id}-{runs[0]}",
        "title": f"{panel.title}, {'AB'[runs[0]]}" if alone else panel.title,
        "compared": several,
        "note": panel.note,
        "kind": panel.kind,
        "top": panel.top,
        "log": panel.log,
        "points": panel.points,
        "zero": panel.zero,
        "description": " ".join(_sentence(panel.title, one, several=several) for one in series[:MOST_SERIES]),
        "series": series,
    }


def _series(panel: Panel, metrics: Metrics, run: int) -> list[dict[str, Any]]:
    if panel.id == "rate" and len(np.unique(metrics.trained().there("learning_rate")[1])) < 2:
        return []
    if panel.kind == "stack":
        return _stack(panel, metrics, run)
    curves = panel.curves
    if panel.id == "functions":
        names = [name for name in metrics.columns if name.startswith("rewards/") and name.endswith("/mean")]
        curves = tuple(Curve(name, name[len("rewards/") : -len("/mean")]) for name in names[:MOST_SERIES])
    found = []
    for curve in curves:
        of = metrics if curve.metric in HELD_OUT else metrics.trained()
        steps, values = of.there(curve.metric)
        if not len(steps):
            continue
        spread = None
        if curve.spread is not None and curve.spread in of:
            spread = np.nan_to_num(of[curve.spread][np.isfinite(of[curve.metric])])
        found.append(_one(run, curve, steps, values, spread=spread))
    return found


def _stack(panel: Panel, metrics: Metrics, run: int) -> list[dict[str, Any]]:
    """Areas one on another, all of the same steps; what a step does not name is 0 in it."""
    trained = metrics.trained()
    if panel.id == "kept":
        reasons = sorted(name for name in trained.columns if name.startswith(REASONS))[: MOST_SERIES - 1]
        curves = [Curve("sampling/kept_share", "kept")]
        curves += [Curve(name, name[len(REASONS) :].replace("_", " ")) for name in reasons]
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = {name: trained[name] / trained["sampling/completions"] for name in reasons}
        columns = {"sampling/kept_share": trained["sampling/kept_share"], **shares}
        known = np.isfinite(trained["sampling/kept_share"])
    else:
        columns = {curve.metric: trained[curve.metric] for curve in panel.curves if curve.metric in trained}
        curves = [curve for curve in panel.curves if curve.metric in columns]
        known = np.zeros(len(trained), bool)
        for values in columns.values():
            known |= np.isfinite(values)
    if not known.any():
        return []
    parts = {name: np.where(np.isfinite(values), values, 0.0)[known] for name, values in columns.items()}
    shown = [curve for curve in curves if parts[curve.metric].any()]
    if not shown:
        return []
    total = parts[shown[0].metric] if panel.id == "kept" else sum(parts[curve.metric] for curve in shown)
    at = decimated(np.asarray(total))
    return [_one(run, curve, trained.steps_N[known], parts[curve.metric], at=at) for curve in shown]


def _one(run: int, curve: Curve, steps: Any, values: Any, *, spread: Any = None, at: Any = None) -> dict[str, Any]:
    at = decimated(values) if at is None else at
    lowest, highest = int(values.argmin()), int(values.argmax())
    found: dict[str, Any] = {
        "run": run,
        "metric": line(curve.metric, 80),
        "label": line(curve.label, 24),
        "count": len(values),
        "first": finite(values[0]),
        "last": finite(values[-1]),
        "lowest": finite(values[lowest]),
        "lowest_step": int(steps[lowest]),
        "highest": finite(values[highest]),
        "highest_step": int(steps[highest]),
        "steps": steps[at].tolist(),
        "values": [finite(value) for value in values[at].tolist()],
    }
    if spread is not None:
        found["low"] = [finite(value) for value in (values - spread)[at].tolist()]
        found["high"] = [finite(value) for value in (values + spread)[at].tolist()]
    return found


def _sentence(title: str, one: dict[str, Any], *, several: bool) -> str:
    what = f"{title}, {one['label']}" if one["label"] else title
    run = f", run {'AB'[one['run']]}" if several else ""
    if one["count"] == 1:
        return f"{what}{run}: {told(one['last'])} at step {one['steps'][0]:,}."
    return (
        f"{what}{run}: {told(one['first'])} at step {one['steps'][0]:,}, {told(one['last'])} at step "
        f"{one['steps'][-1]:,}; lowest {told(one['lowest'])} at {one['lowest_step']:,}, highest "
        f"{told(one['highest'])} at {one['highest_step']:,}."
    )
