"""Every implementation of `entries` under every law, two processes at a time.

Out: a dict a name, plain enough for JSON: what it is, what it is held against, the command that asks the same, and a
verdict a law: holds, departs, choice or not looked at.
"""

import multiprocessing
import os
import shlex
from concurrent.futures import ProcessPoolExecutor

from .entries import AT_A_BOUND, CHOICES, ENTRIES, LIBRARIES, NOT_LOOKED_AT, NOTES, found

RUN = "PYTHONPATH=.peers:benches .venv/bin/grpokit conform"


def command(entry, law):
    """What shows the verdict on one law."""
    words = [entry.implementation, "--recipe", entry.recipe]
    words += ["--kind", "filter"] if entry.kind == "filter" else []
    for name, value in entry.settings.items():
        words += ["--set", f"{name}={value}"]
    words += ["--law", law, "--max-examples", str(entry.examples), "--derandomize"]
    return f"{RUN} {shlex.join(words)}"


def versions():
    """Of the libraries and of what computes."""
    import importlib.metadata

    packages = [*(package for _, package in LIBRARIES.values()), "torch", "triton", "numpy", "hypothesis"]
    return {name: importlib.metadata.version(name) for name in packages}


def measured(names, processes=2):
    """The verdicts on some implementations, by name, as they come."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_quiet) as pool:
        yield from zip(names, pool.map(_verdicts, names), strict=True)


def _quiet():
    import torch

    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)


def _verdicts(name):
    from grpokit.testing import engine
    from grpokit.testing.worker import resolve

    (entry,) = (e for e in ENTRIES if e.name == name)
    function = resolve(entry.implementation)
    tried = engine.trial(function, entry.recipe, entry.kind, name=entry.implementation, settings=entry.settings)
    return {
        "calls": entry.calls,
        "kind": entry.kind,
        "against": entry.against,
        "laws": {law.name: _verdict(entry, law, tried, engine) for law in engine.chosen(entry.kind)},
    }


def _verdict(entry, law, tried, engine):
    reason = found(NOT_LOOKED_AT, entry.name, law.name) or law.skip(tried)
    if reason:
        return {"verdict": "not looked at", "reason": reason}
    verdict = engine.run(law, tried, examples=entry.examples, derandomize=True)
    if verdict.status == "pass":
        return {"verdict": "holds"}
    chosen = found(CHOICES, entry.name, law.name) or (AT_A_BOUND if law.name == "bound" and _a_share(verdict) else "")
    kept = ("problem", "expected", "got", "guess", "guess_says", "snippet")
    told = {field: getattr(verdict, field) for field in kept if getattr(verdict, field)}
    told |= {"verdict": "choice" if chosen else "departs", "command": command(entry, law.name)}
    reason = chosen or found(NOTES, entry.name, law.name)
    return told | ({"reason": reason} if reason else {})


def _a_share(verdict):
    """Whether the gradient on a bound is a share of the whole one."""
    return 0 <= float(verdict.got) / float(verdict.expected) <= 1
