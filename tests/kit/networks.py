"""Networks of this machine's own: hosts as network namespaces, cables as veth pairs. Needs root and iproute2."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


class Host:
    """A namespace that lives as long as its sleeping process."""

    def __init__(self) -> None:
        self._sleeper = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._sleeper.stdout is not None
        with self._sleeper.stdout as said:
            assert said.readline() == "up\n", "namespaces need root"

    @property
    def pid(self) -> int:
        return self._sleeper.pid

    def command(self, *words: str) -> list[str]:
        return ["nsenter", "--target", str(self.pid), "--net", *words]

    def run(self, *words: str, check: bool = True, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), check=check, capture_output=True, text=True, timeout=timeout_s
        )

    def ip(self, *words: str) -> None:
        self.run("ip", *words)

    def wait_for_carrier(self, name: str) -> None:
        """The system notices up to a second later that both ends of a cable are up; programs see it only then."""
        end = time.monotonic() + 20
        while json.loads(self.run("ip", "-json", "link", "show", name).stdout)[0]["operstate"] != "UP":
            assert time.monotonic() < end, f"{name} does not come up"
            time.sleep(0.02)

    def python(self, *words: str) -> subprocess.Popen[str]:
        """A Python program on this host, with pipes to it."""
        return subprocess.Popen(
            self.command(sys.executable, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        self._sleeper.kill()
        self._sleeper.wait()


def connect(one: Host, other: Host, name: str, *, net: str = "") -> None:
    """A cable with an interface `name` at both ends; `net` as 10.1.1 gives them .1 and .2, else they have IPv6 only."""
    ends = ["netns", str(one.pid), "type", "veth", "peer", "name", name, "netns", str(other.pid)]
    subprocess.run(["ip", "link", "add", name, *ends], check=True)
    for number, host in enumerate((one, other), start=1):
        # Without duplicate address detection an address can be used at once.
        host.run("sysctl", "-qw", f"net.ipv6.conf.{name}.accept_dad=0")
        if net:
            host.ip("address", "add", f"{net}.{number}/24", "dev", name)
        host.ip("link", "set", name, "up")
    for host in (one, other):
        host.wait_for_carrier(name)


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            host = Host()
            stack.callback(host.close)
            made.append(host)
        yield made
