"""Debian's kernels, fetched with apt and unpacked into a cache outside the tree; never installed.

CACHE/6.1.0-56-amd64/
    vmlinuz
    config                         its build options
    lib/modules/6.1.0-56-amd64/    only the modules that the scenarios can need (KEPT), uncompressed, with modules.dep
"""

import fcntl
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(
    os.environ.get("IMARA_VM_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imara-vm"
)

# Series: the meta package whose dependency is the newest kernel, and the form of that dependency's name.
SERIES = {
    "6.1": ("linux-image-amd64", r"linux-image-(6\.1\.\d+-\d+-amd64)$"),
    "6.12": ("linux-image-6.12-amd64", r"linux-image-(6\.12\.\d+\+deb12-amd64)$"),
}

# The disk, file systems, overlays, loop devices, the host's files (9p), and every hash and signature that the kernel may ask its
# modprobe for.
KEPT = r"kernel/(crypto|arch/x86/crypto|lib|fs/(ext4|jbd2|mbcache|overlayfs|xfs|btrfs|fuse|9p|netfs|fscache|cachefiles)|net/9p|drivers/virtio|drivers/block/(virtio_blk|loop))"


class Missing(Exception):
    """The machine lacks something: the message names it and the next step."""


def kernel(series):
    """The cached tree of the newest kernel of `series`, fetched when it is not there yet."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once fetch only once
        version = newest_offered(series)
        cached = newest_cached(series)
        if version is None or CACHE / version == cached:
            if cached is None:
                meta, _ = SERIES[series]
                raise Missing(f"apt offers no Linux {series} ({meta}): run `make setup-vm`, on Debian 12")
            return cached
        try:
            return fetch(version)
        except subprocess.CalledProcessError as error:
            if cached is None:
                raise Missing(f"apt could not fetch linux-image-{version}: {error.stderr.strip()}\nrun `apt-get update`, then again") from None
            print(f"note: apt could not fetch Linux {version}, {cached.name} from the cache is used")
            return cached


def newest_offered(series):
    """The version that the meta package depends on now."""
    meta, form = SERIES[series]
    found = subprocess.run(["apt-cache", "depends", "--important", meta], capture_output=True, text=True)
    versions = [match[1] for line in found.stdout.split() if (match := re.match(form, line))]
    return versions[0] if versions else None


def newest_cached(series):
    """The newest tree of `series` that was unpacked to its end."""
    _, form = SERIES[series]
    trees = [tree for tree in CACHE.iterdir() if re.match(form, "linux-image-" + tree.name) and whole(tree)]
    return max(trees, default=None, key=lambda tree: [int(number) for number in re.findall(r"\d+", tree.name)])


def whole(tree):
    """Whether a tree was unpacked to its end, with the modules that are wanted now."""
    kept = tree / "kept"
    return all((tree / name).exists() for name in ("vmlinuz", "config")) and kept.exists() and kept.read_text() == KEPT


def fetch(version):
    """Downloads and unpacks one kernel; it appears in the cache whole or not at all."""
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        work = Path(work)
        work.chmod(0o777)  # apt downloads as its own user
        print(f"fetching Linux {version}", flush=True)
        run = {"check": True, "capture_output": True, "text": True}
        subprocess.run(["apt-get", "-qq", "download", "linux-image-" + version], cwd=work, **run)
        (package,) = work.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, work / "package"], **run)
        keep(work / "package", version, work / "tree")
        shutil.rmtree(CACHE / version, ignore_errors=True)
        (work / "tree").rename(CACHE / version)
    return CACHE / version


def keep(package, version, tree):
    """Moves what is wanted of an unpacked kernel into `tree`."""
    modules = package / "lib/modules" / version
    if not modules.exists():
        modules = package / "usr/lib/modules" / version
    for module in modules.rglob("*.ko*"):
        name = str(module.relative_to(modules))
        if not re.match(KEPT, name):
            continue
        kept = tree / "lib/modules" / version / re.sub(r"\.(xz|zst)$", "", name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".zst"):
            subprocess.run(["zstd", "-q", "-d", module, "-o", kept], check=True)
        else:
            kept.write_bytes(lzma.open(module).read() if name.endswith(".xz") else module.read_bytes())
    # What is built in is found as well.
    shutil.copy(modules / "modules.builtin", tree / "lib/modules" / version)
    subprocess.run(["busybox", "depmod", "-b", tree, version], check=True, capture_output=True)
    for name in ("vmlinuz", "config"):
        shutil.move(package / "boot" / f"{name}-{version}", tree / name)
    (tree / "kept").write_text(KEPT)
