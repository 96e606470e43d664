"""Records, Pareto algebra and the SQL study store."""
