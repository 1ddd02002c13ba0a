"""What grpokit adds to pytest (`plugin`) and to hypothesis (`strategies`).

Both load their half in every process where grpokit is installed, and either may be there without the other: so this is
a package of its own, and nothing is imported here.
"""
