"""The tables of a configuration: the model, what is before training, how it is steered, watched and taken up again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit

from grpokit.errors import error
from grpokit.parameters import check_choice

from .fields import above, at_least, check
from .sinks import SINKS


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """The built-in decoder: random weights, characters as tokens, about 0.1 M parameters.

    Parameters
    ----------
    hidden_size : int
        Width, a multiple of twice `heads`.
    intermediate_size : int
        Width inside the feed-forward layers.
    layers, heads : int
        Decoder layers, and attention heads in each.
    """

    hidden_size: int = at_least(2, 64)
    intermediate_size: int = at_least(1, 192)
    layers: int = at_least(1, 2)
    heads: int = at_least(1, 4)

    def __post_init__(self) -> None:
        check(self)
        if self.hidden_size % (2 * self.heads):
            expected = f"a multiple of {2 * self.heads}, twice the number of heads"
            raise error(
                "bad_parameter", owner="TinyModel", name="hidden_size", given=self.hidden_size, expected=expected
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """Low-rank weights beside the model's linear layers (arXiv:2106.09685), trained in place of these.

    Parameters
    ----------
    rank : int
        r; 0 trains the whole model.
    alpha : int
        What is added is alpha / rank times B A.
    targets : tuple of str
        The names of the layers, ``("q_proj", "v_proj")``; empty for all linear ones but the head.
    """

    rank: int = at_least(0, 0)
    alpha: int = at_least(1, 32)
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """Supervised steps on the task's demonstrations before reinforcement learning begins.

    Parameters
    ----------
    steps : int
        Optimizer steps; 0 leaves the weights as they are. -1 is 600 for the built-in model, whose weights are random,
        and none for one that was trained before.
    batch_size : int
        Demonstrations a step, each seen once.
    learning_rate : float
        AdamW's, at its highest: it rises over the first twentieth of the steps and falls as a cosine.
    """

    steps: int = at_least(-1, -1)
    batch_size: int = at_least(1, 64)
    learning_rate: float = above(0, 3e-3)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Which tokens may be sampled, and where a completion ends beside its end token; not in evaluations but for `stop`.

    Parameters
    ----------
    top_p : float
        Only the likeliest tokens that together have at least this probability; 1 for all. The sampler's log-probs are
        then those of what is left, so that a recipe that corrects for the sampler weighs each token by the share of
        the policy's probability that was left there.
    top_k : int
        Only so many of the likeliest tokens; 0 for all.
    stop : tuple of str
        A completion ends where its text has one of these.
    """

    top_p: float = above(0, 1.0)
    top_k: int = at_least(0, 0)
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self)
        if self.top_p > 1:
            raise error("bad_parameter", owner="SamplingConfig", name="top_p", given=self.top_p, expected="at most 1")
        if "" in self.stop:
            raise error(
                "bad_parameter",
                owner="SamplingConfig",
                name="stop",
                given=self.stop,
                expected="texts that are not empty",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Who samples: the policy in this process, or a server.

    Parameters
    ----------
    url : str
        Of the server, ``http://127.0.0.1:8000``; empty: in this process.
    protocol : {"vllm", "sglang"}
        How the server is spoken to.
    timeout : float
        Seconds that the server may be silent in a call, of which loading weights is one.
    retries : int
        How often a call is made again that was lost: no connection, a dropped one, silence, an answer that is cut off,
        status 408, 429, or 500 and above.
    concurrency : int
        Completions that are asked for at once.
    weights : str
        A directory that the server can read, under the same path, for the weights of each update: this run's alone.
        Empty: ``weights`` in the run's directory.
    """

    url: str = ""
    protocol: str = "vllm"
    timeout: float = above(0, 600.0)
    retries: int = at_least(0, 5)
    concurrency: int = at_least(1, 128)
    weights: str = ""

    def __post_init__(self) -> None:
        check(self)
        check_choice(self, "protocol", ("vllm", "sglang"))
        if self.url and not _is_url(self.url):
            expected = "http://host:port, or https; empty to sample in this process"
            raise error("bad_parameter", owner="EngineConfig", name="url", given=self.url, expected=expected)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Held-out pass@k and maj@k of completions that score 1: what k sampled ones give, and the likeliest one.

    Parameters
    ----------
    prompts : int
        Held-out prompts; a hash of the text keeps them out of training.
    samples : int
        Completions a prompt.
    k : tuple of int
        The k of pass@k and, where it is above 2, of maj@k, each `samples` at most; 1 and `samples` are always among
        them. Empty: powers of two.
    temperature : float
        Of sampling.
    greedy : bool
        Whether each prompt is answered once more with the likeliest tokens.
    every : int
        Steps between evaluations; 0 evaluates before the first step and after the last one only.
    """

    prompts: int = at_least(2, 256)
    samples: int = at_least(1, 8)
    k: tuple[int, ...] = ()
    temperature: float = above(0, 1.0)
    greedy: bool = True
    every: int = at_least(0, 20)

    def __post_init__(self) -> None:
        check(self)
        if not all(1 <= k <= self.samples for k in self.k):
            expected = f"from 1 to samples={self.samples}: pass@k needs k completions of each prompt"
            raise error("bad_parameter", owner="Evaluation", name="k", given=list(self.k), expected=expected)

    def drawn(self) -> list[int]:
        """The k of pass@k, ascending."""
        powers = [2**n for n in range(self.samples.bit_length())]
        return sorted({1, self.samples, *(self.k or powers)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots:
    """What a run that is killed goes on from: `grpokit train --resume`.

    Parameters
    ----------
    every : int
        Steps between snapshots; 0 writes none.
    keep_last : int
        How many stay.
    """

    every: int = at_least(0, 20)
    keep_last: int = at_least(1, 2)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """What a run writes down and shows beside its metrics; it decides no number, and may differ when a run is resumed.

    Parameters
    ----------
    completions : int
        Steps between files with all of a step's completions, ``completions/step-*.parquet``; 0 writes none. -1 is 1
        where pyarrow is installed, and else 0.
    samples : int
        Completions that are shown at each evaluation; 0 shows none.
    sinks : tuple of str
        Where metrics go beside ``metrics.jsonl``: "tensorboard", "trackio", "wandb", each from the extra of that name.
    project : str
        What trackio and wandb file the run under.
    doctor : int
        Steps between two looks of the doctor's at the metrics: what it finds is said, once, and written to
        ``alerts.jsonl``. 0: none.
    """

    completions: int = at_least(-1, -1)
    samples: int = at_least(0, 2)
    sinks: tuple[str, ...] = ()
    project: str = "grpokit"
    doctor: int = at_least(0, 10)

    def __post_init__(self) -> None:
        check(self)
        for name in self.sinks:
            if name not in SINKS:
                expected = f"some of {', '.join(SINKS)}"
                raise error("bad_parameter", owner="Logging", name="sinks", given=name, expected=expected)

    def resolve(self) -> Logging:
        """The same with -1 written out.

        Raises
        ------
        InputError
            `missing_extra`: Parquet without pyarrow.
        """
        there = find_spec("pyarrow") is not None
        if self.completions > 0 and not there:
            raise error("missing_extra", what="logging.completions", package="pyarrow", extra="io")
        return self if self.completions >= 0 else dataclasses.replace(self, completions=int(there))


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksConfig:
    """Several processes that train one policy, where `torchrun` starts them.

    Parameters
    ----------
    timeout : float
        Seconds that one waits for another, in any phase, before the run stops and names it.
    """

    timeout: float = above(0, 600.0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class KLControl:
    """Steers the coefficient of the recipe's KL penalty; see `grpokit.AdaptiveKL`.

    Parameters
    ----------
    target : float
        The KL per token to hold, in nats; 0 leaves the coefficient as the recipe has it.
    horizon : float
        In rollouts: how slowly the coefficient moves.
    """

    target: float = at_least(0, 0.0)
    horizon: float = above(0, 10_000.0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyControl:
    """Adds an entropy bonus and steers its coefficient; see `grpokit.AdaptiveEntropy`.

    Parameters
    ----------
    target : float
        The entropy per token to hold, in nats; 0 adds no bonus.
    delta : float
        The step of the coefficient.
    high : float
        Its largest value.
    """

    target: float = at_least(0, 0.0)
    delta: float = at_least(0, 0.005)
    high: float = at_least(0, 1.0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LRControl:
    """Scales the learning rate of each update by its effective sample size; see `grpokit.ESSLearningRate`.

    Parameters
    ----------
    base : float
        The share of the minibatch from which on the step is full, 1 in the paper; 0 scales nothing.
    scale : str
        "sqrt" or "linear".
    """

    base: float = at_least(0, 0.0)
    scale: str = "sqrt"

    def __post_init__(self) -> None:
        check(self)
        check_choice(self, "scale", ("sqrt", "linear"))
