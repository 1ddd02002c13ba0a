"""What the rollout files of RL frameworks look like, and what their fields are in grpokit's words.

A format is known by the fields that are always there. Where a field is what grpokit reads, it is named; where it has to
be made of others (a version as a list of strings, the reward of an episode that failed), a rule says how, row by row.
Frameworks write what they like and change it: each format says where its schema was read, and `--explain-format` prints
what is made of a file.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import rules
from .rules import Rule


@dataclass(frozen=True)
class Format:
    """The rollout files of one framework.

    Attributes
    ----------
    name : str
    schema : str
        Where the schema was read, with its date.
    fields : tuple of tuple of str
        Shapes that the files have: a file is of the format when it has all fields of one of them.
    columns : dict
        For each of grpokit's columns what it may be, of which the first that the file allows is taken: a field,
        several (a composite key), or a `Rule`.
    failed : tuple of Rule
        What tells a rollout that failed, whose reward is not one; the first that the file allows is taken.
    notes : tuple of str
        What the user should know.
    beside : tuple of str
        Patterns of files that are written beside the rollouts and hold none.
    """

    name: str
    schema: str
    fields: tuple[tuple[str, ...], ...]
    columns: dict[str, tuple[str | tuple[str, ...] | Rule, ...]]
    failed: tuple[Rule, ...] = ()
    notes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def fits(self, fields: list[str]) -> bool:
        """Whether a file with these fields is of this format."""
        return any(set(shape) <= set(fields) for shape in self.fields)


WORDS = (
    *("group_id", "rollout_id", "turn_idx", "step", "source", "reward", "reward_parts", "gate"),
    *("prompt", "text", "token_ids", "response_len", "finish", "version_min", "version_max"),
)
FORMATS = (
    Format(
        "verl",
        "verl 0.9, verl/trainer/ppo/ray_trainer.py, _dump_generations (read 2026-08)",
        (("input", "output", "gts", "score", "step"),),
        {
            "group_id": ("uid", "input"),
            "step": ("step",),
            "source": ("data_source",),
            "reward": ("score",),
            "prompt": ("input",),
            "text": ("output",),
            "version_min": ("min_global_steps",),
            "version_max": ("max_global_steps",),
        },
        notes=(
            "without `uid` (have the reward function return it) groups are the equal prompts of a step",
            "the dump says nothing of truncation or lengths",
        ),
    ),
    Format(
        "slime",
        "slime, slime/utils/types.py, Sample.to_dict (read 2026-08), one sample a line or row",
        (("group_index", "index", "response_length", "reward", "status"),),
        {
            "group_id": ("group_index",),
            "rollout_id": (
                Rule(
                    ("rollout_id", "index"),
                    "rollout_id, or index where there is none",
                    lambda rollout, index: index if rollout is None else rollout,
                    "int64",
                    ("rollout_id",),
                ),
            ),
            "reward": ("reward",),
            "prompt": ("prompt",),
            "text": ("response",),
            "response_len": ("response_length",),
            "finish": (
                Rule(
                    ("status",),
                    "status: completed is stop, truncated is length, aborted is abort, failed is error",
                    rules.finish({"completed": "stop", "truncated": "length", "aborted": "abort", "failed": "error"}),
                    "string",
                ),
            ),
            "version_min": (Rule(("weight_versions",), "smallest of weight_versions, text", rules.oldest, "int64"),),
            "version_max": (Rule(("weight_versions",), "largest of weight_versions, text", rules.newest, "int64"),),
        },
        failed=(Rule(("remove_sample",), "remove_sample is set", bool, maybe=("remove_sample",)),),
        notes=(
            "slime writes .pt files, whose reading runs code: docs/formats.md has the lines that convert them",
            "a reward of several parts needs --reward KEY, slime's own --reward-key",
            "samples with remove_sample are dropped as unscored; slime still counts them in their group's mean",
        ),
    ),
    Format(
        "prime-rl",
        "prime-rl, src/prime_rl/monitors/prime.py, SAMPLE_SCHEMA, and monitors/file.py, traces.jsonl, with "
        "verifiers/v1/episode.py (read 2026-08)",
        (("problem_id", "sample_id", "env_name", "reward", "info"), ("env", "task", "ok", "errors", "traces")),
        {
            "group_id": (
                ("env_name", "problem_id"),
                Rule(("group",), "group.id", lambda group: rules.read_object(group).get("id"), "string"),
            ),
            "step": ("step",),
            "source": ("env_name", Rule(("env",), "env.name, or env.id", rules.named("name", "id"), "string")),
            "reward": ("reward",
                Rule(("traces",), "score times weight, summed, of the trainable trace; null where it failed",
                     rules.trace_reward),
            ),
            "text": ("completion",),
            "response_len": ("num_output_tokens",),
            "finish": (
                Rule(("traces",), "length where a limit stopped the trainable trace, error where it failed",
                     rules.trace_finish, "string"),
                Rule(("info",), "length where a limit stopped the trace, error where it failed", rules.sample_finish,
                     "string"),
            ),
            "version_min": (Rule(("run",), "run.work.policy.start", rules.policy("start"), "int64"),),
            "version_max": (Rule(("run",), "run.work.policy.end", rules.policy("end"), "int64"),),
        },
        failed=(Rule(("info",), "info says that the trace failed", rules.sample_failed),),
        notes=(
            "a trace that failed has reward 0 in the file; it is not scored, as in prime-rl's own mean",
            "`advantage` there is null or a number already: --column advantage=NAME writes ours beside it",
        ),
    ),
    Format(
        "open-instruct",
        "open-instruct, open_instruct/rl_utils.py, RolloutRecord (read 2026-08)",
        (("step", "sample_idx", "prompt_idx", "response_tokens", "reward", "finish_reason"),),
        {
            "group_id": ("prompt_idx",),
            "step": ("step",),
            "source": (Rule(("dataset",), "dataset; several joined by +", rules.joined, "string"),),
            "reward": ("reward",),
            "token_ids": ("response_tokens",),
            "response_len": (Rule(("response_tokens",), "the number of response_tokens", rules.count, "int64"),),
            "finish": (
                Rule(
                    ("finish_reason",),
                    "finish_reason, unknown where it is none of ours",
                    rules.finish({word: word for word in ("stop", "length", "abort", "error")}),
                    "string",
                ),
            ),
        },
        notes=("prompt_idx begins anew with every step and every run: filter each run by itself",),
        beside=("*_metadata.jsonl",),
    ),
    Format(
        "areal",
        "AReaL, areal/infra/workflow_executor.py, _dump_trajectory (read 2026-11)",
        (("task_id", "sample_idx", "seqlen", "prompt_len", "head_version", "tail_version", "reward"),),
        {
            "group_id": ("task_id",),
            "reward": ("reward",),
            "prompt": ("prompt",),
            "text": ("completion",),
            "response_len": (
                Rule(
                    ("seqlen", "prompt_len"),
                    "seqlen - prompt_len, with what tools said",
                    lambda length, prompt: rules.whole(length) - rules.whole(prompt),
                    "int64",
                ),
            ),
            "version_min": ("head_version",),
            "version_max": ("tail_version",),
        },
        notes=(
            "the dump leaves out samples whose last token is not the policy's, so groups can be short",
            "task_id begins anew with every run, and eval-rollout/ is not for training: filter rollout/ of one run",
        ),
    ),
    Format(
        "nemo-gym",
        "NeMo Gym, nemo_gym/rollout_collection.py (read 2026-08)",
        (("_ng_task_index", "_ng_rollout_index", "reward"),),
        {
            "group_id": ("_ng_task_index",),
            "source": (Rule(("agent_ref",), "agent_ref.name", rules.named("name"), "string"),),
            "reward": ("reward",),
            "response_len": (Rule(("response",), "response.usage.output_tokens", rules.response_tokens, "int64"),),
            "finish": (
                Rule(("response",), "length where incomplete_details says so", rules.response_finish, "string"),
            ),
        },
        failed=(Rule(("_ng_failure_class",), "_ng_failure_class is set", bool, maybe=("_ng_failure_class",)),),
        notes=("rows lie in the order in which they were finished, so their groups lie apart",),
        beside=("*_materialized_inputs.jsonl", "*_failures.jsonl"),
    ),
    Format(
        "columns",
        "docs/rollouts.md",
        (("group_id", "reward"),),
        {word: (word,) for word in WORDS},
    ),
    Format(
        "trl",
        "TRL 1.16, trl/trainer/grpo_trainer.py, completions_*.parquet (read 2026-07)",
        (("step", "prompt", "completion", "advantage"),),
        {
            "group_id": ("prompt",),
            "step": ("step",),
            "prompt": ("prompt",),
            "text": ("completion",),
        },
        notes=(
            "groups are the equal prompts of a step; the same completions may be written at several steps",
            "one column a reward function, NaN where it had nothing to say; weights are yours: --reward a=1,b=0.5",
            "`advantage` is TRL's: --column advantage=NAME writes ours beside it",
        ),
    ),
)  # fmt: skip
BY_NAME: dict[str, Format] = {format_.name: format_ for format_ in FORMATS}
