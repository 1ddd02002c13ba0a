"""Standard output: one JSON object, all of it or an error that says why not."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from .errors import error

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA_VERSION = 1


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """Writes all, or says why not."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as problem:
        drop_output()
        raise error("output_unwritable", reason=problem.strerror) from None


def drop_output() -> None:
    """What is not written yet is not written, at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(stream: Any = None, **fields: Any) -> None:
    """Prints the fields as one object, with the version of its schema."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **fields}, ensure_ascii=False), file=stream, flush=True)
