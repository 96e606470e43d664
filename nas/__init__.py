"""The search: problems, algorithms, objectives, the loop that drives them, and the choice of what to export."""
