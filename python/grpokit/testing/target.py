"""What an implementation is held against: a recipe, or one stage of it, as far as its arguments reach."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpokit._recipe import Recipe, recipe
from grpokit.advantage import Given
from grpokit.errors import error
from grpokit.objective import KL, Clip, GeometricClip
from grpokit.settings import read_stage
from grpokit.stages import REGISTRY, load

from . import oracle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from grpokit.stages import Stage

_FIELDS = {"advantage": "advantage", "aggregate": "aggregate", "kl": "objective", "filter": "select"}


_COLUMNS = frozenset({"ref_logps", "rollout_logps", "entropies"})


@dataclass(frozen=True, eq=False)
class Target:
    """What is right.

    Attributes
    ----------
    kind : str
        One of `arguments.KINDS`.
    name : str
        Of the recipe or the stage, as given.
    recipe : Recipe
        The recipe; of a single stage one that holds it.
    stages : tuple of Stage
        The stages of the kind, for what is not a loss.
    left_out : tuple of (str, str)
        Parts of the recipe that the function has no argument for, and why.
    on_policy : bool
        Whether the function has no old log-probs.
    """

    kind: str
    name: str
    recipe: Recipe
    stages: tuple[Stage, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    on_policy: bool = False
    spec: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        whole = self.kind == "loss"
        object.__setattr__(self, "spec", oracle.described(self.recipe) if whole else oracle.plain(self.stages[0]))

    @property
    def equation(self) -> str:
        """What it computes."""
        if self.kind == "loss":
            lines = self.recipe.explain().splitlines()
            found = [line.strip() for line in lines if "LOSS" in line or line.lstrip().startswith(("+", "−"))]
            return found[0] if found else str(self.recipe.objective.equation)
        return " · ".join(str(stage.equation) for stage in self.stages)

    @property
    def paper(self) -> str:
        """Where it is from."""
        return self.recipe.papers[0] if self.recipe.papers else ""

    @property
    def numbers(self) -> dict[str, Any]:
        """The recipe's numbers by their stages' names."""
        if self.kind == "loss":
            return oracle.numbers(self.spec)
        return {k: v for k, v in self.spec.items() if k != "stage"}

    @property
    def bounds(self) -> tuple[float, ...]:
        """The bounds of the ratio to the old policy, as ratios."""
        found: list[float] = []
        for term in self.recipe.terms:
            low, high, dual = (getattr(term.objective, name, None) for name in ("low", "high", "dual"))
            if isinstance(term.objective, GeometricClip):
                found += [math.exp(-low)] if low is not None else []
                found += [math.exp(high)] if high is not None else []
            else:
                found += [1 - low] if low is not None else []
                found += [1 + high] if high is not None else []
            found += [dual] if dual is not None else []
        return tuple(dict.fromkeys(x for x in found if x > 0)) or (0.8, 1.2)

    @property
    def weights(self) -> tuple[float, ...]:
        """The bounds of the corrections' ratios."""
        found = [
            getattr(stage, name, None)
            for term in self.recipe.terms
            for stage in term.weigh
            for name in ("low", "high", "cap")
        ]
        return tuple(dict.fromkeys(x for x in found if isinstance(x, float) and x > 0)) or (0.5, 2.0)

    @property
    def batch_scope(self) -> bool:
        """Whether a weight reads the whole batch, so that ties between tokens matter."""
        return any(stage.scope == "batch" for term in self.recipe.terms for stage in term.weigh)

    @property
    def unread(self) -> frozenset[str]:
        """The columns of a loss that the recipe does not read; an argument for one is a part that it does not have."""
        stages = [stage for term in self.recipe.terms for stage in (term.objective, *term.weigh)]
        read = {name for stage in stages for name in (*stage.reads, f"{getattr(stage, 'to', '')}_logps")}
        read |= {f"{self.recipe.ratio}_logps"}
        return frozenset() if self.kind != "loss" else _COLUMNS - read

    def within(self, sources: frozenset[str]) -> Target:
        """What of it a function with such arguments can do; what it cannot is left out, with the reason."""
        if self.kind != "loss":
            return self
        missing = {name for name in _COLUMNS if name not in sources}
        left: list[tuple[str, str]] = []

        def reaches(stage: Any, what: str) -> bool:
            lacks = sorted(stage.reads & missing | {f"{getattr(stage, 'to', '')}_logps"} & missing)
            if lacks:
                left.append(
                    (f"{type(stage).__name__}, {what}", f"the function has no argument for {' and '.join(lacks)}")
                )
            return not lacks

        correct = tuple(s for s in self.recipe.correct if reaches(s, "a correction"))
        extra = tuple(
            t
            for t in self.recipe.extra
            if reaches(t.objective, "a term") and all(reaches(s, "a weight of a term") for s in t.weigh)
        )
        cut = self.recipe.replace(correct=correct, extra=extra) if left else self.recipe
        if cut.ratio == "rollout" and "rollout_logps" not in sources:
            left.append(
                ("ratio='rollout'", "the function has no argument for rollout_logps: its ratio is to old_logps")
            )
            cut = cut.replace(ratio="old")
        base = "rollout_logps" if cut.ratio == "rollout" else "old_logps"
        on_policy = base not in sources and cut.reads("log_ratio")
        if on_policy:
            left.append(("off-policy data", f"the function has no argument for {base}"))
        return Target(self.kind, self.name, cut, self.stages, tuple(left), on_policy)


def target(kind: str, name: str, **settings: Any) -> Target:
    """A recipe or a stage by name.

    Parameters
    ----------
    kind : str
        One of `arguments.KINDS`.
    name : str
        A recipe (``gspo``); or a single stage as Python writes it (``GroupNorm(1, 1e-6)``, ``TokenMean()``,
        ``KL("k3")``, ``HasSignal()``), or a KL estimator's name (``k3``).
    **settings
        The recipe's parameters.

    Raises
    ------
    InputError
        An unknown recipe or stage, or one without such a stage.

    Examples
    --------
    >>> target("kl", "k3").stages, target("advantage", "dr_grpo", max_len=100).stages
    ((KL(kind='k3', to='ref', corrected=False),), (MeanBaseline(),))
    """
    load()
    if kind == "kl" and name in ("k1", "k2", "k3", "abs"):
        name = f'KL("{name}")'
    if kind != "loss" and name not in REGISTRY["recipe"] and ("(" in name or name[:1].isupper()):
        stage: Any = read_stage(_FIELDS[kind], name)
        if kind == "kl" and not isinstance(stage, KL):
            raise error(
                "bad_parameter", owner="conform", name="--recipe", given=name, expected='an estimator: KL("k3")'
            )
        fields: dict[str, Any] = {"advantage": Given(), "objective": Clip()} | {
            _FIELDS[kind]: (stage,) if kind == "filter" else stage
        }
        return Target(kind, name, Recipe(name=name, **fields), (stage,))
    made = recipe(name, **settings)
    if kind == "loss":
        return Target(kind, name, made)
    found: tuple[Any, ...] = {
        "advantage": (made.advantage,),
        "aggregate": (made.aggregate,),
        "filter": made.select,
        "kl": tuple(t.objective for t in made.terms if isinstance(t.objective, KL)),
    }[kind]
    if not found:
        expected = {
            "filter": "a recipe that selects (dapo), or a stage: --recipe 'HasSignal()'",
            "kl": "a recipe with a KL term (grpo), or an estimator: --recipe k3",
        }[kind]
        raise error("bad_parameter", owner=f"conform --kind {kind}", name="--recipe", given=name, expected=expected)
    return Target(kind, name, made, found)
