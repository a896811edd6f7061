"""The training loop: tasks, epochs and steps, and what is logged and measured on the way."""
