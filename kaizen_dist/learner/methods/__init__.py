"""The self-supervised methods, one file each; a file here is all that a new method needs.

A module NAME.py holds one subclass of `base.Method`, and `method: NAME` in a configuration names
it. Methods of other packages: docs/extending.md.
"""

from typing import Final

from kaizen_dist.common.registry import Registry
from kaizen_dist.learner.methods.base import Method

METHODS: Final[Registry[Method]] = Registry(
    "method",
    "kaizen_dist.methods",
    Method,  # type: ignore[type-abstract]
    __name__,
)
method_names = METHODS.ours
method_class = METHODS.find
