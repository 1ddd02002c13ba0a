"""Admission and ageing of rollouts in an asynchronous trainer, usable outside any trainer.

In: one call an event: a rollout starts, completes, fails, is trained on, is thrown away; the policy has a new version.
Out: how many more may start, the next batch and its lags, and books that always add up.

Notes
-----
A loop, with a pool that generates and a trainer that trains::

    while (ticket := ledger.admit("math")) is not None:
        pool.start(ticket, next(prompts))
    for ticket, rollout in pool.finished():
        rollouts[ticket] = rollout
        ledger.complete(ticket, spans=rollout.spans)
    for ticket in ledger.evict(max_lag=4):
        prompts.put(rollouts.pop(ticket).prompt)
        ledger.requeue(ticket)
    if batch := ledger.take():
        trainer.step([rollouts.pop(ticket) for ticket in batch.tickets])
        ledger.advance()
        pool.update(trainer.weights)
        save(trainer, rollouts, ledger.snapshot())

Examples
--------
>>> import grpokit as gk
>>> ledger = gk.StalenessLedger(batch_size=4, max_staleness=1, sources=["math", "code"])
>>> for source in ["math", "math", "code", "math"]:
...     ledger.complete(ledger.admit(source))
>>> batch = ledger.take(steps=2, n=4)
>>> batch.minibatches, batch.staleness
([[0, 1], [2, 3]], [0, 0, 1, 1])
>>> ledger.starvation()["code"]["share_consumed"]
0.25
>>> gk.StalenessLedger.restore(ledger.snapshot())
<StalenessLedger version=0 capacity=4 admitted=4 running=0 ready=0 consumed=4 evicted=0 aborted=0>
"""

from ._native import LagStatistics, StalenessLedger, TakenBatch, VersionSpan

__all__ = ["LagStatistics", "StalenessLedger", "TakenBatch", "VersionSpan"]
