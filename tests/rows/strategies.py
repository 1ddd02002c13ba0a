"""Tables of rollouts as they come: ragged, interleaved, constant, tied, null, far from zero."""

from dataclasses import dataclass

from hypothesis import strategies as st

AWKWARD = (0.1, 0.7, 1.1, -0.2, 0.3, 1e-9, 0.0, -0.0, 1.0, 5e-324)
REWARDS = st.one_of(
    st.sampled_from(AWKWARD),
    st.sampled_from((0.0, 1.0)),
    st.floats(-10, 10, allow_subnormal=False),
    st.floats(-10, 10).map(lambda x: 1e8 + x),
)
IDS = st.one_of(
    st.lists(st.integers(0, 5), max_size=40),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40).map(lambda ids: ids + ids[::2]),
    st.lists(st.text(max_size=20), max_size=40).map(lambda ids: ids + ids[::3]),
    st.lists(st.sampled_from(["a", "b", "", "ä", "日本", "a" * 300]), max_size=40),
)


@dataclass
class Rollouts:
    """A table, and its columns as lists."""

    group_id: list
    reward: list
    gate: list | None
    response_len: list
    finish: list
    text: list
    source: list
    version_min: list
    step: list | None

    @property
    def table(self):
        return {name: column for name, column in vars(self).items() if column is not None}

    @property
    def key(self):
        return self.group_id if self.step is None else list(zip(self.step, self.group_id, strict=True))

    def batch(self, key):
        """The batch of a group: its step, where there is one."""
        return 0 if self.step is None else key[0]

    def take(self, rows):
        return Rollouts(*(None if c is None else [c[i] for i in rows] for c in vars(self).values()))


@st.composite
def rollouts(draw, *, nulls=True, gate=True, steps=True):
    ids = draw(IDS)
    n = len(ids)
    column = lambda values: st.lists(values, min_size=n, max_size=n)
    constant = {key: draw(st.one_of(st.none(), st.none(), st.sampled_from(AWKWARD))) for key in set(ids)}
    reward = [x if constant[key] is None else constant[key] for key, x in zip(ids, draw(column(REWARDS)), strict=True)]
    if nulls and draw(st.booleans()):
        reward = [None if gone else x for x, gone in zip(reward, draw(column(st.booleans())), strict=True)]
    return Rollouts(
        ids,
        reward,
        draw(column(st.sampled_from((0.0, 1.0)))) if gate and draw(st.booleans()) else None,
        draw(column(st.integers(0, 40))),
        draw(column(st.sampled_from(("stop", "length", "abort")))),
        draw(column(st.sampled_from(("", "42", "ä", "4" * 40)))),
        draw(column(st.sampled_from(("math", "code", "")))),
        draw(column(st.integers(0, 10))),
        draw(column(st.integers(3, 4))) if steps and draw(st.booleans()) else None,
    )
