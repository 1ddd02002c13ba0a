"""Which recipe for which situation: one table of advice, each row with its reason, its source and how sure it is.

In: a `Situation`. Out: the rows that apply, the first of which names the recipe: `grpokit recipes --advise`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from .errors import error, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Task = Literal["maths", "code", "agents", "preferences"]
Length = Literal["short", "long"]
Sampler = Literal["same", "other"]
Aim = Literal["pass@1", "pass@k"]


@dataclass(frozen=True)
class Situation:
    """What is to be trained, and how.

    Parameters
    ----------
    task : {"maths", "code", "agents", "preferences"}
        maths, code: a checker says right or wrong; agents: several turns with an environment; preferences: a reward
        model, whose numbers are noisy and can be gamed.
    length : {"short", "long"}
        long: answers of thousands of tokens, some of which are cut off.
    moe : bool
        The model is a mixture of experts.
    stale : int
        How many updates the policy is ahead of the one that sampled.
    group : int
        Completions a prompt.
    pass_rate : float, optional
        The share of right answers at the beginning, where it is known.
    sampler : {"same", "other"}
        other: another program samples (vLLM, SGLang), or quantised weights do.
    aim : {"pass@1", "pass@k"}
        What the policy is to be good at: one answer, or one of k.
    rewards : int
        Reward functions that are added up.
    demonstrations : bool
        There are right answers, written by somebody else, to learn from.
    scarce : bool
        Completions are what a run has too few of: each costs more than an update.
    collapse : bool
        The entropy of a run like this fell to nearly nothing.
    rare : bool
        Right answers that the policy finds unlikely stay unlikely.
    """

    task: Task = "maths"
    length: Length = "short"
    moe: bool = False
    stale: int = 0
    group: int = 8
    pass_rate: float | None = None
    sampler: Sampler = "same"
    aim: Aim = "pass@1"
    rewards: int = 1
    demonstrations: bool = False
    scarce: bool = False
    collapse: bool = False
    rare: bool = False

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Situation).items():
            given, known = getattr(self, name), get_args(kind)
            if all(isinstance(word, str) for word in known) and known and given not in known:
                near = nearest(str(given), known).strip()
                expected = f"one of {', '.join(known)}{f' ({near})' if near else ''}"
                raise error("bad_parameter", owner="advise", name=name, given=given, expected=expected)
        for name, least in (("stale", 0), ("group", 1), ("rewards", 1)):
            given = getattr(self, name)
            if not isinstance(given, int) or isinstance(given, bool) or given < least:
                expected = f"a whole number, at least {least}"
                raise error("bad_parameter", owner="advise", name=name, given=given, expected=expected)
        if self.pass_rate is not None and not 0 <= self.pass_rate <= 1:
            raise error(
                "bad_parameter", owner="advise", name="pass_rate", given=self.pass_rate, expected="between 0 and 1"
            )


Sure = Literal["measured here", "arithmetic", "reported", "judgement"]


@dataclass(frozen=True)
class Advice:
    """One row of the table.

    Parameters
    ----------
    key : str
        Its name, never used for anything else.
    where : str
        The situation, in words.
    applies : callable
        ``(situation) -> bool``.
    advice : str
        What to do.
    settings : tuple of str
        For ``grpokit train --set``; ``{group}`` is computed.
    code : str
        The same for those who have a trainer, an expression of Python with `gk`; "" where there is none.
    reason, source : str
        Why, and where that is from.
    sure : {"measured here", "arithmetic", "reported", "judgement"}
        measured here: with this project's tiny task, command in the source; reported: by the authors named, not
        repeated here; judgement: no experiment that we know decides it.
    caveat : str
        What to watch, or why it may not hold.
    """

    key: str
    where: str
    applies: Callable[[Situation], bool]
    advice: str
    settings: tuple[str, ...]
    code: str
    reason: str
    source: str
    sure: Sure
    caveat: str = ""


# The first that applies is taken.
RECIPES = (
    Advice(
        "demonstrations",
        "demonstrations to learn from",
        lambda s: s.demonstrations,
        "LUFFY",
        ("recipe=luffy",),
        "gk.recipe('luffy')",
        "answers of another policy in the group give a signal where the policy has no right answer of its own; their "
        "tokens are weighed by a function of their probability, so that rare ones still move",
        "arXiv:2504.14945",
        "reported",
        "the rows of demonstrations need `off_policy`; their text must be in the policy's own format",
    ),
    Advice(
        "one-answer",
        "one completion a prompt",
        lambda s: s.group == 1,
        "REINFORCE++",
        ("recipe=reinforce_pp", "recipe.ddof=1", "recipe.eps=1e-8", "num_generations=1"),
        "gk.recipe('reinforce_pp', ddof=1, eps=1e-8)",
        "a group of one has no mean to compare with: GRPO's advantage is 0, so the batch's is taken",
        "arXiv:2501.03262",
        "reported",
        "easy and hard prompts share one baseline; where a greedy answer is cheap, ReMax (remax) takes it for one",
    ),
    Advice(
        "very-stale",
        "16 updates stale or more",
        lambda s: s.stale >= 16,
        "VESPO",
        ("recipe=vespo",),
        "gk.recipe('vespo')",
        "of nine arms it lost nothing at 64 updates (pass@1 0.64 and 0.64); GSPO 0.64 and 0.63, GRPO 0.65 and 0.58, "
        "RLOO, without a ratio, 0.64 and 0.07",
        "benches/results/staleness.md (make bench-staleness); arXiv:2602.10693",
        "measured here",
        "a task of short answers; at 1e-3 no recipe stands it",
    ),
    Advice(
        "mixture",
        "a mixture of experts",
        lambda s: s.moe,
        "GSPO",
        ("recipe=gspo",),
        "gk.recipe('gspo')",
        "routing changes the probability of single tokens from one program or update to the next; a ratio of whole "
        "answers averages that out",
        "arXiv:2507.18071, §5.3",
        "reported",
        "its clip, 3e-4 and 4e-4, is one for long answers: on short ones it holds many (15 % on the tiny task). "
        "Routing replay (docs/routing.md) removes the jump instead, and goes with any recipe",
    ),
    Advice(
        "asynchronous",
        "2 to 15 updates stale",
        lambda s: s.stale >= 2,
        "decoupled PPO, which weighs by the ratio to the sampler and clips the one to the trainer before the step",
        ("recipe=decoupled_ppo",),
        "gk.recipe('decoupled_ppo')",
        "a weight makes up for the age of the data, and the clip holds the updates on it; what clips the ratio to an "
        "old sampler stops learning where the policy has moved on",
        "arXiv:2505.24298",
        "reported",
        "up to 4 updates nearly all recipes ended alike on the tiny task (0.61 to 0.65); vcpo makes the step smaller "
        "instead, by what the data is worth",
    ),
    Advice(
        "preferences",
        "a reward model, fresh data",
        lambda s: s.task == "preferences" and s.stale == 0 and s.rewards == 1,
        "RLOO with a KL penalty in the reward",
        ("recipe=rloo", "recipe.beta=0.05"),
        "gk.recipe('rloo', beta=0.05)",
        "one update a rollout needs no clip, and the penalty keeps the policy where the reward model was trained",
        "arXiv:2402.14740",
        "reported",
        "beta is yours: 0.05 is an example. Without a ratio it does not stand stale data",
    ),
    Advice(
        "preferences-stale",
        "a reward model among several, or one update stale",
        lambda s: s.task == "preferences",
        "GRPO with its KL term",
        ("recipe=grpo",),
        "gk.recipe('grpo')",
        "the ratio stands several updates a rollout, the KL term keeps the policy where the reward model was trained",
        "arXiv:2402.03300; benches/results/staleness.md",
        "judgement",
        "GRPO divides by the group's deviation, which blows noise up where a reward model hardly tells answers apart",
    ),
    Advice(
        "scarce",
        "completions are dear",
        lambda s: s.scarce,
        "Dr.GRPO",
        ("recipe=dr_grpo",),
        "gk.recipe('dr_grpo', max_len=20480)",
        "dynamic sampling takes a fourth more completions; without it, and without GRPO's divisions by deviation and "
        "length, the tiny run ended at 0.77 (dapo 0.79, grpo 0.75)",
        "arXiv:2503.20783; benches/results/recipes.md (make bench-recipes)",
        "measured here",
        "differences of 0.03 are within the spread of three seeds",
    ),
    Advice(
        "default",
        "anything else",
        lambda _: True,
        "DAPO",
        ("recipe=dapo",),
        "gk.recipe('dapo', max_len=20480)",
        "it drops groups without signal and fills up, clips higher above than below, and counts tokens alike; of the "
        "recipes of GRPO's kind it ended highest on the tiny task (0.79; grpo 0.75, dr_grpo 0.77), for a fourth more "
        "completions",
        "arXiv:2503.14476; benches/results/recipes.md (make bench-recipes)",
        "measured here",
        "three seeds of one tiny task, at each recipe's best learning rate",
    ),
)

# All that apply are given.
SETTINGS = (
    Advice(
        "no-signal",
        "few right answers, or few wrong ones",
        lambda s: s.pass_rate is not None and 0 < s.pass_rate < 1 and signal(s.pass_rate, s.group) < 0.5,
        "groups of {group}: half of them then have answers of both kinds",
        ("num_generations={group}", "oversampling=1.5"),
        "",
        "a group whose rewards are equal teaches nothing, which happens with probability p^G + (1 − p)^G",
        "gk.pass_at_k; arXiv:2503.14476, §3.2",
        "arithmetic",
        "prompts differ: with the same mean more of them are hopeless or solved, and choosing prompts (gk.PassRate) "
        "may be worth more than larger groups",
    ),
    Advice(
        "hopeless",
        "no right answer at all, or no wrong one",
        lambda s: s.pass_rate in (0, 1),
        "other prompts, a warm start or a graded reward",
        (),
        "gk.PassRate(0.05, 0.95)",
        "with equal rewards every advantage is 0, whatever the recipe and the group",
        "p^G + (1 − p)^G = 1",
        "arithmetic",
        "with graded rewards gk.PKPO helps; with 0 and 1 a prompt that nobody solves stays at 0",
    ),
    Advice(
        "long",
        "long answers",
        lambda s: s.length == "long",
        "no mean over each answer's tokens (dapo, dr_grpo); a penalty near the limit rather than a cut",
        (),
        "gk.recipe('dapo', max_len=20480, cache=4096)",
        "a mean over each answer's own tokens makes a long wrong answer cost less per token, so that they grow",
        "arXiv:2503.20783, §3.1; arXiv:2503.14476, §3.4",
        "reported",
        "watch completions/clipped_ratio: where answers are cut, the reward is of the limit and not of the answer",
    ),
    Advice(
        "stale",
        "stale data",
        lambda s: s.stale > 0,
        "a recipe with a ratio; drop what is older than you meant to allow",
        (),
        "gk.MaxLag({stale})",
        "without a ratio (rloo, remax, opo, gpg) old answers are learned from as if they were new: 0.64 at one update "
        "a rollout, 0.27 at 16",
        "benches/results/staleness.md (make bench-staleness)",
        "measured here",
        "watch mismatch/ess_last and staleness/max",
    ),
    Advice(
        "sampler",
        "another program samples",
        lambda s: s.sampler == "other" and not s.moe,
        "weigh by the truncated ratio to the sampler",
        (),
        "{recipe}.replace(correct=(gk.TIS(2.0),))",
        "the sampler's policy is not the trainer's: kernels, number formats, top-p; left alone that is off-policy data",
        "docs/off_policy.md; the authors' caps are 2 and 8, others take 1.2 to 3",
        "reported",
        "mismatch/weight_mean far from 1 is no rounding: look for another temperature or weights that were not synced",
    ),
    Advice(
        "sampler-mixture",
        "another program samples, from a mixture of experts",
        lambda s: s.sampler == "other" and s.moe,
        "drop tokens whose ratio to the sampler is far off, or replay the routing",
        (),
        "{recipe}.replace(correct=(gk.IcePop(0.5, 5.0),))",
        "few tokens are far off and the rest agree: a weight would follow the few",
        "arXiv:2510.18855; docs/routing.md (routing replay divides the variance of log ρ by about three)",
        "reported",
        "mismatch/dropped/IcePop that grows from step to step says that sampler and trainer part",
    ),
    Advice(
        "agents",
        "several turns with an environment",
        lambda s: s.task == "agents",
        "learn from the policy's own tokens only, and drop answers with a broken token as a whole",
        (),
        "{recipe}.replace(correct=(gk.WTRS(),))",
        "what the environment says was not sampled; a tool's text in the loss teaches to write it",
        "docs/training.md, Conversations; SkyRL's bounds",
        "judgement",
        "credit for single turns needs advantages per token, which gspo_token and ppo_clip take; GiGPO is not in this "
        "package",
    ),
    Advice(
        "pass-at-k",
        "one of k answers is to be right",
        lambda s: s.aim == "pass@k",
        "advantages of pass@k",
        (),
        "{recipe}.replace(advantage=gk.PassKTraining(k=4))",
        "pass@1 pays for sharpening what is known; the expected best of k pays for answers that differ",
        "arXiv:2508.10751; arXiv:2505.15201 (gk.PKPO)",
        "reported",
        "k is yours, and must not be larger than the group",
    ),
    Advice(
        "several-rewards",
        "several reward functions",
        lambda s: s.rewards > 1,
        "normalise each reward before they are added",
        (),
        "{recipe}.replace(advantage=gk.GDPO(over='sequences'))",
        "in a sum the reward that varies most drowns the others, and different combinations get one advantage",
        "arXiv:2601.05242",
        "reported",
        "reward parts must be there for every row (docs/rollouts.md)",
    ),
    Advice(
        "collapse",
        "the entropy fell to nearly nothing",
        lambda s: s.collapse,
        "hold the tokens that sharpen most (Clip-Cov); a larger upper clip; a smaller learning rate",
        ("recipe=clip_cov",),
        "gk.recipe('clip_cov')",
        "entropy falls where likely tokens with a high advantage are pushed further; these few are left out",
        "arXiv:2505.22617; arXiv:2503.14476, §3.1",
        "reported",
        "this recipe in place of the one above; kl_cov is its soft form, a bonus for entropy (entropy_control.target) "
        "the blunt one",
    ),
    Advice(
        "rare",
        "rare right tokens stay rare",
        lambda s: s.rare,
        "a larger upper clip (dapo), or a bounded weight that drops no token (CISPO)",
        ("recipe=cispo", "recipe.high=4.0"),
        "gk.recipe('cispo', high=4.0)",
        "at π_old = 0.01 an upper clip of 0.2 stops at 0.012: the rarer a token, the less it may move",
        "arXiv:2503.14476, §3.1; arXiv:2506.13585",
        "reported",
        "CISPO's bound is not in its paper: 4.0 is an example. This recipe in place of the one above",
    ),
)  # fmt: skip


def signal(p: float, group: int) -> float:
    """The probability that a group has right and wrong answers: 1 − p^G − (1 − p)^G.

    Examples
    --------
    >>> signal(0.5, 2)
    0.5
    """
    return float(1 - p**group - (1 - p) ** group)


def advise(situation: Situation) -> list[Advice]:
    """What applies to a situation: the recipe first, then what else to set.

    Examples
    --------
    >>> [one.key for one in advise(Situation(moe=True, stale=4))]
    ['mixture', 'stale']
    """
    recipe = next(one for one in RECIPES if one.applies(situation))
    found = [recipe, *(one for one in SETTINGS if one.applies(situation))]
    group = next((2**k for k in range(1, 11) if signal(situation.pass_rate or 0.5, 2**k) >= 0.5), 1024)
    numbers = {"group": str(group), "stale": str(situation.stale), "recipe": recipe.code}

    def filled(text: str) -> str:
        for name, number in numbers.items():
            text = text.replace(f"{{{name}}}", number)
        return text

    return [
        dataclasses.replace(
            one, advice=filled(one.advice), settings=tuple(map(filled, one.settings)), code=filled(one.code)
        )
        for one in found
    ]


def told(advice: Advice) -> dict[str, Any]:
    """Ready for JSON."""
    return {field.name: getattr(advice, field.name) for field in dataclasses.fields(advice) if field.name != "applies"}


def table(rows: Iterable[Advice] = (*RECIPES, *SETTINGS)) -> str:
    """Rows as Markdown, the recipes in the order in which they are tried."""
    lines = ["| where | advice | source | how sure |", "|---|---|---|---|"]
    for one in rows:
        what = one.advice.replace("{group}", "2, 4, 8 ...")
        how = f"`{one.code or one.settings[0]}`"
        for name, words in (("stale", "lag"), ("group", "16"), ("recipe", "recipe")):
            how = how.replace(f"{{{name}}}", words)
        lines.append(f"| {one.where} | {what}: {how} | {one.source} | {one.sure} |")
    return "\n".join(lines)
