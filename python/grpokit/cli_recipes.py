"""The command line's `grpokit recipes`: the list, one explained, and advice on which to take."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from .errors import error
from .output import print_json, standard_output

if TYPE_CHECKING:
    import argparse

    from .advice import Advice, Situation

_WIDTH = 100


def add_recipes(verbs: Any) -> None:
    """Adds `recipes` to the command line."""
    parser = verbs.add_parser(
        "recipes",
        help="list the recipes, explain one, or say which to take",
        description="""Without a name: the recipes and their papers. With --advise: which recipe and settings a
        situation asks for, each with its reason, its source and how sure that is.
        Example: grpokit recipes --advise --task maths --length long --moe --stale 8""",
    )
    parser.add_argument(
        "name", nargs="?", help="the recipe to explain: its stages, equation, numbers and their sources"
    )
    add = parser.add_argument
    add("--set", metavar="KEY=VALUE", dest="settings", action="append", default=[], help="a parameter: max_len=20480")
    add("--json", action="store_true", help="print one JSON object")
    situation = parser.add_argument_group("advice", "what is not said is as in the default; on a terminal it is asked")
    add = situation.add_argument
    add("--advise", action="store_true", help="say which recipe and settings to take")
    add("--task", choices=("maths", "code", "agents", "preferences"), help="who judges (default: maths)")
    add("--length", choices=("short", "long"), help="long: answers of thousands of tokens (default: short)")
    add("--moe", action="store_true", default=None, help="the model is a mixture of experts")
    add("--stale", type=int, metavar="N", help="updates between sampling and learning (default: 0)")
    add("--group", type=int, metavar="G", help="completions a prompt (default: 8)")
    add("--pass-rate", type=float, metavar="P", help="share of right answers at the beginning")
    add("--sampler", choices=("same", "other"), help="other: another program samples (default: same)")
    add("--aim", choices=("pass@1", "pass@k"), help="one answer right, or one of k (default: pass@1)")
    add("--rewards", type=int, metavar="N", help="reward functions (default: 1)")
    add("--demonstrations", action="store_true", default=None, help="there are right answers of somebody else")
    add("--scarce", action="store_true", default=None, help="completions cost more than updates")
    add("--rare", action="store_true", default=None, help="unlikely right tokens stay unlikely")
    add("--collapse", action="store_true", default=None, help="the entropy falls to nearly nothing")
    parser.set_defaults(run=recipes)


def recipes(typed: argparse.Namespace) -> None:
    """Runs `grpokit recipes`."""
    from grpokit import recipe, recipe_names

    from .settings import read_setting

    given = {name: getattr(typed, name) for name in _situation() if getattr(typed, name) is not None}
    if typed.advise or given:
        _advise(typed, given)
        return
    with standard_output():
        if typed.name is not None:
            chosen = recipe(typed.name, **dict(map(read_setting, typed.settings)))
            if typed.json:
                print_json(recipe=chosen.to_dict())
            else:
                print(chosen.explain())
            return
        if typed.settings:
            expected = "a recipe's name first"
            raise error("bad_parameter", owner="recipes", name="--set", given=typed.settings[0], expected=expected)
        names = recipe_names()
        if typed.json:
            print_json(recipes=names)
        else:
            width = max(map(len, names))
            for name, paper in names.items():
                print(f"{name:<{width}}  {paper}")


def _situation() -> dict[str, Any]:
    from .advice import Situation

    return get_type_hints(Situation)


def _advise(typed: argparse.Namespace, given: dict[str, Any]) -> None:
    from .advice import Situation, advise, told

    if typed.name is not None or typed.settings:
        what = typed.name if typed.name is not None else typed.settings[0]
        expected = "no recipe and no --set with it: it says which to take"
        raise error("bad_parameter", owner="recipes", name="--advise", given=what, expected=expected)
    if not given and not typed.json and sys.stdin.isatty():
        given = _ask()
    situation = Situation(**given)
    found = advise(situation)
    with standard_output():
        if typed.json:
            print_json(situation=vars(situation), advice=[told(one) for one in found])
        else:
            print(_page(situation, found))


def _ask() -> dict[str, Any]:
    """Asks for each part of the situation on a terminal; an empty answer is the default."""
    from .advice import Situation

    given: dict[str, Any] = {}
    for name, kind in _situation().items():
        default = getattr(Situation, name)
        words = [word for word in get_args(kind) if isinstance(word, str)] or (["yes", "no"] if kind is bool else [])
        shown = "no" if default is False else "not known" if default is None else default
        while True:
            print(f"{name.replace('_', ' ')} ({', '.join(words) or 'a number'}) [{shown}]: ", end="", file=sys.stderr)
            sys.stderr.flush()
            answer = sys.stdin.readline().strip()
            if not answer:
                break
            try:
                value: Any = answer
                if kind is bool:
                    value = {"yes": True, "y": True, "no": False, "n": False}[answer.lower()]
                elif not words:
                    value = int(answer) if kind is int else float(answer)
                Situation(**{name: value})
                given[name] = value
                break
            except (KeyError, ValueError) as problem:
                told = f"one of {', '.join(words)}" if isinstance(problem, KeyError) else problem
                print(f"  {told}", file=sys.stderr)
    return given


def _page(situation: Situation, found: list[Advice]) -> str:
    said = {name.replace("_", " "): value for name, value in vars(situation).items() if value not in (None, False)}
    lines = [", ".join(name if value is True else f"{name} {value}" for name, value in said.items()), ""]
    for one in found:
        lines.append(f"{one.advice}  ({one.where})")
        if one.settings:
            lines.append(f"  grpokit train {' '.join(f'--set {setting}' for setting in one.settings)}")
        if one.code:
            lines.append(f"  {one.code}")
        parts = {"why": one.reason, "source": f"{one.source} ({one.sure})", "but": one.caveat}
        for name, text in parts.items():
            if text:
                lines += textwrap.wrap(f"{name}: {text}", _WIDTH, initial_indent="  ", subsequent_indent="    ")
        lines.append("")
    return "\n".join(lines).rstrip()
