"""Tests of kernels on the CPU are a folder of their own: Triton's interpreter must be chosen before it is imported."""

import os

# `test_interpreted` runs them in a process where it is.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
