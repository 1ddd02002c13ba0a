"""Runs of the trainer's tiny task for the benches: a seed's warm start once, and any recipe from it."""

import json
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import grpokit as gk
from grpokit.trainer.console import Silent


def warm(seed):
    """The weights after a seed's warm start."""
    from grpokit.trainer import TrainConfig, Trainer

    with tempfile.TemporaryDirectory() as place:
        trainer = Trainer(TrainConfig(seed=seed, steps=0), directory=f"{place}/run", console=Silent())
        trainer.train()
        return {name: w.numpy() for name, w in trainer.policy.model.state_dict().items()}


def train(recipe, parameters, settings, weights):
    """The lines of metrics.jsonl of a run from these weights, and what ended it before its time, if anything."""
    import torch

    from grpokit.trainer import TrainConfig, Trainer

    class FromWarm(Trainer):
        def _warm_start(self):
            self.policy.model.load_state_dict({k: torch.from_numpy(w) for k, w in weights.items()})
            self.make_learner()

    config = TrainConfig(recipe=recipe, recipe_parameters=parameters).with_settings(settings)
    with tempfile.TemporaryDirectory() as place:
        path, problem = Path(place) / "run", None
        try:
            FromWarm(config, directory=path, console=Silent()).train()
        except gk.GrpokitError as caught:
            problem = str(caught)
        return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()], problem


def all_runs(path, about, keys, wanted, *, run, order):
    """Runs what is wanted, two at a time, and keeps the file up to date; what it has from this commit is not repeated.

    What is wanted are the values of `keys` in a run, the seed last; `run` takes them and the seed's weights.
    """
    old = json.loads(path.read_text()) if path.is_file() else {}
    runs = old.get("runs", []) if old.get("commit") == about["commit"] else []
    there = {tuple(one[key] for key in keys) for one in runs}
    wanted = [one for one in wanted if one not in there]
    seeds = sorted({one[-1] for one in wanted})
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        weights = dict(zip(seeds, pool.map(warm, seeds), strict=True))
        waiting = [pool.submit(run, *one, weights[one[-1]]) for one in wanted]
        for done, future in enumerate(as_completed(waiting), 1):
            runs.append(future.result())
            print(f"{done}/{len(wanted)} {runs[-1]}", flush=True)
            runs.sort(key=order)
            path.write_text(json.dumps(about | {"runs": runs}, indent=1) + "\n")
    return runs


def described(about):
    """The machine and the versions, in a line."""
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items())
    return f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, {versions}; commit {about['commit']}"
