"""Is what lies in the ranks' store from a rank?

The store asks nobody who they are: whoever reaches its port, on a loopback every user of the
machine, may read and write in it. So what ranks tell each other there carries an HMAC over a secret
that only they have; what has none is as if it were not there. `--procs` and submitted jobs make a
secret for each run and hand it to the ranks in their environment; other launchers may
(docs/slurm.md). Without one everything is believed.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping

VARIABLE = "KAIZEN_RUN_SECRET"


def new_secret() -> str:
    """For one run."""
    return secrets.token_hex(32)


class Seal:
    """Marks texts as coming from a rank of this run, and knows those that do."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._secret = environment.get(VARIABLE, "").encode()

    def close(self, key: str, text: str) -> str:
        """What is put into the store under a key for `text`."""
        return f"{self._mark(key, text)} {text}"

    def open(self, key: str, sealed: bytes) -> str | None:
        """The text of what lies under a key, or None if no rank has put it there."""
        mark, _, text = sealed.decode(errors="replace").partition(" ")
        genuine = hmac.compare_digest(mark.encode(), self._mark(key, text).encode())
        return text if genuine else None

    def _mark(self, key: str, text: str) -> str:
        return hmac.new(self._secret, f"{key}\n{text}".encode(), hashlib.sha256).hexdigest()
