"""grpokit's own lines of the scoreboard: every recipe, and the stages that `grpokit conform` can hold something against."""

import grpokit as gk
from grpokit.stages import EXAMPLES, REGISTRY

RECIPES = [name for name in gk.recipe_names() if REGISTRY["recipe"][name].__module__.startswith("grpokit.recipes")]
ADVANTAGES = {
    "group_norm": "GroupNorm()",
    "group_norm_population": "GroupNorm(0, 1e-6)",
    "mean_baseline": "MeanBaseline()",
    "leave_one_out": "LeaveOneOut()",
    "length_baseline": "LengthBaseline()",
    "soft_value": "SoftValue()",
    "greedy_baseline": "GreedyBaseline()",
    "rescaled_mean": "RescaledMean()",
    "global_norm": "GlobalNorm(1, 1e-8)",
    "global_norm_of_groups": 'GlobalNorm(0, 1e-8, "group")',
    "pkpo": "PKPO(2)",
}
FILTERS = {"has_signal": "HasSignal()", "pass_rate": "PassRate(0.2, 0.8)", "min_group_size": "MinGroupSize(2)"}
KLS = {"k1": "k1", "k2": "k2", "k3": "k3", "abs": "abs"}
AGGREGATES = {
    "token_mean": "TokenMean()",
    "sequence_mean": "SequenceMean()",
    "sequence_mean_of_rows": 'SequenceMean(over="rows")',
    "sequence_sum": "SequenceSum()",
    "constant": "Constant(7.0)",
}


def lines():
    """Name, what it is, kind, recipe, settings."""
    for name in RECIPES:
        yield f"ours:losses.{name}", f"recipe('{name}')", "loss", name, dict(EXAMPLES.get(name, {}))
    stages = {"advantage": ADVANTAGES, "filter": FILTERS, "kl": KLS, "aggregate": AGGREGATES}
    for kind, named in stages.items():
        space = {"advantage": "advantages", "filter": "filters", "kl": "kls", "aggregate": "aggregates"}[kind]
        for name, text in named.items():
            yield f"ours:{space}.{name}", text, kind, text
