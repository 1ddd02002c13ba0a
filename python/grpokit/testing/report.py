"""What came of an implementation's laws, for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trial import Verdict


@dataclass(frozen=True)
class Report:
    """What came of all laws.

    Attributes
    ----------
    implementation : str
    description : dict
        Kind, recipe, paper, equation, how the arguments were mapped, what was left out.
    verdicts : tuple of Verdict
    """

    implementation: str
    description: dict[str, Any]
    verdicts: tuple[Verdict, ...]

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The laws that do not hold."""
        return tuple(v for v in self.verdicts if v.status in ("fail", "error"))

    @property
    def badge(self) -> str:
        """For a badge: which recipe, and how many laws hold."""
        looked = [v for v in self.verdicts if v.status != "skip"]
        return f"{self.description['recipe']}: {len(looked) - len(self.failed)} of {len(looked)} laws"

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and strings."""
        verdicts = [asdict(v) for v in self.verdicts]
        told = {"implementation": self.implementation, **self.description, "versions": versions()}
        return told | {"badge": self.badge, "conforms": not self.failed, "verdicts": verdicts}

    def __str__(self) -> str:
        return "\n".join([heading(self.implementation, self.description), *map(told, self.verdicts), self.summary])

    @property
    def summary(self) -> str:
        """One line."""
        counts = [(sum(v.status == s for v in self.verdicts), word) for s, word in _WORDS.items()]
        return ", ".join(f"{n} {word}" for n, word in counts if n)


_WORDS = {"pass": "hold", "fail": "do not hold", "error": "ended or hung", "skip": "not looked at"}


def versions() -> dict[str, str]:
    """Of what takes part."""
    import importlib.metadata
    import platform

    found = {"python": platform.python_version()}
    for name in ("grpokit", "hypothesis", "numpy", "torch", "jax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def heading(implementation: str, description: dict[str, Any]) -> str:
    """What is held against what, and how it is called."""
    paper = f" ({description['paper']})" if description["paper"] else ""
    lines = [f"{implementation} against {description['recipe']}{paper}, as {description['kind']}"]
    lines += [f"  {description['equation']}", "  " + ", ".join(description["arguments"])]
    lines += ["  " + ", ".join(f"{name}: {how}" for name, how in description["form"].items())]
    lines += [f"  left out: {what}: {why}" for what, why in description["left_out"]]
    return "\n".join(lines)


def told(verdict: Verdict, equation: str = "") -> str:
    """A verdict for people; with the equation, where the heading does not stand above it."""
    marks = {"pass": "holds", "fail": "FAILS", "error": "FAILS", "skip": "skip "}
    line = f"{marks[verdict.status]}  {verdict.law:<16}  {verdict.says}"
    if verdict.status == "pass":
        line += f" ({verdict.examples} cases)"
    lines = [line]
    if verdict.status == "skip":
        lines.append(f"         not looked at: {verdict.reason}")
    if verdict.status in ("fail", "error"):
        lines += [f"         {equation}"] if equation else []
        lines.append(f"         {verdict.part}: {verdict.problem}")
        if verdict.expected or verdict.got:
            lines += [f"         expected  {verdict.expected}", f"         got       {verdict.got}"]
        if verdict.guess:
            lines.append(f"         looks like {verdict.guess}: {verdict.guess_says}")
        if verdict.snippet:
            which = "the smallest call that shows it" if verdict.status == "fail" else "the call that did it"
            lines += [f"         {which}:", *(f"           {x}" for x in verdict.snippet.splitlines())]
    return "\n".join([*lines, *(f"         {note}" for note in verdict.notes)])
