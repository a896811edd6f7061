"""How fast it is, beside the way it is usually done; every comparison is made in one run."""
