"""Files that appear whole or not at all.

A file is written under another name beside its place, flushed to the disk and then renamed, so that whoever looks finds
the old file, the new one or none. What was begun is removed when something fails.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from grpokit.child import tell
from grpokit.errors import GrpokitError, error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def whole(paths: list[Path], *, overwrite: bool) -> Iterator[list[Path]]:
    """Temporary places for some files, which are moved to theirs together at the end.

    Parameters
    ----------
    paths : list of Path
        Where the files shall be.
    overwrite : bool
        Whether files that are there may be replaced.

    Raises
    ------
    FileError
        `file_exists`, `file_unwritable`: before anything is written, or in its place nothing is left behind.
    """
    for path in paths:
        try:
            _check(path, overwrite=overwrite)
        except OSError as problem:
            if isinstance(problem, GrpokitError):
                raise
            raise error("file_unwritable", path=str(path), reason=problem.strerror or str(problem)) from None
    # A name may have 255 bytes.
    places = [path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.part") for path in paths]
    for place in places:
        tell("begun", place)
    try:
        yield places
        for place in places:
            _flush(place)
        for place, path in zip(places, paths, strict=True):
            # Somebody may have written it meanwhile; a link fails then, a rename would not.
            if overwrite:
                place.replace(path)
            else:
                os.link(place, path)
                place.unlink()
        for directory in {path.parent for path in paths}:
            _flush(directory)
    except GrpokitError:
        raise
    except FileExistsError as problem:
        raise error("file_exists", path=str(problem.filename2 or problem.filename)) from None
    except OSError as problem:
        raise error("file_unwritable", path=str(paths[0]), reason=problem.strerror or str(problem)) from None
    finally:
        for place in places:
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)


def _check(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise error("file_unwritable", path=str(path), reason="it is a directory")
    if path.exists() and not overwrite:
        raise error("file_exists", path=str(path))
    if path.exists() and not path.is_file():
        raise error("file_unwritable", path=str(path), reason="it is a device or a pipe, which cannot be replaced")
    if not path.parent.is_dir():
        raise error("file_unwritable", path=str(path), reason=f"there is no directory {path.parent}")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths lead to one file."""
    with contextlib.suppress(OSError):
        return a.samefile(b)
    return False
