"""The forms in which functions take their arguments and give their results, and what of a recipe they reach."""

import inspect

import pytest

import grpokit as gk
from grpokit.testing import engine
from grpokit.testing.arguments import guessed_kind

from . import implementations as given
from . import textbook

DAPO = {"recipe": "dapo", "settings": {"max_len": 100}}


def tried(function, recipe="dapo", kind=None, **more):
    settings = {"max_len": 100} if recipe == "dapo" else {}
    name = f"implementations:{getattr(function, '__name__', 'it')}"
    return engine.trial(function, recipe, kind, name=name, settings=more.pop("settings", settings), **more)


def verdicts(made, *laws, examples=30):
    return {law.name: engine.run(law, made, examples=examples) for law in engine.chosen(made.target.kind, list(laws))}


@pytest.mark.parametrize(
    ("function", "recipe", "form"),
    [
        (given.sound, "dapo", {"library": "torch", "advantages": "token"}),
        (given.row_advantages, "dapo", {"advantages": "row", "mask": "int64"}),
        (given.packed, "dapo", {"library": "torch"}),
        (given.in_numpy, "dapo", {"library": "numpy"}),
        (given.in_numpy_with_gradient, "dapo", {"library": "numpy"}),
        (given.counted, "dapo", {"library": "torch"}),
        (given.with_optional_parts, "dapo", {"library": "torch"}),
        (given.named_parts, "dapo", {"library": "torch"}),
        (given.as_module, "dapo", {"library": "torch"}),
        (given.twice_decorated, "dapo", {"library": "torch"}),
        (given.bound_numbers, "dapo", {"advantages": "row"}),
        (given.by_position, "dapo", {"library": "torch"}),
        (given.list_of_arrays, "GroupNorm()", {"rows": "table"}),
        (given.of_one_group, "GroupNorm()", {"rows": "group"}),
        (given.of_a_matrix, "GroupNorm()", {"rows": "table"}),
        (given.of_tokens, "GroupNorm()", {"ids": "objects"}),
        (given.of_numbered_groups, "MeanBaseline()", {"ids": "dense"}),
        (given.keep_of_one_group, "HasSignal()", {"rows": "group"}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_form_is_found(function, recipe, form):
    kind = "filter" if recipe == "HasSignal()" else None
    made = tried(function, recipe, kind)
    assert {name: getattr(made.subject.form, name) for name in form} == form
    bad = {law: v for law, v in verdicts(made).items() if v.status == "fail"}
    assert bad == {}


def test_the_recipes_numbers_are_handed_over():
    made = tried(given.row_advantages)
    assert [str(a) for a in made.subject.arguments] == [
        "log_probs ← logps", "old_log_probs ← old_logps", "adv ← advantages", "response_mask ← mask",
        "eps_low = 0.2", "eps_high = 0.28",
    ]  # fmt: skip
    assert tried(given.row_advantages, settings={"max_len": 9, "high": 0.5}).subject.arguments[-1].value == 0.5


def test_an_argument_for_what_the_recipe_does_not_have_keeps_its_default():
    def left(recipe, **more):
        arguments = tried(given.with_optional_parts, recipe, settings={}, **more).subject.arguments
        return [a.name for a in arguments if str(a).endswith("left at its default")]

    assert left("grpo") == ["rollout_logps", "clip_ratio_c"]
    assert left("decoupled_ppo") == ["ref_logps", "beta", "clip_ratio_c"]
    assert left("grpo", said={"rollout_logps": "rollout_logps"}) == ["clip_ratio_c"]


def test_what_is_given_by_position_is_written_so():
    made = tried(given.by_position)
    verdicts(made, "value", examples=1)
    assert "by_position(\n    torch.tensor(" in made.subject.snippet(made.subject.last)


def test_what_is_said_wins():
    def loss(a, b, c, d, e=1.0):
        return textbook.dapo(a, b, c, d) * e

    with pytest.raises(gk.InputError) as caught:
        tried(loss)
    assert caught.value.kind == "unmapped_argument"
    assert "'a'" in str(caught.value)
    said = {"a": "logps", "b": "old_logps", "c": "advantages", "d": "mask", "e": 2.0}
    made = tried(loss, kind="loss", said=said)
    verdict = verdicts(made, "value")["value"]
    assert (verdict.guess, verdict.guess_says) == ("scaled", verdict.guess_says)
    assert "(2 times)" in verdict.guess_says
    assert "e=2.0" in verdict.snippet
    with pytest.raises(gk.InputError, match="--map has no parameter 'f'"):
        tried(loss, kind="loss", said=said | {"f": "mask"})


def test_a_missing_capability_is_a_skip_with_its_reason():
    found = verdicts(tried(given.in_numpy), examples=10)
    assert {law for law, v in found.items() if v.status == "skip"} == {
        "gradient", "entropy_gradient", "bound", "split", "bf16",
    }  # fmt: skip
    assert "write it in torch or jax, or return (loss, gradient)" in found["gradient"].reason
    assert "num_tokens" in found["split"].reason
    found = verdicts(tried(given.in_numpy_with_gradient), examples=10)
    assert found["gradient"].status == found["bound"].status == "pass"
    assert verdicts(tried(given.counted), "split")["split"].status == "pass"
    assert verdicts(tried(given.of_a_matrix, "GroupNorm()"), "order", "singleton")["order"].status == "skip"


def test_what_a_function_does_not_reach_is_left_out():
    made = tried(given.sound, "grpo")
    assert made.target.left_out == (("KL, a term", "the function has no argument for ref_logps"),)
    made = tried(given.sound, "decoupled_ppo", settings={})
    assert made.target.left_out == (("TIS, a correction", "the function has no argument for rollout_logps"),)

    def on_policy(logps, advantages, mask):
        return textbook.masked(-(logps - logps.detach()).exp() * advantages, mask).sum() / mask.sum().clamp(min=1)

    made = tried(on_policy)
    assert made.target.on_policy
    assert verdicts(made, "value", "gradient", "bound")["gradient"].status == "pass"


def test_kinds_are_guessed():
    kinds = {
        given.sound: "loss",
        given.of_tokens: "advantage",
        textbook.k3: "kl",
        textbook.token_mean: "aggregate",
        textbook.group_norm: "advantage",
    }
    assert {function: guessed_kind(function) for function in kinds} == kinds


@pytest.mark.parametrize(
    ("kind", "recipe", "says"),
    [
        ("filter", "grpo", "a recipe that selects"),
        ("kl", "dapo", "a recipe with a KL term"),
        ("advantage", "PassKTraining(2)", "one that reads rewards, groups and lengths alone"),
        ("filter", "NotTruncated()", "one that reads rewards, groups and lengths alone"),
        ("kl", "Entropy()", 'an estimator: KL("k3")'),
        ("loss", "dappo", "Did you mean 'dppo'"),
        ("aggregate", "TokenMeen()", "Did you mean 'TokenMean'"),
    ],
)
def test_what_it_is_held_against_must_be_there(kind, recipe, says):
    functions = {"filter": textbook.has_signal, "kl": textbook.k3, "advantage": textbook.group_norm}
    with pytest.raises(gk.InputError, match=says.replace("(", "\\(").replace(")", "\\)")):
        engine.trial(
            functions.get(kind, textbook.dapo), recipe, kind, settings={"max_len": 9} if recipe == "dapo" else {}
        )


def test_a_bound_is_the_matter_of_one_law():
    """Where torch.min and torch.clamp meet on a bound their slope is their own; elsewhere they are right."""
    found = verdicts(tried(given.as_everybody_writes_it), examples=200)
    assert {law: v.guess for law, v in found.items() if v.status == "fail"} == {
        "bound": "gradient_at_bound", "bf16": "subtracted_in_bf16",
    }  # fmt: skip


def test_special_laws_are_not_blamed_for_what_is_wrong_everywhere():
    found = verdicts(tried(given.without_gradient), "gradient", "bound", "masked_nan")
    assert {v.guess for v in found.values()} == {"ratio_not_differentiated"}


def test_the_form_of_a_wrong_function_is_the_one_that_keeps_rows_apart():
    made = tried(given.wrong_and_per_row)
    assert made.subject.form.advantages == "row"
    assert verdicts(made, "value", examples=100)["value"].guess == "masked_tokens_counted"


def test_a_failure_of_jax_is_shown_with_its_numbers():
    """The gradient is asked with tracers, which are no numbers to be shown."""
    jnp = pytest.importorskip("jax.numpy")

    space = {"jnp": jnp}
    source = "def twice_k3(logps, ref_logps):\n    y = ref_logps - logps\n    return 2 * (jnp.exp(y) - y - 1)\n"
    exec(source, space)
    made = engine.trial(space["twice_k3"], "k3", "kl", name="implementations:twice_k3")
    found = verdicts(made, "value", "gradient", examples=10)
    assert {v.guess for v in found.values()} == {"kl_coefficient"}
    assert all("logps=jnp.array([[" in v.snippet for v in found.values())


def test_laws_by_name():
    with pytest.raises(gk.InputError) as caught:
        engine.chosen("loss", ["valeu"])
    assert caught.value.kind == "unknown_law"
    assert "Did you mean 'value'?" in str(caught.value)
    assert [law.name for law in engine.chosen("kl", ["zero", "sign"])] == ["zero", "sign"]


def test_the_snippet_runs():
    """What a failure shows can be pasted, and gives what was got."""
    verdict = verdicts(tried(given.wrong), "gradient")["gradient"]
    assert verdict.guess == "ratio_not_differentiated"
    code = verdict.snippet.replace("from implementations", "from tests.conformance.implementations")
    lines = code.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("wrong("))
    space = {"wrong": given.wrong}
    exec("\n".join(["import torch", "result = " + lines[at], *lines[at + 1 :]]), space)
    assert not space["result"].requires_grad
    assert inspect.signature(given.wrong)
