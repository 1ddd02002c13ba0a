"""Threads, forks, the interpreter's lock and Ctrl-C."""

import multiprocessing
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import grpokit as gk

N = 2**19 + 4321  # enough that the core uses its threads
RECIPE = gk.recipe("dapo", max_len=20_480)


def table(kind):
    rng = np.random.default_rng(3)
    ids = rng.integers(0, N // 16, N)
    return {
        "group_id": ids if kind == "integers" else np.char.add("prompt-", ids.astype("U")),
        "reward": rng.random(N).round(1),
        "response_len": rng.integers(0, 24_000, N),
    }


@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_the_same_bits_for_every_number_of_threads(kind, monkeypatch):
    rollouts = table(kind)
    expected = gk.process(rollouts, RECIPE, threads=1)
    for threads in (2, 3, 8):
        given = gk.process(rollouts, RECIPE, threads=threads)
        assert given.advantages.tobytes() == expected.advantages.tobytes()
        assert given.reasons.tobytes() == expected.reasons.tobytes()
        assert given.groups.mean.tobytes() == expected.groups.mean.tobytes()
    monkeypatch.setenv("GRPOKIT_NUM_THREADS", "3")
    assert gk.process(rollouts, RECIPE).advantages.tobytes() == expected.advantages.tobytes()


def _advantages(queue):
    queue.put(gk.process(table("strings"), RECIPE, threads=2).advantages.tobytes())


def test_a_forked_child_works():
    expected = gk.process(table("strings"), RECIPE, threads=2).advantages.tobytes()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_advantages, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [expected] * 2
    for child in children:
        child.join()
        assert child.exitcode == 0


@pytest.mark.parametrize("kind", ["integers", "fixed", "objects"])
def test_other_threads_run_meanwhile(kind):
    """The interpreter is released: another Python thread takes steps while one call runs."""
    ids = np.random.default_rng(0).integers(0, 2**60, 2_000_000)
    keys = {"integers": ids, "fixed": ids.view("S8"), "objects": None}[kind]
    if keys is None:
        keys = [str(i) for i in range(100_000)] * 50
    steps, ended = [], threading.Event()

    def count():
        while not ended.is_set():
            steps.append(time.perf_counter())
            time.sleep(1e-4)

    other = threading.Thread(target=count)
    other.start()
    start = time.perf_counter()
    gk.group(keys)
    end = time.perf_counter()
    ended.set()
    other.join()
    assert sum(start < step < end for step in steps) >= 5, (end - start, len(steps))


CTRL_C = """
import time, numpy as np, grpokit as gk
ids = np.random.default_rng(0).integers(0, 2**62, 12_000_000)
start = time.perf_counter()
gk.group(ids)
whole = time.perf_counter() - start
try:
    print("ready", whole, flush=True)
    start = time.perf_counter()
    for _ in range(3):
        gk.group(ids)
    print("finished")
except KeyboardInterrupt:
    print("interrupted", time.perf_counter() - start)
"""


@pytest.mark.slow
def test_ctrl_c_stops_a_long_call():
    with subprocess.Popen([sys.executable, "-c", CTRL_C], stdout=subprocess.PIPE, text=True) as child:
        whole = float(child.stdout.readline().split()[1])
        child.send_signal(signal.SIGINT)
        word, *rest = child.stdout.read().split()
    assert word == "interrupted"
    # Well before one call could have ended by itself.
    assert float(rest[0]) < 0.7 * whole
