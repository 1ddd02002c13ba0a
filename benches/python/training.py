"""Runs of the trainer's tiny task for the benches: a seed's warm start once, and any recipe from it."""

import json
import tempfile
from pathlib import Path

import grpokit as gk


class Silent:
    def note(self, text):
        pass

    def progress(self, phase, done, total, text):
        pass

    def close(self):
        pass


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
    from grpokit.trainer.learn import Learner

    class FromWarm(Trainer):
        def _warm_start(self):
            self.policy.model.load_state_dict({k: torch.from_numpy(w) for k, w in weights.items()})
            self.learner = Learner(self.policy, self.recipe, self.config)

    config = TrainConfig(recipe=recipe, recipe_parameters=parameters).with_settings(settings)
    with tempfile.TemporaryDirectory() as place:
        path, problem = Path(place) / "run", None
        try:
            FromWarm(config, directory=path, console=Silent()).train()
        except gk.GrpokitError as caught:
            problem = str(caught)
        return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()], problem
