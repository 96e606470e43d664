"""One random network per step, on hard labels (Guo et al., Single Path One-Shot, arXiv 1904.00420; HAT trains so)."""

from __future__ import annotations

from supernets.recipe import Recipe

RECIPE = Recipe(sampling="single-path", alpha=1.0, gamma=0.0)
