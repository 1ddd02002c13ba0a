"""What holds for an objective whatever its formula, and what it says does not."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tests.losses import AGGREGATES, OBJECTIVES, RECIPES, current, padded, permute, recipe, run, same, table

import grpokit as gk
from grpokit.compat.kl import LimitedKL
from grpokit.compat.ratios import PlainSoftGate, UnlimitedClip
from grpokit.compat.weights import CappedWeight
from grpokit.loss import coefficients, from_logps
from grpokit.objective import KL, Clip, columns
from grpokit.reference import loss as reference
from grpokit.stages import REGISTRY, Objective
from grpokit.testing import laws


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
@pytest.mark.parametrize("name", [n for n, one in OBJECTIVES.items() if not isinstance(one, PlainSoftGate)])
def test_laws_hold_or_are_declared_broken(name, seed):
    objective = OBJECTIVES[name]
    laws.check(objective, seed=seed)
    assert laws.broken(objective, seed=seed) == set(objective.breaks)
    assert all(objective.breaks.values())


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_what_is_replayed_with_its_rounding(level, monkeypatch):
    """The gate in other libraries' arithmetic loses digits that `SoftGate` keeps, and breaks no other law."""
    objective = PlainSoftGate(1.0, 1.05, level)
    with pytest.raises(laws.LawError, match="^fp32: "):
        laws.check(objective)
    monkeypatch.setattr(laws, "_fp32", lambda step, recipe: "")
    laws.check(objective)
    assert laws.broken(objective) == set()


@pytest.mark.parametrize(
    "objective",
    [
        Clip(0.2, None, 3.0), Clip(None, None, 3.0), Clip(0.2, 9.0, 3.0), Clip(0.2, 0.2, 30.0),
        gk.SequenceClip(0.1, None, 2.0), gk.GammaWeight(1, 0, 1, 0), gk.GammaWeight(0, 0, 0, 0),
        gk.GammaWeight(0, 3, 0, 3),
        gk.GammaWeight(9.0, 1.0, 1.0, 1.0), gk.ClippedWeight(9.0), gk.SoftGate(0.05, 0.05),
        gk.SoftGate(1.0, 0.3), gk.GaussianGate(beta=0.0), UnlimitedClip(None, 9.0), CappedWeight(0.9),
        CappedWeight(9.0), LimitedKL("k2"), LimitedKL("abs", straight=True),
    ],
    ids=str,
)  # fmt: skip
def test_what_breaks_follows_from_the_parameters(objective):
    laws.check(objective)


def test_every_built_in_objective_is_in_these_tests():
    ours = {cls for cls in REGISTRY["objective"].values() if cls.__module__.startswith("grpokit.")}
    assert ours == {type(o) for o in OBJECTIVES.values()}
    for objective in OBJECTIVES.values():
        assert objective.equation
        assert objective.gradient.startswith(("g", "h"))
        assert sys.modules[type(objective).__module__].__doc__
    for known in (reference.VALUES, reference.GRADIENTS):
        assert set(known) == {cls.__name__ for cls in ours}


@dataclass(frozen=True)
class Wrong(Objective):
    """PPO without a clip, with a fault."""

    fault: str
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "advantages"})

    @property
    def breaks(self):
        return {"bounded": "no clip"} | ({"homogeneous": "none"} if self.fault == "declared broken" else {})

    def value(self, tokens):
        d, A = tokens.log_ratio, tokens.advantages
        r = columns.ratio(d)
        if self.fault == "pulls":
            return -r * A + 0.1 * d
        if self.fault == "saturates":
            return -r * A.tanh()
        if self.fault == "steep":
            return -1.1 * r * A
        if self.fault == "couples the batch":
            return -r * (A - A.mean())
        if self.fault == "counts places":
            return -r * A * (1 + 0.1 * torch.arange(len(d)).to(d) / len(d))
        if self.fault == "cancels":
            return -A * r * columns.stop((r + 300 - 300) / r)
        if self.fault == "random":
            return -r * A * (1 + 1e-3 * torch.rand(1).to(d))
        return -r * A


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("pulls", "zero_advantage"),
        ("saturates", "homogeneous"),
        ("steep", "on_policy"),
        ("couples the batch", "split"),
        ("counts places", "order"),
        ("cancels", "fp32"),
        ("random", "repeated"),
    ],
)
def test_the_laws_notice(fault, law):
    """A fault is found, and by the law that names it best."""
    with pytest.raises(laws.LawError, match=f"^{law}: "):
        laws.check(Wrong(fault))


@pytest.mark.parametrize(
    ("fault", "without", "law"),
    [
        ("couples the batch", ["split"], "on_policy"),
        ("counts places", ["order"], "split"),
        ("random", ["repeated"], "order"),
        ("random", ["repeated", "order", "split", "padded", "masked", "upcast"], "slopes"),
    ],
)
def test_the_laws_behind_notice_as_well(fault, without, law, monkeypatch):
    for other in without:
        monkeypatch.setattr(laws, f"_{other}", lambda step, recipe: "")
    with pytest.raises(laws.LawError, match=f"^{law}: "):
        laws.check(Wrong(fault))


@pytest.mark.parametrize("given", [gk.SoftGate, "soft_gate", None, gk.TokenMean()])
def test_only_objectives_have_these_laws(given):
    with pytest.raises(gk.InputError, match="expected an objective, such as gk.SoftGate\\(\\)"):
        laws.check(given)


def test_laws_that_are_declared():
    laws.check(Wrong(""))
    with pytest.raises(laws.LawError, match="homogeneous is declared broken, and holds"):
        laws.check(Wrong("declared broken"))
    with pytest.raises(laws.LawError, match="reads: "):
        laws.check(dataclass(frozen=True)(type("Reads", (Wrong,), {"reads": Wrong.reads | {"ref_logps"}}))(""))
    unknown = type("Unknown", (Wrong,), {"breaks": {"split": "it does"}})
    with pytest.raises(laws.LawError, match="declares \\['split'\\] broken; laws that may be"):
        laws.check(dataclass(frozen=True)(unknown)(""))


def test_a_forgotten_stop_is_noticed(monkeypatch):
    """CISPO whose weight is differentiated: the slope of its value is its gradient, and only on-policy it shows."""
    monkeypatch.setattr("grpokit.objective.clipped_weight.stop", lambda x: x)
    with pytest.raises(laws.LawError, match="^on_policy: "):
        laws.check(gk.ClippedWeight(4.0))


def test_a_stop_of_torch_instead_of_ours_is_noticed(monkeypatch):
    monkeypatch.setattr("grpokit.objective.clipped_weight.stop", lambda x: x.detach())
    with pytest.raises(laws.LawError, match="^slopes: "):
        laws.check(gk.ClippedWeight(4.0))


@pytest.mark.parametrize("name", RECIPES)
def test_torch_clamp_and_its_like_are_not_used(name, monkeypatch):
    d = table(7)
    expected = run(padded(d), RECIPES[name], d)

    def banned(*_, **__):
        raise AssertionError("banned")

    for owner in (torch, torch.Tensor):
        for function in ("clamp", "clamp_min", "clamp_max", "clip", "maximum", "minimum", "relu", "hardtanh"):
            if hasattr(owner, function):
                monkeypatch.setattr(owner, function, banned)
    same(run(padded(d), RECIPES[name], d), expected, 0)


def test_stop_can_be_frozen(monkeypatch):
    """Stop-gradients are recorded at one point and replayed at others: the slope is then the gradient."""
    d = table(8, lengths=(3, 2))
    r = recipe(Frozen())
    batch = padded(d, old_logps=None)
    now, kept = current(batch, d), []
    monkeypatch.setattr(columns, "detach", lambda x: kept.append(x.detach()) or kept[-1])
    g = coefficients(batch, r, now).gradients["logps"]
    for t in range(batch.live_tokens):
        ends = []
        for sign in (1, -1):
            replay = iter(kept.copy())
            monkeypatch.setattr(columns, "detach", lambda _, replay=replay: next(replay))
            x = now["logps"].clone()
            x[t] += sign * 1e-6
            ends.append(float(coefficients(batch, r, now | {"logps": x}).loss.sum()))
        assert abs((ends[0] - ends[1]) / 2e-6 - g[t]) < 1e-8
    assert g.abs().max() > 0.01


@dataclass(frozen=True)
class Frozen(Objective):
    """CISPO's shape: a stopped weight times log π."""

    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "logps", "advantages"})

    def value(self, tokens):
        weight = columns.clip(columns.ratio(tokens.log_ratio + 0.1 * tokens.logps), None, 5.0)
        return -columns.stop(weight) * tokens.advantages * tokens.logps


@gk.register("objective")
@dataclass(frozen=True)
class SequenceRatio(Objective):
    """A third party's: the sequence's mean log-ratio for the token's, a quadratic penalty for the clip."""

    width: float = 0.3
    scope: ClassVar[str] = "sequence"
    reads: ClassVar[frozenset[str]] = frozenset({"log_ratio", "advantages"})
    equation: ClassVar[str] = "−s A + |A| (s − 1)² / (2 width)"

    @property
    def breaks(self) -> Mapping[str, str]:
        return {"bounded": "a quadratic"}

    def value(self, tokens):
        s, A = columns.ratio(tokens.mean(tokens.log_ratio)), tokens.advantages
        return -s * A + A.abs() * (s - 1) ** 2 / (2 * self.width)


def test_a_third_partys_objective_works_at_once():
    """Registered in a test: by name, through both doors, padded and packed, split and permuted, with corrections."""
    assert gk.Recipe.from_dict(
        recipe(SequenceRatio()).to_dict() | {"advantage": {"stage": "MeanBaseline"}}
    ).objective == (SequenceRatio())
    d = table(9, per_token=True)
    for correct in ((), (gk.TIS(1.1),), (gk.IcePop(0.8, 1.3),)):
        for aggregate in AGGREGATES:
            r = recipe(SequenceRatio(), correct, aggregate)
            whole = run(padded(d), r, d)
            same(run(padded(d), r, d, split=20, reverse=True), whole)
            order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
            loss, x, metrics = run(padded(permute(d, order)), r, permute(d, order), split=30)
            same((loss, x[order.argsort()], metrics), whole)
            logps = run(padded(d), r, d, door="logps")
            same((logps[0], logps[2]), (whole[0], whole[2]))
    batch = padded(d)
    now = current(batch, d)
    g = coefficients(batch, recipe(SequenceRatio()), now).gradients["logps"]
    for t in range(0, batch.live_tokens, 5):
        ends = []
        for sign in (1, -1):
            x = now["logps"].clone()
            x[t] += sign * 1e-6
            ends.append(float(coefficients(batch, recipe(SequenceRatio()), now | {"logps": x}).loss.sum()))
        assert abs((ends[0] - ends[1]) / 2e-6 - g[t]) < 1e-8


def test_a_dropped_token_is_not_there_in_a_sequences_ratio():
    """What a weight drops neither gets a gradient nor enters its sequence's mean, even if it is NaN."""
    d = table(9)
    r = recipe(SequenceRatio(), (gk.IcePop(0.8, 1.3),))
    batch = padded(d)
    weights = coefficients(batch, r, current(batch, d)).weights
    assert (weights == 0).any()
    assert (weights != 0).any()
    place = batch.live.index[weights == 0][:1]
    poisoned = d | {"ref_logps": d["ref_logps"].flatten().index_fill(0, place, torch.nan).view_as(d["ref_logps"])}
    poisoned["logps"] = d["logps"].flatten().index_fill(0, place, torch.nan).view_as(d["logps"])
    loss, x, _ = run(padded(poisoned), r, poisoned, door="logps")
    expected_loss, expected, _ = run(batch, r, d, door="logps")
    same((loss, x), (expected_loss, expected), 0)
    assert not x.flatten()[batch.live.index[weights == 0]].any()


@dataclass(frozen=True)
class Undeclared(Objective):
    reads: ClassVar[frozenset[str]] = frozenset({"logps"})

    def value(self, tokens):
        return tokens.logps * tokens.advantages


@dataclass(frozen=True)
class Scalar(Objective):
    reads: ClassVar[frozenset[str]] = frozenset({"logps"})

    def value(self, tokens):
        return tokens.logps.mean()


@dataclass(frozen=True)
class Detached(Objective):
    reads: ClassVar[frozenset[str]] = frozenset({"logps"})

    def value(self, tokens):
        return columns.stop(tokens.logps)


@pytest.mark.parametrize(
    ("objective", "kind"),
    [(Undeclared(), "undeclared_column"), (Scalar(), "stage_result"), (Detached(), "stage_result")],
)
def test_wrong_objectives_are_told(objective, kind):
    d = table(6)
    with pytest.raises(gk.InputError) as caught:
        from_logps(d["logps"], padded(d), recipe(objective))
    assert caught.value.kind == kind
    assert type(objective).__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Clip(low=1.0), "low"),
        (lambda: Clip(low=-0.1), "low"),
        (lambda: Clip(high=float("inf")), "high"),
        (lambda: Clip(high=10**400), "high"),
        (lambda: gk.SoftGate(positive=1e-38), "positive"),
        (lambda: gk.GammaWeight(k_pos=4, lambda_pos=0), "k_pos"),
        (lambda: gk.Divergence("js", 1e-46), "eta"),
        (lambda: Clip(high=True), "high"),
        (lambda: Clip(low="0.2"), "low"),
        (lambda: Clip(dual=1.0), "dual"),
        (lambda: Clip(dual=float("nan")), "dual"),
        (lambda: KL("k4"), "kind"),
        (lambda: KL(to="policy"), "to"),
        (lambda: KL(corrected=1), "corrected"),
        (lambda: gk.SequenceClip(low=1.0), "low"),
        (lambda: gk.SequenceClipToken(dual=0.5), "dual"),
        (lambda: gk.GeometricClip(high=-0.1), "high"),
        (lambda: gk.ClippedWeight(high=-1.0), "high"),
        (lambda: gk.ClippedWeight(4.0, low=1.0), "low"),
        (lambda: gk.SoftGate(positive=0.0), "positive"),
        (lambda: gk.SoftGate(negative=float("nan")), "negative"),
        (lambda: gk.GaussianGate(sigma=0.0), "sigma"),
        (lambda: gk.GaussianGate(sigma=2.0, sigma_high=1.0), "sigma_high"),
        (lambda: gk.GaussianGate(beta=-1.0), "beta"),
        (lambda: gk.GammaWeight(k_neg=-1.0), "k_neg"),
        (lambda: gk.Regression(beta=0.0), "beta"),
        (lambda: gk.Divergence("chi2", 1.0), "f"),
        (lambda: gk.Divergence("js", 0.0), "eta"),
        (lambda: gk.MixedPolicy(gamma=0.0), "gamma"),
        (lambda: gk.MixedPolicy(low=1.0), "low"),
        (lambda: gk.TIS(cap=0), "cap"),
        (lambda: gk.TIS(2.0, 3.0), "cap"),
        (lambda: gk.TIS(level="worst"), "level"),
        (lambda: gk.TIS(policy="ref"), "policy"),
        (lambda: gk.MIS(None), "high"),
        (lambda: gk.MIS(2.0, 2.0), "high"),
        (lambda: gk.KPop(0), "phi"),
        (lambda: gk.SequenceMask(0.5, 2.0), "high"),
        (lambda: gk.GeometricMask(low=-1.0), "low"),
        (lambda: gk.Veto(None), "low"),
        (lambda: gk.WTRS(high=float("nan")), "high"),
        (lambda: gk.TrustRegionMask(0.1, "k1"), "kind"),
        (lambda: gk.TrustRegionMask(0.1, level="batch"), "level"),
        (lambda: gk.OPSM(0.1, "ref"), "against"),
        (lambda: gk.DPPOMask(0.2, 0.2, "js"), "kind"),
        (lambda: gk.M2POMask("0.04"), "tau"),
        (lambda: gk.ClipCov(share=1.5), "share"),
        (lambda: gk.ClipCov(seed=-1), "seed"),
        (lambda: gk.ClipCov(cov_low=5.0, cov_high=1.0), "cov_high"),
        (lambda: gk.SequenceMask(None, None), "high"),
        (lambda: gk.WTRS(None, None), "high"),
        (lambda: gk.TopCovariance(0), "share"),
        (lambda: gk.M2POClip(low=1.0), "low"),
        (lambda: gk.S2TMask(q=2), "q"),
        (lambda: gk.S2TMask(population="batch"), "population"),
        (lambda: gk.TopEntropy(True), "rho"),
        (lambda: gk.IcePop(low=0.0), "low"),
        (lambda: gk.IcePop(low=2.0, high=2.0), "high"),
    ],
)
def test_bad_parameters(make, name):
    with pytest.raises(gk.InputError) as caught:
        make()
    assert caught.value.kind == "bad_parameter"
    assert caught.value.context["name"] == name


@pytest.mark.parametrize(
    "objective",
    [
        *(gk.SoftGate(size, size) for size in (1e-9, 1e9)),
        *(gk.Divergence(f, eta) for f in ("kl", "js") for eta in (1e-9, 1e9)),
        *(gk.Regression(beta) for beta in (1e-9, 1e9)),
        *(gk.QuadraticPenalty(epsilon) for epsilon in (1e-9, 1e9)),
        *(gk.GammaWeight(k, lam, k, lam) for k, lam in ((0, 60), (3, 0), (1e9, 1e9))),
        *(gk.GaussianGate(sigma=sigma, sigma_high=sigma) for sigma in (1e-9, 1e9)),
        *(gk.MixedPolicy(gamma) for gamma in (1e-9, 1e9)),
        *(Clip(0, high, dual) for high in (0, 1e9) for dual in (1.1, 1e9)),
        *(gk.GeometricClip(size, size) for size in (0, 1e9)),
        gk.ClippedWeight(1e9),
    ],
    ids=str,
)
def test_no_parameter_that_is_allowed_overflows(objective):
    """In float32, at ratios as far as e^±20."""
    step = laws.Step.draw(3, per_token=False)
    for shift in (-20.0, 0.0, 20.0):
        others = {name: step.columns[name] - shift for name in ("old_logps", "rollout_logps", "ref_logps")}
        recipe = gk.Recipe(name="far", advantage=gk.Given(), objective=objective)
        found = step.replace(**others).to(torch.float32).run(recipe)
        assert all(x.isfinite().all() for x in found.values())


def test_a_recipe_is_made_without_torch():
    code = (
        "import json, sys, grpokit as gk\n"
        "r = gk.recipe('grpo').replace(correct=(gk.TIS(), gk.WTRS()), objective=gk.Clip(dual=3.0))\n"
        "r.explain()\n"
        "print(json.dumps([m for m in ('torch', 'triton', 'transformers') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []
