"""Ranks as any launcher starts them: processes with torchrun's variables, and what they say."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment_of(rank: int, world: int, port: int, **changes: str | None) -> dict[str, str]:
    """What a launcher would give a rank on this machine; a change to None takes a variable away."""
    told: dict[str, str | None] = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
    }
    own = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    return own | {k: v for k, v in (told | changes).items() if v is not None}


def kaizen(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "kaizen_dist", *map(str, arguments)]


class Rank(subprocess.Popen):
    """A rank whose words are kept."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], prefix: Sequence[str] = ()
    ) -> None:
        super().__init__(
            [*prefix, *command],
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, timeout: float = 240) -> tuple[int, str]:
        """Its exit code and its words."""
        said, _ = self.communicate(timeout=timeout)
        return self.returncode, said

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGCONT)
            self.kill()
        self.communicate()


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
