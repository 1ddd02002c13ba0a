"""The command line's `grpokit doctor`: what is wrong with a run or with rollout files, and what to do.

Nothing here imports NumPy or pyarrow before the verb runs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .cli_files import add_reading, read_as
from .errors import error, nearest
from .output import print_json, standard_output

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from .doctor import Finding
    from .record import Record


def add_doctor(verbs: Any) -> None:
    """Adds `doctor` to the command line."""
    parser = verbs.add_parser(
        "doctor",
        help="say what is wrong with a run, and why",
        description="""Looks at a run's directory (grpokit's or TRL's), or at rollout files, by rules that are known by
        code; docs/doctor.md lists them. Exits with 1 where something is wrong, with 0 where nothing is, or nothing but
        what is worth knowing (info), with 2 where nothing can be read.
        Examples: grpokit doctor runs/NAME; grpokit doctor 'dumps/*.jsonl' --json; grpokit doctor --explain D006""",
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="RUN|FILE", help="a run's directory, or rollout files, patterns, directories")
    add("--explain", metavar="CODE", help="print what a rule looks for, its bounds and their reasons")
    add("--list", action="store_true", help="print all rules")
    add("--select", metavar="CODE,...", help="only these rules")
    add("--ignore", metavar="CODE,...", help="not these rules")
    add("--exit-zero", action="store_true", help="exit with 0 whatever is found")
    add_reading(parser)
    add("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=doctor, verb="doctor")


def doctor(typed: argparse.Namespace) -> int:
    """Runs `grpokit doctor`."""
    asked = [bool(typed.inputs), typed.explain is not None, typed.list]
    if sum(asked) != 1:
        expected = "a run or files, or --explain CODE, or --list: one of them"
        raise error("bad_parameter", owner="doctor", name="RUN", given=typed.inputs, expected=expected)
    codes = _codes(typed)
    if typed.explain is not None or typed.list:
        _print_rules(typed)
        return 0
    from .doctor import diagnose
    from .record import read_record

    record = read_record(typed.inputs if len(typed.inputs) > 1 else typed.inputs[0], **read_as(typed))
    found = [finding for finding in diagnose(record) if finding.code in codes]
    for problem in record.problems:
        print(f"not read: {problem}", file=sys.stderr)
    with standard_output():
        if typed.json:
            print_json(
                path=str(record.path),
                looked_at=looked_at(record),
                findings=[finding.to_dict() for finding in found],
                problems=record.problems,
            )
        else:
            print("\n\n".join([*map(_block, found), _last_line(record, found, len(codes))]))
    return 0 if typed.exit_zero or all(finding.severity == "info" for finding in found) else 1


def _codes(typed: argparse.Namespace) -> set[str]:
    from .doctor import RULES

    chosen = set(RULES)
    if typed.select is not None:
        chosen = {_known(code, "--select") for code in typed.select.split(",")}
    if typed.ignore is not None:
        chosen -= {_known(code, "--ignore") for code in typed.ignore.split(",")}
    if typed.explain is not None:
        typed.explain = _known(typed.explain, "--explain")
    return chosen


def _known(text: str, option: str) -> str:
    """The code of a rule, which may be given by its name."""
    from .doctor import RULES

    names = {rule.name: code for code, rule in RULES.items()}
    code = names.get(text.strip().lower(), text.strip().upper())
    if code not in RULES:
        raise error("unknown_rule", option=option, given=text, nearest=nearest(text, (*RULES, *names)))
    return code


def _print_rules(typed: argparse.Namespace) -> None:
    from .doctor import RULES

    rules = [RULES[typed.explain]] if typed.explain is not None else list(RULES.values())
    with standard_output():
        if typed.json:
            print_json(rules=[rule.to_dict() for rule in rules])
        elif typed.explain is not None:
            print(rules[0].explain())
        else:
            for rule in rules:
                print(f"{rule.code}  {rule.severity:<7}  {rule.name:<23}  {rule.title}")


def looked_at(record: Record) -> dict[str, int]:
    """How many steps of metrics, rows and groups there were."""
    found = {}
    if record.metrics is not None:
        found["steps"] = len(record.metrics.trained())
    if record.rows is not None:
        found |= {"rows": len(record.rows), "groups": record.rows.groups}
    return found


def _block(finding: Finding) -> str:
    span = "" if finding.steps is None else f" (steps {finding.steps[0]} to {finding.steps[1]})"
    return "\n".join(
        [
            f"{finding.code} {finding.severity}: {finding.title}{span}",
            f"  seen:  {finding.message}",
            f"  cause: {finding.cause}",
            f"  fix:   {finding.fix}",
        ]
    )


def _last_line(record: Record, found: Iterable[Finding], rules: int) -> str:
    seen = ", ".join(f"{count:,} {what}" for what, count in looked_at(record).items())
    counts = [finding.severity for finding in found]
    told = ", ".join(f"{counts.count(s)} {s}" for s in ("error", "warning", "info") if s in counts)
    what = f"{told}: grpokit doctor --explain CODE says more" if told else "nothing found"
    return f"{record.path}: {rules} rules looked at {seen}; {what}"
