"""The sandwich, distilled from one strong teacher that stays as it is (as Once-for-All does, arXiv 1908.09791)."""

from __future__ import annotations

from supernets.recipe import Recipe

RECIPE = Recipe(sampling="sandwich")
