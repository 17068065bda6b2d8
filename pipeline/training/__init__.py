"""Training: the loop, the objective, the schedule and checkpoints."""
