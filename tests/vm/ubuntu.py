"""The oldest and the newest kernel that level 2 is for: those that Ubuntu 22.04 and 26.04 came with, fetched and unpacked into a cache outside
the tree; never installed. Their packages stay in the archive as long as the release, and are known by their digests.

The cache has the form that kernels.py describes. BPF is not among the LSMs that Ubuntu starts, so `lsm` is in the kernel arguments.
"""

import hashlib
import fcntl
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from kernels import CACHE, Missing, keep, whole

ARCHIVE = "http://archive.ubuntu.com/ubuntu/pool/main/l"
# Series: the version, and the SHA-256 of the image's package and of the modules'.
PINNED = {
    "5.15": (
        "5.15.0-25",
        "ad56f8c442a54d4f5ff2dff010d00321d53e32b543f3a92f3ba4e042d20a71da",
        "d0ba4087d9e1d497925b3481d3531fba6c2a852855f8019d73b0b1385aa4da1f",
    ),
    "7.0": (
        "7.0.0-14",
        "e08c352cfca2fdef34f216cb67dae41712abfc8d76e983d8608f95486aa2ee6b",
        "5bbbd6bd424b38a9927a897259f02de1b3caff94e9dc27b931b54d65bf005b8d",
    ),
}
ARGUMENTS = "lsm=lockdown,integrity,bpf"


def kernel(series):
    """The cached tree, fetched when it is not there yet."""
    version, *digests = PINNED[series]
    name = f"{version}-generic"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f".lock-{series}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole(CACHE / name):
            fetch(name, f"{version}.{version.rsplit('-')[-1]}", digests)
    return CACHE / name


def fetch(name, version, digests):
    """Downloads and unpacks one kernel; it appears in the cache whole or not at all."""
    if not shutil.which("zstd"):
        raise Missing("Ubuntu's modules are packed with zstd: apt install zstd")
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        work = Path(work)
        print(f"fetching Linux {name} (Ubuntu)", flush=True)
        for part, digest in zip(("linux-signed/linux-image", "linux/linux-modules"), digests):
            url = f"{ARCHIVE}/{part}-{name}_{version}_amd64.deb"
            package = work / "package.deb"
            try:
                with urllib.request.urlopen(url, timeout=60) as answer, open(package, "wb") as file:
                    shutil.copyfileobj(answer, file)
            except (urllib.error.URLError, OSError) as error:
                raise Missing(f"{url}: {error}") from None
            found = hashlib.sha256(package.read_bytes()).hexdigest()
            if found != digest:
                raise Missing(f"{url}: its SHA-256 is {found}, and {digest} is expected")
            subprocess.run(["dpkg-deb", "-x", package, work / "package"], check=True)
        keep(work / "package", name, work / "tree")
        shutil.rmtree(CACHE / name, ignore_errors=True)
        (work / "tree").rename(CACHE / name)
