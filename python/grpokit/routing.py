"""What a mixture of experts' routers chose: a record by position, for its replay (R2, R3).

In: the experts of every token and layer, from `record_routing` or as NumPy arrays of an inference engine. Out: one
array in the layout of the model's input, cut, joined and laid out anew like the rest of a batch; and how far two
records agree. `replay_routing` makes a model choose what a record has.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import error
from .parameters import whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NOT_RECORDED = -1


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far two records agree, over the tokens that both have.

    Attributes
    ----------
    tokens : (L,) int64
        How many tokens are compared in each layer.
    sets_by_layer : (L,) float64
        The share of them whose sets of experts are equal; NaN where none is compared.
    overlap_by_layer : (L,) float64
        The mean of |A ∩ B| / k over them.
    """

    tokens: NDArray[np.int64]
    sets_by_layer: NDArray[np.float64]
    overlap_by_layer: NDArray[np.float64]

    @property
    def sets(self) -> float:
        """The share of (token, layer) whose sets are equal; NaN if nothing is compared."""
        return self._over_layers(self.sets_by_layer)

    @property
    def overlap(self) -> float:
        """The mean of |A ∩ B| / k over (token, layer); NaN if nothing is compared."""
        return self._over_layers(self.overlap_by_layer)

    def _over_layers(self, shares_L: NDArray[np.float64]) -> float:
        counted = self.tokens > 0
        total = int(self.tokens.sum())
        return float((shares_L * self.tokens)[counted].sum()) / total if total else float("nan")


@dataclass(frozen=True, eq=False)
class RoutingRecord:
    """The experts of every token in every layer, in the layout of the model's input; L layers, k experts each.

    Parameters
    ----------
    experts : (B, P, L, k) or packed (T, L, k) int
        The chosen experts, 0 to `num_experts` - 1, in the order in which the router named them. All k of a token and
        layer are -1 where they are not recorded. Kept as int8 up to 128 experts, else as int16.
    num_experts : int
        How many experts a layer has.
    weights : same shape, float, optional
        What the experts' outputs were multiplied by. Kept as float32.
    layers : tuple of str
        The names of the routers' modules, as `record_routing` gives them; empty: not known, and not compared.

    Raises
    ------
    InputError
        `token_shape`, `bad_parameter`; `bad_experts`: an expert that does not exist, one twice for a token, or a
        token of which only some are recorded.
    InputTypeError
        `token_type`.

    Notes
    -----
    An engine's array of a request is a packed record: vLLM and SGLang return (tokens, layers, k), one token short, as
    the last one sampled is never an input. Layers without experts may be in it as zeros: leave them out first
    (`array[:, first:]`). `padded` puts such records where a batch has its tokens.

    Examples
    --------
    >>> import numpy as np
    >>> from grpokit import RoutingRecord
    >>> record = RoutingRecord(np.array([[[0, 3]], [[2, 1]], [[-1, -1]]]), num_experts=4)
    >>> record.experts.dtype, record.layout, record.recorded[:, 0].tolist()
    (dtype('int8'), (3,), [True, True, False])
    >>> batch = RoutingRecord.padded([record[:2], record[:1]], mask=np.array([[1, 1, 1], [0, 1, 1]]))
    >>> batch.experts[:, :, 0].tolist()
    [[[0, 3], [2, 1], [-1, -1]], [[-1, -1], [0, 3], [-1, -1]]]
    """

    experts: NDArray[np.integer[Any]]
    num_experts: int
    weights: NDArray[np.float32] | None = None
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = whole("RoutingRecord", "num_experts", self.num_experts, at_least=1, at_most=2**15)
        experts = _checked(self.experts, count)
        object.__setattr__(self, "num_experts", count)
        names: Any = self.layers
        object.__setattr__(self, "layers", (names,) if isinstance(names, str) else tuple(names))
        if self.layers and len(self.layers) != experts.shape[-2]:
            expected = f"{experts.shape[-2]} names, one a layer, or none"
            raise error("bad_parameter", owner="RoutingRecord", name="layers", given=self.layers, expected=expected)
        self._set(experts, None if self.weights is None else _weights(self.weights, experts))

    def __repr__(self) -> str:
        layout, (layers, k) = "x".join(map(str, self.layout)), self.experts.shape[-2:]
        weights = ", with weights" if self.weights is not None else ""
        return f"RoutingRecord({layout}, {layers} layers, {k} of {self.num_experts} experts{weights})"

    def __getitem__(self, rows: Any) -> RoutingRecord:
        """These rows of the first dimension: `record[part.span]` belongs to a `TokenBatch`'s part."""
        return self._with(self.experts[rows], None if self.weights is None else self.weights[rows])

    @property
    def layout(self) -> tuple[int, ...]:
        """(B, P), or (T,) of a packed record."""
        return self.experts.shape[:-2]

    @property
    def recorded(self) -> NDArray[np.bool_]:
        """(B, P, L) or (T, L) bool: where it has experts."""
        there: NDArray[np.bool_] = self.experts[..., 0] != NOT_RECORDED
        return there

    @staticmethod
    def concatenate(records: Sequence[RoutingRecord]) -> RoutingRecord:
        """The records' rows one after the other; weights stay where all have them.

        Raises
        ------
        InputError
            `bad_parameter` for none; `token_shape` where widths, layers, k or the number of experts differ.
        """
        first = _first(records)
        for other in records:
            first._check_kind(other)
            if other.layout[1:] != first.layout[1:]:
                raise error("token_shape", name="a record", given=other.layout, expected=f"(any, {first.layout[1:]})")
        weights = [r.weights for r in records if r.weights is not None]
        joined = np.concatenate(weights) if len(weights) == len(records) else None
        return first._with(np.concatenate([r.experts for r in records]), joined)

    def split(self, mask: Any) -> list[RoutingRecord]:
        """The live tokens of each row, as packed records.

        Parameters
        ----------
        mask : (B, P) bool or 0/1
            The live tokens. Joined again, `RoutingRecord.concatenate(record.split(mask))` is the packed batch.

        Raises
        ------
        InputError
            `token_shape`.
        """
        live = _live(mask, self.layout)
        if live.ndim != 2:
            raise error("token_shape", name="a packed record", given=self.layout, expected="(B, P)")
        rows = zip(range(len(live)), live, strict=True)
        return [self._with(self.experts[i][m], None if self.weights is None else self.weights[i][m]) for i, m in rows]

    @staticmethod
    def padded(records: Sequence[RoutingRecord], mask: Any) -> RoutingRecord:
        """Packed records, one a row, at the live places of a padded batch; what is missing at a row's end is unknown.

        Parameters
        ----------
        records : sequence of RoutingRecord, (B,)
            Packed, (n_b, L, k), of the row's live tokens from the first.
        mask : (B, P) bool or 0/1
            The live tokens: the model's ``attention_mask``.

        Raises
        ------
        InputError
            `token_shape`: more tokens than the row has live places, another number of rows; as `concatenate`.
        """
        first, live = _first(records), _live(mask, None)
        if live.ndim != 2 or len(live) != len(records):
            raise error("token_shape", name="mask", given=live.shape, expected=f"({len(records)}, P), a row a record")
        shape = (*live.shape, *first.experts.shape[-2:])
        experts = np.full(shape, NOT_RECORDED, first.experts.dtype)
        weights = None if any(r.weights is None for r in records) else np.zeros(shape, np.float32)
        for row, record in enumerate(records):
            first._check_kind(record)
            places = np.flatnonzero(live[row])
            if len(record.layout) != 1 or record.layout[0] > len(places):
                expected = f"(n,), packed, with n at most the row's {len(places)} live places"
                raise error("token_shape", name=f"the record of row {row}", given=record.layout, expected=expected)
            places = places[: record.layout[0]]
            experts[row, places] = record.experts
            if weights is not None:
                weights[row, places] = record.weights
        return first._with(experts, weights)

    def agreement(self, other: RoutingRecord, mask: Any = None) -> Agreement:
        """How often the two chose the same experts.

        Parameters
        ----------
        other : RoutingRecord
            Of the same tokens.
        mask : (B, P) or (T,) bool or 0/1, optional
            The tokens that count. None: all that both have.

        Raises
        ------
        InputError
            `token_shape`.

        Examples
        --------
        >>> import numpy as np
        >>> from grpokit import RoutingRecord
        >>> a = RoutingRecord(np.array([[[0, 1]], [[2, 3]]]), num_experts=4)
        >>> b = RoutingRecord(np.array([[[1, 0]], [[2, 0]]]), num_experts=4)
        >>> a.agreement(b).sets, a.agreement(b).overlap
        (0.5, 0.75)
        """
        self._check_kind(other)
        if other.layout != self.layout:
            raise error("token_shape", name="the other record", given=other.layout, expected=str(self.layout))
        both = self.recorded & other.recorded
        if mask is not None:
            both = both & _live(mask, self.layout)[..., None]
        k = self.experts.shape[-1]
        shared = np.zeros(both.shape, np.int64)
        for column in range(k):
            shared += (other.experts == self.experts[..., column, None]).any(-1)
        axes = tuple(range(both.ndim - 1))
        counts = both.sum(axes)
        with np.errstate(invalid="ignore"):
            sets = ((shared == k) & both).sum(axes) / counts
            overlap = np.where(both, shared / k, 0.0).sum(axes) / counts
        return Agreement(counts, sets, overlap)

    def _check_kind(self, other: Any) -> None:
        """Refuses a record of another model."""
        expected = f"{self.experts.shape[-2:]} (layers, k) of {self.num_experts} experts"
        if not isinstance(other, RoutingRecord):
            raise error("token_type", name="a record", given=type(other), expected="a RoutingRecord")
        if self.layers and other.layers and self.layers != other.layers:
            raise error("token_shape", name="a record", given=other.layers, expected=f"the layers {self.layers}")
        if (other.experts.shape[-2:], other.num_experts) != (self.experts.shape[-2:], self.num_experts):
            given = f"{other.experts.shape[-2:]} of {other.num_experts}"
            raise error("token_shape", name="a record", given=given, expected=expected)

    def _with(self, experts: NDArray[Any], weights: NDArray[np.float32] | None) -> RoutingRecord:
        """The same with other rows, which are not checked again."""
        if experts.ndim not in (3, 4):
            raise error("token_shape", name="rows", given="one row", expected="several: a slice, a list or a mask")
        new = copy.copy(self)
        new._set(experts, weights)
        return new

    def _set(self, experts: NDArray[Any], weights: NDArray[np.float32] | None) -> None:
        for name, array in (("experts", experts), ("weights", weights)):
            if array is not None:
                array = array.view()  # noqa: PLW2901
                array.flags.writeable = False
            object.__setattr__(self, name, array)


def _first(records: Sequence[RoutingRecord]) -> RoutingRecord:
    if not len(records):
        raise error("bad_parameter", owner="RoutingRecord", name="records", given=[], expected="one record or more")
    first = records[0]
    if not isinstance(first, RoutingRecord):
        raise error("token_type", name="a record", given=type(first), expected="a RoutingRecord")
    return first


def _checked(given: Any, count: int) -> NDArray[Any]:
    """A copy in the smallest dtype, of real experts."""
    experts = np.asarray(given)
    if experts.dtype.kind not in "iu":
        raise error("token_type", name="experts", given=f"an array of {experts.dtype}", expected="whole numbers")
    if experts.ndim not in (3, 4) or not all(experts.shape[-2:]):
        expected = "(B, P, layers, k) or packed (T, layers, k)"
        raise error("token_shape", name="experts", given=experts.shape, expected=expected)
    missing = experts == NOT_RECORDED
    outside = ~missing & ((experts < 0) | (experts >= count))
    ordered = np.sort(experts, -1)
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != NOT_RECORDED)
    for wrong in (outside.any(-1), missing.any(-1) & ~missing.all(-1), twice.any(-1)):
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0].tolist())
            raise error("bad_experts", place=place, given=experts[place].tolist(), last=count - 1)
    return experts.astype(np.int8 if count <= 2**7 else np.int16)


def _weights(given: Any, experts: NDArray[Any]) -> NDArray[np.float32]:
    weights = np.asarray(given)
    if weights.dtype.kind != "f":
        raise error("token_type", name="weights", given=f"an array of {weights.dtype}", expected="floats")
    if weights.shape != experts.shape:
        raise error("token_shape", name="weights", given=weights.shape, expected=f"{experts.shape}, that of experts")
    if not np.isfinite(weights[experts != NOT_RECORDED]).all():
        expected = "finite numbers wherever experts are recorded"
        raise error("bad_parameter", owner="RoutingRecord", name="weights", given="NaN or infinite", expected=expected)
    return weights.astype(np.float32)


def _live(mask: Any, layout: tuple[int, ...] | None) -> NDArray[np.bool_]:
    live: NDArray[np.bool_] = np.asarray(mask) != 0
    if layout is not None and live.shape != layout:
        raise error("token_shape", name="mask", given=live.shape, expected=f"{layout}, that of the record")
    return live
