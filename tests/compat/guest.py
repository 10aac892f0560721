"""The suite's tests that need a kernel with IMA and EVM, in the virtual machine of tests/vm: a boot for each."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "vm"))
import emulator
import full
import kernels
import machine
from counts import Missing, counts

TIMEOUT = 300  # seconds a boot
# The tests want GNU's and util-linux's programs: busybox's lack options.
PROGRAMS = """bash gawk grep sed cut sort head tail dirname basename mktemp cp tar stat date dd getconf cmp losetup mount umount
    mkfs mkfs.ext4 blkid e2fsck tune2fs getfattr setfattr setfacl xxd fsverity openssl keyctl sha1sum sha256sum which""".split()


class Runner:
    """Has the kernel and the emulator ready."""

    def __init__(self):
        try:
            self.kernel, self.emulator = full.kernel(), emulator.emulator()
        except kernels.Missing as missing:
            raise Missing(str(missing)) from None
        if lacking := [name for name in PROGRAMS if shutil.which(name, path=machine.PATH) is None]:
            raise Missing(f"compat: not on this machine, for the guest: {', '.join(lacking)}; run `make setup-compat`")

    def run(self, program, run):
        """Runs a test; returns its counts, or what ended it, and where its output is."""
        out = program.folder / program.log_name(run)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        tests = program.folder / "tests"
        mmap = tests / "test_mmap"
        if not mmap.exists():
            subprocess.run(["cc", "-o", mmap, tests / "test_mmap.c"], check=True)
        files = {f"compat/tests/{path.name}": path.read_bytes() for path in tests.iterdir() if path.is_file()}
        files |= {f"compat/src/{path.name}": path.read_bytes() for path in (program.folder / "src").glob("lib*")}
        files |= {f"root/ca/{path.name}": path.read_bytes() for path in self.kernel.glob("ca/*")}
        files["compat/environment"] = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in run.environment).encode()
        files["compat/name"] = f"{run.test}.test\n".encode()
        try:
            with machine.work_folder() as work:
                archive = machine.initramfs(self.kernel, [program.folder / "src/evmctl", mmap, *PROGRAMS], HERE / "guest", files)
                guest = machine.Machine(self.emulator, self.kernel, archive, work, out)
                status = guest.boot(1, run.kernel_arguments, TIMEOUT)
        except machine.Ended as ended:
            return str(ended), out
        return counts((out / "output").read_text(errors="replace"), status), out / "output"
