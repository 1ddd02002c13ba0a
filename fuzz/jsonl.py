"""Whatever a file holds, the JSON-lines reader gives what `json` gives line by line, or says what is wrong.

Run from the top of the project: python -m fuzz.jsonl CORPUS.
"""

import os
import sys
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["grpokit.io.jsonl", "grpokit.io.files", "grpokit.io.decide"]):
    from tests.files.json_model import check, jsonl

FILE = os.memfd_create("fuzz")


def one_input(data):
    """The first byte is the size of blocks, the others are the file."""
    jsonl.BLOCK = 3 + (data[0] if data else 0)
    os.ftruncate(FILE, 0)
    os.pwrite(FILE, data[1:], 0)
    check(Path(f"/proc/self/fd/{FILE}"), data[1:])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
