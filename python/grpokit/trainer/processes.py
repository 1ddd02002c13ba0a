"""Processes of this program's own: fresh interpreters that serve it over a pipe and end when it does.

A fork would copy torch's threads and locks in whatever state they are, and multiprocessing's own ways of starting anew
import the caller's script again, which a script without a guard does not survive.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class Child:
    """A process that runs ``module.main(descriptor, parent)``, and the connection to it.

    Parameters
    ----------
    module : str
        Its name; `main` gets the number of its end of the connection, and of this process.
    """

    def __init__(self, module: str) -> None:
        self.connection: Connection
        self.connection, theirs = Pipe()
        path = [place for place in (*sys.path, os.getcwd()) if isinstance(place, str)]  # noqa: PTH109
        code = f"import sys; sys.path[:] = {path!r}; from {module} import main"
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"{code}; main({theirs.fileno()}, {os.getpid()})"],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what it prints is talk, and no result of this program
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def kill(self) -> str:
        """Ends it with what it has started, and says how it had ended before, if it had."""
        if self.process.returncode is None:
            # The group first, while the process's number cannot be another's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
        code = self.process.wait()
        self.connection.close()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended its process with exit code {code}"
