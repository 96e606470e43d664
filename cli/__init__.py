"""Words in, words out: the ``nas`` command line."""
