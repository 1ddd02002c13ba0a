"""A process that calls reward functions for another, until that one hangs up. It imports no torch of its own."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection

from grpokit.child import die_with
from grpokit.errors import GrpokitError

from .reward_functions import find, invoke, signature


def main(descriptor: int, parent: int) -> None:
    """Receives the functions, says what they take, then answers each call with its outcome.

    Parameters
    ----------
    descriptor : int
        Of the connection.
    parent : int
        The process on the other end, after which this one must not live.
    """
    die_with(parent)
    # What the functions start must not hold the connection open.
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as connection:
        try:
            try:
                functions = [find(source) for source in connection.recv()]
            except GrpokitError as problem:
                connection.send(problem)
                return
            connection.send([signature(function) for function in functions])
            while True:
                function, arguments, n = connection.recv()
                connection.send(invoke(functions[function], arguments, n, BaseException))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass
