"""Triton kernels of grpokit, installed as ``grpokit.kernels``: each file holds a kernel and its launch, no autograd.

- `stats`: one read of the logits: log π of each target, entropy, and what the softmax of a row is made of.
- `gradient`: one read and one write: ∂LOSS/∂logits from the two coefficients of a token.
- `gates`: the objectives' closed forms. `coefficients`: a recipe's, for a sequence; its launch is in `grpokit.gates`.
- `table`: block sizes and warps, by architecture.

Triton launches on the device that is current, whatever the tensors are on: each launch makes theirs that.

They import triton when they are imported, and nothing else of grpokit. With ``TRITON_INTERPRET=1`` in the environment
before that they run on the CPU.
"""
