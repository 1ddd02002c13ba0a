"""TRL's `GRPOTrainer` with a recipe: what it samples is selected and weighed by the recipe, and so is its loss.

In: what `GRPOTrainer` takes, and a recipe. TRL samples, scores, makes the log-probs and steps the optimizer; the
recipe's row stages (`grpokit.process`) and its loss (`grpokit.loss`) stand where TRL's advantages and `loss_type` are.
Written for TRL 1.16: methods are overridden that TRL calls its own, and a TRL that lacks one of them is refused.
"""

from __future__ import annotations

import functools
import inspect
import math
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from grpokit.errors import error
from grpokit.rollouts import _resolved, process

from .trl_options import check_columns, needs_sampler, settled
from .window import Window, averaged

try:
    from accelerate.utils import gather_object
    from trl import GRPOConfig, GRPOTrainer
    from trl.models.utils import disable_gradient_checkpointing
except ImportError as problem:
    raise error("missing_engine", what="grpokit.adapters.trl", package="trl", install="trl==1.16.0") from problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grpokit._recipe import Recipe
    from grpokit.processed import Processed

KNOWN = "1.16"
OVERRIDDEN = (
    *("_calculate_rewards", "_generate_and_score_completions", "_prepare_inputs", "_compute_loss"),
    "_get_per_token_logps_and_entropies",
)
# What `_get_per_token_logps_and_entropies` takes of a micro-batch, beside the tokens.
EXTRAS = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


class _Scored(NamedTuple):
    """What TRL hands to the reward functions, and what they gave: of all ranks."""

    rewards: Tensor
    inputs: list[dict[str, Any]]
    prompts: list[Any]
    completions: list[Any]
    token_ids: list[list[int]]


class RecipeTrainer(GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer` with a recipe in place of its advantages and its loss.

    Parameters
    ----------
    *arguments, **named
        Those of `GRPOTrainer`: model, reward_funcs, args, train_dataset, ...
    recipe : Recipe or str
        A recipe, or the name of one that needs no parameters.

    Attributes
    ----------
    recipe : Recipe
    processed : Processed or None
        What the recipe's row stages made of the rollouts that were sampled last, of all ranks: `print` it, or ask it
        `explain(row)`.

    Raises
    ------
    InputError
        `refused_option` where the `GRPOConfig` says what the recipe states; `not_handed_over` where the recipe reads
        what TRL does not have; `bad_parameter` where steps_per_generation is no multiple of
        gradient_accumulation_steps.
    StateError
        `other_framework`: the installed TRL is another one.

    Notes
    -----
    Rows: ``reward`` is the sum of the functions' rewards by `reward_weights`, None where all of them gave None; such a
    row is dropped as ``unscored``. A reward that is NaN or infinite is an error. Dropped rows have no part in the loss
    and its denominators, though their forward pass is made; nothing is sampled again in their place.

    Tokens: a micro-batch's share has the denominators of the whole optimizer step, on all ranks. The old log-probs are
    TRL's where it makes them, and made here where a correction reads them; a token whose log-prob the sampler does not
    tell (NaN) counts as sampled by the old policy. A recipe that reads the reference policy has TRL load it: the
    `beta` of the trainer's own copy of the configuration is the recipe's coefficient.

    Options: those of `trl_options.REFUSED` must be at TRL's default, since the recipe states what they say (`epsilon`,
    `loss_type`, `scale_rewards`, `mask_truncated_completions`, `top_entropy_quantile`, `entropy_coef`, ...); `beta` may
    be the recipe's coefficient; vLLM's correction, on by default, is refused beside a recipe that corrects nothing.

    A recipe that looks at the current policy of the whole step (ClipCov, TopEntropy, ...) takes a first forward pass
    over the step's micro-batches; dropout must be off for the two to agree (`disable_dropout=True`).

    Examples
    --------
    ``RecipeTrainer("Qwen/Qwen3-0.6B", reward, GRPOConfig("out"), dataset, recipe=grpokit.recipe("gspo"))``
    """

    def __init__(self, *arguments: Any, recipe: Recipe | str, **named: Any) -> None:
        missing = [name for name in OVERRIDDEN if not hasattr(GRPOTrainer, name)]
        if missing:
            context = {"package": "trl", "version": version("trl"), "known": KNOWN, "adapter": type(self).__name__}
            raise error("other_framework", missing=missing[0], **context)
        self.recipe = _resolved(recipe, {})
        self.processed: Processed | None = None
        self._scored: _Scored | None = None
        self._window: Window | None = None
        given = inspect.signature(GRPOTrainer.__init__).bind(self, *arguments, **named).arguments
        config = given.get("args") or GRPOConfig(output_dir=self.recipe.name)
        given["args"] = config = settled(config, self.recipe)
        samples = bool(config.use_vllm) or given.get("rollout_func") is not None
        dataset = given.get("train_dataset")
        check_columns(self.recipe, samples=samples, given=getattr(dataset, "column_names", None))
        given.pop("self")
        super().__init__(**given)
        if self.recipe.not_finite == "error":
            self.reward_funcs: list[Any] = [_checked(function) for function in self.reward_funcs]

    def _calculate_rewards(
        self, inputs: Any, prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._scored = _Scored(rewards, inputs, prompts, completions, completion_ids_list)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        scored, self._scored = self._scored, None
        if scored is None:
            context = {"package": "trl", "version": version("trl"), "known": KNOWN, "adapter": type(self).__name__}
            raise error("other_framework", missing="call of _calculate_rewards", **context)
        mode = "train" if self.model.training else "eval"
        self._complete(output, mode)
        self.processed = processed = process(self._table(output, scored, mode), self.recipe)
        n, rank = len(scored.prompts), self.accelerator.process_index
        own = range(rank * n, (rank + 1) * n)
        output["advantages"] = _advantages(processed, own, _mask(output))
        output["keep"] = torch.from_numpy(processed.keep[own.start : own.stop].copy()).to(output["advantages"].device)
        output["rollout_ids"] = torch.arange(own.start, own.stop, device=output["advantages"].device)
        self._tell(processed, mode)
        return output

    def _complete(self, output: dict[str, Any], mode: str) -> None:
        """The old log-probs where something reads them, and no NaN in the sampler's."""
        wanted = needs_sampler(self.recipe) or self.recipe.rows_read("logp_old")
        if wanted and "old_per_token_logps" not in output:
            config = self.args
            size = config.per_device_train_batch_size if mode == "train" else config.per_device_eval_batch_size
            with self._without_gradient():
                output["old_per_token_logps"] = self._forward(self.model, output, batch_size=size)[0]
        if "sampling_per_token_logps" in output and "old_per_token_logps" in output:
            sampled = output["sampling_per_token_logps"]
            output["sampling_per_token_logps"] = torch.where(sampled.isnan(), output["old_per_token_logps"], sampled)

    @contextmanager
    def _without_gradient(self) -> Iterator[None]:
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            yield

    def _forward(self, model: Any, inputs: dict[str, Any], **flags: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probs and entropies of the completion's places, and the loss of the router if there is one."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        there = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        extras = {name: inputs.get(name) for name in EXTRAS}
        width = inputs["completion_ids"].size(1)
        found: tuple[Tensor, Tensor, Tensor | None] = self._get_per_token_logps_and_entropies(
            model, ids, there, width, **extras, **flags
        )
        return found

    def _table(self, output: dict[str, Any], scored: _Scored, mode: str) -> dict[str, Any]:
        """The columns of all ranks' rows, in the order in which their rewards are gathered."""
        size = self.num_generations if mode == "train" else self.num_generations_eval
        rewards_NF = scored.rewards.double().cpu().numpy()
        weights_F = self.reward_weights.double().cpu().numpy()
        total_N, none_N = np.nansum(rewards_NF * weights_F, axis=1), np.isnan(rewards_NF).all(axis=1)
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        mask = _mask(output)
        own: dict[str, Callable[[], list[Any]]] = {
            "response_len": lambda: mask.sum(1).tolist(),
            "finish": lambda: ["stop" if ids and ids[-1] in ends else "length" for ids in scored.token_ids],
            "token_ids": lambda: [list(ids) for ids in scored.token_ids],
            "text": lambda: [text if isinstance(text, str) else str(text) for text in scored.completions],
            "prompt": lambda: [text if isinstance(text, str) else str(text) for text in scored.prompts],
            "logp_old": lambda: _rows(output["old_per_token_logps"], mask),
            "logp_ref": lambda: _rows(output["ref_per_token_logps"], mask),
            "logp_rollout": lambda: _rows(output["sampling_per_token_logps"], mask),
        }
        stages = [stage for name in ("shape", "select", "advantage") for stage in self.recipe.stages(name)]
        read = {column for stage in stages for column in stage.reads} | {"response_len", "finish"}
        table = {
            "group_id": np.arange(len(total_N)) // size,
            "reward": [None if none else reward for reward, none in zip(total_N.tolist(), none_N, strict=True)],
        }
        # In one order on all ranks, which gather them together.
        for name in sorted(read - {"reward_parts", "version"}):
            if name in own or name in scored.inputs[0]:
                values = own[name]() if name in own else [row[name] for row in scored.inputs]
                table[name] = gather_object(values)
        if "reward_parts" in read:
            names = self.reward_func_names
            table["reward_parts"] = [dict(zip(names, row, strict=True)) for row in rewards_NF.tolist()]
        return table

    def _tell(self, processed: Processed, mode: str) -> None:
        """What was dropped and why, and the recipe's own numbers where TRL has logged its own."""
        found, metrics = processed.metrics(), self._metrics[mode]
        metrics["frac_reward_zero_std"][-1] = found["frac_reward_zero_std"]
        metrics["sampling/kept_share"].append(found["kept_share"])
        before = len(metrics["sampling/kept_share"]) - 1
        told = {name for name in metrics if name.startswith("sampling/dropped/")}
        for name in sorted(told | {f"sampling/{name}" for name in found if name.startswith("dropped/")}):
            # The log takes means: a reason that is new was there 0 times before.
            metrics[name].extend([0.0] * (before - len(metrics[name])))
            metrics[name].append(found.get(name.removeprefix("sampling/"), 0.0))
        per_token, shown = processed.token_advantages, self._logs["advantages"]
        each = (
            processed.advantages.tolist()
            if per_token is None
            else [float(per_token[row].mean()) if len(per_token[row]) else 0.0 for row in range(len(processed))]
        )
        for _ in range(min(len(each), len(shown))):
            shown.pop()
        shown.extend(each)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """A micro-batch, and the window of its optimizer step."""
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs | {"window": self._open([inputs]), "window_inputs": [inputs], "at": 0}
        size = self.current_gradient_accumulation_steps
        at, first = self._step % self.args.gradient_accumulation_steps, self._step % self.args.steps_per_generation
        micros = self._buffered_inputs[first - at : first - at + size]
        if at == 0 or self._window is None:
            self._window = self._open(micros)
        return inputs | {"window": self._window, "window_inputs": micros, "at": at}

    def _open(self, micros: list[dict[str, Any]]) -> Window:
        names = {
            "keep": "keep",
            "advantages": "advantages",
            "rollout_ids": "rollout_ids",
            "targets": "completion_ids",
            "old_logps": "old_per_token_logps",
            "rollout_logps": "sampling_per_token_logps",
            "ref_logps": "ref_per_token_logps",
        }
        columns = [
            {"mask": _mask(micro)} | {ours: micro[theirs] for ours, theirs in names.items() if theirs in micro}
            for micro in micros
        ]
        ranks = self.accelerator.num_processes
        return Window(columns, self.recipe, step=self.state.global_step, ranks=ranks)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        window, at = inputs["window"], inputs["at"]
        mode = "train" if self.model.training else "eval"
        if at == 0 and window.needs_first_pass:
            for number, micro in enumerate(inputs["window_inputs"]):
                with self._without_gradient():
                    logps, entropies, _ = self._forward(model, micro, compute_entropy=True)
                window.observe(number, logps, entropies)
        flags = {"compute_entropy": True, "compute_aux_loss": self.aux_loss_enabled}
        logps, entropies, router = self._forward(model, inputs, **flags)
        loss: Tensor = window.loss(at, logps, entropies)
        if router is not None:
            loss = loss + self.router_aux_loss_coef * router / len(window)
            self._metrics[mode]["aux_loss"].append(self.accelerator.gather_for_metrics(router).mean().item())
        if at == len(window) - 1:
            found = gather_object([(window.whole.live_tokens, window.metrics)])
            for name, value in averaged(found).items():
                self._metrics[mode][name].append(value)
        return loss


def _checked(function: Any) -> Any:
    """A reward function whose NaN is an error: TRL makes NaN of None, after which nobody can tell them apart."""

    def finite(rewards: Any) -> Any:
        rows = [row for row, reward in enumerate(rewards) if reward is not None and math.isnan(reward)]
        if rows:
            raise error("not_finite", column=name, count=len(rows), rows=rows[:5])
        return rewards

    name = getattr(function, "__name__", type(function).__name__)
    if isinstance(function, torch.nn.Module):
        return function
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004

        @functools.wraps(function)
        async def waited(*arguments: Any, **named: Any) -> Any:
            return finite(await function(*arguments, **named))

        return waited

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        return finite(function(*arguments, **named))

    return called


def _mask(inputs: dict[str, Any]) -> Tensor:
    """The completion's tokens that the model wrote itself, (B, T)."""
    mask: Tensor = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def _rows(x: Tensor, mask: Tensor) -> list[list[float]]:
    """The live places of each row."""
    return [row[there].tolist() for row, there in zip(x.cpu(), mask.bool().cpu(), strict=True)]


def _advantages(processed: Processed, own: range, mask: Tensor) -> Tensor:
    """(B,) of this rank's rows; (B, T) where the estimator gives one a token."""
    per_token = processed.token_advantages
    if per_token is None:
        values = processed.advantages[own.start : own.stop]
        return torch.from_numpy(values.astype(np.float32)).to(mask.device)
    places = torch.zeros(mask.shape)
    for at, row in enumerate(own):
        places[at, mask[at].bool().cpu()] = torch.from_numpy(np.asarray(per_token[row], dtype=np.float32))
    return places.to(mask.device)
