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
    for name, make in (("grpokit from_logps", ours), ("eager torch", eager)):
        call = make(data)
        run.bench.first(call, data)
        (statistics,) = run.bench.rounds({name: call}, data).values()
        rows.append({"provider": name, "status": "measured", "launches": run.bench.launches(call, data)} | statistics)
        try:
            graph = replayed(call)
            (statistics,) = run.bench.rounds({name: graph}, data).values()
            rows.append({"provider": f"{name}, as a CUDA graph", "status": "measured"} | statistics)
        except Exception as problem:  # noqa: BLE001
            *_, reason = run.why(problem)
            rows.append({"provider": f"{name}, as a CUDA graph", "status": f"not measured: {reason}"})
            if run.broken:
                return
