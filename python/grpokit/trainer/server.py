"""The engine that asks a server: vLLM or SGLang, or anything that speaks as one of them does.

Token ids go there and token ids come back, each with its log-prob; no text is ever made into tokens again. The weights
go by a directory that the server reads. What comes back is checked before it is believed: a wrong number, an id that is
none, other weights than were sent stop the run with the server's URL and what it said.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpokit.errors import error

from .calls import Calls, Lost
from .dialects import DIALECTS, Answer
from .engine import InProcess, completion
from .policy import without_progress_bars
from .run import RunDirectory

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from .config_tables import EngineConfig
    from .engine import Engine
    from .policy import Completion, Policy
    from .sampling import Sampling

_NAME = "grpokit-version-"
_ROUNDING = 1e-3  # how far above 0 a log-prob may be


def engine_of(told: EngineConfig, policy: Policy, weights: Path) -> Engine:
    """The engine of a configuration; `weights` is where new weights go unless it says that itself."""
    if not told.url:
        return InProcess(policy)
    return Server(
        told.url,
        policy,
        protocol=told.protocol,
        weights=told.weights or weights,
        timeout=told.timeout,
        retries=told.retries,
        concurrency=told.concurrency,
    )


class Server:
    """A server samples.

    Parameters
    ----------
    url : str
        Where it is, ``http://127.0.0.1:8000``.
    policy : Policy
        Whose tokenizer and vocabulary the ids are of.
    protocol : {"vllm", "sglang"}
        How it is spoken to.
    weights : path
        Where each new version's weights are written, for the server to read: the path must be the same there. Made
        when it is needed; the former version is removed once the server has the next one.
    timeout : float
        Seconds that the server may be silent in a call. Loading weights is one.
    retries : int
        How often a call is made again that was lost. It has the same seed, so that the answer is the same.
    concurrency : int
        Completions that are asked for at once.

    Raises
    ------
    StateError
        `server_failed`: nobody answers there.
    """

    def __init__(
        self,
        url: str,
        policy: Policy,
        *,
        protocol: str = "vllm",
        weights: str | os.PathLike[str],
        timeout: float = 600.0,
        retries: int = 5,
        concurrency: int = 128,
    ) -> None:
        self.policy, self.dialect, self.concurrency = policy, DIALECTS[protocol], concurrency
        self.calls = Calls(url, timeout=timeout, retries=retries)
        self.weights = Path(weights).absolute()
        self.version, self._tag = 0, secrets.token_hex(4)
        self._made = False  # the directory, here
        self._loaded: str | None = None  # as the server was told
        self.calls.one("/health")

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[Completion]:
        """As `Engine` has it.

        Raises
        ------
        InputError
            `bad_parameter`: top-p or top-k, of a server whose log-probs are not of what these leave.
        StateError
            `server_failed`, `server_refused`; `server_answer`: what came is no completion; `server_version`: other
            weights sampled it than were sent last.
        """
        if sampling.truncated and not self.dialect.of_what_is_left:
            raise error(
                "bad_parameter",
                owner="Sampling",
                name="top_p, top_k",
                given=(sampling.top_p, sampling.top_k),
                expected="(1.0, 0): this server's log-probs are those of all tokens, not of what is left",
            )
        end = self.policy.tokenizer.eos_token_id
        asked = [
            (self.dialect.path, self.dialect.ask(prompt, seed, sampling, end))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

        def read(number: int, body: Any) -> Completion:
            return self._completion(prompts[number], body, sampling)

        return self.calls.many(asked, read, at_once=self.concurrency)

    def load(self, policy: Policy, version: int) -> None:
        """Writes the weights, merged where they are LoRA's, and has the server read them; not twice for one version.

        Raises
        ------
        FileError
            `file_unwritable`.
        StateError
            `server_failed`, `server_refused`, `server_answer`: it did not load them.
        """
        if self._loaded is not None and version == self.version:
            return
        place = self.weights / f"{_NAME}{version:08}"

        def write(directory: Path) -> None:
            self._made |= not self.weights.exists()
            self.weights.mkdir(parents=True, exist_ok=True)
            _save(policy, directory)

        RunDirectory(self.weights).write(place, write)
        # The tag tells this run's weights from those of another one that uses the server.
        self._loaded, told = None, f"{self._tag}-{version}"
        for path, body in self.dialect.update(str(place), told):
            self.calls.one(path, body, self._updated)
        self._loaded, self.version = told, version
        self._remove(keep=place)

    def close(self) -> None:
        """Removes the weights; the server keeps what it has."""
        self._remove()
        if self._made:
            with suppress(OSError):  # somebody else's files are in it
                self.weights.rmdir()

    def _remove(self, keep: Path | None = None) -> None:
        """Also what a killed run left, and what it had only begun to write."""
        for found in self.weights.glob(f"*{_NAME}*"):
            if found != keep:
                shutil.rmtree(found, ignore_errors=True)

    def _updated(self, answer: Any) -> None:
        if not self.dialect.updated(answer):
            raise self._wrong(answer, "that the weights are loaded")

    def _completion(self, prompt: list[int], body: Any, sampling: Sampling) -> Completion:
        try:
            answer = self.dialect.read(body)
        except (KeyError, IndexError, TypeError, ValueError):
            raise self._wrong(body, "one completion with its token ids and their log-probs") from None
        if answer.finish == "abort":
            raise Lost("the server broke the completion off")
        self._check(answer, sampling.max_completion_length)
        if answer.version is not None and self._loaded is not None and answer.version != self._loaded:
            raise error("server_version", url=self.calls.url, given=answer.version, expected=self._loaded)
        ids, logps = answer.token_ids, list(map(float, answer.logps))
        made = completion(self.policy, prompt, ids, logps, sampling=sampling, version=self.version)
        ended = ids[-1] == self.policy.tokenizer.eos_token_id
        if answer.finish == "length" and len(ids) < sampling.max_completion_length and not ended:
            # The server's context is full.
            return dataclasses.replace(made, finish="length")
        return made

    def _check(self, answer: Answer, longest: int) -> None:
        ids, logps, size = answer.token_ids, answer.logps, self.policy.model.config.vocab_size
        if answer.finish not in ("stop", "length"):
            raise self._wrong(answer.finish, "a completion that ended with 'stop' or 'length'")
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < size for i in ids):
            raise self._wrong(ids, f"token ids, whole numbers from 0 to {size - 1}")
        if not 1 <= len(ids) <= longest:
            raise self._wrong(f"{len(ids)} tokens", f"1 to {longest}")
        if not isinstance(logps, list) or len(logps) != len(ids):
            raise self._wrong(logps, f"{len(ids)} log-probs, one a token")
        if not all(type(x) in (int, float) and math.isfinite(x) and x <= _ROUNDING for x in logps):
            raise self._wrong(logps, "log-probs, numbers that are 0 or less and finite")
        if self.policy.tokenizer.eos_token_id in ids[:-1]:
            raise self._wrong(ids, f"nothing behind the end token, {self.policy.tokenizer.eos_token_id}")

    def _wrong(self, given: Any, expected: str) -> Exception:
        shown = given if isinstance(given, str) else repr(given)
        return error("server_answer", url=self.calls.url, given=shown[:300], expected=expected)


def _save(policy: Policy, directory: Path) -> None:
    """What a server loads: the model as transformers has it, low-rank weights added to the others in a copy."""
    model = policy.model
    if hasattr(model, "merge_and_unload"):
        # In the model itself merging and taking out again would round its weights.
        model = copy.deepcopy(model).merge_and_unload()
    with without_progress_bars():
        model.save_pretrained(directory)
        policy.tokenizer.save_pretrained(directory)
