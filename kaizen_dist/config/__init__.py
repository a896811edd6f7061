"""The configuration of a run: typed, strict, read from YAML, changed by dotted overrides.

`learning` and `running` hold the sections and their keys, `schema` the whole, and `loading` makes a
`Config` of a file. The resolved configuration is stored with the run and is enough to repeat it.
"""

from kaizen_dist.config.loading import load, validate
from kaizen_dist.config.schema import Config, differences, flatten, is_silent

__all__ = ["Config", "differences", "flatten", "is_silent", "load", "validate"]
