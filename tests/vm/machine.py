"""One virtual machine: QEMU without KVM, an ext4 disk, a software TPM, and an initramfs made for one scenario.

The initramfs holds busybox, the named programs with their shared libraries, the kernel's modules, guest/init and
the scenario. The disk is /dev/vda. What the guest leaves in /out comes back as a tar archive on /dev/vdb.
"""

import os
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
DISK_UUID = "1a5a7a00-0000-4000-8000-000000000001"
DISK_MIB = 64
RESULT_MIB = 32
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
# One thread of translation and no clock tricks: the guest's own boot is the same each time.
# A machine that hardly gets a turn must not take its timer for a broken one (no_timer_check).
KERNEL_ARGUMENTS = "console=ttyS0 panic=-1 no_timer_check quiet loglevel=3 log_buf_len=4M audit_backlog_limit=8192"

# The processes of every machine that runs now, so that an interrupted run ends them too.
LIVE = []


class Ended(Exception):
    """The guest ended without a verdict: the message says how."""


class Machine:
    """A disk and a TPM that live as long as the machine does, over any number of boots."""

    def __init__(self, emulator, kernel, initramfs, work, out, counted=False, host=False):
        self.program, self.environment = emulator
        self.kernel, self.work, self.out, self.counted, self.host = kernel, Path(work), Path(out), counted, host
        self.initramfs = self.work / "initramfs"
        self.initramfs.write_bytes(initramfs)
        self.disk = self.work / "disk.img"
        make_disk(self.disk)
        (self.work / "tpm").mkdir()

    def boot(self, number, arguments, timeout):
        """Boots once and returns the scenario's exit status; console.log and the guest's /out are left in `out`."""
        result = self.work / "result.img"
        with open(result, "wb") as file:
            file.truncate(RESULT_MIB << 20)
        control = self.work / "tpm.sock"
        control.unlink(missing_ok=True)
        quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        children = []

        def start(command, output):
            child = subprocess.Popen(command, stdout=output, env=os.environ | self.environment, **quiet)
            children.append(child)
            LIVE.append(child)
            return child

        with open(self.out / "console.log", "ab") as console, open(self.out / "swtpm.log", "ab") as log:
            try:
                swtpm = ["swtpm", "socket", "--tpm2", "--terminate", "--tpmstate", f"dir={self.work}/tpm"]
                wait_for(control, start(swtpm + ["--ctrl", f"type=unixio,path={control}"], log))
                qemu = self.qemu(result, control, f"{KERNEL_ARGUMENTS} vm.boot={number} {arguments}")
                start(qemu, console).wait(timeout)
            except subprocess.TimeoutExpired:
                raise Ended(f"not at its end after {timeout} s") from None
            finally:
                end(children)
        return self.bring_back(result)

    def qemu(self, result, control, arguments):
        """The command line. TCG always: KVM differs from machine to machine, and hangs on some."""
        command = [self.program, "-accel", "tcg,thread=single" if self.counted else "tcg,thread=multi"]
        # Then an instruction is a nanosecond of the guest's time, whatever else the machine does.
        command += ["-icount", "shift=0,sleep=off"] if self.counted else []
        command += ["-cpu", "max", "-m", "2560" if self.host else "768"]
        if self.host:
            command += ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]
        command += ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
        command += ["-kernel", self.kernel / "vmlinuz", "-initrd", self.initramfs, "-append", arguments]
        for name, image in (("disk", self.disk), ("result", result)):
            command += ["-drive", f"file={image},format=raw,if=none,id={name}", "-device", f"virtio-blk-pci,drive={name}"]
        command += ["-chardev", f"socket,id=control,path={control}", "-tpmdev", "emulator,id=tpm,chardev=control"]
        return command + ["-device", "tpm-tis,tpmdev=tpm"]

    def bring_back(self, result):
        """Unpacks the plain files that the guest sent, and reads the scenario's exit status in them."""
        try:
            with tarfile.open(result) as archive:
                for member in filter(tarfile.TarInfo.isfile, archive):
                    (self.out / os.path.basename(member.name)).write_bytes(archive.extractfile(member).read())
            return int((self.out / "status").read_text())
        except (tarfile.TarError, OSError, ValueError):
            raise Ended("no result: the kernel or its init died") from None


def wait_for(path, child):
    """Waits until `child` has made `path`."""
    for _ in range(12000):
        if path.exists():
            return
        if child.poll() is not None:
            break
        time.sleep(0.01)
    raise Ended("swtpm did not start: see swtpm.log")


def end(children):
    """Ends our own children, the youngest first, and leaves none behind."""
    for child in reversed(list(children)):
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(3)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if child in LIVE:
            LIVE.remove(child)


def make_disk(path):
    """A fresh ext4; without a journal, so that a boot that was cut short leaves nothing to replay."""
    with open(path, "wb") as file:
        file.truncate(DISK_MIB << 20)
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^has_journal,verity", "-U", DISK_UUID, path]
    subprocess.run(command, check=True, env=dict(os.environ, PATH=PATH))


def initramfs(kernel, programs, scenario, files):
    """The archive that the kernel unpacks as its root: `programs` are names in PATH or paths, `files` guest path: bytes."""
    entries = {}

    def folder(name):
        if name and name != "." and name not in entries:
            folder(os.path.dirname(name))
            entries[name] = (0o40755, b"", 0)

    def file(name, data, mode=0o755):
        folder(os.path.dirname(name))
        entries[name] = (0o100000 | mode, data, 0)

    for name in ("proc", "sys", "dev", "tmp", "mnt", "out", "run", "etc", "root", "sbin", "usr/bin", "usr/sbin"):
        folder(name)
    entries["dev/console"] = (0o20600, b"", os.makedev(5, 1))
    entries["dev/null"] = (0o20666, b"", os.makedev(1, 3))
    libraries = set()
    for program in ["busybox", *programs]:
        found = shutil.which(program, path=PATH)
        if found is None:
            raise Ended(f"no program {program} on this machine: run `make setup-vm`")
        file("bin/" + os.path.basename(program), Path(found).read_bytes())
        libraries |= shared_libraries(found)
    for library in libraries:
        file(library.lstrip("/"), Path(library).read_bytes())
    for module in (kernel / "lib").rglob("*"):
        if module.is_file():
            file(str(module.relative_to(kernel)), module.read_bytes(), 0o644)
    file(f"boot/config-{kernel.name}", (kernel / "config").read_bytes(), 0o644)
    for name, data in files.items():
        file(name, data, 0o600)
    file("init", (HERE / "guest/init").read_bytes())
    file("vm/prelude", (HERE / "guest/prelude").read_bytes(), 0o644)
    file("vm/scenario", scenario.read_bytes(), 0o644)
    return cpio(entries)


def shared_libraries(program):
    """What the loader would map for `program`, and the loader itself; nothing for a static one."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True)
    return set(re.findall(r"(/\S+) \(0x", listed.stdout)) if listed.returncode == 0 else set()


def cpio(entries):
    """A "newc" archive of name: (mode, data, device). Source: Documentation/driver-api/early-userspace/buffer-format.rst."""
    parts = []
    for inode, (name, (mode, data, device)) in enumerate([*entries.items(), ("TRAILER!!!", (0, b"", 0))], 1):
        path = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, os.major(device), os.minor(device), len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)


def work_folder():
    """A scratch folder with a path short enough for a socket."""
    return tempfile.TemporaryDirectory(prefix="imara-vm-")
