"""The kernel that no distribution ships: Debian's source of 6.12 with every integrity option (full.config), built here once.

Trusted keys, the trusted keyrings .ima and .evm, evm_xattrs, appended signatures, a policy that can be appended to and read,
and so on. What may enter .ima and .evm must be signed by a key that the kernel was built with; that is a key of our own:

CACHE/6.12.117-full/
    vmlinuz, config
    ca/privkey.pem, ca/x509.pem, ca/x509.der    the certificate is in .builtin_trusted_keys
    made-of                                     the source's version and the digest of full.config: while they fit, nothing is built
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from kernels import CACHE, Missing

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "full.config"
SOURCE = "linux-source-6.12"
TOOLS = ["make", "gcc", "flex", "bison", "bc", "pahole", "xz", "openssl"]
# RSA, for every kernel verifies it. The kernel demands an authority key identifier, even of one that signed itself.
AUTHORITY = """[req]
distinguished_name = name
prompt = no
x509_extensions = extensions
[name]
CN = Imara scenarios
[extensions]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, digitalSignature
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def kernel():
    """The cached tree, built when it is not there yet or was made of something else."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / ".lock-full", "w") as lock:  # of its own: building takes minutes, and the others need not wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        cached = {made.parent: made.read_text() for made in sorted(CACHE.glob("*-full/made-of"))}
        configured = hashlib.sha256(CONFIG.read_bytes()).hexdigest()
        version = source_offered()
        if version is None:
            usable = [tree for tree, made_of in cached.items() if made_of.endswith(f" {configured}\n")]
            if not usable:
                raise Missing(f"apt offers no {SOURCE}: run `make setup-vm-full`, on Debian 12")
            return usable[-1]
        made_of = f"{version} {configured}\n"
        tree = CACHE / f"{version.split('-')[0]}-full"  # as `uname -r` will say
        if cached.get(tree) != made_of:
            build(tree, made_of)
    return tree


def source_offered():
    """The newest version of the source package that apt knows."""
    found = subprocess.run(["apt-cache", "show", "--no-all-versions", SOURCE], capture_output=True, text=True)
    versions = re.findall(r"^Version: (\S+)", found.stdout, re.MULTILINE)
    return versions[0] if versions else None


def build(tree, made_of):
    """Fetches, configures and compiles; the tree appears whole or not at all."""
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise Missing(f"building the kernel needs {', '.join(lacking)}: run `make setup-vm-full`")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="full-") as work:
        work = Path(work)
        work.chmod(0o777)  # apt downloads as its own user
        log = CACHE / "full.log"
        print(f"building Linux {tree.name} with every integrity option, which takes some 8 minutes on two cores; log: {log}", flush=True)
        try:
            with open(log, "w") as output:
                compile_in(work, output)
        except subprocess.CalledProcessError as error:
            said = log.read_text(errors="replace").splitlines()[-10:]
            raise Missing("\n".join([f"`{' '.join(map(str, error.cmd))}` failed, see {log}:", *said])) from None
        (work / "tree/made-of").write_text(made_of)
        shutil.rmtree(tree, ignore_errors=True)
        (work / "tree").rename(tree)


def compile_in(work, output):
    """Makes `work`/tree."""

    def run(*command, cwd=work):
        subprocess.run(command, cwd=cwd, check=True, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    tree, source = work / "tree", work / SOURCE
    (tree / "ca").mkdir(parents=True)
    (work / "authority").write_text(AUTHORITY)
    key, certificate = tree / "ca/privkey.pem", tree / "ca/x509.pem"
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "36500", "-config", "authority", "-keyout", key, "-out", certificate)
    run("openssl", "x509", "-in", certificate, "-outform", "DER", "-out", tree / "ca/x509.der")

    run("apt-get", "-qq", "download", SOURCE)
    (package,) = work.glob(f"{SOURCE}_*.deb")
    run("dpkg-deb", "-x", package, "package")
    run("tar", "-xJf", f"package/usr/src/{SOURCE}.tar.xz")
    shutil.rmtree(work / "package")

    run("make", "-s", "tinyconfig", cwd=source)
    wanted = CONFIG.read_text() + f'CONFIG_SYSTEM_TRUSTED_KEYS="{certificate}"\n'
    with open(source / ".config", "a") as config:
        config.write(wanted)
    run("make", "-s", "olddefconfig", cwd=source)
    taken = (source / ".config").read_text().splitlines()
    if refused := [line for line in wanted.splitlines() if line.startswith("CONFIG_") and line not in taken]:
        raise Missing(f"the source does not take {', '.join(refused)}: an option that it depends on is missing in {CONFIG}")
    run("make", "-s", f"-j{os.cpu_count()}", "bzImage", cwd=source)
    shutil.copy(source / "arch/x86/boot/bzImage", tree / "vmlinuz")
    shutil.copy(source / ".config", tree / "config")
