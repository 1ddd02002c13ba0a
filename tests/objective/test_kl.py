"""What the KL estimators are unbiased for, by enumeration: every sequence of a small vocabulary, weighed exactly.

The policies are tables: of three tokens, the second one's distribution depending on the first (and so on), so that an
expectation over rollouts is a finite sum and its gradient is autograd's.
"""

import itertools

import pytest
import torch

import grpokit as gk
from grpokit.objective import KL
from grpokit.tokens import Tokens

V, T = 3, 3


def policy(seed):
    """Logits of every prefix: {(): (V,), (0,): (V,), ...}, as one leaf."""
    prefixes = [p for n in range(T) for p in itertools.product(range(V), repeat=n)]
    logits = torch.randn(len(prefixes), V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {p: i for i, p in enumerate(prefixes)}, logits


ROWS, PI = policy(0)
REF, OLD = policy(1)[1], policy(2)[1]
SEQUENCES = list(itertools.product(range(V), repeat=T))


def logps(logits, y):
    """(T,): log π of each token of a sequence."""
    return torch.stack([logits[ROWS[y[:t]]].log_softmax(0)[y[t]] for t in range(T)])


def divergence(p, q):
    """KL(p ‖ q) of whole sequences, a function of the tables."""
    return sum(logps(p, y).sum().exp() * (logps(p, y) - logps(q, y)).sum() for y in SEQUENCES)


def local(p, q, visited):
    """Σ over states of how often π visits them (a constant), times KL(p ‖ q) of the state's next token."""
    total = 0.0
    for prefix, row in ROWS.items():
        reach = sum(float(logps(visited, y).sum().exp()) for y in SEQUENCES if y[: len(prefix)] == prefix)
        a, b = p[row].log_softmax(0), q[row].log_softmax(0)
        total = total + reach * (a.exp() * (a - b)).sum()
    return total


def gradient(f):
    x = PI.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(x), x)
    return g


def term(objective, sampler, x, *, value=False):
    """E over the sampler's sequences of the loss term summed over tokens: its gradient by the term's own rules."""
    total = 0.0
    for y in SEQUENCES:
        l = logps(x, y)
        columns = {"logps": l, "ref_logps": logps(REF, y), "old_logps": logps(sampler, y).detach()}
        columns["log_ratio"] = l - columns["old_logps"]
        tokens = Tokens(columns, torch.tensor([T]))
        weight = logps(sampler, y).sum().exp().detach()
        total = total + weight * objective.value(tokens).sum()
    return total


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_which_estimators_have_the_right_mean():
    exact = divergence(PI, REF)
    assert exact > 0.1
    close(term(KL("k1"), PI, PI), exact)
    close(term(KL("k3"), PI, PI), exact)
    assert (term(KL("k2"), PI, PI) - exact).abs() > 0.01
    # Off-policy with the token's own ratio only where the states in front are the sampler's own: the first token's.
    for kind in ("k1", "k3"):
        close(term(KL(kind, corrected=True), OLD, PI), local(PI, REF, OLD))


def test_k1_as_a_loss_does_nothing():
    assert gradient(lambda x: term(KL("k1"), PI, x)).abs().max() < 1e-14


def test_k2_as_a_loss_is_the_reverse_kl_of_the_states_that_were_visited():
    found = gradient(lambda x: term(KL("k2"), PI, x))
    close(found, gradient(lambda x: local(x, REF, PI)))
    # Not that of whole sequences: what a token does to the states behind it is missing.
    whole = gradient(lambda x: divergence(x, REF))
    assert (found - whole).abs().max() > 0.01
    # In the last token's states nothing is behind, and there it is.
    last = [row for prefix, row in ROWS.items() if len(prefix) == T - 1]
    close(found[last], whole[last])


def test_k3_as_a_loss_is_the_forward_kl_of_the_states_that_were_visited():
    found = gradient(lambda x: term(KL("k3"), PI, x))

    def forward(x):
        total = 0.0
        for prefix, row in ROWS.items():
            reach = sum(float(logps(PI, y).sum().exp()) for y in SEQUENCES if y[: len(prefix)] == prefix)
            a, b = x[row].log_softmax(0), REF[row].log_softmax(0)
            total = total + reach * (b.exp() * (b - a)).sum()
        return total

    close(found, gradient(forward))
    assert (found - gradient(lambda x: local(x, REF, PI))).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_corrected_estimators_are_the_reverse_kl_off_policy(kind):
    close(gradient(lambda x: term(KL(kind, corrected=True), OLD, x)), gradient(lambda x: local(x, REF, OLD)))
    uncorrected = gradient(lambda x: term(KL(kind), OLD, x))
    assert (uncorrected - gradient(lambda x: local(x, REF, OLD))).abs().max() > 0.01


def in_reward(kind):
    """The policy gradient, E Σ_t ∇log π_t · k of the whole sequence, of the penalty that KLPenalty takes off."""
    rows = {
        "group_id": list(range(len(SEQUENCES))),
        "reward": [0.0] * len(SEQUENCES),
        "logp_old": [logps(PI, y).tolist() for y in SEQUENCES],
        "logp_ref": [logps(REF, y).tolist() for y in SEQUENCES],
    }
    recipe = gk.recipe("remax").replace(advantage=gk.Given(), shape=(gk.KLPenalty(1.0, kind),))
    k = -torch.from_numpy(gk.process(rows, recipe).advantages)
    weights = torch.stack([logps(PI, y).sum().exp() for y in SEQUENCES])
    return gradient(lambda x: sum(w * a * logps(x, y).sum() for w, a, y in zip(weights, k, SEQUENCES, strict=True)))


def test_k1_in_the_reward_is_the_reverse_kl_of_whole_sequences():
    close(in_reward("k1"), gradient(lambda x: divergence(x, REF)))


def test_k3_in_the_reward_misses_what_its_loss_term_has():
    found = in_reward("k3")
    whole, forward = gradient(lambda x: divergence(x, REF)), gradient(lambda x: term(KL("k3"), PI, x))
    close(found, whole - forward)
    assert (found - gradient(lambda x: divergence(x, REF))).abs().max() > 0.01


def test_k2_in_the_reward_misses_the_kl_once():
    """∇E[x²/2] is what the penalty alone misses the k2 loss's gradient of."""
    found = in_reward("k2")
    mean = gradient(
        lambda x: sum(logps(x, y).sum().exp() * ((logps(x, y) - logps(REF, y)) ** 2 / 2).sum() for y in SEQUENCES)
    )
    close(found, mean - gradient(lambda x: term(KL("k2"), PI, x)))


def test_reinforce_pp_takes_off_what_is_still_to_come():
    """Token by token, the return to go has the gradient of the whole sum."""
    rows = {
        "group_id": list(range(len(SEQUENCES))),
        "reward": [float(sum(y) % 2) for y in SEQUENCES],
        "logp_old": [logps(PI, y).tolist() for y in SEQUENCES],
        "logp_ref": [logps(REF, y).tolist() for y in SEQUENCES],
    }
    beta = 0.3
    recipe = gk.recipe("reinforce_pp", ddof=0, eps=0.0, beta=beta)
    found = gk.process(rows, recipe).token_advantages
    x = torch.tensor([
        [r - beta * sum(a - b for a, b in zip(old[t:], ref[t:], strict=True)) for t in range(T)]
        for r, old, ref in zip(rows["reward"], rows["logp_old"], rows["logp_ref"], strict=True)
    ])  # fmt: skip
    expected = (x.double() - x.double().mean()) / x.double().std(unbiased=False)
    torch.testing.assert_close(torch.from_numpy(found.values).view(-1, T), expected, rtol=1e-6, atol=1e-6)
    weights = torch.stack([logps(PI, y).sum().exp() for y in SEQUENCES])
    to_go = [
        r - beta * (logps(PI, y) - logps(REF, y)).flip(0).cumsum(0).flip(0)
        for r, y in zip(rows["reward"], SEQUENCES, strict=True)
    ]
    found = gradient(
        lambda z: sum(w * (a * logps(z, y)).sum() for w, a, y in zip(weights, to_go, SEQUENCES, strict=True))
    )
    objective = gradient(
        lambda z: (
            sum(logps(z, y).sum().exp() * r for y, r in zip(SEQUENCES, rows["reward"], strict=True))
            - beta * divergence(z, REF)
        )
    )
    close(found, objective)


def test_the_entropy_gradient_is_exact():
    """h = 1 through from_logits is autograd's ∇H of the softmax."""
    logits = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    batch = gk.TokenBatch(torch.zeros(2, 4, dtype=torch.int64), temperature=0.7)
    recipe = gk.Recipe(name="entropy", advantage=gk.Given(), objective=gk.Entropy(), aggregate=gk.SequenceSum())
    x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    gk.loss.from_logits(x, batch, recipe).loss.backward()
    log_p = (y / 0.7).log_softmax(-1)
    (-(log_p.exp() * log_p).sum() / 2).backward()
    close(x.grad, y.grad)
