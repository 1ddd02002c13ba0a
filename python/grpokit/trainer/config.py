"""The configuration of a run: one frozen dataclass, read from TOML and `--set key=value`, written back resolved.

Every value is checked against its annotation and its lower bound where it is set, so that a run never starts with a
number that cannot be meant. The file that a run writes reproduces it: it names every value, the defaults too.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpokit as gk
from grpokit.controllers import AdaptiveKL
from grpokit.errors import error, nearest
from grpokit.parameters import check_choice
from grpokit.settings import read_setting
from grpokit.stages import lookup

from .config_tables import (
    EngineConfig,
    EntropyControl,
    Evaluation,
    KLControl,
    Logging,
    LoRA,
    LRControl,
    RanksConfig,
    SamplingConfig,
    Snapshots,
    TinyModel,
    WarmStart,
)
from .config_tasks import IN_PYTHON, RewardConfig, TaskConfig
from .fields import above as _above
from .fields import at_least as _at_least
from .fields import check as _check
from .sampling import Sampling

if typing.TYPE_CHECKING:
    import os


WARM_START_STEPS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """All that decides a run's numbers.

    Parameters
    ----------
    recipe : str
        The name of a recipe, see `grpokit.recipe_names`. One that learns from demonstrations (``luffy``) gets one of
        the task's in the place of each group's last completion; the metric ``reward`` counts it.
    recipe_parameters : dict
        The recipe's keyword arguments: the paper's symbols. Its `max_len` is `max_completion_length` unless given.
    seed : int
        Of the weights, the demonstrations, the prompts and the sampling.
    steps : int
        Steps of sampling and learning.
    prompts_per_step : int
        Groups of a step: prompts whose completions survive the recipe's selection.
    num_generations : int
        Completions a prompt: the size of a group.
    max_rounds : int
        How often a step samples at most, to replace the groups that the recipe drops.
    oversampling : float
        How many prompts a round asks for each group that is missing. Good groups beyond what the step has room for
        begin the next one.
    carry_over : int
        How many updates a good group may wait for a step; one that waits longer is dropped.
    async_level : int
        Steps that a process of its own samples ahead: what a step learns from was sampled with the weights of so many
        steps before. 0 samples each step with the current ones.
    updates_per_step : int
        Optimizer updates that a step's groups are dealt to.
    num_iterations : int
        How often a step's groups are learned from: μ. All but the first update see them from a policy that has moved.
    microbatch_tokens : int
        Completion tokens of one forward and backward pass, padding included.
    max_completion_length : int
        Tokens a completion may have, its end token included.
    max_turns : int
        How often the policy speaks at most, where the task converses. `max_completion_length` bounds all turns
        together.
    temperature : float
        Of sampling, and of the log-probs that the loss reads.
    max_logp_gap : float
        The run stops where the sampler and the loss differ by more than this in the log-prob of a token that the
        current weights sampled, in the mean over a step's: the sampler has other weights then. 0 for what is
        to be expected: 0.001 in fp32, 0.05 in bf16 and of a server.
    learning_rate : float
        AdamW's, constant.
    max_grad_norm : float
        The gradient's norm is cut to this.
    logged_groups : int
        Groups a step whose completions are written to ``rollouts.jsonl``.
    threads : int
        Of torch. One, since a model this small gains little from a second one and is several times slower with it
        where the cores are busy. The same number gives the same bits.
    kl_control : KLControl
        Steers the KL penalty's coefficient.
    entropy_control : EntropyControl
        Adds an entropy bonus and steers it.
    lr_control : LRControl
        Scales each update's learning rate: VCPO's.
    model : str
        A causal language model of transformers: a directory, or a name on the hub. Empty: the built-in one, `tiny`.
    precision : {"fp32", "bf16"}
        "bf16" computes in bf16 and keeps the weights that learn, and the optimizer's state, in fp32.
    gradient_checkpointing : bool
        Computes activations again in the backward pass, which saves their memory.
    layout : {"auto", "packed", "padded"}
        How sequences go through the model for the loss: without padding, each seeing itself alone, or padded. "auto"
        packs where attention passes over other sequences (flash, flex) and two short ones agree both ways.
    lora : LoRA
        Low-rank training.
    task : TaskConfig
        Where the prompts come from.
    rewards : RewardConfig
        What completions are worth, where it is not the task that says it.
    tiny : TinyModel
        The built-in model.
    sampling : SamplingConfig
        Which tokens may be sampled, and stop strings.
    engine : EngineConfig
        Who samples.
    warm_start : WarmStart
        Supervised learning before.
    evaluation : Evaluation
        Held-out pass@k and maj@k.
    snapshots : Snapshots
        What the run goes on from.
    logging : Logging
        What is written down and shown beside the metrics.
    ranks : RanksConfig
        Several processes.

    Raises
    ------
    InputError
        A value of another type, or out of range.

    Examples
    --------
    >>> TrainConfig(recipe="grpo", steps=10).with_settings(["learning_rate=1e-4", "recipe.beta=0.04"]).recipe_parameters
    {'beta': 0.04}
    """

    recipe: str = "dapo"
    recipe_parameters: dict[str, Any] = field(default_factory=dict)
    seed: int = _at_least(0, 0)
    steps: int = _at_least(0, 100)
    prompts_per_step: int = _at_least(1, 16)
    num_generations: int = _at_least(1, 8)
    max_rounds: int = _at_least(1, 4)
    oversampling: float = _at_least(1, 1.0)
    carry_over: int = _at_least(0, 4)
    async_level: int = _at_least(0, 0)
    updates_per_step: int = _at_least(1, 2)
    num_iterations: int = _at_least(1, 1)
    microbatch_tokens: int = _at_least(1, 16_384)
    max_completion_length: int = _at_least(1, 12)
    max_turns: int = _at_least(1, 8)
    temperature: float = _above(0, 1.0)
    max_logp_gap: float = _at_least(0, 0.0)
    learning_rate: float = _above(0, 3e-4)
    max_grad_norm: float = _above(0, 1.0)
    logged_groups: int = _at_least(0, 2)
    threads: int = _at_least(1, 1)
    kl_control: KLControl = field(default_factory=KLControl)
    entropy_control: EntropyControl = field(default_factory=EntropyControl)
    lr_control: LRControl = field(default_factory=LRControl)
    model: str = ""
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    layout: str = "auto"
    lora: LoRA = field(default_factory=LoRA)
    task: TaskConfig = field(default_factory=TaskConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    tiny: TinyModel = field(default_factory=TinyModel)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    warm_start: WarmStart = field(default_factory=WarmStart)
    evaluation: Evaluation = field(default_factory=Evaluation)
    snapshots: Snapshots = field(default_factory=Snapshots)
    logging: Logging = field(default_factory=Logging)
    ranks: RanksConfig = field(default_factory=RanksConfig)

    def __post_init__(self) -> None:
        _check(self)
        check_choice(self, "precision", ("fp32", "bf16"))
        check_choice(self, "layout", ("auto", "packed", "padded"))
        if self.engine.url and self.engine.protocol == "sglang" and self.how().truncated:
            cut, expected = (self.sampling.top_p, self.sampling.top_k), "(1.0, 0): SGLang's log-probs are of all tokens"
            raise error("bad_parameter", owner="SamplingConfig", name="top_p, top_k", given=cut, expected=expected)
        if self.updates_per_step > self.prompts_per_step:
            expected = f"at most prompts_per_step, {self.prompts_per_step}: an update needs a group"
            name, given = "updates_per_step", self.updates_per_step
            raise error("bad_parameter", owner="TrainConfig", name=name, given=given, expected=expected)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainConfig:
        """The configuration of nested tables, such as TOML or JSON give.

        Raises
        ------
        InputError
            An unknown key (with the nearest name), or a value of the wrong type.
        """
        config: TrainConfig = _build(cls, data)
        return config

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> TrainConfig:
        """The configuration of a TOML file.

        Raises
        ------
        FileError
            The file cannot be read, or is not TOML.
        InputError
            As `from_dict`.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as problem:
            raise error("file_unreadable", path=path, reason=problem.strerror or problem) from None
        except ValueError as problem:  # not TOML, or not UTF-8
            raise error("file_unreadable", path=path, reason=problem) from None
        return cls.from_dict(data)

    def with_settings(self, settings: Iterable[str]) -> TrainConfig:
        """The same with ``key=value`` texts applied in order.

        Parameters
        ----------
        settings : iterable of str
            Keys of a table are written ``table.key``; ``recipe.low`` stands for ``recipe_parameters.low``. A new
            recipe drops the parameters of the former one.
        """
        data = self.to_dict()
        for key, value in map(read_setting, settings):
            if key == "recipe":
                data["recipe_parameters"] = {}
            table, _, name = key.rpartition(".")
            table = "recipe_parameters" if table == "recipe" else table
            target = data.setdefault(table, {}) if table else data
            if not isinstance(target, dict):
                raise error("bad_parameter", owner="--set", name=key, given=value, expected=f"{table}=..., no table")
            target[name] = value
        return self.from_dict(data)

    def resolve(self) -> TrainConfig:
        """The same with the recipe's default parameters written out, and what follows from other settings.

        Raises
        ------
        InputError
            The recipe is not known or does not take its parameters; it cannot run with the other settings.
        """
        parameters = inspect.signature(lookup("recipe", self.recipe)).parameters
        defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
        # None is left out, since TOML has no word for it; it is the default wherever it is allowed.
        given = {name: value for name, value in (defaults | self.recipe_parameters).items() if value is not None}
        task, logging = self.task.resolve(), self.logging.resolve()
        resolved = dataclasses.replace(self, recipe_parameters=given, task=task, logging=logging)
        if self.warm_start.steps < 0:
            warm_start = dataclasses.replace(self.warm_start, steps=0 if self.model else WARM_START_STEPS)
            resolved = dataclasses.replace(resolved, warm_start=warm_start)
        recipe = resolved.make_recipe()
        if self.kl_control.target:
            AdaptiveKL(1.0, self.kl_control.target).apply(recipe)  # it must have a penalty to steer
        if recipe.reads("off_policy") and self.num_generations < 2:
            expected = (
                f"2 or more: recipe {recipe.name!r} has a demonstration in the place of a group's last completion"
            )
            raise error(
                "bad_parameter",
                owner="TrainConfig",
                name="num_generations",
                given=self.num_generations,
                expected=expected,
            )
        return resolved

    @property
    def logp_gap_bound(self) -> float:
        """`max_logp_gap`, or what precision and engine allow."""
        return self.max_logp_gap or (0.05 if self.engine.url else {"fp32": 1e-3, "bf16": 0.05}[self.precision])

    def how(self, temperature: float | None = None) -> Sampling:
        """How completions are sampled, at another temperature if one is given."""
        chosen = self.sampling
        return Sampling(
            max_completion_length=self.max_completion_length,
            temperature=self.temperature if temperature is None else temperature,
            top_p=chosen.top_p,
            top_k=chosen.top_k,
            stop=chosen.stop,
        )

    def differences(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """Where another one differs: by ``table.key``, this value and the other.

        A server may have moved, and be asked more or less patiently: that decides no number.
        """
        return {
            name: (mine, theirs)
            for name, mine, theirs in _pairs("", self.to_dict(), other.to_dict())
            if mine != theirs and not name.startswith("engine.")
        }

    def with_given(self, task: Any, functions: Any) -> TrainConfig:
        """The same with the names of what was given in Python, which a file can tell and not give again."""
        named, rewards = self.task, self.rewards
        if task is not None:
            named = TaskConfig(name=IN_PYTHON + type(task).__name__)
        if functions:
            names, weights = tuple(f.named for f in functions), tuple(f.weight for f in functions)
            rewards = dataclasses.replace(rewards, functions=names, weights=weights)
        return dataclasses.replace(self, task=named, rewards=rewards)

    def make_recipe(self) -> gk.Recipe:
        """The recipe with its parameters; `max_len` is `max_completion_length` unless it is given."""
        parameters, taken = self.recipe_parameters, inspect.signature(lookup("recipe", self.recipe)).parameters
        if "max_len" in taken:
            parameters = {"max_len": self.max_completion_length} | parameters
        missing = [name for name, p in taken.items() if p.default is p.empty and name not in parameters]
        if missing:
            example = " ".join(f"--set recipe.{name}=..." for name in missing)
            raise error(
                "missing_parameter", owner=f"recipe {self.recipe!r}", missing=", ".join(missing), example=example
            )
        return gk.recipe(self.recipe, **parameters)

    def arithmetic(self) -> dict[str, int]:
        """What a step and the run amount to, in rows and tokens."""
        rows, width = self.prompts_per_step * self.num_generations, self.max_completion_length
        update = -(-self.prompts_per_step // self.updates_per_step) * self.num_generations
        return {
            "completions a step, used at most": rows,
            "completions a step, sampled at most": rows * self.max_rounds,
            "completions an update": update,
            "microbatches an update, at most": -(-update // max(1, self.microbatch_tokens // width)),
            "updates in all, at most": self.steps * self.num_iterations * self.updates_per_step,
            "completion tokens sampled in all, at most": self.steps * rows * self.max_rounds * width,
            "completions an evaluation": self.evaluation.prompts * (self.evaluation.samples + self.evaluation.greedy),
            "demonstrations of the warm start": self.warm_start.steps * self.warm_start.batch_size,
        }

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """The file that reproduces the run."""
        data = self.to_dict()
        lines = [f"{name} = {_write(value)}" for name, value in data.items() if not isinstance(value, dict)]
        for name, table in data.items():
            if isinstance(table, dict):
                lines += ["", f"[{name}]", *(f"{key} = {_write(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"


def stream(config: TrainConfig, purpose: str) -> Random:
    """The generator of one purpose of a run: each has its own, and a change to one leaves the others as they were."""
    return Random(f"{config.seed} {purpose}")


def _build(cls: Any, data: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    for name in data:
        if name not in hints:
            known = ", ".join(hints)
            raise error("unknown_parameter", owner=cls.__name__, given=name, nearest=nearest(name, hints), known=known)
    given = dict(data)
    for name, value in data.items():
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            given[name] = _build(hints[name], value)
    return cls(**given)


def _pairs(table: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterable[tuple[str, Any, Any]]:
    for name in {**mine, **theirs}:
        a, b = mine.get(name), theirs.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _pairs(f"{table}{name}.", a, b)
        else:
            yield f"{table}{name}", a, b


def _write(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_write, value)) + "]"
    # JSON's words for texts, whole numbers and booleans are TOML's.
    return json.dumps(value, ensure_ascii=False)
