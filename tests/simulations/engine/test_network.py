"""Nothing is sent anywhere, and little shared memory is enough: a run with Ray in namespaces of its own.

They have the loopback interface and no route, and 1 MiB in /dev/shm, which has 64 MiB in many containers.
"""

import shutil
import subprocess
import sys

import pytest

from tests.processes import TINY, Command

NO_ROUTE = """
import fcntl, os, socket, struct, subprocess
from pathlib import Path

def refused():  # packets and connections that the kernel has refused as there is no route
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Ip: "))
    of_version_6 = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return int(dict(zip(names, values))["OutNoRoutes"]), int(of_version_6.get("Ip6OutNoRoutes", 0))

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"], check=True)
assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 1 << 20
interface = struct.pack("16sh", b"lo", 0x41)  # up and running
fcntl.ioctl(socket.socket(), 0x8914, interface)
for kind, address in ((socket.SOCK_DGRAM, "192.0.2.1"), (socket.SOCK_STREAM, "192.0.2.1")):
    try:
        socket.socket(socket.AF_INET, kind).connect((address, 53))
        raise SystemExit("the namespace has a route")
    except OSError:
        continue
before = refused()
assert before[0] >= 2, f"attempts are not counted: {before}"
import atexit
atexit.register(lambda: print("attempts:", *(now - then for now, then in zip(refused(), before)), flush=True))
"""


def test_a_run_with_ray_needs_no_network_nor_tries_to_use_it_and_little_shared_memory(tmp_path):
    """Attempts are counted by the kernel, so one that fails in silence counts too. Two attempts of the test itself show this."""
    unshare = [shutil.which("unshare") or "unshare", "-rnm"]
    try:
        tried = subprocess.run([*unshare, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this system has no command unshare")
    if tried.returncode != 0:
        pytest.skip(f"this system permits no namespaces: {tried.stderr.strip()}")
    overrides = (*TINY, "rounds=1", "output=runs", "engine=ray", "engine.workers=1")
    command = Command(overrides, tmp_path, before=NO_ROUTE, prefix=(*unshare, sys.executable))
    ended = command.end()
    assert ended.code == 0 and ended.err == "", ended.err
    *_, folder, attempts = ended.out.splitlines()
    assert folder.startswith("run: ") and attempts == "attempts: 0 0"
