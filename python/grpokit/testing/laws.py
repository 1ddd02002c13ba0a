"""What holds for an objective whatever its formula: `check` for yours, and what our own tests call for ours.

In: an objective, registered or not. Out: nothing, or a `LawError` that names the law, the numbers and where they part.
Four laws may be declared broken, each with its reason (`Objective.breaks`), and are then checked to be broken; the
others hold for whatever the spine may run.

Advantages are given per row and per token, the batch has an empty sequence and one of a single token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from grpokit import loss as losses
from grpokit._recipe import Recipe
from grpokit.advantage import Given
from grpokit.aggregate import SequenceMean, TokenMean
from grpokit.batch import TokenBatch
from grpokit.errors import error
from grpokit.objective import columns as formulas
from grpokit.stages import Objective
from grpokit.tokens import ALWAYS, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from grpokit.stages import Aggregate

LAWS = {
    "zero_advantage": "A = 0 gives no gradient",
    "homogeneous": "c A gives c times the gradient, c > 0",
    "on_policy": "where π = π_old the gradient is the plain policy gradient, −A over the denominator (over a whole "
    "sequence, where the objective ties its tokens together)",
    "bounded": "the gradient is at most 5 max|A| over the denominator for every |log r| up to 20",
}
ALWAYS_HELD = {
    "reads": "the columns that the formula touches are those that it declares",
    "slopes": "the gradient is the slope of the value with stop-gradients (`grpokit.objective.columns.detach`) frozen",
    "split": "micro-batches add up to the whole batch, in any order",
    "order": "the order of sequences, and of the tokens in one, changes nothing",
    "padded": "padded and packed batches give the same",
    "masked": "what is behind the mask does not matter, even NaN",
    "upcast": "bf16 columns give what their fp32 values give, to the bit",
    "repeated": "the same bits every time",
    "fp32": "fp32 is as near to fp64 as the condition of the gradient allows",
}
LENGTHS = (6, 3, 0, 5, 1, 4)
BOUND = 5
FAR = (-20.0, -15.0, -4.0, 1.62, 1.7, 2.0, 2.5, 3.0, 4.0, 15.0, 20.0)  # log r; most upper clips are below 5
BETWEEN = 16  # roundings between a column and a gradient: subtraction, mean, exp, products, denominators


class LawError(AssertionError):
    """A law does not hold, or holds although it is declared broken."""


@dataclass(frozen=True)
class Step:
    """One optimizer step: columns (S, T) by name, NaN where the mask is off.

    Attributes
    ----------
    columns : dict of (S, T) tensors
        ``logps``, ``entropies``, ``advantages``, ``old_logps``, ``rollout_logps``, ``ref_logps``, ``off_policy``, ...
    mask : (S, T) bool
    """

    columns: Mapping[str, Tensor]
    mask: Tensor

    @classmethod
    def draw(cls, seed: int, *, per_token: bool, near: float = 0.3, more: Mapping[str, Tensor] | None = None) -> Step:
        """Log-probs of three policies within about `near` of each other, float64."""
        generator = torch.Generator().manual_seed(seed)
        S, T = len(LENGTHS), max(LENGTHS)
        mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        logps = -0.2 - 3 * torch.rand(S, T, generator=generator, dtype=torch.float64)
        found = {
            "logps": logps,
            "entropies": torch.rand(S, T, generator=generator, dtype=torch.float64),
            "advantages": normal(S, T) if per_token else normal(S, 1).expand(S, T).clone(),
            "off_policy": torch.rand(S, T, generator=generator, dtype=torch.float64) < 0.3,
            **{name: logps + near * normal(S, T) for name in ("old_logps", "rollout_logps", "ref_logps")},
            **(more or {}),
        }
        return cls({k: x.masked_fill(~mask, torch.nan) if x.is_floating_point() else x for k, x in found.items()}, mask)

    def replace(self, **columns: Tensor) -> Step:
        """The same with other columns."""
        return Step({**self.columns, **columns}, self.mask)

    def to(self, dtype: torch.dtype) -> Step:
        """The same in another number format."""
        return Step({k: x.to(dtype) if x.is_floating_point() else x for k, x in self.columns.items()}, self.mask)

    def rows(self, order: Tensor) -> Step:
        """The sequences in another order."""
        return Step({k: x[order] for k, x in self.columns.items()}, self.mask[order])

    def batch(self, *, packed: bool = False) -> TokenBatch:
        """The constants as a batch."""
        constants: dict[str, Any] = {k: x for k, x in self.columns.items() if k not in ("logps", "entropies")}
        targets = torch.zeros(self.mask.shape, dtype=torch.int64)
        if not packed:
            return TokenBatch(targets, mask=self.mask, **constants)
        ends = self.mask.sum(1).cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends])
        return TokenBatch(targets[self.mask], cu_seqlens=offsets, **{k: x[self.mask] for k, x in constants.items()})

    def run(self, recipe: Recipe, *, split: int | None = None, packed: bool = False) -> dict[str, Tensor]:
        """Loss (0-d) and gradients (S, T) through `loss.from_logps`, accumulated over the parts of a split."""
        batch = self.batch(packed=packed)
        leaves = {}
        for name in ("logps", "entropies"):
            x = self.columns[name][self.mask] if packed else self.columns[name]
            leaves[name] = x.clone().requires_grad_()
        parts = [batch] if split is None else batch.split(split)[::-1]
        total: Any = 0.0
        for part in parts:
            now = {name: x[part.span] for name, x in leaves.items()}
            out = losses.from_logps(now.pop("logps"), part, recipe, **now)
            out.loss.backward()  # type: ignore[no-untyped-call]
            total = total + out.loss.detach()
        found = {"loss": total}
        for name, x in leaves.items():
            g = torch.zeros_like(x) if x.grad is None else x.grad
            found[name] = (
                self.mask.new_zeros(self.mask.shape, dtype=g.dtype).masked_scatter(self.mask, g) if packed else g
            )
        return found


def check(objective: Objective, *, seed: int = 0, columns: Mapping[str, Tensor] | None = None) -> None:
    """Checks every law on an objective, alone in a recipe, under two denominators.

    Parameters
    ----------
    objective : Objective
        Yours or ours.
    seed : int
        Of the numbers.
    columns : dict of (6, 6) tensors, optional
        Columns that it reads and that are not among the usual ones.

    Raises
    ------
    LawError
        The law, what was expected and found.

    Examples
    --------
    >>> import grpokit as gk
    >>> check(gk.SoftGate())
    """
    _check_objective("check", objective)
    unknown = set(objective.breaks) - set(LAWS)
    if unknown:
        raise LawError(f"{objective} declares {sorted(unknown)} broken; laws that may be are {sorted(LAWS)}")
    seen: set[str] = set()
    for per_token in (False, True):
        for aggregate in (TokenMean(), SequenceMean(over="rows")):
            recipe = Recipe(name="laws", advantage=Given(), objective=objective, aggregate=aggregate)
            step = Step.draw(seed, per_token=per_token, more=columns)
            for law, problem in _problems(step, recipe):
                declared = objective.breaks.get(law)
                where = f"{objective}, {aggregate}, advantages per {'token' if per_token else 'row'}"
                seen |= {law} if problem else set()
                if problem and not declared:
                    raise LawError(f"{law}: {(LAWS | ALWAYS_HELD)[law]}. {problem} ({where})")
                if declared == "":
                    raise LawError(f"{law} is declared broken without a reason ({where})")
    held = sorted(set(objective.breaks) - seen)
    if held:
        raise LawError(f"{held[0]} is declared broken, and holds: {LAWS[held[0]]} ({objective})")


def broken(objective: Objective, *, seed: int = 0, columns: Mapping[str, Tensor] | None = None) -> set[str]:
    """Which of the four laws that may be broken are, for advantages per row or per token.

    Parameters
    ----------
    objective, seed, columns
        As in `check`.
    """
    _check_objective("broken", objective)
    found = set()
    for per_token in (False, True):
        recipe = Recipe(name="laws", advantage=Given(), objective=objective, aggregate=SequenceMean())
        step = Step.draw(seed, per_token=per_token, more=columns)
        found |= {law for law, problem in _problems(step, recipe) if problem and law in LAWS}
    return found


def _check_objective(owner: str, given: Any) -> None:
    if not isinstance(given, Objective):
        raise error(
            "bad_parameter", owner=owner, name="objective", given=given, expected="an objective, such as gk.SoftGate()"
        )


def _problems(step: Step, recipe: Recipe) -> Iterator[tuple[str, str]]:
    laws: dict[str, Callable[[Step, Recipe], str]] = {
        "reads": _reads,
        "repeated": _repeated,
        "order": _order,
        "split": _split,
        "padded": _padded,
        "masked": _masked,
        "upcast": _upcast,
        "slopes": _slopes,
        "zero_advantage": _zero_advantage,
        "homogeneous": _homogeneous,
        "on_policy": _on_policy,
        "bounded": _bounded,
        "fp32": _fp32,
    }
    yield from ((name, law(step, recipe)) for name, law in laws.items())


def _zero_advantage(step: Step, recipe: Recipe) -> str:
    found = step.replace(advantages=0 * step.columns["advantages"]).run(recipe)
    return next((f"∂/∂{name} is {g.abs().max():g}" for name, g in found.items() if name != "loss" and g.any()), "")


def _homogeneous(step: Step, recipe: Recipe) -> str:
    thrice, once = step.replace(advantages=3 * step.columns["advantages"]).run(recipe), step.run(recipe)
    return _differ(_gradients(thrice), {k: 3 * g for k, g in _gradients(once).items()}, 1e-11)


def _on_policy(step: Step, recipe: Recipe) -> str:
    same = dict.fromkeys(("old_logps", "rollout_logps", "ref_logps"), step.columns["logps"])
    found = step.replace(**same).run(recipe)
    if found["entropies"].any():
        return "there is a gradient by the entropy"
    expected = -torch.where(step.mask, step.columns["advantages"], 0.0) * _shares(step, recipe.aggregate)
    problem = _differ({"logps": found["logps"]}, {"logps": expected}, 1e-11)
    if problem and recipe.objective.scope == "sequence":
        problem = _differ({"logps": found["logps"].sum(1)}, {"logps": expected.sum(1)}, 1e-11)
    return problem


def _bounded(step: Step, recipe: Recipe) -> str:
    # Tiny advantages show what does not scale with them.
    for scale in (1.0, 1e-6):
        A = scale * step.columns["advantages"]
        most = BOUND * (A.abs() * _shares(step, recipe.aggregate))[step.mask].max()
        for shift in FAR:
            others = dict.fromkeys(("old_logps", "rollout_logps", "ref_logps"), step.columns["logps"] - shift)
            g = step.replace(advantages=A, **others).run(recipe)["logps"].abs().max()
            if not g <= most:
                return f"at log r = {shift:g} it is {g / most * BOUND:g} max|A|"
    return ""


def _reads(step: Step, recipe: Recipe) -> str:
    touched: set[str] = set()

    class Spy(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            touched.add(key)
            return super().__getitem__(key)

    batch = step.batch()
    tokens = batch.tokens(recipe, _current(step, batch))
    known = {**tokens._columns, "weight": torch.ones_like(tokens.logps)}
    recipe.objective.value(Tokens(Spy(known), tokens.lengths))
    touched -= ALWAYS
    declared = recipe.objective.reads
    return "" if touched == declared else f"it touches {sorted(touched)} and declares {sorted(declared)}"


def _slopes(step: Step, recipe: Recipe) -> str:
    batch = step.batch()
    now, kept, width = _current(step, batch), [], 1e-6
    hook: Any = formulas
    original = hook.detach
    try:

        def record(x: Tensor) -> Tensor:
            kept.append(x.detach())
            return kept[-1]

        hook.detach = record
        gradients = losses.coefficients(batch, recipe, now).gradients
        for name, g in gradients.items():
            for t in range(batch.live_tokens):
                ends = []
                for moved in (width, 0.0, -width):
                    hook.detach = _replay(kept)
                    x = now[name].clone()
                    x[t] += moved
                    ends.append(float(losses.coefficients(batch, recipe, now | {name: x}).loss.sum()))
                right, left = (ends[0] - ends[1]) / width, (ends[1] - ends[2]) / width
                # At a corner the gradient is one of the two slopes; elsewhere it is the central difference.
                near = min(abs(side - float(g[t])) for side in (right, left, (right + left) / 2))
                if not near <= 1e-7 * (1 + abs(ends[1]) + abs(float(g[t]))):
                    return f"∂/∂{name} of token {t} is {float(g[t]):g}, the slope {(right + left) / 2:g}"
    finally:
        hook.detach = original
    return ""


def _replay(kept: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """A stop-gradient that gives what the stop-gradients gave before, one after another."""
    left = iter(kept)
    return lambda _: next(left)


def _split(step: Step, recipe: Recipe) -> str:
    whole = step.run(recipe)
    return next((p for size in (1, 7, 20) if (p := _differ(step.run(recipe, split=size), whole, 1e-11))), "")


def _order(step: Step, recipe: Recipe) -> str:
    whole, order = step.run(recipe), torch.tensor([3, 0, 5, 2, 4, 1])
    found = step.rows(order).run(recipe)
    back = {k: g if k == "loss" else g[order.argsort()] for k, g in found.items()}
    # Within a sequence: its live tokens from the last to the first.
    turned = torch.stack([torch.cat([torch.arange(n).flip(0), torch.arange(n, step.mask.shape[1])]) for n in LENGTHS])
    moved = Step({k: x.gather(1, turned) for k, x in step.columns.items()}, step.mask).run(recipe)
    again = {k: g if k == "loss" else g.gather(1, turned) for k, g in moved.items()}
    return _differ(back, whole, 1e-11) or _differ(again, whole, 1e-11)


def _padded(step: Step, recipe: Recipe) -> str:
    return _differ(step.run(recipe, packed=True), step.run(recipe), 1e-11)


def _masked(step: Step, recipe: Recipe) -> str:
    clean = {k: torch.nan_to_num(x, 0.5) if x.is_floating_point() else x for k, x in step.columns.items()}
    return _differ(Step(clean, step.mask).run(recipe), step.run(recipe), 0.0)


def _upcast(step: Step, recipe: Recipe) -> str:
    half = step.to(torch.bfloat16)
    found, expected = half.run(recipe), half.to(torch.float32).run(recipe)
    same = all(torch.equal(found[k].float(), expected[k].to(found[k].dtype).float()) for k in expected)
    return "" if same else "bf16 columns are not brought to fp32 first"


def _repeated(step: Step, recipe: Recipe) -> str:
    single = step.to(torch.float32)
    first, again = single.run(recipe), single.run(recipe)
    return "" if all(torch.equal(first[k], again[k]) for k in first) else "two runs differ"


def _fp32(step: Step, recipe: Recipe) -> str:
    x = step.columns["logps"]
    policies = ("old_logps", "rollout_logps", "ref_logps")
    far = step.replace(**{name: x + 6 * (step.columns[name] - x) for name in policies})
    return _fp32_near(step, recipe) or _fp32_near(far, recipe)


def _fp32_near(step: Step, recipe: Recipe) -> str:
    single = step.to(torch.float32)
    exact = single.to(torch.float64)
    batch = exact.batch()
    now = _current(exact, batch)
    g = losses.coefficients(batch, recipe, now).gradients
    narrow = single.batch()
    found = losses.coefficients(narrow, recipe, _current(single, narrow)).gradients
    d = sum((now["logps"] - batch.columns[name]).abs() for name in ("old_logps", "rollout_logps", "ref_logps"))
    size = 1 + d + now["logps"].abs()
    # First-order error analysis: every intermediate is off by some roundings of its own size, and the gradient by what
    # its own slope makes of that. A step across a corner shows as a slope, and widens the bound there.
    slack, width = {name: x.abs() for name, x in g.items()}, 1e-5
    for t, place in enumerate(batch.live.index.tolist()):
        x, A = now["logps"].clone(), exact.columns["advantages"].clone()
        x[t] += width
        A.view(-1)[place] += width
        by_x = losses.coefficients(batch, recipe, now | {"logps": x}).gradients
        by_A = losses.coefficients(exact.replace(advantages=A).batch(), recipe, now).gradients
        for name in g:
            for moved, scale in ((by_x, size[t]), (by_A, batch.columns["advantages"][t].abs())):
                slack[name] = slack[name] + (moved[name] - g[name]).abs() / width * scale
    for name in g:
        bound = BETWEEN * 2.0**-24 * slack[name] + 1e-37
        error = (found[name].double() - g[name]).abs()
        if not (error <= bound).all():
            worst = int((error / bound).argmax())
            return f"∂/∂{name} of token {worst} is off by {float(error[worst]):g}, allowed {float(bound[worst]):g}"
    return ""


def _current(step: Step, batch: TokenBatch) -> dict[str, Tensor]:
    return {name: batch.column(name, step.columns[name]) for name in ("logps", "entropies")}


def _gradients(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: g for k, g in found.items() if k != "loss"}


def _shares(step: Step, aggregate: Aggregate) -> Tensor:
    """(S, T): one over the denominator, by counting."""
    lengths = step.mask.sum(1, keepdim=True).double().expand(step.mask.shape)
    N = len(lengths) if getattr(aggregate, "over", "live") == "rows" else int((lengths[:, 0] > 0).sum())
    return 1 / (step.mask.sum() + 0 * lengths if isinstance(aggregate, TokenMean) else N * lengths.clip(1))


def _differ(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> str:
    for name, x in expected.items():
        y = found[name]
        off = (y - x).abs().max() if x.numel() else x.new_zeros(())
        if not off <= tolerance * (1e-3 + x.abs().max()):
            return f"{name} differs by {float(off):g} at a size of {float(x.abs().max()):g}"
    return ""
