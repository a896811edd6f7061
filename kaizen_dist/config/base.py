"""What every section of a configuration is made of: bounded types, and `Silent`."""

from typing import Annotated, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

T = TypeVar("T")

# No value that a run could be meant to have is left out; what is kept out ends no run, no process
# and no machine by its size.
Name: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")
]
"""Of a file, a network: on one line."""
Width: TypeAlias = Annotated[int, Field(ge=1, le=65_536)]
"""Of a layer."""
Count: TypeAlias = Annotated[int, Field(ge=1, le=10**9)]
"""Of steps, epochs, images."""
Batch: TypeAlias = Annotated[int, Field(ge=1, le=2**20)]
"""Images of a step."""
Threads: TypeAlias = Annotated[int, Field(ge=1, le=1024)]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Weight: TypeAlias = Annotated[float, Field(ge=0, le=1e38)]
"""Of a term; float32 ends at 3.4e38."""
Rate: TypeAlias = Annotated[float, Field(gt=0, le=1e38)]
"""Of learning."""
Temperature: TypeAlias = Annotated[float, Field(ge=1e-3, le=1e3)]
Seconds: TypeAlias = Annotated[float, Field(gt=0, le=1e7)]
Gigabytes: TypeAlias = Annotated[float, Field(ge=0, le=1e6)]


class _NoResult:
    """Marks a key that leaves all results as they are."""


Silent: TypeAlias = Annotated[T, _NoResult()]
"""Of a key that changes nothing of what a run computes but its rounding: it may differ between two
parts of one run, and the digest of a configuration leaves it out."""


def marked_silent(field: FieldInfo) -> bool:
    """Whether a field's type is `Silent`."""
    return any(isinstance(mark, _NoResult) for mark in field.metadata)


class Section(BaseModel):
    """Base of all sections: unknown keys and wrong types are errors, as are numbers that are none
    (NaN) or have no end; values cannot change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
