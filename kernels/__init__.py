"""Triton kernels of grpokit, installed as ``grpokit.kernels``. They import nothing else of grpokit."""
