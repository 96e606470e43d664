"""One random network per step, distilled from one strong teacher: InstaTune's step without the full network."""

from __future__ import annotations

from supernets.recipe import Recipe

RECIPE = Recipe(sampling="single-path")
