"""Recipes that replay the numbers of other libraries, conventions and quirks included: `trl` and `verl`.

In: the other library's own option names. Out: a `Recipe` whose advantages, loss and gradient are theirs to 1e-6 in
fp32. The stages that they need beyond those of the papers are here too, in nothing else's way: each says whose
convention it is, and docs/compat.md lists every one with its version.
"""
