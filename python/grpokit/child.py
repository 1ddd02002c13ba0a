"""A command in a child process, so that what ends the child is an error with a sentence, and leaves nothing behind.

The Parquet decoder is C++ and believes what a file says: a damaged file, or too little memory, can end the process that
reads it. The fork happens before anything large is imported and costs a few milliseconds. The child says over a pipe
which file it is on and what it has begun to write; the parent waits, passes signals on and clears up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, Literal

from .errors import error

_pipe: int | None = None


def tell(what: Literal["reading", "begun"], path: Path) -> None:
    """Lets the parent know, where there is one."""
    if _pipe is not None:
        with contextlib.suppress(BrokenPipeError):
            os.write(_pipe, what.encode() + b" " + os.fsencode(path) + b"\0")


def in_child() -> int | None:
    """Goes on in a child process.

    Returns
    -------
    int or None
        None in the child. In the parent, when the child has ended: its exit code.

    Raises
    ------
    FileError
        `reader_died`, in the parent: a signal has ended the child.
    """
    passed = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if _heeded(number)]
    for stream in (sys.stdout, sys.stderr):
        # There is none where it was closed.
        if stream is not None:
            stream.flush()
    parent = os.getpid()
    reading, writing = os.pipe()
    # No signal comes between the fork and the handlers.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, passed)
    child = os.fork()
    if not child:
        global _pipe  # noqa: PLW0603 - what a process is to its parent is a fact of the whole process
        _pipe = writing
        os.close(reading)
        die_with(parent)
        if signal.SIGINT in passed:
            signal.signal(signal.SIGINT, _interrupted)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return None

    def pass_on(number: int, _frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in passed:
        signal.signal(number, pass_on)
    os.close(writing)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    told = bytearray()
    while part := os.read(reading, 1 << 16):
        told += part
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    path = _clear_up(bytes(told))
    if code >= 0:
        return code
    if -code in passed:
        # Whoever asked the child to end meant the command.
        signal.signal(-code, signal.SIG_DFL)
        os.kill(parent, -code)
    remedy = "The file is damaged, and pyarrow does not notice: write it anew, or leave it out."
    if -code == signal.SIGKILL:
        remedy = "So it is where memory runs out: give it more, or write the file with smaller row groups."
    raise error("reader_died", path=path, signal=signal.Signals(-code).name, remedy=remedy)


def _heeded(number: int) -> bool:
    return signal.getsignal(number) is not signal.SIG_IGN


def _interrupted(_number: int, _frame: Any) -> None:
    """Interrupts once: a terminal tells parent and child, and the parent tells the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def die_with(parent: int) -> None:
    """Has this process killed when its parent is, on Linux."""
    if sys.platform == "linux":
        # A Python may be built without ctypes; the child then ends a little later than its parent.
        with contextlib.suppress(ImportError):
            import ctypes

            set_death_signal = 1
            ctypes.CDLL(None).prctl(set_death_signal, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def _clear_up(told: bytes) -> str:
    """Removes what was begun and is still there; the file that was read last."""
    path = "the input"
    for message in told.split(b"\0")[:-1]:
        what, _, name = message.partition(b" ")
        if what == b"reading":
            path = os.fsdecode(name)
        elif Path(os.fsdecode(name)).is_dir():
            import shutil

            shutil.rmtree(name, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                Path(os.fsdecode(name)).unlink(missing_ok=True)
    return path
