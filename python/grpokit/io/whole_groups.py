"""A guard for those who call a function batch by batch themselves: each group must lie in one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpokit._native import Groups, Seen
from grpokit.columns import as_column, keys, take
from grpokit.errors import error

from .decide import hashes, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class WholeGroups:
    """A function on batches, called as long as no group comes back in a later batch.

    ``Dataset.map(f, batched=True)`` of Hugging Face calls `f` with 1,000 rows at a time and cuts groups without a word.

    Parameters
    ----------
    function : callable
        Called with each batch, whose columns are ``batch[name]``.
    group_id : str or sequence of str
        The columns that make the key of a group.

    Raises
    ------
    InputError
        `group_returns`, when the second part of a group comes. What `map` has made so far is lost then, in a stream it
        was given out already.
    StateError
        `not_in_order`: the batches do not begin with the first row, as in the processes of ``num_proc=2``, which
        cannot know of each other's groups.

    Notes
    -----
    Batches are told apart by the numbers of their rows, so ``with_indices=True`` is needed; a batch that begins with
    row 0 begins a new pass, which may be over another dataset.

    Examples
    --------
    >>> import grpokit as gk
    >>> from grpokit.io import WholeGroups
    >>> def advantages(batch):
    ...     return {"advantage": gk.process(batch, "rloo").advantages}
    >>> guarded = WholeGroups(advantages)
    >>> guarded({"group_id": ["a", "a"], "reward": [1.0, 0.0]}, [0, 1])
    {'advantage': array([ 1., -1.])}
    >>> guarded({"group_id": ["a", "b"], "reward": [1.0, 0.0]}, [2, 3])
    Traceback (most recent call last):
    grpokit.errors.InputError: group 'a' comes back after other groups: its rows do not lie together, or a batch has cut
    it. Sort by the group's id and give batches of whole groups, or the whole table: batch_size=None.

    With `datasets`: ``dataset.map(guarded, batched=True, batch_size=None, with_indices=True)``.
    """

    def __init__(self, function: Callable[[Any], Any], group_id: str | Sequence[str] = "group_id") -> None:
        self.function, self.group_id = function, group_id
        self._seen, self._next = Seen(), 0

    def __reduce__(self) -> tuple[type[WholeGroups], tuple[Any, Any]]:
        # What was seen stays here, so that the fingerprint of a map does not depend on it.
        return WholeGroups, (self.function, self.group_id)

    def __call__(self, batch: Any, indices: Sequence[int] | None = None) -> Any:
        """What the function makes of the batch."""
        if indices is None:
            raise error("not_in_order", given="unknown", expected=self._next)
        if len(indices):
            if indices[0] == 0:
                self._seen, self._next = Seen(), 0
            if indices[0] != self._next:
                raise error("not_in_order", given=indices[0], expected=self._next)
            self._next += len(indices)
            self._check(batch)
        return self.function(batch)

    def _check(self, batch: Any) -> None:
        names = listed(self.group_id)
        columns = [keys(name, as_column(name, batch[name])) for name in names]
        groups = Groups(columns, names)
        taken = [take(column, groups.first) for column in columns]
        ids = [found if isinstance(found, list) else found.tolist() for found in taken]
        known = self._seen.add(hashes(ids))
        if known is not None:
            remedy = "Sort by the group's id and give batches of whole groups, or the whole table: batch_size=None."
            raise error("group_returns", group=ids[-1][known], remedy=remedy)
