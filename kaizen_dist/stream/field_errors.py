"""What is wrong with somebody else's document, in a few words on one line."""

from typing import Final

from pydantic import ValidationError

from kaizen_dist.common.console import one_line

SHOWN: Final = 10
SHOWN_LENGTH: Final = 300


def field_errors(error: ValidationError) -> str:
    """What pydantic found wrong: `field: message; field: message`."""
    problems = error.errors(include_url=False, include_input=False)
    lines = []
    for problem in problems[:SHOWN]:
        where = ".".join(map(str, problem["loc"]))
        what = problem["msg"].removeprefix("Value error, ")
        lines.append(shortened(f"{where}: {what}" if where else what))
    if len(problems) > SHOWN:
        lines.append(f"and {len(problems) - SHOWN} more")
    return "; ".join(lines)


def shortened(text: object) -> str:
    """What somebody else's file says, so that a message may quote it."""
    line = one_line(text)
    return line if len(line) <= SHOWN_LENGTH else f"{line[:SHOWN_LENGTH]}..."
