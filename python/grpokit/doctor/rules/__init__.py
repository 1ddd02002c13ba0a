"""All rules, by code, and what they find together. A code is never used for anything else again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import advantages, groups, held_out, lengths, optimizer, policy, prompts, sampler, scorer, stale, texts

if TYPE_CHECKING:
    from grpokit.doctor.finding import Finding
    from grpokit.doctor.rule import Rule
    from grpokit.record import Record

_ALL = (
    *(scorer.dead_scorer, scorer.failing_scorer),
    *(groups.singletons, groups.split_or_merged, groups.no_signal),
    *(policy.entropy_collapse, policy.held_at_the_clip, lengths.longer_and_cut, advantages.small_spread),
    *(sampler.mismatch_grows, sampler.small_sample, stale.starved_source, policy.kl_runaway, optimizer.gradient_spikes),
    *(texts.loops, texts.duplicates, held_out.held_out_falls, sampler.old_weights, optimizer.no_learning_rate),
    *(optimizer.changing_denominator, prompts.visits, advantages.one_sign),
)
RULES: dict[str, Rule] = {rule.code: rule for rule in sorted(_ALL, key=lambda rule: rule.code)}

_WORST_FIRST = ("error", "warning", "info")


def diagnose(record: Record) -> list[Finding]:
    """What is wrong with a run, the worst first.

    Parameters
    ----------
    record : Record
        What can be read of it.
    """
    found = [finding for rule in RULES.values() for finding in rule(record)]
    return sorted(found, key=lambda finding: _WORST_FIRST.index(finding.severity))
