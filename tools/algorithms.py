"""Writes docs/algorithms.md and its plots from the register of recipes: `make docs`, or `python tools/algorithms.py DIR`.

In: the recipes, stages and reference of the installed package, and the tests of the identities for what they say. Out:
algorithms.md and gates/*.svg. The gates are drawn from the reference's gradients, so the page shows what is proven.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
from pathlib import Path

import grpokit as gk
from grpokit.advice import table
from grpokit.explain import equation, facts, labelled, symbols
from grpokit.reference import loss as reference
from grpokit.stages import EXAMPLES, REGISTRY, of_papers
from grpokit.testing.laws import ALWAYS_HELD, LAWS

ROOT = Path(__file__).parent.parent
REDUCTIONS = ROOT / "tests" / "objective" / "test_reductions.py"
KL_TABLE = """\
| estimator, x = log π − log π_ref | value, on rollouts of π | gradient as a term of the loss | as a penalty of the reward |
|---|---|---|---|
| k1 = x | unbiased | 0: it regularises nothing | ∇KL(π ‖ π_ref) of whole answers |
| k2 = x²/2 | biased | ∇KL(π ‖ π_ref) in each token's own state | ∇E[Σ x²/2] of whole answers, less what the loss term has |
| k3 = e^−x + x − 1 | unbiased | ∇KL(π_ref ‖ π) in each token's own state | ∇KL(π ‖ π_ref) of whole answers, less what the loss term has |
| k1 or k3, `corrected=True`, on rollouts of π_old | unbiased in each state | ∇KL(π ‖ π_ref) in each token's own state | |"""


def page() -> str:
    """The text of docs/algorithms.md."""
    recipes = {name: gk.recipe(name, **EXAMPLES[name]) for name in of_papers("recipe")}
    parts = [
        "# The algorithms",
        "<!-- Written by tools/algorithms.py (make docs); a test keeps it fresh. -->",
        _introduction(recipes),
        "## The family\n\nWhat each recipe changes in the one above it.\n\n" + "\n".join(_tree(recipes)),
        _table(recipes),
        "## Which one\n\nWhat to start from: the first row of a recipe that applies, and all rows of settings. `grpokit "
        "recipes --advise` says the same for a situation, with reasons and caveats; measure on your own task.\n\n"
        + table(),
        "## The recipes",
        *(_recipe(recipe, recipes) for recipe in recipes.values()),
        _advantages(),
        "## Corrections\n\nWeights for the difference between sampler and trainer, and for old data, compose with every "
        "recipe: [off_policy.md](off_policy.md) has the table, and when each helps.",
        "## KL and entropy\n\n"
        + KL_TABLE
        + "\n\nEach line is proven by enumerating every sequence of a small vocabulary "
        "(`tests/objective/test_kl.py`). A term of the loss takes each token's state as given; what a token does to the "
        "states behind it is only in the return of a penalised reward (`KLPenalty`, and token by token "
        "`GlobalNorm(beta=...)`).\nThe entropy H of a token's distribution p has ∂H/∂z_v = −p_v (log p_v + H) for the "
        "logits z; `from_logits` computes it.\n`AdaptiveKL` (arXiv:1909.08593) and `AdaptiveEntropy` (arXiv:2505.22312) "
        "steer the coefficients: `--set kl_control.target=...`, `--set entropy_control.target=...`.",
        _arithmetic(),
        "## Identities\n\nEach is a test of `tests/objective/test_reductions.py`.\n\n"
        + "\n".join(f"- {line}" for line in identities()),
        "## Laws\n\n`grpokit.testing.laws.check(objective)` checks them for any objective, yours too. These four may be "
        "declared broken, with a reason, and are then checked to be broken:\n\n"
        + "\n".join(f"- **{name}**: {text}." for name, text in LAWS.items())
        + "\n\nThese hold for all:\n\n"
        + "\n".join(f"- **{name}**: {text}." for name, text in ALWAYS_HELD.items())
        + "\n\n| objective | breaks | reason |\n|---|---|---|\n"
        + "\n".join(_breaks()),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(recipes: dict[str, gk.Recipe]) -> str:
    return (
        f"What {len(recipes)} algorithms of the GRPO family exactly are, as grpokit runs them: equation, gradient, every "
        "number and where it is from, and how other libraries differ. `grpokit recipes NAME` prints the same.\n\n"
        "Every loss has one form, over the live tokens t of an optimizer step:\n\n"
        "    LOSS = Σ_k scale_k · Σ_t c_kt · w_kt · value_kt\n\n"
        "value is the objective's, the only thing with a gradient; w are corrections (0 drops the token); c is one over "
        "the whole step's denominator, however it is cut into micro-batches. All that a model sees of an algorithm is "
        "g = ∂LOSS/∂log π and h = ∂LOSS/∂H of each token.\n\n"
        "Notation: π the policy, π_old that of the rollouts as the trainer recomputed it, r = π / π_old, A the advantage "
        "(a constant), R the reward, G answers o_i to a prompt, N answers in the step, |o_i| their tokens, sg(·) a "
        "stop-gradient. Bounds are inclusive, with the gradient on at the bound; they are compared with log r, and |log r| "
        "is limited to 20 in the ratio. Each plot shows −g, the pull on log π, for A = +1 (blue) and A = −1 (orange) of "
        "an answer of one token, over r; dotted is the plain policy gradient."
    )


def _tree(recipes: dict[str, gk.Recipe], parent: str = "", indent: str = "") -> list[str]:
    lines = []
    children = [name for name, recipe in recipes.items() if recipe.parent == parent]
    for name in children:
        lines.append(f"{indent}- [{name}](#{name}): {_summary(name)}")
        lines += _tree(recipes, name, indent + "  ")
    return lines


def _summary(name: str) -> str:
    """The first sentence below the docstring's title."""
    text = " ".join((REGISTRY["recipe"][name].__doc__ or "").split("\n\n")[1].split())
    return re.split(r"(?<!eq)(?<!eqs)\.(?:\s|$)", text)[0]


def _table(recipes: dict[str, gk.Recipe]) -> str:
    lines = ["| recipe | paper | advantage | objective | averaged over | further terms |", "|---|---|---|---|---|---|"]
    for name, recipe in recipes.items():
        extra = ", ".join(
            f"{t.scale:g} {type(t.objective).__name__} {getattr(t.objective, 'kind', '')}" for t in recipe.extra
        )
        paper = ", ".join(_linked(p.split(", ")[-1]) for p in recipe.papers)
        stages = [type(getattr(recipe, f)).__name__ for f in ("advantage", "objective", "aggregate")]
        lines.append(f"| [{name}](#{name}) | {paper} | {' | '.join(stages)} | {extra} |")
    return "\n".join(lines)


def _recipe(recipe: gk.Recipe, recipes: dict[str, gk.Recipe]) -> str:
    call = ", ".join([repr(recipe.name), *(f"{k}={v!r}" for k, v in EXAMPLES[recipe.name].items())])
    text = " ".join((REGISTRY["recipe"][recipe.name].__doc__ or "").split("\n\n")[1].split())
    papers = "; ".join(f"{', '.join(p.split(', ')[:-1])}, {_linked(p.split(', ')[-1])}" for p in recipe.papers)
    lines = [f"### {recipe.name}", f"{papers}. `gk.recipe({call})`", text]
    if recipe.experimental:
        lines.append(f"**Experimental**: {recipe.experimental}")
    shaped = "".join(f"    R becomes {stage.equation}\n" for stage in recipe.shape)
    known = "".join(f"    {line}\n" for line in symbols(recipe))
    known += "".join(f"    {type(w).__name__}: {w.equation}\n" for term in recipe.terms for w in term.weigh)
    further = "".join(
        f"\n    {type(t.objective).__name__}: {t.objective.gradient}, times {t.scale:g}" for t in recipe.extra
    )
    loss = f"{equation(recipe)}\n{known}    {recipe.objective.gradient}{further}"
    lines.append(f"{shaped}    {recipe.advantage.equation}\n    {loss}")
    lines.append(f"![the gate of {recipe.name}](gates/{drawn(recipe, recipes)}.svg)")
    rows = []
    for label, stage, known in labelled(recipe):
        for parameter, value, where in known or [("", "", "")]:
            cells = (label, type(stage).__name__, parameter, value, where)
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    lines.append("| stage | | number | value | from |\n|---|---|---|---|---|\n" + "\n".join(rows))
    if facts(recipe):
        lines.append("What the numbers amount to:\n\n" + "\n".join(f"- {fact}" for fact in facts(recipe)))
    if recipe.elsewhere:
        lines.append("Elsewhere:\n\n" + "\n".join(f"- {library}: {what}" for library, what in recipe.elsewhere))
    lines.append(f"Left out: {recipe.leaves_out}")
    return "\n\n".join(lines)


def _linked(arxiv: str) -> str:
    return f"[{arxiv}](https://arxiv.org/abs/{arxiv.removeprefix('arXiv:')})" if arxiv.startswith("arXiv:") else arxiv


def _advantages() -> str:
    lines = [
        "## Advantages",
        "Each composes with every objective: `gk.recipe('gspo_token').replace(advantage=gk.MeanBaseline())`.",
    ]
    rows = ["| estimator | A | relative to | numbers | left out | paper |", "|---|---|---|---|---|---|"]
    for name, cls in of_papers("advantage").items():
        head = (cls.__doc__ or "").split("\n")[0]
        found = head[head.rfind("arXiv:") :].split(")")[0].split(",")[0] if "arXiv:" in head else ""
        one = cls(**cls.example)
        shown = one.equation.replace("|", "\\|")
        alone = "its group, which may be of one" if one.scope == "group" else "nothing"
        signal = {"group": "its group", "batch": "the batch", "none": alone}[one.signal]
        own = "; ".join(f"{k} = {getattr(one, k)!r}: {where}" for k, where in one.sources.items())
        rows.append(f"| {name} | {shown} | {signal} | {own} | {one.leaves_out} | {_linked(found)} |")
    return "\n\n".join([*lines, "\n".join(rows)])


def _arithmetic() -> str:
    a = gk.arithmetic
    grow = " and ".join(f"{a.steps_to_grow(0.01, 0.1, high):.1f} at high = {high}" for high in (0.2, 0.28))
    gaps = ", ".join(f"{a.growth_gap(n, 0.2, 0.28):.3g}" for n in (20, 50, 100))
    shares = ", ".join(f"{a.zero_variance_share(p, 8):.1%} at p = {p}" for p in (0.05, 0.2, 0.5, 0.8, 0.95))
    return f"""## The arithmetic that explains them

- Under a saturated clip a token's probability grows by (1 + high) a step (from one π_old to the next): from 0.01 to 0.1 it takes {grow}.
- The gap between the two, (1.28 / 1.2)^n, is {gaps} after 20, 50, 100 steps. (A popular walk-through prints 1.7, 3.7, 14.)
- The upper clip cannot bind above p = 1 / (1 + high), {a.never_clipped_above(0.2):.2f} for 0.2: it holds rare tokens alone.
- A product of 1,024 ratios of 1.2 is 10^{a.decades_of_product(1.2, 1024):.0f}; sequence ratios are kept as logarithms here.
- Of groups of 8, p^8 + (1 − p)^8 have no signal: {shares}.
- DAPO's soft punishment runs from 16,384 to 20,480 tokens: `Overlong(20_480, 4_096)`. Reading L_max as the length before the
  cache gives 12,288 to 16,384: `Overlong(16_384, 4_096)`.
- Dividing by the standard deviation weighs a prompt that is solved with probability p by 1/√(p (1 − p)):
  {", ".join(f"{a.std_weight(p):.1f} at {p}" for p in (0.5, 0.1, 0.01))}. Its expected gradient, for 0/1 rewards, on-policy and with ddof 0, is
  then √(p (1 − p)) times E[∇log π | right] − E[∇log π | wrong]; without the division p (1 − p) times it: {", ".join(f"{a.signal_with_std(p):.2f} and {a.signal_without_std(p):.3f} at {p}" for p in (0.5, 0.1, 0.01))}."""


def identities() -> list[str]:
    """The first lines of the tests of the identities."""
    module = ast.parse(REDUCTIONS.read_text(encoding="utf-8"))
    tests = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return [" ".join((ast.get_docstring(test) or "").split()) for test in tests]


def _breaks() -> list[str]:
    rows = []
    for name, cls in of_papers("objective").items():
        reasons: dict[str, list[str]] = {}
        for law, reason in cls(**cls.example).breaks.items():
            reasons.setdefault(reason, []).append(law)
        rows += [f"| {name} | {', '.join(laws)} | {reason} |" for reason, laws in reasons.items()] or [
            f"| {name} | | |"
        ]
    return rows


def drawn(recipe: gk.Recipe, recipes: dict[str, gk.Recipe]) -> str:
    """Whose plot shows the recipe's gate: the first recipe that has the same objective."""
    return next(name for name, other in recipes.items() if other.objective == recipe.objective)


def pull(recipe: gk.Recipe, log_ratio: float, A: float, *, off_policy: float = 0.0) -> float:
    """−g of an answer of one token at that log-ratio, by the reference."""
    plain = {"stage": type(recipe.objective).__name__} | {
        f.name: getattr(recipe.objective, f.name) for f in dataclasses.fields(recipe.objective)
    }
    # The old policy gives the token a tenth; of a demonstration the policy itself has the probability e^log_ratio.
    old = 0.0 if off_policy else -2.302585092994046
    row = {"advantages": [A], "old_logps": [old], "rollout_logps": [old], "off_policy": [off_policy]}
    alone = {
        "objective": plain,
        "correct": [],
        "aggregate": {"stage": "SequenceMean", "over": "rows"},
        "ratio": recipe.ratio,
    }
    return -reference.gradient([row], alone, [{"logps": [old + log_ratio], "entropies": [0.0]}])[0]["logps"][0]


def draw(recipe: gk.Recipe, path: Path) -> None:
    """The gate as an SVG."""
    import math

    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    grey = "#808080"
    style = {
        "svg.hashsalt": "grpokit", "svg.fonttype": "none", "font.size": 9, "axes.edgecolor": grey, "xtick.color": grey,
        "ytick.color": grey, "axes.labelcolor": grey, "text.color": grey, "axes.spines.top": False,
        "axes.spines.right": False, "figure.constrained_layout.use": True,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure, axes = plt.subplots(figsize=(4.6, 2.4))
        shows = "off_policy" in recipe.objective.reads
        near = getattr(recipe.objective, "high", None) or 1.0
        span = 4 * near if type(recipe.objective).__name__.startswith("SequenceClip") else 1.6
        grid = [span * (i / 160 - 1) for i in range(321)]
        for A, color in ((1.0, "#0072B2"), (-1.0, "#D55E00")):
            # A gap where the pull jumps, so that a closed gate is no slope.
            ys = [pull(recipe, d, A) for d in grid]
            ys = [math.nan if i and abs(y - ys[i - 1]) > 0.25 * max(1.0, abs(y)) else y for i, y in enumerate(ys)]
            axes.plot(
                [math.exp(d) for d in grid], [round(y, 4) for y in ys], color=color, lw=1.8, label=f"A = {A:+.0f}"
            )
            if shows:
                xs = [0.005 * i for i in range(1, 201)]
                demo = [round(pull(recipe, math.log(x), A, off_policy=1.0), 4) for x in xs]
                axes.plot(xs, demo, color=color, lw=1.2, ls="--", label=f"A = {A:+.0f}, demonstration, over π")
            axes.axhline(A, color=color, lw=0.7, ls=":")
        axes.axhline(0, color=grey, lw=0.6)
        axes.axvline(1, color=grey, lw=0.6)
        top = max(2.2, min(4.0, 1.1 * max(abs(pull(recipe, 0.0, A)) for A in (1.0, -1.0))))
        axes.set_ylim(-top, top)
        if max(abs(pull(recipe, d, A)) for d in grid[::40] for A in (1.0, -1.0)) < 0.1:
            small = 1.3 * max(abs(pull(recipe, d, A)) for d in grid for A in (1.0, -1.0))
            axes.set_ylim(-small, small)
        axes.set_xlabel("r = π / π_old" if recipe.ratio == "old" else "r = π / π_sampler")
        axes.set_ylabel("pull on log π, −g")
        axes.legend(frameon=False, fontsize=8, labelcolor=grey)
        figure.savefig(path, metadata={"Date": None, "Creator": None}, transparent=True)
        plt.close(figure)


def write(directory: Path) -> None:
    """The page and its plots."""
    (directory / "gates").mkdir(parents=True, exist_ok=True)
    (directory / "algorithms.md").write_text(page(), encoding="utf-8")
    recipes = {name: gk.recipe(name, **EXAMPLES[name]) for name in of_papers("recipe")}
    for name, recipe in recipes.items():
        if drawn(recipe, recipes) == name:
            draw(recipe, directory / "gates" / f"{name}.svg")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
