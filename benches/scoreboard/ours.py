"""grpokit's losses by the name of their recipe (`losses.gspo`), its estimators, filters, KL estimators, aggregations."""

from types import SimpleNamespace

import grpokit as gk
from grpokit.settings import read_stage
from grpokit.stages import EXAMPLES
from grpokit.testing import ours

from .ours_names import ADVANTAGES, AGGREGATES, FILTERS, KLS, RECIPES

losses = SimpleNamespace(**{name: ours.loss_of(gk.recipe(name, **EXAMPLES.get(name, {}))) for name in RECIPES})
advantages = SimpleNamespace(**{k: ours.advantage_of(read_stage("advantage", text)) for k, text in ADVANTAGES.items()})
filters = SimpleNamespace(**{k: ours.filter_of(read_stage("select", text)) for k, text in FILTERS.items()})
kls = SimpleNamespace(**{kind: ours.kl_of(gk.KL(kind)) for kind in KLS})
aggregates = SimpleNamespace(**{k: ours.aggregate_of(read_stage("aggregate", text)) for k, text in AGGREGATES.items()})
