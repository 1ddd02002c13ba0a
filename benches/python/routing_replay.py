"""Routing replay on a tiny mixture of experts: how far sampler and trainer, and policies updates apart, differ.

Every seed has its own weights, a warm start on the trainer's sorting task, and its own prompts. The sampler is a bf16
copy that samples with its cache, the trainer is fp32. Then the trainer's weights move, without replay; the same
weights are measured with the routers' own choice, with R2 and with R3. Writes routing_replay.{json,md}.

    python benches/python/routing_replay.py      # between two and three minutes on two cores
"""

import copy
import random
import statistics

import numpy as np
import torch
import transformers
from timing import machine, save

import grpokit as gk
from grpokit.trainer.config import WarmStart
from grpokit.trainer.engine import InProcess
from grpokit.trainer.policy import Policy, character_tokenizer
from grpokit.trainer.sampling import Sampling
from grpokit.trainer.task_sorting import Sorting
from grpokit.trainer.tasks import draw
from grpokit.trainer.warmstart import warm_start

SEEDS, WARM, PROMPTS, SAMPLES = (0, 1, 2), 300, 32, 8
RATES, UPDATES = (1e-5, 1e-4, 1e-3), (1, 4)
LENGTH, MAX_TOKENS = 12, 1024
LAYERS, EXPERTS, K = 4, 32, 4


def mixture(seed):
    tokenizer = character_tokenizer()
    torch.manual_seed(seed)
    config = transformers.Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, moe_intermediate_size=32,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4, head_dim=16, num_experts=EXPERTS,
        num_experts_per_tok=K, norm_topk_prob=True, initializer_range=0.05, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    policy = Policy(transformers.Qwen3MoeForCausalLM(config), tokenizer)
    warm_start(policy, Sorting(), WarmStart(steps=WARM), random.Random(seed), lambda *_: None)
    return policy


def sample(policy, trainer, prompts, seed, *, weights=False):
    """The completions laid out for the trainer, and the experts that the sampler chose, in that layout."""
    with gk.record_routing(policy.model, weights=weights) as recorder:
        seeds = [seed << 32 | row for row in range(len(prompts))]
        completions = InProcess(policy).generate(policy.encode(prompts), seeds, Sampling(LENGTH))
    batch = trainer.pad(completions)
    mask, record = batch.inputs["attention_mask"].bool(), recorder.record
    seen = mask[:, : record.layout[1]]
    return completions, batch, gk.RoutingRecord.padded(record.split(seen), mask)


@torch.no_grad()
def measure(policy, batch, record=None, **options):
    """Log-probs of the live tokens, and the experts of the forward pass that gave them."""
    with gk.record_routing(policy.model) as recorder:
        if record is None:
            logps, _ = policy.logps(batch, 1.0, 10**6)
        else:
            with gk.replay_routing(policy.model, record, **options):
                logps, _ = policy.logps(batch, 1.0, 10**6)
    return logps[batch.mask], recorder.record


def compared(logps, base, record, other, mask):
    """What is in a row of the tables: agreement of the experts, and the log-ratio d = logps - base."""
    d, agreement = (logps - base).double(), record.agreement(other, mask)
    return {
        "sets": agreement.sets, "overlap": agreement.overlap, "variance": d.var().item(),
        "k3": (d.expm1() - d).mean().item(), "max_abs": d.abs().max().item(),
        "over_0.05": (d.abs() > 0.05).double().mean().item(), "over_0.2": (d.abs() > 0.2).double().mean().item(),
        "over_0.5": (d.abs() > 0.5).double().mean().item(),
    }  # fmt: skip


def update(policy, optimizer, batch, old_logps, advantages):
    whole = gk.TokenBatch(
        targets=batch.targets, mask=batch.mask, advantages=advantages, old_logps=old_logps, inputs=batch.inputs
    )
    recipe = gk.recipe("dapo", max_len=LENGTH)
    optimizer.zero_grad()
    for part in whole.split(max_tokens=MAX_TOKENS):
        logits = policy.logits(part.inputs, batch.targets.shape[1])
        gk.loss.from_logits(logits, part, recipe=recipe).loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
    optimizer.step()


def run(seed):
    """One seed: rows of what is compared, of which way, after how many updates."""
    policy = mixture(seed)
    items = draw(Sorting(), random.Random(1000 + seed), PROMPTS, held_out=False)
    items = [item for item in items for _ in range(SAMPLES)]
    prompts = [item["prompt"] for item in items]
    sampler = Policy(copy.deepcopy(policy.model).to(torch.bfloat16), policy.tokenizer)
    completions, batch, theirs = sample(sampler, policy, prompts, seed, weights=True)
    mask = batch.inputs["attention_mask"]
    mu = batch.rollout_logps[batch.mask]
    rows = []

    def note(what, way, moved, *parts):
        rows.append(
            {"seed": seed, "what": what, "way": way, "lr": moved[0], "updates": moved[1]} | compared(*parts, mask)
        )

    old, ours = measure(policy, batch)
    old_r3, followed = measure(policy, batch, theirs)
    note("rho", "own choice", (0, 0), old, mu, ours, theirs)
    note("rho", "R3", (0, 0), old_r3, mu, followed, theirs)
    weighed, same = measure(policy, batch, theirs, weights=True)
    note("rho", "R3 with weights", (0, 0), weighed, mu, same, theirs)
    # What is left where both have one precision: the difference between sampling with a cache and one full pass.
    _, again, exact = sample(policy, policy, prompts, seed)
    one, here = measure(policy, again)
    base = again.rollout_logps[again.mask]
    rows.append(
        {"seed": seed, "what": "rho", "way": "fp32 sampler", "lr": 0, "updates": 0}
        | compared(one, base, here, exact, again.inputs["attention_mask"])
    )
    scores = np.array([Sorting().score(c.text, item) for c, item in zip(completions, items, strict=True)])
    out = gk.process({"group_id": np.repeat(np.arange(PROMPTS), SAMPLES), "reward": scores}, "rloo")
    advantages = torch.from_numpy(out.advantages).float()
    full_old, _ = policy.logps(batch, 1.0, 10**6)
    begin = policy
    for rate in RATES:
        policy = Policy(copy.deepcopy(begin.model), begin.tokenizer)
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
        for step in range(1, max(UPDATES) + 1):
            update(policy, optimizer, batch, full_old, advantages)
            if step in UPDATES:
                for way, record, start in (("own choice", None, old), ("R2", ours, old), ("R3", theirs, old_r3)):
                    now, chosen = measure(policy, batch, record)
                    note("r", way, (rate, step), now, start, chosen, theirs if way == "R3" else ours)
                    note("u", way, (rate, step), now, mu, chosen, theirs)
    return rows, {"seed": seed, "reward": float(scores.mean()), "tokens": len(mu), "places": int(mask.sum())}


NAMES = {
    "sets": "equal sets", "overlap": "overlap", "variance": "variance", "k3": "k3", "max_abs": "max abs",
    "over_0.05": "> 0.05", "over_0.2": "> 0.2", "over_0.5": "> 0.5",
}  # fmt: skip


def table(rows, what):
    """A line a way: mean ± standard deviation over the seeds."""
    moved = what != "rho"
    lines = ["| lr | updates " * moved + "| experts | " + " | ".join(NAMES.values()) + " |"]
    lines.append("|---:|---:" * moved + "|---|" + "---:|" * len(NAMES))
    rows = [row for row in rows if row["what"] == what]
    for rate, updates, way in dict.fromkeys((row["lr"], row["updates"], row["way"]) for row in rows):
        found = [row for row in rows if (row["lr"], row["updates"], row["way"]) == (rate, updates, way)]
        cells = []
        for name in NAMES:
            values = [row[name] for row in found]
            cells.append(f"{statistics.fmean(values):.3g} ± {statistics.stdev(values):.1g}")
        lines.append(f"| {rate:g} | {updates} " * moved + f"| {way} | " + " | ".join(cells) + " |")
    return lines


def ratios(rows, what, way):
    """The variance without replay over that with it, one a seed; by learning rate and updates."""
    found = {}
    for row in rows:
        if row["what"] == what and row["way"] in ("own choice", way):
            found.setdefault((row["lr"], row["updates"], row["seed"]), {})[row["way"]] = row["variance"]
    by_updates = {}
    for (rate, updates, _), pair in found.items():
        if way in pair:
            by_updates.setdefault(f"lr {rate:g}, {updates}: " if updates else "", []).append(
                pair["own choice"] / pair[way]
            )
    return "; ".join(key + ", ".join(f"{x:.2f}" for x in values) for key, values in by_updates.items())


def main():
    about = machine("python benches/python/routing_replay.py", ["torch", "transformers"])
    rows, seeds = [], []
    for seed in SEEDS:
        found, facts = run(seed)
        rows += found
        seeds.append(facts)
        print(facts, flush=True)
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items())
    tokens = ", ".join(str(each["tokens"]) for each in seeds)
    rewards = ", ".join(format(each["reward"], ".2f") for each in seeds)
    lines = [
        "# Routing replay on a tiny mixture of experts",
        "",
        f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, {versions}; commit {about['commit']};",
        f"`{about['command']}`. Mean ± standard deviation over {len(SEEDS)} seeds.",
        "",
        f"The model: a Qwen3-MoE of {LAYERS} layers with {K} of {EXPERTS} experts, 0.9M random weights after {WARM}",
        f"supervised steps on the sorting of letters; {PROMPTS} prompts × {SAMPLES} completions a seed",
        f"({tokens} tokens), mean reward {rewards}.",
        "It is no trained model: how close its routers' choices are, and so how often they flip, is its own.",
        "",
        "Equal sets: the share of (token, layer), prompts included, whose experts are those of the record; overlap:",
        "the mean of |A ∩ B| / k. The other columns are of the log-ratio d of the completions' tokens,",
        "k3 = e^d − 1 − d; the last three are shares of |d| beyond the bound.",
        "",
        "## Sampler against trainer: d = log ρ = log π_old − log μ",
        "",
        "The sampler is a bf16 copy with a cache; the trainer is fp32 and reads whole sequences. The last row has the",
        "fp32 model on both sides.",
        "",
        *table(rows, "rho"),
        "",
        f"Variance with the router's own choice over that with R3, a seed each: {ratios(rows, 'rho', 'R3')};",
        f"over that with R3 and its weights: {ratios(rows, 'rho', 'R3 with weights')}.",
        "",
        "## Updates apart: d = log r = log π_θ − log π_old",
        "",
        "After updates of all rows at once (DAPO's loss, AdamW), made without replay: the same weights are measured",
        "three ways. With R2 both sides have the trainer's experts under π_old, with R3 the sampler's. A part",
        "of d is what the update is for, and no replay should take it away.",
        "",
        *table(rows, "r"),
        "",
        f"Variance with the router's own choice over that with R2: {ratios(rows, 'r', 'R2')};",
        f"with R3: {ratios(rows, 'r', 'R3')}.",
        "",
        "## Both: d = log u = log π_θ − log μ",
        "",
        *table(rows, "u"),
        "",
        f"Variance with the router's own choice over that with R2: {ratios(rows, 'u', 'R2')};",
        f"with R3: {ratios(rows, 'u', 'R3')}.",
    ]
    save("routing_replay", about | {"seeds": seeds, "rows": rows}, lines)


if __name__ == "__main__":
    main()
