"""A run's folder: its files, the checks before it is touched, its results, how it resumes."""
