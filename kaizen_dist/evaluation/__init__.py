"""Evaluation of a continual run.

metrics      of the accuracy matrix, and the list of all metrics
evaluator    accuracy and features over all ranks, with knn, probe, ncm_fit (class means)
analysis     confusion, calibration, CKA, principal components
"""
