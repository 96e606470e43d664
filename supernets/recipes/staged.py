"""InstaTune whose axes become elastic one after another: widths, heads, depth.

Progressive shrinking (Cai et al., Once-for-All, arXiv 1908.09791), widths before depth as in DynaBERT (2004.04037).
"""

from __future__ import annotations

from supernets.recipe import Recipe

RECIPE = Recipe(stages=("ffn_width", "heads", "depth"))
