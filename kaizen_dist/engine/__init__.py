"""Where a run computes: processes and their ranks, the engines, optimizers, checkpoints."""
