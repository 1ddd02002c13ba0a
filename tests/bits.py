"""Every recipe's gradient by every number format, written to a file: `python -m tests.bits FILE`, on any torch."""

import sys

import torch

from grpokit.loss import coefficients
from tests.losses import RECIPES, cast, current, padded, table


def gradients():
    """{(recipe, dtype, column): (T,)}"""
    found = {}
    for dtype in (torch.float64, torch.float32):
        for near in (0.2, 3.0):
            d = cast(table(21, near=near), dtype)
            batch = padded(d)
            for name, recipe in RECIPES.items():
                for column, g in coefficients(batch, recipe, current(batch, d)).gradients.items():
                    found[name, near, str(dtype), column] = g
    return found


if __name__ == "__main__":
    torch.save(gradients(), sys.argv[1])
