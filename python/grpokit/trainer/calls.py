"""Calls to a server over HTTP: what is lost on the way is asked again, what is refused is an error with its words.

In: paths with JSON bodies. Out: what was read of each answer, in the same order, however many were under way at once.
Asking again changes nothing where the server has no memory of the first time, which is so for all that is asked here.
"""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from grpokit.errors import error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from grpokit.errors import GrpokitError

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0  # seconds before a call is made again: doubled each time
_BUSY = (408, 429)
_SHOWN = 300  # characters of what a server said


class Lost(Exception):  # noqa: N818 - it is no error yet
    """An answer that is none: the call is made again.

    Parameters
    ----------
    reason : str
        What was the matter.
    wait : float
        Seconds that the server wants to be left alone.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Calls:
    """A server, by its URL.

    Parameters
    ----------
    url : str
        ``http://host:port``, or with ``https`` and a path before those of the calls.
    timeout : float
        Seconds that the server may be silent in a call.
    retries : int
        How often a call is made again that was lost: no connection, a dropped one, silence, an answer that is cut off,
        status 408, 429 or 500 and above. The waits between double, from half a second to 15.
    """

    def __init__(self, url: str, *, timeout: float, retries: int) -> None:
        self.url, self.timeout, self.retries = url.rstrip("/").removesuffix("/v1"), timeout, retries

    def one(self, path: str, body: Any = None, read: Callable[[Any], Any] = lambda answer: answer) -> Any:
        """One call; a GET where there is no body, whose answer is not read."""
        return self.many([(path, body)], lambda _, answer: read(answer), at_once=1)[0]

    def many(self, calls: Sequence[tuple[str, Any]], read: Callable[[int, Any], Any], *, at_once: int) -> list[Any]:
        """All of them, some at once.

        Parameters
        ----------
        calls : sequence of (str, Any), (N,)
            The path and the body of each.
        read : callable
            What is made of the answer to call number n, ``read(n, answer)``, in any thread and order. It may raise
            `Lost`, and is then called again.
        at_once : int
            How many are under way at once at most.

        Returns
        -------
        list, (N,)
            What `read` gave, in the order of the calls.

        Raises
        ------
        StateError
            `server_refused`: a status of 300 to 499. `server_failed`: a call was lost more often than `retries`. What
            `read` raises, and Ctrl-C, come through at once, and the calls under way are given up.
        """
        found: list[Any] = [None] * len(calls)
        left: SimpleQueue[int] = SimpleQueue()
        for number in range(len(calls)):
            left.put(number)
        ended: SimpleQueue[BaseException | None] = SimpleQueue()
        lines = [_Line(self) for _ in range(min(at_once, len(calls)))]

        def work(line: _Line) -> None:
            try:
                with suppress(Empty):
                    while not line.given_up.is_set():
                        number = left.get_nowait()
                        found[number] = line.ask(*calls[number], partial(read, number))
                ended.put(None)
            except BaseException as problem:  # noqa: BLE001 - raised where the calls were made
                ended.put(problem)
            finally:
                line.close()

        try:
            for line in lines:
                # Daemons, so that one that still waits for a connection does not hold up the end of the program.
                threading.Thread(target=work, args=(line,), daemon=True).start()
            for _ in lines:
                problem = ended.get()
                if problem is not None:
                    raise problem
        finally:
            for line in lines:
                line.give_up()
        return found


class _Line:
    """A connection that is kept from call to call, made anew where it broke."""

    def __init__(self, server: Calls) -> None:
        parts = urlsplit(server.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self.server, self.prefix, self.given_up = server, parts.path, threading.Event()
        self.connection = kind(parts.hostname or "", parts.port, timeout=server.timeout)

    def ask(self, path: str, body: Any, read: Callable[[Any], Any]) -> Any:
        wait = _FIRST_WAIT
        for number in range(self.server.retries + 1):
            try:
                return read(self._once(path, body))
            except Lost as problem:
                reason, longer = str(problem), problem.wait
            except TimeoutError:
                reason, longer = f"nothing came for {self.server.timeout:g} s", 0.0
            except (OSError, HTTPException) as problem:
                reason, longer = getattr(problem, "strerror", None) or str(problem) or repr(problem), 0.0
            self.close()
            last = number == self.server.retries
            if last or self.given_up.wait(max(wait, min(longer, _LONGEST_WAIT))):
                break
            wait = min(2 * wait, _LONGEST_WAIT)
        tries = self.server.retries + 1
        raise error("server_failed", url=self.server.url, path=path, tries=tries, reason=reason)

    def _once(self, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        self.connection.request("POST" if data else "GET", self.prefix + path, data, headers)
        response = self.connection.getresponse()
        raw = response.read()
        if response.status in _BUSY or response.status >= 500:
            raise Lost(f"status {response.status}: {_said(raw)}", _seconds(response.getheader("Retry-After")))
        if response.status >= 300:
            raise _refused(self.server.url, path, response.status, raw)
        try:
            return json.loads(raw) if data and raw.strip() else None
        except ValueError:
            raise Lost(f"an answer of {len(raw)} bytes that is not JSON, or cut off: {_said(raw)}") from None

    def give_up(self) -> None:
        """Ends a call that is under way, from another thread."""
        self.given_up.set()
        if (wire := self.connection.sock) is not None:
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self.connection.close()


def _refused(url: str, path: str, status: int, raw: bytes) -> GrpokitError:
    remedies = {
        404: "The server has no such call: see which protocol it speaks (engine.protocol), and how it was started.",
        401: "It asks for a key, which is not given here: start it without one.",
    }
    remedy = remedies.get(status, "Do what it says; the call is not made again.")
    return error("server_refused", url=url, path=path, status=status, message=_said(raw), remedy=remedy)


def _said(raw: bytes) -> str:
    """The message of an answer, wherever servers have it."""
    text = raw.decode("utf-8", "replace").strip()
    with suppress(ValueError):
        found = json.loads(text)
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and found.get(name):
                found = found[name]
        text = found if isinstance(found, str) else json.dumps(found)
    return text[:_SHOWN] or "nothing"


def _seconds(given: str | None) -> float:
    """Of Retry-After, which may be a date as well."""
    return float(given) if given is not None and given.isdecimal() else 0.0
