"""SIGINT and SIGTERM while a run trains: the first one ends it after its step, with a snapshot, the second at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

HEEDED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run.

    Attributes
    ----------
    signal : signal.Signals
        Which.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


class Stopping:
    """Heeds the signals inside, in the main thread; those that are ignored stay so.

    Parameters
    ----------
    note : callable
        Where it is said what the first signal does.

    Attributes
    ----------
    gentle : bool
        Whether there is a step to be finished; else the first signal ends the run at once.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note, self.gentle = note, False
        self._asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in HEEDED:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._heed)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def __bool__(self) -> bool:
        """Whether the run is to end after this step."""
        return self._asked is not None

    def stop(self) -> None:
        """Ends the run as it was asked to.

        Raises
        ------
        Interrupted
        """
        # Where only another rank was asked, it is as if this one had been.
        raise Interrupted(self._asked or signal.SIGTERM)

    def _heed(self, number: int, _frame: Any) -> None:
        again, self._asked = self._asked is not None, number
        if again or not self.gentle:
            raise Interrupted(number)
        # A signal may come while something is being printed.
        with contextlib.suppress(RuntimeError):
            self.note("the run ends after this step, with a snapshot; once more, and it ends at once")
