"""QEMU: the one on the path, else Debian's, fetched with apt and unpacked into the kernels' cache; never installed.

Some machines have a newer `qemu-utils` that Debian's own `qemu-system-common` cannot be installed beside. Nothing is removed
for a test: there `make setup-vm` installs the libraries alone, and the programs are unpacked here.

CACHE/qemu/    the packages' files, in one tree; QEMU finds its firmware beside its own program
"""

import fcntl
import shutil
import subprocess
import tempfile
from pathlib import Path

from kernels import CACHE, Missing

PROGRAM = "qemu-system-x86_64"
PACKAGES = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios", "ipxe-qemu"]
UNPACKED = CACHE / "qemu"


def emulator():
    """QEMU's program, and what its environment must say."""
    if installed := shutil.which(PROGRAM):
        return installed, {}
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once fetch only once
        program = UNPACKED / "usr/bin" / PROGRAM
        if not program.exists():
            try:
                fetch()
            except subprocess.CalledProcessError as error:
                raise Missing(f"there is no {PROGRAM}, and apt could not fetch it: {error.stderr.strip()}\nrun `make setup-vm`, then again") from None
    environment = {"QEMU_MODULE_DIR": str(module.parent) for module in UNPACKED.glob("usr/lib/*/qemu/accel-tcg-*.so")}
    tried = subprocess.run([program, "-version"], env=environment, capture_output=True, text=True)
    if tried.returncode != 0:
        raise Missing(f"{program} does not start: {tried.stderr.strip()}\nrun `make setup-vm`, which installs its libraries, then again")
    return str(program), environment


def fetch():
    """Downloads and unpacks the packages; the tree appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        work = Path(work)
        work.chmod(0o777)  # apt downloads as its own user
        print("fetching QEMU", flush=True)
        run = {"check": True, "capture_output": True, "text": True}
        subprocess.run(["apt-get", "-qq", "download", *PACKAGES], cwd=work, **run)
        for package in work.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, work / "tree"], **run)
        (work / "tree").rename(UNPACKED)
