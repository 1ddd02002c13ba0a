"""Which argument of somebody's function is what: by its name, by what was said with `--map`, or left at its default.

A source is a thing that a case can give (`logps`, `old_logps`, `mask`, `group_ids`, ...) or a number of the recipe
(`low`, `beta`, `max_len`, ...). Every mapping is printed, so that a wrong guess is seen.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpokit.errors import error, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

KINDS = ("loss", "advantage", "filter", "kl", "aggregate")

# The first name of each line is the source.
_TOKENS = """
logps log_probs log_prob logprobs logprob logp new_logps new_log_probs new_logprobs per_token_logps token_logps
  curr_logprobs current_logps current_log_probs policy_logps policy_log_probs pi_logps action_log_probs
old_logps old_log_probs old_log_prob old_logprobs old_logprob old_logp old_per_token_logps logps_old log_probs_old
  logprobs_old prev_logprobs behaviour_logps behavior_logps old_action_log_probs
rollout_logps rollout_log_probs rollout_log_prob rollout_logprobs logp_rollout sampling_logps sampling_logprobs
  sampling_per_token_logps inference_logps inference_logprobs generation_logprobs vllm_logps sampler_logps
ref_logps ref_log_probs ref_log_prob ref_logprobs ref_logprob ref_logp ref_per_token_logps reference_logps
  reference_log_probs reference_policy_logprobs logps_ref
advantages advantage adv advs token_advantages
row_advantages sequence_advantages
mask response_mask completion_mask loss_mask action_mask token_mask response_masks
entropies entropy token_entropies per_token_entropy entropys
off_policy off_policy_mask is_off_policy
cu_seqlens cu_seq_lens cu_seqlen
lengths response_lengths completion_lengths seq_lens seqlens response_len response_length
num_tokens num_items_in_batch batch_num_tokens total_tokens
num_sequences global_batch_size batch_size
rollout_ids sample_ids
"""
_ROWS = """
rewards reward scores score rewards_N outcomes r
token_rewards token_level_rewards token_level_scores
shaped_rewards shaped_reward final_rewards seq_final_reward total_rewards
group_ids group_id groups group index uid uids prompt_ids
mask response_mask completion_mask
lengths response_lengths completion_lengths seq_lens response_len response_length
baselines baseline_rewards baseline_reward reward_baselines greedy_rewards
num_generations group_size n_generations n_samples_per_prompt rollout_n
"""
_VALUES = """
values loss_mat per_token_loss per_token_losses token_losses losses loss x
mask loss_mask response_mask completion_mask
"""
SOURCES = {"loss": _TOKENS, "kl": _TOKENS, "advantage": _ROWS, "filter": _ROWS, "aggregate": _VALUES}
# The recipe's own numbers, as stages name them.
_NUMBERS = {
    "loss": """
low clip_low eps_low epsilon_low clip_ratio_low clip_eps_low epsilon eps clip_eps cliprange clip_ratio clip_range
high clip_high eps_high epsilon_high clip_ratio_high clip_eps_high
dual clip_ratio_c dual_clip
scale beta kl_coef kl_beta kl_loss_coef
length max_len max_completion_length max_length loss_scale_factor max_tokens
positive tau_pos temperature_pos sapo_temperature_pos
negative tau_neg temperature_neg sapo_temperature_neg
cap tis_cap
""",
    "advantage": """
ddof correction
eps epsilon
""",
    "aggregate": """
length max_len max_completion_length max_length loss_scale_factor max_tokens
""",
}


def _names(table: str) -> dict[str, str]:
    """Each name's source."""
    known: dict[str, str] = {}
    source = ""
    for line in table.strip().splitlines():
        words = line.split()
        source = source if line.startswith(" ") else words[0]
        known |= {word.lower(): source for word in words}
    return known


@dataclass(frozen=True)
class Argument:
    """One parameter of the function.

    Attributes
    ----------
    name : str
        Its name.
    source : str
        What it is given; empty where it is a number or left at its default.
    value : object
        The number of the recipe, or the one that was said; `inspect.Parameter.empty` otherwise.
    positional : bool
        Whether it cannot be given by name.
    """

    name: str
    source: str = ""
    value: Any = inspect.Parameter.empty
    positional: bool = False

    def __str__(self) -> str:
        if self.source:
            return f"{self.name} ← {self.source}"
        return f"{self.name} {'left at its default' if self.value is inspect.Parameter.empty else f'= {self.value!r}'}"


def mapped(
    function: Callable[..., Any],
    kind: str,
    numbers: Mapping[str, Any],
    said: Mapping[str, Any],
    unread: Collection[str] = (),
) -> tuple[Argument, ...]:
    """Each parameter of the function with what it is given.

    Parameters
    ----------
    function : callable
        Whose parameters are mapped.
    kind : str
        One of `KINDS`.
    numbers : dict
        The recipe's numbers by their stage's name for them.
    said : dict
        Parameter to source or to a value, as given with `--map`.
    unread : collection of str
        Sources that the recipe does not read: where such a parameter has a default, it keeps it.

    Raises
    ------
    InputError
        `unmapped_argument`: a parameter without default whose name says nothing; `unknown_parameter`: what was said of
        a parameter that is not there.
    """
    parameters = parameters_of(function)
    sources, known = _names(SOURCES[kind]), _names(_NUMBERS.get(kind, "") or "- -")
    for name in said:
        if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise error(
                "unknown_parameter",
                owner="--map",
                given=name,
                nearest=nearest(name, list(parameters)),
                known=", ".join(parameters),
            )
    found = []
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        positional = parameter.kind is parameter.POSITIONAL_ONLY
        wanted = said.get(name, sources.get(name.lower(), ""))
        number = known.get(name.lower(), "")
        optional = parameter.default is not parameter.empty
        if optional and name not in said and (wanted in unread or (not wanted and numbers.get(number, 0) is None)):
            found.append(Argument(name, positional=positional))
            continue
        if name in said and (not isinstance(wanted, str) or wanted not in sources.values()):
            found.append(Argument(name, value=wanted, positional=positional))
        elif wanted:
            found.append(Argument(name, wanted, positional=positional))
        elif number in numbers:
            found.append(Argument(name, value=numbers[number], positional=positional))
        elif optional:
            found.append(Argument(name, positional=positional))
        else:
            raise error(
                "unmapped_argument",
                name=name,
                function=getattr(function, "__qualname__", repr(function)),
                known=", ".join(dict.fromkeys(sources.values())),
            )
    extra = [Argument(name, source) for name, source in said.items() if name not in parameters]
    return (*found, *extra)


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function, or of a torch module's `forward`.

    Raises
    ------
    InputError
        `bad_implementation`: Python cannot read them, as those of scripted and built-in functions.
    """
    torch = sys.modules.get("torch")
    named = function.forward if torch is not None and isinstance(function, torch.nn.Module) else function
    try:
        return inspect.signature(named).parameters
    except (TypeError, ValueError):
        raise error(
            "bad_implementation",
            implementation=getattr(function, "__qualname__", type(function).__name__),
            why="has no names of arguments that Python can read",
            remedy="Wrap it in a function that has them.",
        ) from None


def guessed_kind(function: Callable[..., Any]) -> str:
    """What a function with such parameters is: a loss, an advantage, a KL estimator or an aggregation."""
    parameters = parameters_of(function)
    tokens = {_names(_TOKENS).get(name.lower()) for name in parameters}
    rows = {_names(_ROWS).get(name.lower()) for name in parameters}
    if "logps" in tokens:
        given = tokens & {"advantages", "row_advantages"}
        return "loss" if given or "ref_logps" not in tokens else "kl"
    if rows & {"rewards", "token_rewards"}:
        return "advantage"
    return "aggregate" if "values" in {_names(_VALUES).get(name.lower()) for name in parameters} else "loss"
