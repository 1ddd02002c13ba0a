"""The laws as tests: `pytest --pyargs grpokit.testing.conformance --impl module:attr --recipe gspo`."""
