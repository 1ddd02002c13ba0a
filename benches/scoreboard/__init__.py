"""Functions of TRL, verl, Liger-Kernel and grpokit with plain argument names, as `grpokit conform` takes them.

In: log-probs, advantages, masks, rewards. Out: what the library's own code gives for them. Each wrapper calls that code
and adds nothing to it; what had to be replaced to get there stands in its module. `entries` says which recipe each is
held against, `tools/scoreboard.py` asks and writes docs/scoreboard.md.

    PYTHONPATH=.peers:benches .venv/bin/grpokit conform scoreboard.verl:gspo --recipe gspo --set low=0.2 --set high=0.2
"""

import os

# Before any of the libraries is imported: nothing is fetched, nothing is reported, no accelerator is looked for.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TRITON_INTERPRET": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VERL_FORCE_DEVICE": "cpu",
}
