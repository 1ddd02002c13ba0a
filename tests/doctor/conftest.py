import pytest

from .trained import warm_start


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """The checkpoint that trained cases begin with: one warm start of 600 steps."""
    return warm_start(tmp_path_factory.mktemp("warm") / "run")
