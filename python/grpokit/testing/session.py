"""`conform`: an implementation held against a recipe, in a child process that it may end, and what came of it.

In: ``module:attribute`` and a recipe. Out: a `Report`, one verdict a law. The function under test can crash, hang,
print and write into its arguments; what it does is a verdict, and the laws that are left go on in a new process.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from grpokit.errors import error

from .report import Report
from .trial import EXAMPLES, Verdict, check_law
from .worker import STAMP, Order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LIMIT = 10.0
IMPORT_LIMIT = 120.0  # seconds; frameworks take their time
DEATHS = 3  # in as many laws, and the rest is not tried


class Session:
    """An implementation in a child process, asked for one law after another.

    Parameters
    ----------
    implementation, recipe, kind, said, settings
        As in `conform`.
    limit : float
        Seconds that one call may take.

    Raises
    ------
    InputError
        `bad_implementation`, `unmapped_argument`, `uncallable_implementation`, and those of the recipe.
    """

    def __init__(
        self,
        implementation: str,
        recipe: str,
        kind: str | None = None,
        *,
        said: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        limit: float = LIMIT,
    ) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="grpokit-conform-")
        self.directory, self.limit, self.deaths = Path(self._place.name), limit, 0
        path = [os.getcwd(), *sys.path]  # noqa: PTH109 - a text, as sys.path has it
        self.order = Order(implementation, recipe, kind, said or {}, settings or {}, path, str(self.directory))
        self._child: subprocess.Popen[str] | None = None
        try:
            self.description = self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def laws(self) -> list[str]:
        """The names of its laws."""
        return [name for name, _ in self.description["laws"]]

    def run(self, law: str, *, examples: int = EXAMPLES, derandomize: bool = False, seed: int | None = None) -> Verdict:
        """The verdict on one law.

        Raises
        ------
        InputError
            `unknown_law`.
        """
        check_law(law, self.description["kind"], self.laws)
        says = dict(self.description["laws"])[law]
        if self.deaths >= DEATHS:
            return Verdict(
                law, says, "skip", reason=f"not tried: the function ended or hung in {DEATHS} laws before it"
            )
        seed = random.randrange(2**32) if seed is None else seed
        request = {"law": law, "examples": examples, "derandomize": derandomize, "seed": seed}
        answer, how = self._ask(request, careful=False)
        if answer is not None:
            return Verdict(**answer["verdict"] | {"notes": tuple(answer["verdict"]["notes"])})
        self.deaths += 1
        # Once more with the same draws, and each call written down before it is made.
        self._ask(request, careful=True)
        call = self.directory / "call"
        snippet = call.read_text() if call.exists() else ""
        return Verdict(
            law, says, "error", part=how.split(":", maxsplit=1)[0], problem=how.split(": ", 1)[1], snippet=snippet
        )

    def close(self) -> None:
        """Ends the child."""
        self._end()
        self._place.cleanup()

    def _end(self) -> None:
        if self._child is None:
            return
        self._kill()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._child = None

    def _start(self) -> dict[str, Any]:
        self._end()
        (self.directory / "stamp").write_bytes(STAMP.pack(0.0))
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "grpokit.testing.worker"]
        pipe = subprocess.PIPE
        # Of its own session, so that what the function starts ends with it.
        self._child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment, start_new_session=True
        )
        self._send(asdict(self.order))
        answer, how = self._answer(max(IMPORT_LIMIT, self.limit))
        if answer is None:
            printed = self.directory / "printed"
            lines = printed.read_text(errors="replace").strip().splitlines() if printed.exists() else []
            last = "" if how.startswith("hang") else "".join(lines[-1:])
            why = f"did not come to its first result: it {how.split(': ', 1)[1]} {last}".rstrip()
            remedy = "Call it by hand in a Python of its own, or give it longer with --limit SECONDS."
            raise error("bad_implementation", implementation=self.order.implementation, why=why, remedy=remedy)
        if "error" in answer:
            raise error(answer["error"]["kind"], **answer["error"]["context"])
        found: dict[str, Any] = answer["ready"]
        return found

    def _ask(self, request: dict[str, Any], *, careful: bool) -> tuple[dict[str, Any] | None, str]:
        if self._child is None or self._child.poll() is not None:
            self._start()
        self._send(request | {"careful": careful})
        return self._answer()

    def _send(self, what: dict[str, Any]) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        # That it has ended is seen where it is waited for.
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(what) + "\n")
            self._child.stdin.flush()

    def _kill(self) -> None:
        """Ends the child and what it started."""
        assert self._child is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def _answer(self, first: float = 0.0) -> tuple[dict[str, Any] | None, str]:
        """The child's answer, or None and what became of it; its first call must come within `first` seconds."""
        began = time.monotonic()
        assert self._child is not None
        assert self._child.stdout is not None
        while True:
            ready, _, _ = select.select([self._child.stdout], [], [], 0.2)
            if ready:
                line = self._child.stdout.readline()
                if line:
                    found: dict[str, Any] = json.loads(line)
                    return found, ""
                return None, self._ended(self._child.wait())
            (since,) = STAMP.unpack((self.directory / "stamp").read_bytes())
            first = 0.0 if since else first
            if first and time.monotonic() - began > first:
                self._kill()
                return None, f"hang: hangs: its module was not imported in {first:g} s"
            if since and time.monotonic() - since > self.limit:
                self._kill()
                return None, f"hang: hangs: a call took longer than {self.limit:g} s"

    @staticmethod
    def _ended(code: int) -> str:
        if code < 0:
            return f"crash: ends the interpreter with {signal.Signals(-code).name}"
        return f"crash: ends the interpreter with the exit code {code}"


def conform(
    implementation: str,
    recipe: str,
    kind: str | None = None,
    *,
    laws: Sequence[str] = (),
    said: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    examples: int = EXAMPLES,
    derandomize: bool = False,
    minutes: float = 0.0,
    limit: float = LIMIT,
    each: Callable[[Any], None] = lambda _: None,
) -> Report:
    """Holds an implementation against a recipe.

    Parameters
    ----------
    implementation : str
        ``module:attribute``: a function of NumPy, torch or jax arrays. Its arguments are told by their names.
    recipe : str
        A recipe, or a single stage as Python writes it: ``GroupNorm(1, 1e-6)``, ``TokenMean()``, ``HasSignal()``, or
        ``k3``.
    kind : {"loss", "advantage", "filter", "kl", "aggregate"}, optional
        What it is; told by its arguments when not given.
    laws : sequence of str
        Some laws; all when empty.
    said : dict
        What its arguments are, where their names do not say it: a source's name, or a value.
    settings : dict
        The recipe's parameters.
    examples : int
        Cases a law.
    derandomize : bool
        The same cases every time.
    minutes : float
        Goes on with new cases until the time is up.
    limit : float
        Seconds that one call may take.
    each : callable
        Called with the session when it is ready, and then with every verdict.

    Returns
    -------
    Report

    Raises
    ------
    InputError
        Those of `Session` and `unknown_law`.
    """
    with Session(implementation, recipe, kind, said=said, settings=settings, limit=limit) as session:
        for law in laws:
            check_law(law, session.description["kind"], session.laws)
        each(session)
        found = []
        for verdict in _verdicts(session, laws or session.laws, examples, derandomize=derandomize, minutes=minutes):
            found.append(verdict)
            each(verdict)
        return Report(implementation, session.description, tuple(found))


def _verdicts(
    session: Session, laws: Sequence[str], examples: int, *, derandomize: bool, minutes: float
) -> Iterator[Verdict]:
    """One a law; with `minutes`, laws that hold are tried again with other draws until the time is up."""
    until = time.monotonic() + 60 * minutes
    held: dict[str, Verdict] = {}
    for law in laws:
        verdict = session.run(law, examples=examples, derandomize=derandomize)
        if verdict.status == "pass" and minutes:
            held[law] = verdict
        else:
            yield verdict
    while held and time.monotonic() < until:
        for law in list(held):
            verdict = session.run(law, examples=examples)
            if verdict.status != "pass":
                del held[law]
                yield verdict
                continue
            total = held[law].examples + verdict.examples
            held[law] = Verdict(law, verdict.says, "pass", total, notes=verdict.notes)
            if time.monotonic() > until:
                break
    yield from held.values()
