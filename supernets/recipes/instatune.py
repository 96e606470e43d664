"""The full network and a random one, distilled from a strong teacher (InstaTune, arXiv 2308.15609, gamma = 1)."""

from __future__ import annotations

from supernets.recipe import Recipe

RECIPE = Recipe()
