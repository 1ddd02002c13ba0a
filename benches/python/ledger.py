"""Events a second of the ledger and rows a second of the collector: one Python thread, one call an event.

In: rollouts in a batch, the bound on staleness. Out: lines on stdout; the best of several runs.
"""

import sys
import time

import grpokit as gk

BATCH, STALENESS = 512, 4


def schedule(batches, source=None, spans=None):
    """An asynchronous trainer without the training: all that may start starts, becomes ready, a batch is taken."""
    ledger = gk.StalenessLedger(BATCH, STALENESS, sources=None if source is None else [source, "other"])
    admit, complete = ledger.admit, ledger.complete
    given = () if source is None else (source,)
    events, start = 0, time.perf_counter()
    for _ in range(batches):
        tickets = []
        while (ticket := admit(*given)) is not None:
            tickets.append(ticket)
        if spans is None:
            for ticket in tickets:
                complete(ticket)
        else:
            for ticket in tickets:
                complete(ticket, spans=spans)
        ledger.take()
        ledger.advance()
        events += 2 * len(tickets) + 3
    return events / (time.perf_counter() - start)


def snapshot():
    """Bytes and seconds of a snapshot, and of restoring it, with 4,096 finished rollouts remembered."""
    ledger = gk.StalenessLedger(BATCH, STALENESS)
    for _ in range(40):
        while (ticket := ledger.admit()) is not None:
            ledger.complete(ticket, spans=[(ledger.version, 100)])
        ledger.take()
        ledger.advance()
    start = time.perf_counter()
    saved = ledger.snapshot()
    middle = time.perf_counter()
    gk.StalenessLedger.restore(saved)
    return len(saved), middle - start, time.perf_counter() - middle


def collect(groups, size=16, apart=256):
    """Rows of `apart` groups at a time take turns."""
    collector = gk.GroupCollector(size=size)
    keys = [key for first in range(0, groups, apart) for _ in range(size) for key in range(first, first + apart)]
    start = time.perf_counter()
    done = 0
    for key in keys:
        done += len(collector.add(key, None))
    assert done == groups
    return len(keys) / (time.perf_counter() - start)


def main():
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    for name, call in {
        "ledger, one source": lambda: schedule(400),
        "ledger, two sources": lambda: schedule(400, "math"),
        "ledger, two spans a rollout": lambda: schedule(200, "math", [(0, 120), (0, 80)]),
        "collector, groups of 16": lambda: collect(4096),
    }.items():
        print(f"{name:<28} {max(call() for _ in range(runs)) / 1e6:6.2f} M a second")
    size, write, read = min((snapshot() for _ in range(runs)), key=lambda result: result[1] + result[2])
    print(f"a snapshot of {size:,} bytes: written in {1e3 * write:.2f} ms, restored in {1e3 * read:.2f} ms")


if __name__ == "__main__":
    main()
