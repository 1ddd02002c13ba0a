"""What VCPO's baseline of least variance costs in the bundled trainer: a backward pass an answer.

The same run with the group's mean and with exact score norms, in turns, on the trainer's tiny task. Writes
score_norms.{json,md}.
"""

import json

from timing import RESULTS, machine
from training import train, warm

STEPS, TURNS = 10, 3
PAGE = """# Exact score norms in the trainer

{about}; `python benches/python/score_norms.py`.

Seconds a step of 16 prompts × 8 answers with two updates, the best of {turns} runs of {steps} steps each, in turns:

| baseline | seconds a step | ratio |
|---|---:|---:|
| the group's mean | {mean:.3f} | 1 |
| of least variance, ‖∇ log π‖² of each answer | {exact:.3f} | {ratio:.2f} |

An answer's norm is one forward and one backward pass of a batch of one; the model has 0.1 M weights, so that the passes
are overhead more than arithmetic. On a large model a step costs at least as many backward passes again as it has
answers; that was not measured.
"""


def main():
    """Both, in turns."""
    weights, found = warm(0), {"mean": [], "minimum_variance": []}
    for _ in range(TURNS):
        for baseline, seconds in found.items():
            settings = [f"steps={STEPS}", "evaluation.prompts=2", "evaluation.every=0", "lr_control.base=1"]
            rows, problem = train("vcpo", {"baseline": baseline}, settings, weights)
            assert problem is None, problem
            seconds.append(sum(row["step_time"] for row in rows[1:]) / STEPS)
    mean, exact = min(found["mean"]), min(found["minimum_variance"])
    about = machine("python benches/python/score_norms.py", ["torch", "transformers"])
    (RESULTS / "score_norms.json").write_text(json.dumps(about | found, indent=1) + "\n")
    text = PAGE.format(
        about=f"{about['cpu']}, {about['cores']} cores, Python {about['python']}; commit {about['commit']}",
        turns=TURNS,
        steps=STEPS,
        mean=mean,
        exact=exact,
        ratio=exact / mean,
    )
    (RESULTS / "score_norms.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
