"""The text of docs/scoreboard.md from what was measured."""

from .entries import LIBRARIES

MARKS = {"holds": "✓", "departs": "✗", "choice": "c", "not looked at": "·"}
KINDS = {
    "loss": "Losses",
    "advantage": "Advantages",
    "filter": "Filters",
    "kl": "KL estimators",
    "aggregate": "Aggregations",
}
UNCOVERED = [
    "compiled kernels: Triton runs in its interpreter, on a processor; nothing runs on a GPU or under `torch.compile`",
    "several ranks, and how a trainer cuts a step into micro-batches; the law `split` tells a function the whole step's "
    "counts where it takes them",
    "sampling and forward passes: log-probs, masks and rewards are given",
    "TRL: weights for the sampler's log-probs, entropy terms and masks, off-policy masks, `scale_rewards='batch'`, "
    "`normalize_then_sum`, AsyncGRPO, RLOOTrainer",
    "verl: `dppo_tv`, `dppo_kl`, `dro`, `bypass_mode`; `clip_cov`, which draws by lot; `kl_cov`, where the paper does not "
    "say which of equal covariances counts; `token-sum`; `gae`, `gdpo`, `grpo_passk` and the token-level baselines; "
    "rollout correction",
    "Liger-Kernel: `cispo` and `vespo` of the Triton kernel, which read log π itself, where the wrapper lowers all "
    "log-probs by 1; the chunked loss begins at its log-probs, its linear layer is not run",
]


def page(results):
    """The whole page.

    Parameters
    ----------
    results : dict
        ``versions`` and ``entries``, as `benches/results/scoreboard.json` has them.
    """
    entries = results["entries"]
    parts = [
        "# Scoreboard",
        "<!-- Written by tools/scoreboard.py (make scoreboard); a test keeps it in step with benches/results. -->",
        _introduction(results["versions"]),
        "## Departures by law\n\n" + _by_law(entries),
        "## Summary\n\n" + "\n\n".join(_summaries(entries)),
    ]
    for library, (title, package) in LIBRARIES.items():
        if library == "ours":
            continue
        parts.append(f"## {title} {results['versions'][package]}")
        parts += _findings(library, entries)
    parts += [
        "## Not looked at\n\n" + _skipped(entries),
        "## Not covered\n\n" + "\n".join(f"- {x}." for x in UNCOVERED),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(versions):
    told = [f"{title} {versions[package]}" for title, package in LIBRARIES.values()]
    with_ = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "numpy", "hypothesis"))
    return (
        f"What the conformance kit (`grpokit conform`) says of {', '.join(told[:-1])} and {told[-1]}; with {with_}.\n\n"
        "A law is a statement that holds of every implementation of a recipe: its value, its gradient, that what is "
        "behind the mask does not matter, that equal rewards have no advantage, and so on. For each law the kit draws "
        "inputs, compares with a float64 reference, and shows the smallest input at which the two part. The wrappers in "
        "`benches/scoreboard` give a library's function plain argument names and call it; a recipe is held against it "
        "with the bounds and coefficients that the function has.\n\n"
        "- **✓ holds**: at every input that was drawn.\n"
        "- **✗ departs**: at the input that is shown.\n"
        "- **c, choice**: it departs, and the library says so in its documentation, or has a branch for it in its source.\n"
        "- **· not looked at**: the law does not apply; the reasons are [below](#not-looked-at).\n\n"
        "A departure is a difference from the recipe as it is written here, not a judgement of what it does to a run. "
        "`make scoreboard` writes this page. Each finding has its own command, to be run in the root of a clone after "
        "`make .peers/.installed`; it takes less than a minute. grpokit's own lines are asked in the same way."
    )


def _by_law(entries):
    """What departs, one line a law and mistake."""
    groups = {}
    for name, entry in entries.items():
        for law, verdict in entry["laws"].items():
            if verdict["verdict"] == "departs":
                groups.setdefault((entry["kind"], law, verdict.get("guess_says", "")), []).append(f"`{name}`")
    lines = ["| of | law | known mistake | implementations |", "|---|---|---|---|"]
    for (kind, law, says), names in sorted(groups.items(), key=lambda item: list(KINDS).index(item[0][0])):
        lines.append(f"| {kind} | `{law}` | {says} | {', '.join(names)} |")
    return "\n".join(lines)


def _summaries(entries):
    for kind, title in KINDS.items():
        rows = {name: entry for name, entry in entries.items() if entry["kind"] == kind}
        if not rows:
            continue
        laws = list(next(iter(rows.values()))["laws"])
        head = "| implementation | against | " + " | ".join(f"`{law}`" for law in laws) + " |"
        lines = [head, "|---|---|" + ":-:|" * len(laws)]
        for name, entry in rows.items():
            marks = " | ".join(MARKS[entry["laws"][law]["verdict"]] for law in laws)
            lines.append(f"| `{name}` | {_code(entry['against'])} | {marks} |")
        yield f"### {title}\n\n" + "\n".join(lines)


def _code(text):
    return f"`{text}`"


def _findings(library, entries):
    """A section for each implementation with a law that does not hold."""
    for name, entry in entries.items():
        told = {law: v for law, v in entry["laws"].items() if v["verdict"] in ("departs", "choice")}
        if not name.startswith(f"{library}:"):
            continue
        what = f"### `{name}`\n\n{entry['calls']}, against {_code(entry['against'])}."
        if not told:
            held = sum(v["verdict"] == "holds" for v in entry["laws"].values())
            yield f"{what} All {held} laws that were looked at hold."
            continue
        yield "\n\n".join([what, *(_finding(law, verdict) for law, verdict in told.items())])


def _finding(law, verdict):
    says = f"**`{law}`: {verdict['verdict']}.** {verdict['problem'][:1].upper()}{verdict['problem'][1:]}"
    if "expected" in verdict or "got" in verdict:
        says += f": expected {_code(_short(verdict.get('expected', '')))}, got {_code(_short(verdict.get('got', '')))}"
    says += "."
    if verdict["verdict"] == "departs" and "guess" in verdict:
        says += f" Known as `{verdict['guess']}`: {verdict['guess_says']}."
    if "reason" in verdict:
        says += f" {verdict['reason'][:1].upper()}{verdict['reason'][1:]}."
    return (
        f"{says}\n\n<details><summary>smallest input, command</summary>\n\n```py\n{verdict['snippet']}\n```\n\n"
        f"```sh\n{verdict['command']}\n```\n\n</details>"
    )


def _short(text):
    return text if len(text) <= 60 else f"{text[:57]}..."


def _skipped(entries):
    reasons = {}
    for name, entry in entries.items():
        for law, verdict in entry["laws"].items():
            if verdict["verdict"] == "not looked at":
                reasons.setdefault((law, verdict["reason"]), []).append(f"`{name}`")
    lines = ["<details><summary>by law and reason</summary>\n", "| law | reason | implementations |", "|---|---|---|"]
    for (law, reason), names in reasons.items():
        lines.append(f"| `{law}` | {reason} | {', '.join(names)} |")
    return "\n".join([*lines, "\n</details>"])
