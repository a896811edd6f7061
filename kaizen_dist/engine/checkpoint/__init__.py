"""A run's checkpoints: their layout on disk, tensors, writer and reader."""
