"""The sandwich with in-place distillation by adaptive alpha-divergence (Wang et al., AlphaNet, arXiv 2102.07954)."""

from __future__ import annotations

from supernets.recipe import Recipe

RECIPE = Recipe(sampling="sandwich", alpha=1.0, subnet_alpha=0.0, gamma=0.0, rho=1.0, divergence="alpha")
