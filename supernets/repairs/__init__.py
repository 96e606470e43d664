"""Ways to heal a model whose experts were reduced; one file, one repair."""
