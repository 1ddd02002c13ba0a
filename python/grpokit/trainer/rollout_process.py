"""The process that samples ahead: it makes the same policy, takes each order's weights, and sends what it gathered."""

from __future__ import annotations

import contextlib
import pickle
import signal
import traceback
from multiprocessing.connection import Connection
from queue import SimpleQueue
from random import Random
from threading import Thread
from typing import TYPE_CHECKING, Any

from grpokit.child import die_with
from grpokit.errors import GrpokitError, error

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ahead import Setup


def main(descriptor: int, parent: int) -> None:
    """Serves the trainer until it hangs up.

    Parameters
    ----------
    descriptor : int
        Of the connection.
    parent : int
        The trainer's process, after which this one must not live.
    """
    die_with(parent)
    # A terminal's Ctrl-C is the trainer's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(descriptor) as connection:
        # Sampling goes on while the trainer does not listen.
        waiting: SimpleQueue[bytes | None] = SimpleQueue()
        sending = Thread(target=_send, args=(connection, waiting))
        sending.start()
        try:
            serve(connection, lambda message: waiting.put(pickle.dumps(message)), connection.recv())
        except EOFError:
            pass
        except GrpokitError as problem:
            waiting.put(pickle.dumps(("failed", problem)))
        except Exception as problem:  # noqa: BLE001 - the trainer raises it
            traceback.print_exc()
            waiting.put(pickle.dumps(("failed", error("rollout_failed", reason=repr(problem)))))
        finally:
            waiting.put(None)
            sending.join()


def _send(connection: Connection, waiting: SimpleQueue[bytes | None]) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while (message := waiting.get()) is not None:
            connection.send_bytes(message)


def serve(connection: Connection, send: Callable[[Any], None], setup: Setup) -> None:
    """Samples each order with its weights, in the order in which they come."""
    import torch
    from safetensors.torch import load_file

    from .agreement import sampled_ahead
    from .ahead import handed_over
    from .built_in import make_task
    from .collect import Collector
    from .learn import steered
    from .models import load
    from .rewards import Rewards
    from .server import engine_of
    from .weights import put

    config = setup.config
    torch.set_num_threads(config.threads)
    task = make_task(config.task, rewarded=bool(setup.functions)) if setup.task is None else pickle.loads(setup.task)  # noqa: S301 - the trainer's
    recipe = config.make_recipe()
    policy = load(config, Random(f"{config.seed} weights").getrandbits(63))
    engine = engine_of(config.engine, policy, setup.weights.with_name("weights"))
    with Rewards(task, setup.functions, config.rewards, lambda text: send(("note", text))) as rewards:
        collector = Collector(policy, engine, task, rewards, config)
        if recipe.rows_read("logp_ref"):
            collector.reference = policy.frozen()
            put(collector.reference, load_file(setup.reference))
        if setup.state is not None:
            collector.restore(setup.state)
        send(("ready", collector.state()))
        while True:
            order = connection.recv()
            put(policy, load_file(handed_over(setup.weights, order.trained)))
            engine.load(policy, order.version)
            chosen, _ = steered(recipe, config, order.controllers)
            gathered = collector.collect(chosen)
            if config.async_level:  # at level 0 the trainer has these weights still, and compares
                gathered.measured |= sampled_ahead(policy, gathered, config)
            send(("sampled", gathered, collector.state()))
