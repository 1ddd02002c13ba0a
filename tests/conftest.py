"""Settings of all tests: hypothesis without deadlines, and no network."""

import gc
import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray would listen on every interface otherwise.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# Its workers would wait for whatever else runs, another test too.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# A package of its own, which test_plugins installs.
collect_ignore = ["package"]


def pytest_collection_finish():
    # What is imported and collected stays: the collector need not walk it again and again, which took a fifth of the
    # time of property tests.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()
