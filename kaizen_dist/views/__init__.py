"""Two augmented views of each image, each a function of its counters; and the evaluation view."""
