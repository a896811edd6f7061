"""How images reach the learner: two augmented views, each a function of its counters."""
