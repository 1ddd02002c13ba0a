"""The loss from log-probs: tens of bytes a token, so that launches decide, and what a CUDA graph makes of them."""

import torch

from .cases import HIGH, LOW, Case, Data
from .providers import Call, differentiated, recipe


class Logps(Data):
    """The tensors of a case without its logits: `logps` (B, L) in their place."""

    def __init__(self, case, device):
        super().__init__(case, device)
        self.logps = self._logps().requires_grad_()
        del self.logits, self.pristine

    def restore(self):
        """Nothing overwrites the log-probs."""


def ours(data):
    """`grpokit.loss.from_logps`."""
    import grpokit as gk

    batch = gk.TokenBatch(data.targets, mask=data.mask, advantages=data.advantages, old_logps=data.old_logps)
    what = recipe("token")
    return differentiated(lambda: gk.loss.from_logps(data.logps, batch, what).loss, data.logps)


def eager(data):
    """The same in eager torch."""
    mask, A = data.mask.float(), data.advantages[:, None]

    def forward():
        r = (data.logps - data.old_logps).exp()
        gate = -torch.min(r * A, r.clamp(1 - LOW, 1 + HIGH) * A)
        return (gate * mask).sum() / mask.sum()

    return differentiated(forward, data.logps)


def replayed(call):
    """The call as a CUDA graph: a `Call` whose forward pass replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call.backward(call.forward())
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call.backward(call.forward())
    return Call(graph.replay, lambda _: kept)


def token_loss(run):
    """Times ours and eager torch, as calls and as graphs."""
    data = Logps(Case(8, 2048, 512), run.bench.device)
    rows = run.report["from_logps"] = []

    def row(name, make):
        """One row, with the reason where nothing was measured."""
        found = {"provider": name, "status": ""}
        rows.append(found)

        def failed(_, problem):
            found["status"] = f"not measured: {run.why(problem)[-1]}"

        try:
            call = make()
            run.bench.first(call, data)
            statistics = run.bench.rounds({name: call}, data, failed)
            found["launches"] = run.bench.launches(call, data)
        except Exception as problem:  # noqa: BLE001
            return failed(name, problem)
        found |= statistics.get(name, {}) | {"status": "measured" if statistics else found["status"]}
        return call

    for name, make in (("grpokit from_logps", ours), ("eager torch", eager)):
        call = row(name, lambda make=make: make(data))
        if call and not run.broken:
            row(f"{name}, as a CUDA graph", lambda call=call: replayed(call))
