"""Uniform random search without repeats: the baseline every other search must beat.

It draws among the networks that are not known to break a limit, so a limit on a computable cost helps it as much as
anybody.
"""

from nas.algorithms.random import search as search
