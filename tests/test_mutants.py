"""Do the tests of the loss notice? Each fault is planted in a copy of the package, and some test must fail."""

import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import grpokit

PACKAGE, HERE = Path(grpokit.__file__).parent, Path(__file__).parent
# Those that take a moment first, and those that take half a minute last: a run ends at its first failure.
TESTS = ("objective/test_bounds.py", "test_mismatch.py", "test_tokens.py", "test_batch.py", "test_metrics.py")
TESTS += ("test_loss.py", "test_ranks.py", "objective/test_derivatives.py")
# To be told that a test fails is enough: no search for its smallest example.
QUICK = """
from hypothesis import Phase, settings
settings.register_profile("quick", phases=[Phase.generate], max_examples=20, derandomize=True, database=None)
settings.load_profile("quick")
"""
MUTANTS = [
    ("objective/columns.py", "where(b < a, b, a)", "where(b <= a, b, a)"),
    ("objective/columns.py", "where(b < a, b, a)", "where(a <= b, a, b)"),
    ("objective/columns.py", "where(x > high, high, x)", "where(x >= high, high, x)"),
    ("objective/columns.py", "where(x < low, low, x)", "where(x <= low, low, x)"),
    ("objective/columns.py", "clip(log_ratio, -limit, limit).exp()", "log_ratio.exp()"),
    ("objective/columns.py", "return detach(x)", "return x"),
    ("objective/columns.py", "math.log1p(-low)", "-low"),
    ("objective/clip.py", "clip(d, low, dual), clip(d, None, high)", "clip(d, low, None), clip(d, None, high)"),
    ("objective/clip.py", "clip(d, low, dual), clip(d, None, high)", "clip(d, low, dual), clip(d, low, high)"),
    ("objective/clip.py", "where(A < 0,", "where(A > 0,"),
    ("objective/kl.py", "(-x).expm1() + x", "x.expm1() - x"),
    ("objective/kl.py", "return x * x / 2", "return x * x"),
    ("objective/kl.py", "ratio(tokens.log_ratio) * k", "ratio(tokens.log_ratio).detach() * k"),
    ("objective/sequence_clip.py", "return tokens.mean(tokens.log_ratio)", "return tokens.total(tokens.log_ratio)"),
    ("objective/sequence_clip.py", "stop(tokens.mean(d)) + (d - stop(d))", "tokens.mean(d) + (d - stop(d))"),
    ("objective/geometric_clip.py", "clip(d, low, None), clip(d, None, self.high)", "clip(d, low, self.high), d"),
    ("objective/clipped_weight.py", "-stop(weight) * tokens", "-weight * tokens"),
    ("objective/clipped_weight.py", "log_bounds(self.low, self.high)", "(self.low, self.high)"),
    ("objective/soft_gate.py", "A > 0, self.positive", "A < 0, self.positive"),
    ("objective/soft_gate.py", "* 4 / tau *", "* 4 *"),
    ("objective/gaussian_gate.py", "stop(where(", "(where("),
    ("objective/gaussian_gate.py", "(r - 1) * A > 0", "(r - 1) * A < 0"),
    ("objective/gaussian_gate.py", "clip(risk, self.adv_low, self.adv_high)", "risk"),
    ("objective/gamma_weight.py", "tokens.log_ratio + tokens.weight.log()", "tokens.log_ratio"),
    ("objective/gamma_weight.py", "k * log_W - lam * log_W.expm1()", "k * log_W - lam * log_W.exp()"),
    ("objective/gamma_weight.py", "folds: ClassVar[bool] = True", "folds: ClassVar[bool] = False"),
    ("objective/regression.py", "tokens.total(", "tokens.mean("),
    ("objective/divergence.py", "(R + E) *", "(R + 1) *"),
    ("objective/mixed_policy.py", "math.log(self.gamma)", "self.gamma"),
    ("objective/columns.py", "dtype=torch.float64, device", "dtype=torch.float32, device"),
    ("mismatch.py", "else tokens.logps) - tokens.rollout_logps", "else tokens.logps) + tokens.rollout_logps"),
    ("mismatch.py", 'tokens.old_logps if self.policy == "old" else tokens.logps)', "tokens.old_logps)"),
    ("mismatch.py", "(d < least) | (d >", "~(d >= least) | (d >"),
    ("mismatch.py", "(d < least) | (d >", "(d <= least) | (d >"),
    ("mismatch.py", "return (d < least) | (d > (", "return (d < least) | (d >= ("),
    ("mismatch.py", 'if level == "sequence" else tokens.mean(d)', 'if level != "sequence" else tokens.mean(d)'),
    ("mismatch.py", "(binary_kl(q, p) > self.phi)", "(binary_kl(p, q) > self.phi)"),
    ("mismatch.py", "-log_p.expm1(), -log_q.expm1()", "1 - log_p, 1 - log_q"),
    ("rejection.py", "return where(dropped, 0.0, shown)", "return where(dropped, 0.0, 1.0)"),
    ("rejection.py", "any_of(outside(d, self.low, self.high), tokens, d)", "outside(d, self.low, self.high)"),
    ("rejection.py", "most = clip(d, None, LIMIT)", "most = d"),
    ("rejection.py", 'tokens.mean if self.level == "mean" else tokens.total', "tokens.total"),
    ("drift.py", "(tokens.advantages < 0) & (drift", "(tokens.advantages > 0) & (drift"),
    ("drift.py", "(p > q) & (far > self.high)", "(far > self.high)"),
    ("drift.py", "else binary_kl(q, p)", "else binary_kl(p, q)"),
    ("drift.py", "last & (mean < self.tau)", "mean < self.tau"),
    ("token_selection.py", "l.mean()) * (A", "l.median()) * (A"),
    ("token_selection.py", "& (cov < self.cov_high) & ~closed", "& (cov < self.cov_high)"),
    (
        "token_selection.py",
        "(tokens.step, tokens.rollout_ids, tokens.position)",
        "(tokens.rollout_ids, tokens.position)",
    ),
    ("token_selection.py", "cov < least, cov)", "cov <= least, cov)"),
    ("token_selection.py", "beyond & (v.sum() > budget)", "beyond"),
    ("token_selection.py", "ordered * after < budget", "ordered * after <= 2 * budget"),
    ("token_selection.py", 'if self.population == "candidates" else candidates | ~candidates', ""),
    ("token_selection.py", "quantile(H, over, self.q) > H", "quantile(H, over, self.q) >= H"),
    ("ranks.py", "start = sum(sizes[:own])", "start = 0"),
    ("tokens.py", "total: Tensor = _Total.apply(upstream_T.contiguous(), lengths_S)", "total: Tensor = upstream_T"),
    ("tokens.py", "lengths_S) > 0 if over", "lengths_S) >= 0 if over"),
    ("tokens.py", 'weights_T != 0 if over == "kept"', 'weights_T != 0 if over == "none"'),
    ("tokens.py", "self.starts[last]] - origin", "self.starts[last]]"),
    ("batch.py", "device=self.device) - self._repeat(starts)", "device=self.device)"),
    ("batch.py", '"old_logps": stop(logps)', '"old_logps": logps'),
    ("batch.py", "stage.reads - self.columns.keys()", 'stage.reads & {"rollout_logps"}'),
    ("batch.py", 'stage.scope == "batch" or term.aggregate.over == "kept"', 'stage.scope == "batch"'),
    ("batch.py", "torch.promote_types(x.dtype, torch.float32)", "x.dtype"),
    ("batch.py", "return there.reshape(-1) != 0", "return there.reshape(-1) == there.reshape(-1)"),
    ("equation.py", "share if term.objective.folds or not term.weigh else", "share if not term.weigh else"),
    ("equation.py", "whole.settled[key] = _early(whole, term)", "whole.settled[key] = _early(batch, term)"),
    ("equation.py", '    if over == "kept":', "    if False:"),
    ("equation.py", 'if term.aggregate.over == "kept":', "if False:"),
    ("equation.py", 'term.dropped == "in_ratio" and', "False and"),
    ("equation.py", "factor = torch.where(weights == 0, 0.0, factor)", "pass"),
    ("equation.py", "whole.ready.clear()", "pass"),
    ("equation.py", 'ranks is not None and stage.scope == "batch"', "False"),
    ("equation.py", "policy, batch.tokens(recipe, views)", "policy, batch.tokens(recipe, leaves)"),
    ("equation.py", "(term.scale * settled.share)", "settled.share"),
    ("vocabulary.py", "0.0) + entropies[at, None])", "0.0) - entropies[at, None])"),
    ("vocabulary.py", "float = 1 / temperature", "float = 1.0"),
    ("door.py", "ready.pop(part_key(batch, recipe), None)", "ready.get(part_key(batch, recipe), None)"),
    ("loss.py", "del part.whole.observed[recipe]", "pass"),
    ("loss.py", "observed.setdefault(recipe, {})", 'observed.setdefault("", {})'),
    ("door.py", "upstream * g for", "g for"),
    ("metrics.py", "batch.whole.live_tokens", "batch.live_tokens"),
    ("metrics.py", "(coefficients.weights != 0)", "(tokens.advantages != 0)"),
]


@pytest.mark.slow
def test_every_planted_fault_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the cases are small, and there is a process for each core
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch", "sympy", "hypothesis", "pytest"])  # what takes long to import
    with ProcessPoolExecutor(os.cpu_count(), mp_context=server, max_tasks_per_child=1) as pool:
        sound = pool.submit(pytest.main, plant(tmp_path / "sound", ("vocabulary.py", "CHUNK = 2**20", "CHUNK = 2**19")))
        tried = [pool.submit(pytest.main, plant(tmp_path / str(i), mutant)) for i, mutant in enumerate(MUTANTS)]
        noticed = [run.result() == pytest.ExitCode.TESTS_FAILED for run in tried]
    assert [mutant for mutant, killed in zip(MUTANTS, noticed, strict=True) if not killed] == []
    assert sound.result() == pytest.ExitCode.OK


def plant(place, mutant):
    """A copy of package and tests with the fault in it, and how pytest is called there."""
    file, old, new = mutant
    shutil.copytree(PACKAGE, place / "grpokit", ignore=shutil.ignore_patterns("__pycache__", "trainer", "kernels"))
    for name in ("losses.py", *TESTS):
        (place / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / name, place / "tests" / name)
    (place / "tests" / "conftest.py").write_text(QUICK)
    source = (place / "grpokit" / file).read_text()
    assert source.count(old) == 1, mutant
    (place / "grpokit" / file).write_text(source.replace(old, new))
    first = TESTS
    if file.startswith(("objective/", "mismatch", "rejection", "drift", "token_selection")):
        # A formula is nearest to the derivatives.
        first = TESTS[:2] + TESTS[:1:-1]
    options = ["-xq", "--import-mode=importlib", "-p", "no:cacheprovider", "-o", f"pythonpath={place}"]
    return [*options, f"--rootdir={place}", "-c", os.devnull, *(str(place / "tests" / name) for name in first)]
