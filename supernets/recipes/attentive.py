"""The distilled sandwich whose random network is the best of three of one class of cost (BestUp of AttentiveNAS).

Wang et al., arXiv 2011.09011.
"""

from __future__ import annotations

from supernets.recipe import Recipe

RECIPE = Recipe(sampling="sandwich", alpha=1.0, subnet_alpha=0.0, gamma=0.0, rho=1.0, candidates=3)
