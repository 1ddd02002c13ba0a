"""The report as Markdown, short enough for an issue."""

from __future__ import annotations

import re
from typing import Any

from .numbers import told
from .visible import line, visible

# An issue of GitHub takes 65,536 characters.
LARGEST = 60_000
GROUPS, SHOWN = 2, 300


def to_markdown(content: dict[str, Any]) -> str:
    """The findings, a line a curve, what differs from the default, a few completions, and the commands.

    Parameters
    ----------
    content : dict
        What `content` gave.
    """
    runs = content["runs"]
    parts = [
        f"# grpokit report: {_code(', '.join(run['path'] for run in runs))}",
        f"**{content['verdict'][:1].upper()}{content['verdict'][1:]}.**",
    ]
    parts += [f"- {_words(text)}" for text in content["problems"]]
    for run in runs:
        title = f"{run['letter']}: " if len(runs) > 1 else ""
        facts = [f"{fact['name']} {_words(fact['value'])}" for fact in run["facts"]]
        parts.append(f"{title}{_code(run['path'])}: {_words(run['status'])}; {', '.join(facts)}.")
        parts += [f"- {_words(text)}" for text in run["problems"]]
        parts += [_finding(finding) for finding in run["findings"]]
    if any(panel["kind"] != "bars" for panel in content["panels"]):
        parts += ["## Curves", _curves(content)]
    for run in runs:
        parts += _settings(run, several=len(runs) > 1)
    if content["differences"]:
        rows = [[row["name"], _value(row["first"]), _value(row["second"])] for row in content["differences"]]
        parts += ["## Where the configurations differ", _table(["setting", "A", "B"], rows)]
    for run in runs:
        parts += _groups(run, several=len(runs) > 1)
    parts.append("## How to reproduce")
    commands = [step["command"] for run in runs for step in run["reproduce"]] + [content["command"]]
    parts.append(_fenced("\n".join(line(command, 2000) for command in commands if command), "sh"))
    parts.append(f"Written by grpokit {content['grpokit']}.")
    text = "\n\n".join(parts) + "\n"
    if len(text) > LARGEST:
        text = text[: LARGEST - 100].rsplit("\n", 1)[0] + "\n\nCut here; the JSON twin has all of it.\n"
    return text


def _finding(finding: dict[str, Any]) -> str:
    steps = f", steps {finding['steps'][0]} to {finding['steps'][1]}" if finding["steps"] else ""
    evidence = ", ".join(
        f"{name} {value if isinstance(value, str) else told(value)}" for name, value in finding["evidence"].items()
    )
    return (
        f"### {finding['code']} {_words(finding['title'])}\n\n{finding['severity']}{steps}. "
        f"{_words(finding['message'])}\n\n- Why: {_words(finding['cause'])}\n- What to do: {_words(finding['fix'])}\n"
        f"- Evidence: {_words(evidence)}\n- Source: {_words(finding['source'])}"
    )


def _curves(content: dict[str, Any]) -> str:
    several = len(content["runs"]) > 1
    rows = []
    for panel in content["panels"]:
        if panel["kind"] == "bars":
            continue
        for one in panel["series"]:
            name = f"{panel['title']}, {one['label']}" if one["label"] else panel["title"]
            name += f" ({'AB'[one['run']]})" if several else ""
            rows.append(
                [name, told(one["first"]), told(one["last"])]
                + [f"{told(one[end])} at {one[f'{end}_step']:,}" for end in ("lowest", "highest")]
            )
    return _table(["", "first", "last", "lowest, at step", "highest, at step"], rows, numbers=True)


def _settings(run: dict[str, Any], *, several: bool) -> list[str]:
    found = []
    if run["settings"] is not None:
        found.append(f"## Configuration{' of ' + run['letter'] if several else ''}")
        changed = [
            [row["name"], _value(row["value"]), _value(row["default"])] for row in run["settings"] if row["changed"]
        ]
        found.append(
            _table(["setting", "value", "default"], changed) if changed else "Everything is as the defaults are."
        )
    versions = (run["environment"] or {}).get("versions")
    if isinstance(versions, dict):
        found.append("Versions: " + ", ".join(f"{_words(str(k))} {_words(str(v))}" for k, v in versions.items()) + ".")
    return found


def _groups(run: dict[str, Any], *, several: bool) -> list[str]:
    groups = run["groups"]
    if groups is None:
        return []
    found = [f"## Completions{' of ' + run['letter'] if several else ''}"]
    for kind in ("suspicious", "best", "worst"):
        if kind == "suspicious" and not groups[kind]:
            found.append(f"Nothing suspicious among {groups['looked_at']} groups that were looked at.")
        for one in groups[kind][:GROUPS]:
            step = "" if one["step"] is None else f", step {one['step']:,}"
            found.append(
                f"{kind.capitalize()}: mean reward {told(one['mean_reward'])}{step}. {' '.join(one['why'])}".strip()
            )
            texts = [] if one["prompt"] is None else [f"prompt: {_cut(one['prompt'])}"]
            for said in (one["completions"][0], one["completions"][-1])[: len(one["completions"])]:
                text = "no text" if said["text"] is None else _cut(said["text"])
                texts.append(f"reward {told(said['reward'])}: {text}")
            found.append(_fenced("\n".join(texts)))
    return found


def _cut(said: dict[str, Any]) -> str:
    text = said["text"][:SHOWN]
    return text if len(text) == said["characters"] else f"{text} … ({said['characters']:,} characters)"


def _table(head: list[str], rows: list[list[str]], *, numbers: bool = False) -> str:
    lines = [head, ["---", *(["---:" if numbers else "---"] * (len(head) - 1))]]
    lines += [[_words(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _value(value: Any) -> str:
    return "–" if value is None else line(f"{value:g}" if isinstance(value, float) else str(value))


def _words(text: str) -> str:
    """On one line, in which nothing is markup, a mention or a link."""
    return (
        re.sub(r"([\\`*_\[\]<>|#@&~])", r"\\\1", line(text, 2000)).replace("\\@", "@\u2060").replace("://", ":\u2060//")
    )


def _code(text: str) -> str:
    return f"`{line(text, 300).replace('`', 'ˋ')}`"


def _fenced(text: str, language: str = "") -> str:
    shown = visible(text)
    longest = max((len(found) for found in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"
