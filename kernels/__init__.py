"""Triton kernels of grpokit, installed as ``grpokit.kernels``. None yet: losses run in eager torch."""
