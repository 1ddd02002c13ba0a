import importlib.metadata
import pathlib


def test_the_installed_versions_are_those_that_the_docs_name():
    pins = (pathlib.Path(__file__).parents[2] / "requirements-peers.txt").read_text().split()
    for name, version in (("trl", "1.16.0"), ("verl", "0.9.1"), ("liger-kernel", "0.8.5")):
        assert importlib.metadata.version(name) == version
        assert f"{name}=={version}" in pins
