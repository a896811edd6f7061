"""Hosts in network namespaces: machines of their own as far as the network goes.

Each has one link to a switch, which is a namespace as well, so that nothing of this machine's own
network is touched. Where namespaces are not allowed the tests that need them are skipped.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


class NotAllowed(Exception):
    """With the reason."""


class Hosts:
    """Hosts 0, 1, ... behind a switch; addresses from a range that is private."""

    def __init__(self, count: int) -> None:
        self._name = f"kz{os.getpid()}"
        self._count = count

    def address(self, host: int) -> str:
        return f"10.73.0.{host + 1}"

    def inside(self, host: int) -> list[str]:
        """What to put before a command that is to run there."""
        return ["ip", "netns", "exec", self._space(host)]

    def cut(self, host: int, *, carrier: bool) -> None:
        """Cut the link of a host: pull the plug, which it notices (`carrier` is lost), or let the
        switch drop all it sends, which it does not."""
        self._switch("link", "set", f"p{host}", *(["down"] if carrier else ["nomaster"]))

    def mend(self, host: int) -> None:
        self._switch("link", "set", f"p{host}", "master", "br0")
        self._switch("link", "set", f"p{host}", "up")

    def build(self) -> None:
        for host in (None, *range(self._count)):
            _ip("netns", "add", self._space(host))
            _ip("-n", self._space(host), "link", "set", "lo", "up")
        self._switch("link", "add", "br0", "type", "bridge")
        self._switch("link", "set", "br0", "up")
        for host in range(self._count):
            space, switch = self._space(host), self._space(None)
            peer = ["peer", "name", f"p{host}", "netns", switch]
            _ip("link", "add", "e0", "netns", space, "type", "veth", *peer)
            _ip("-n", space, "address", "add", f"{self.address(host)}/24", "dev", "e0")
            _ip("-n", space, "link", "set", "e0", "up")
            self.mend(host)

    def remove(self) -> None:
        for host in (None, *range(self._count)):
            subprocess.run(
                ["ip", "netns", "del", self._space(host)], capture_output=True, check=False
            )

    def _space(self, host: int | None) -> str:
        return f"{self._name}{'sw' if host is None else f'h{host}'}"

    def _switch(self, *arguments: str) -> None:
        _ip("-n", self._space(None), *arguments)


@contextmanager
def hosts_of(count: int) -> Iterator[Hosts]:
    """Raises NotAllowed."""
    hosts = Hosts(count)
    try:
        hosts.build()
        yield hosts
    finally:
        hosts.remove()


def _ip(*arguments: str) -> None:
    program = shutil.which("ip")
    if program is None:
        raise NotAllowed("iproute2 is not installed")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotAllowed(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
