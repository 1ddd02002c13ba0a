"""What is compared with the installed TRL, verl and Liger; `make test-peers` installs them."""

import importlib.util
import os
import pathlib

import pytest

# Without them nothing here can be imported, and nothing is changed for the tests beside.
PEERS = importlib.util.find_spec("verl") and importlib.util.find_spec("trl")

if PEERS:
    # Before any of them is imported: nothing is fetched, nothing is reported, no accelerator is looked for.
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TRITON_INTERPRET": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "VERL_FORCE_DEVICE": "cpu",
    }

# No tests in them: what tests import, and what they start in processes of their own.
collect_ignore = ["tiny.py", "trl_step.py", "trl_ranks.py", "verl_step.py", "verl_ranks.py", "verl_cpu.py"]
collect_ignore_glob = [] if PEERS else ["*.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if pathlib.Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.peers)
