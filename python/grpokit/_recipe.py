"""A recipe: one algorithm as a value, one field a stage.

A recipe states everything that changes a number and nothing that changes during training. Every stage is a frozen
dataclass, so a recipe can be compared, hashed, edited with `replace`, and written to TOML or JSON and back.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .aggregate import TokenMean
from .errors import error, nearest
from .parameters import check_number
from .stages import REGISTRY, Advantage, Aggregate, Correct, Objective, Select, Shape, Stage, fields_of, load, lookup

if TYPE_CHECKING:
    from collections.abc import Callable

_STAGES = {
    "shape": "shape",
    "select": "select",
    "advantage": "advantage",
    "correct": "correct",
    "objective": "objective",
    "aggregate": "aggregate",
    "weigh": "correct",
}
_MANY = ("shape", "select", "correct", "weigh")
ORDER = ("shape", "select", "advantage", "correct", "objective", "aggregate")
_WORDS = ("name", "ratio", "dropped", "not_finite", "leaves_out", "parent", "experimental")
DROPPED = ("removed", "in_ratio")


@dataclass(frozen=True, slots=True)
class Term:
    """One more term of the loss: scale · Σ_t c_t · w_t · value_t.

    Parameters
    ----------
    objective : Objective
        The value per token.
    scale : float
        Its factor: the paper's β for a KL term, minus the coefficient for an entropy bonus.
    weigh : tuple of Correct
        Weights of this term alone; a weight of 0 removes the token from it.
    aggregate : Aggregate
        Its own denominator.
    dropped : {"removed", "in_ratio"}
        What becomes of a token with the weight 0; see `Recipe`.
    """

    objective: Objective
    scale: float = 1.0
    weigh: tuple[Correct, ...] = ()
    aggregate: Aggregate = field(default_factory=TokenMean)
    dropped: Literal["removed", "in_ratio"] = "removed"

    def __post_init__(self) -> None:
        _check("Term", "objective", self.objective, Objective)
        check_number(self, "scale")
        _check_all("Term", "weigh", self.weigh, Correct)
        _check("Term", "aggregate", self.aggregate, Aggregate)
        _check_word("Term", "dropped", self.dropped, DROPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One algorithm of the GRPO family.

    Parameters
    ----------
    name : str
        What it is called in tables and files.
    papers : tuple of str
        Title and arXiv number of each.
    shape : tuple of Shape
        What is added to the reward before the advantage is taken.
    select : tuple of Select
        What drops rows, in the order written; each sees what the earlier ones left.
    advantage : Advantage
        The estimator.
    ratio : {"old", "rollout"}
        The policy that the ratio r = π / π_ratio is taken against.
    correct : tuple of Correct
        Weights of the policy term; one of them at most is a ratio of policies, and none where the objective's own ratio
        is taken against the sampler already.
    dropped : {"removed", "in_ratio"}
        What becomes of a token with the weight 0: it is not there, in the ratio of its sequence either; or its own
        share is 0 while its log-prob stays in the ratio of its sequence, as in TRL and verl.
    objective : Objective
        The policy term's value per token.
    aggregate : Aggregate
        The policy term's denominator.
    extra : tuple of Term
        KL, entropy and other terms.
    not_finite : {"error", "drop"}
        What happens to a row whose reward is NaN or infinite.
    sources : tuple of (str, str)
        Where each number is from, by "stage.parameter".
    leaves_out : str
        What of the paper is not in the recipe.
    parent : str
        The recipe that it changes.
    elsewhere : tuple of (str, str)
        How other libraries differ from the paper, by library.
    experimental : str
        Why it is not to be relied on yet: what its paper does not disclose. Empty for the others.
    """

    name: str
    papers: tuple[str, ...] = ()
    shape: tuple[Shape, ...] = ()
    select: tuple[Select, ...] = ()
    advantage: Advantage
    ratio: Literal["old", "rollout"] = "old"
    correct: tuple[Correct, ...] = ()
    dropped: Literal["removed", "in_ratio"] = "removed"
    objective: Objective
    aggregate: Aggregate = field(default_factory=TokenMean)
    extra: tuple[Term, ...] = ()
    not_finite: Literal["error", "drop"] = "error"
    sources: tuple[tuple[str, str], ...] = ()
    leaves_out: str = ""
    parent: str = ""
    elsewhere: tuple[tuple[str, str], ...] = ()
    experimental: str = ""

    def __post_init__(self) -> None:
        for name, one in (("advantage", Advantage), ("objective", Objective), ("aggregate", Aggregate), ("name", str)):
            _check("Recipe", name, getattr(self, name), one)
        many = {"shape": Shape, "select": Select, "correct": Correct, "extra": Term, "papers": str}
        for name, kind in many.items():
            _check_all("Recipe", name, getattr(self, name), kind)
        words = {"ratio": ("old", "rollout"), "not_finite": ("error", "drop"), "dropped": DROPPED}
        for name, choices in words.items():
            _check_word("Recipe", name, getattr(self, name), choices)
        for term in self.terms:
            self._check_counted_once(term)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The policy term and the extra ones."""
        return (Term(self.objective, 1.0, self.correct, self.aggregate, self.dropped), *self.extra)

    def _check_counted_once(self, term: Term) -> None:
        """A ratio to the sampler may be in a term once: in the objective's own ratio, or in one weight."""
        weights = [stage for stage in term.weigh if stage.importance]
        for stage in weights:
            inside = "log_ratio" in term.objective.reads
            if len(weights) > 1:
                why = f"{' and '.join(type(w).__name__ for w in weights)} both multiply by a ratio to the sampler"
            elif inside and self.ratio == "rollout":
                why = f"ratio='rollout' has the sampler in the ratio of {type(term.objective).__name__} already"
            elif term.objective.folds and getattr(stage, "level", "token") != "token":
                folds = type(term.objective).__name__
                why = f"{folds} multiplies the weights of all tokens, and that of a sequence is at each of them"
            elif inside and getattr(stage, "policy", "old") == "current":
                why = f"policy='current' has r in the weight, and {type(term.objective).__name__} has it as well"
            else:
                continue
            raise error("counted_twice", recipe=self.name, stage=stage, why=why)

    def reads(self, column: str) -> bool:
        """Whether a token stage (stages 5 to 7) reads the column."""
        return any(column in stage.reads for term in self.terms for stage in (term.objective, *term.weigh))

    def stages(self, name: str) -> tuple[Stage, ...]:
        """The stages of a field, one or several."""
        stages = getattr(self, name)
        return stages if isinstance(stages, tuple) else (stages,)

    def rows_read(self, column: str) -> bool:
        """Whether a row stage (stages 1 to 4) reads the column."""
        return any(column in stage.reads for name in ("shape", "select", "advantage") for stage in self.stages(name))

    def replace(self, **changes: Any) -> Recipe:
        """The same recipe with other stages; under another name, what is told of this one's paper is left behind.

        Examples
        --------
        >>> import grpokit as gk
        >>> gk.recipe("dapo", max_len=20_480).replace(select=()).select
        ()
        """
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise error(
                    "unknown_parameter",
                    owner="Recipe",
                    given=name,
                    nearest=nearest(name, known),
                    known=", ".join(known),
                )
        kept = tuple((k, v) for k, v in self.sources if k.split(".")[0] not in changes)
        told: dict[str, Any] = {"sources": kept}
        if changes.get("name", self.name) != self.name:
            told |= {"parent": self.name, "papers": (), "elsewhere": (), "leaves_out": "", "experimental": ""}
        return dataclasses.replace(self, **(told | changes))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, for TOML or JSON; `from_dict` reads it back."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ORDER:
            data[name] = [_dump(s) for s in data[name]] if name in _MANY else _dump(data[name])
        data["papers"] = list(self.papers)
        data["sources"], data["elsewhere"] = dict(self.sources), [list(pair) for pair in self.elsewhere]
        data["extra"] = [
            {
                "objective": _dump(t.objective),
                "scale": t.scale,
                "weigh": [_dump(s) for s in t.weigh],
                "aggregate": _dump(t.aggregate),
                "dropped": t.dropped,
            }
            for t in self.extra
        ]
        return {name: value for name, value in data.items() if value not in ([], {}, "")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """A recipe from what `to_dict` wrote.

        Raises
        ------
        InputError
            An unknown key or stage (with the nearest name), or one that is missing.
        """
        _known("Recipe", data, [f.name for f in dataclasses.fields(cls)])
        _needed("Recipe", data, ["name", "advantage", "objective"], 'Recipe.from_dict({"name": "mine", ...})')
        read = {name: _read(name, value) for name, value in data.items() if name in _STAGES}
        terms = []
        for entry in _listed("extra", data.get("extra", [])):
            _known("Term", entry, [f.name for f in dataclasses.fields(Term)])
            _needed("Term", entry, ["objective"], 'extra = [{"objective": {"stage": "KL"}, "scale": 0.04}]')
            terms.append(Term(**{k: _read(k, v) if k in _STAGES else v for k, v in entry.items()}))
        rest = {name: value for name, value in data.items() if name in _WORDS}
        sources, elsewhere = data.get("sources", {}), _listed("elsewhere", data.get("elsewhere", []))
        _known("sources", sources, list(sources))
        rest |= {"sources": tuple(sources.items()), "elsewhere": tuple(map(tuple, elsewhere))}
        papers = tuple(_listed("papers", data.get("papers", [])))
        return cls(**read, **rest, extra=tuple(terms), papers=papers)

    def explain(self) -> str:
        """The stages in order, the equation, every number and where it is from, and what the numbers amount to."""
        from .explain import explain

        return explain(self)


def check_recipe(given: Any) -> None:
    """Refuses what is no recipe, its name for example.

    Raises
    ------
    InputError
        `bad_parameter`.
    """
    if not isinstance(given, Recipe):
        expected = "a grpokit.Recipe, such as grpokit.recipe('rloo')"
        raise error("bad_parameter", owner="the loss", name="recipe", given=given, expected=expected)


def recipe(name: str, /, **parameters: Any) -> Recipe:
    """A named recipe.

    Parameters
    ----------
    name : str
        One of `recipe_names`.
    **parameters
        The paper's symbols. Those without a default are required: no paper states them, or they belong to your run.

    Returns
    -------
    Recipe

    Raises
    ------
    InputError
        An unknown recipe or parameter (with the nearest name), or a required one that is missing.

    Examples
    --------
    >>> import grpokit as gk
    >>> gk.recipe("dapo", max_len=20_480).shape
    (Overlong(max_len=20480, cache=4096),)
    """
    make: Callable[..., Recipe] = lookup("recipe", name)
    # A NumPy number is taken for what it is worth.
    parameters = {k: v.item() if hasattr(v, "dtype") and v.ndim == 0 else v for k, v in parameters.items()}
    signature = inspect.signature(make)
    known = list(signature.parameters)
    owner = f"recipe({name!r})"
    _known(owner, parameters, known)
    needed = [p.name for p in signature.parameters.values() if p.default is p.empty]
    _needed(owner, parameters, needed, f"recipe({name!r}, " + ", ".join(f"{p}=..." for p in needed) + ")")
    return make(**parameters)


def recipe_names() -> dict[str, str]:
    """The named recipes and the papers that they are from.

    Examples
    --------
    >>> import grpokit as gk
    >>> gk.recipe_names()["dapo"]
    'DAPO, arXiv:2503.14476'
    """
    load()
    return {name: (make.__doc__ or "").split("\n")[0].rstrip(".") for name, make in REGISTRY["recipe"].items()}


def _check(owner: str, name: str, value: Any, expected: type) -> None:
    if not isinstance(value, expected):
        kind = "a str" if expected is str else f"a grpokit.{expected.__name__}"
        raise error("bad_parameter", owner=owner, name=name, given=value, expected=kind)


def _check_word(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise error("bad_parameter", owner=owner, name=name, given=value, expected=f"one of {choices}")


def _check_all(owner: str, name: str, values: Any, expected: type) -> None:
    if not isinstance(values, tuple):
        raise error("bad_parameter", owner=owner, name=name, given=values, expected=f"a tuple of {expected.__name__}")
    for value in values:
        _check(owner, name, value, expected)


def _known(owner: str, given: Mapping[str, Any], known: list[str]) -> None:
    if not isinstance(given, Mapping):
        raise error("bad_parameter", owner=owner, name="fields", given=given, expected="a dict of them by name")
    for name in given:
        if name not in known:
            words = ", ".join(known) or "none"
            raise error("unknown_parameter", owner=owner, given=name, nearest=nearest(str(name), known), known=words)


def _needed(owner: str, given: Mapping[str, Any], needed: list[str], example: str) -> None:
    missing = [name for name in needed if name not in given]
    if missing:
        raise error("missing_parameter", owner=owner, missing=", ".join(missing), example=example)


def _dump(stage: Stage) -> dict[str, Any]:
    # TOML has no word for None: it is left out where it is the default, and "none" elsewhere.
    defaults = {f.name: f.default for f in dataclasses.fields(stage)}  # type: ignore[arg-type]
    fields = {k: _simple(v) for k, v in fields_of(stage).items()}
    fields = {k: "none" if v is None else v for k, v in fields.items() if v is not None or defaults[k] is not None}
    return {"stage": type(stage).__name__} | fields


def _simple(value: Any) -> Any:
    """Tuples as lists, NumPy's numbers as Python's."""
    return list(value) if isinstance(value, tuple) else value.item() if getattr(value, "ndim", 1) == 0 else value


def _read(name: str, value: Any) -> Any:
    if name in _MANY:
        return tuple(_stage(_STAGES[name], v) for v in _listed(name, value))
    return _stage(_STAGES[name], value)


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise error("bad_parameter", owner="from_dict", name=name, given=value, expected="a list")
    return list(value)


def _stage(kind: str, data: Mapping[str, Any]) -> Any:
    if not isinstance(data, Mapping) or "stage" not in data:
        expected = '{"stage": NAME, ...}, a dict with the name of the stage'
        raise error("bad_parameter", owner="from_dict", name=kind, given=data, expected=expected)
    cls = lookup(kind, data["stage"])
    fields = dataclasses.fields(cls)
    # Where None is the default it is left out when written, so the word is a word.
    optional = [f.name for f in fields if "None" in str(f.type) and f.default is not None]
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "stage"}
    given = {k: None if v == "none" and k in optional else v for k, v in given.items()}
    _known(cls.__name__, given, [f.name for f in fields])
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    _needed(cls.__name__, given, required, f"{cls.__name__}({', '.join(f'{r}=...' for r in required)})")
    return cls(**given)
