"""One set of weights, many networks: spaces, shared weights, tasks, fine-tuning and checkpoints."""
