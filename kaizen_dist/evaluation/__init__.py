"""How well a run remembers: metrics of the accuracy matrix, a kNN and a linear probe.

In come numbers and features, out go numbers: nothing here knows of models, files or ranks.
"""
