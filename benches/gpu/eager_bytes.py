"""How many bytes eager torch moves: what its operators take and give, counted as they are dispatched."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .cases import Case, Data

# They read or write the selected entries alone, whatever the size of what they select from.
SELECT = ("gather", "scatter_add", "index", "_index_put_impl_", "index_put_")


class Bytes(TorchDispatchMode):
    """Adds up the tensors of every operator: each input read once, each output written once; views move nothing."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view or name.startswith(("empty", "new_empty")) or name in ("detach", "lift_fresh"):
            return out
        tensors = [x for x in (*tree_leaves(args), *tree_leaves(out)) if isinstance(x, torch.Tensor)]
        if not name.rstrip("_").startswith(SELECT):
            self.total += sum(x.numel() * x.element_size() for x in tensors)
        return out


def count(loss_of, sequences=2, length=64, vocabulary=4096):
    """Bytes an element of the logits (B, L, V) in a forward and a backward pass, on small logits on the CPU."""
    data = Data(Case(sequences, length, vocabulary), "cpu")
    given = data.logits, data.targets, data.mask.float(), data.advantages, data.old_logps
    with Bytes() as counted:
        loss, _ = loss_of(given)
        torch.autograd.grad(loss, data.logits)
    return round(counted.total / (sequences * length * vocabulary), 1)
