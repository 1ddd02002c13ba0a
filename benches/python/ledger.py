"""Events a second of the ledger and rows a second of the collector: one Python thread, one call an event.

The best of several runs; writes ledger.{json,md}.

    make bench
"""

import sys
import time

from timing import heading, machine, save

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


def requeue(rollouts=32_768):
    """All of one large eviction are asked for again, those that finished first before the others."""
    ledger = gk.StalenessLedger(rollouts, 0)
    for _ in range(rollouts):
        ledger.complete(ledger.admit())
    ledger.advance()
    evicted = ledger.evict(0)
    start = time.perf_counter()
    for ticket in evicted:
        ledger.requeue(ticket)
    return rollouts / (time.perf_counter() - start)


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
    report = {"machine": machine("make bench", ("numpy",)), "millions_a_second": {}}
    lines = [*heading("The ledger and the collector", report["machine"]), "Events, or rows, in millions a second:", ""]
    for name, call in {
        "ledger, one source": lambda: schedule(400),
        "ledger, two sources by name": lambda: schedule(400, "math"),
        "ledger, two spans a rollout": lambda: schedule(200, "math", [(0, 120), (0, 80)]),
        "ledger, 32,768 requeues": requeue,
        "collector, groups of 16": lambda: collect(4096),
    }.items():
        speed = max(call() for _ in range(runs)) / 1e6
        report["millions_a_second"][name] = speed
        lines.append(f"- {name}: {speed:.1f}")
        print(lines[-1], flush=True)
    size, write, read = min((snapshot() for _ in range(runs)), key=lambda result: result[1] + result[2])
    written = f"A snapshot of {size:,} bytes is written in {1e3 * write:.2f} ms and restored in {1e3 * read:.2f} ms."
    lines += ["", written]
    print(written)
    save("ledger", report, lines)


if __name__ == "__main__":
    main()
