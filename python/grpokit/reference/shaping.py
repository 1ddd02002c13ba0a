"""Stage 1, shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def overlong(lengths: Sequence[int], L_max: int, L_cache: int) -> NDArray[np.float64]:
    """R_length(y) of DAPO (arXiv:2503.14476, eq. 13).

    Parameters
    ----------
    lengths : (N,) int, tokens
        |y|.
    L_max, L_cache : int, tokens
        The longest answer and the width of the ramp.

    Returns
    -------
    (N,) float64

    Examples
    --------
    >>> overlong([16384, 16385, 18432, 20480, 20481], 20480, 4096).tolist()
    [0.0, -0.000244140625, -0.5, -1.0, -1.0]
    """
    R_length = np.zeros(len(lengths))
    for i, y in enumerate(lengths):
        if y <= L_max - L_cache:
            R_length[i] = 0
        elif y <= L_max:
            R_length[i] = ((L_max - L_cache) - y) / L_cache
        else:
            R_length[i] = -1
    return R_length
