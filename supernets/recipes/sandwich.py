"""The largest, the smallest and a random network, on hard labels (Yu and Huang, arXiv 1903.05134)."""

from __future__ import annotations

from supernets.recipe import Recipe

RECIPE = Recipe(sampling="sandwich", alpha=1.0, gamma=0.0)
