"""The sandwich with in-place distillation: the largest network learns from labels, the others from it alone.

Yu and Huang, arXiv 1903.05134; Yu et al., BigNAS, arXiv 2003.11142.
"""

from __future__ import annotations

from supernets.recipe import Recipe

RECIPE = Recipe(sampling="sandwich", alpha=1.0, subnet_alpha=0.0, gamma=0.0, rho=1.0)
