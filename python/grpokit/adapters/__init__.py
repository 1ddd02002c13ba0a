"""Recipes inside the frameworks that people have: `grpokit.adapters.trl`, and `grpokit.adapters.verl`.

Nothing is imported here: each module loads its framework when it is imported itself.
"""
