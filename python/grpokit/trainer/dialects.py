"""What servers of completions are asked, and where their answers have what: one entry for each.

vLLM's completions of the OpenAI kind have token ids where ``return_token_ids`` asks for them, and log-probs of the
distribution that was sampled from where the server runs with ``--logprobs-mode processed_logprobs``. SGLang's own
``/generate`` has ids and log-probs in pairs, and in every answer the version of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .sampling import Sampling

# What a server may have other defaults for, from the model's own directory.
_PLAIN = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclass(frozen=True)
class Answer:
    """A completion as a server gave it; nothing of it is checked yet.

    Parameters
    ----------
    token_ids, logps : Any
        Lists, as long as one another.
    finish : Any
        "stop", "length" or "abort".
    version : str or None
        The weights that it was sampled with, where the server says that.
    """

    token_ids: Any
    logps: Any
    finish: Any
    version: str | None = None


_BROKEN_OFF = Answer([], [], "abort")


@dataclass(frozen=True)
class Dialect:
    """How one kind of server is spoken to.

    Parameters
    ----------
    path : str
        Where completions are asked for.
    ask : callable
        The body for a prompt, a seed, how to sample, and the end token.
    read : callable
        The `Answer` in a body; raises KeyError, IndexError, TypeError or ValueError where it is not there.
    update : callable
        The calls that load the weights of a directory, whose version is told as well: paths and bodies.
    updated : callable
        Whether the answer to such a call says that it was done.
    of_what_is_left : bool
        Whether log-probs are those of the tokens that top-p and top-k leave, and not of all.
    """

    path: str
    ask: Callable[[list[int], int, Sampling, int], dict[str, Any]]
    read: Callable[[Any], Answer]
    update: Callable[[str, str], list[tuple[str, dict[str, Any]]]]
    updated: Callable[[Any], bool]
    of_what_is_left: bool


def _ask_vllm(prompt: list[int], seed: int, sampling: Sampling, end: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "max_tokens": sampling.max_completion_length,
        "seed": seed,
        "logprobs": 0,  # of the sampled token, and of no others
        "return_token_ids": True,
        "skip_special_tokens": False,
        **_shared(sampling, end),
    }


def _ask_sglang(prompt: list[int], seed: int, sampling: Sampling, end: int) -> dict[str, Any]:
    how = {
        "max_new_tokens": sampling.max_completion_length,
        "sampling_seed": seed,
        "no_stop_trim": True,
        "skip_special_tokens": False,
        **_shared(sampling, end),
    }
    return {"input_ids": prompt, "sampling_params": how, "return_logprob": True}


def _shared(sampling: Sampling, end: int) -> dict[str, Any]:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "stop": list(sampling.stop),
        "stop_token_ids": [end],
        **_PLAIN,
    }


def _read_vllm(body: Any) -> Answer:
    (choice,) = body["choices"]
    if choice["finish_reason"] == "abort":
        return _BROKEN_OFF
    return Answer(choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"])


def _read_sglang(body: Any) -> Answer:
    about = body["meta_info"]
    if about["finish_reason"]["type"] == "abort":
        return _BROKEN_OFF
    rows = about["output_token_logprobs"]
    logps, ids = [row[0] for row in rows], [row[1] for row in rows]
    return Answer(ids, logps, about["finish_reason"]["type"], about.get("weight_version"))


def _update_vllm(directory: str, _: str) -> list[tuple[str, dict[str, Any]]]:
    reload = {"method": "reload_weights", "kwargs": {"weights_path": directory}}
    # What is kept of prompts was computed with the former weights.
    return [("/collective_rpc", reload), ("/reset_prefix_cache", {})]


def _update_sglang(directory: str, version: str) -> list[tuple[str, dict[str, Any]]]:
    return [("/update_weights_from_disk", {"model_path": directory, "weight_version": version, "flush_cache": True})]


DIALECTS: Mapping[str, Dialect] = {
    "vllm": Dialect(
        path="/v1/completions",
        ask=_ask_vllm,
        read=_read_vllm,
        update=_update_vllm,
        updated=lambda _: True,
        of_what_is_left=True,
    ),
    "sglang": Dialect(
        path="/generate",
        ask=_ask_sglang,
        read=_read_sglang,
        update=_update_sglang,
        updated=lambda answer: isinstance(answer, dict) and answer.get("success") is True,
        of_what_is_left=False,
    ),
}
