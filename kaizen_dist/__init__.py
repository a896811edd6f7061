"""Kaizen at cluster scale: continual self-supervised learning with continual fine-tuning.

The paper is arXiv 2303.17235; `docs/architecture.md` is the map of this package.
"""

__version__ = "0.1.0"
