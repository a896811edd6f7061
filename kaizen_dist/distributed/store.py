"""The ranks' key-value store, in which every value is signed.

The store has no access control: whoever reaches its port, on the loopback every user of the
machine, may read and write. So each value carries an HMAC over a secret of the run, and a value
without a valid one counts as absent. `--procs` and submitted jobs create a secret for each run and
pass it to the ranks in their environment; other launchers may (docs/slurm.md). Without a secret
every rank and every stranger signs alike.
"""

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

SIGNING_VARIABLE = "KAIZEN_RUN_SECRET"
LOOPBACK = "127.0.0.1"


def new_secret() -> str:
    """A secret for one run."""
    return secrets.token_hex(32)


class SignedStore:
    """Texts that the ranks of this run exchange. Every method raises RuntimeError (of torch) if the
    store does not answer."""

    def __init__(self, raw: "Store", secret: str) -> None:
        self.raw = raw
        self._secret = secret.encode()

    def has(self, *keys: str) -> bool:
        """Whether every key has a value, signed or not."""
        return self.raw.check(list(keys))

    def set(self, key: str, text: str) -> None:
        """Store a signed text."""
        self.raw.set(key, self._signed(key, text))

    def set_once(self, key: str, text: str) -> None:
        """Store a signed text unless the key has one; an unsigned value is replaced."""
        if self.get(key) is None:
            unsigned = self.raw.get(key) if self.has(key) else b""
            self.raw.compare_set(key, unsigned, self._signed(key, text))  # type: ignore[arg-type]

    def get(self, key: str) -> str | None:
        """The text, or None if the key has none that a rank has signed. Does not wait."""
        return self._verified(key, self.raw.get(key)) if self.has(key) else None

    def get_all(self, keys: list[str]) -> list[str | None]:
        """As `get` for several keys, in two round trips if all have values."""
        if not self.has(*keys):
            return [self.get(key) for key in keys]
        return [self._verified(*pair) for pair in zip(keys, self.raw.multi_get(keys), strict=True)]

    def _signed(self, key: str, text: str) -> str:
        signature = hmac.new(self._secret, f"{key}\n{text}".encode(), hashlib.sha256)
        return f"{signature.hexdigest()} {text}"

    def _verified(self, key: str, value: bytes) -> str | None:
        _, _, text = value.decode(errors="replace").partition(" ")
        genuine = hmac.compare_digest(value, self._signed(key, text).encode(errors="replace"))
        return text if genuine else None
