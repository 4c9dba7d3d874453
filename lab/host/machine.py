"""Boots lab machines under QEMU and talks with the agent in each over a virtual serial port."""

import contextlib
import functools
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

from host.clock import counter_khz
from host.image import LAB

BOOT_SECONDS_MAX = 90  # 6 to 9 s on a quiet host; other load has doubled that.
# Mitigations and self-tests cost boot time; the clock is told, see clock.py.
KERNEL_ARGUMENTS = ("console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check "
                    "cryptomgr.notests random.trust_cpu=on")
MAC_ADDRESSES = {"a": "52:54:00:09:00:01", "b": "52:54:00:09:00:02"}


class MachineError(Exception):
    """The lab itself failed: not what was run in it."""


class Port:
    """Our end of one of a machine's virtual serial ports."""

    def __init__(self, path):
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)

    def accept(self, seconds):
        self._listener.settimeout(seconds)
        connection, _ = self._listener.accept()
        self._listener.close()
        return connection


class Lab:
    """One or two machines that are up together. A context manager: leaving it ends them."""

    def __init__(self, image, topology="one", mtu=4200, memory_mib=768, n_cpus=1, share=None,
                 project=None, workdir=None, variables=None, binaries=()):
        self.image = image
        self.topology = topology
        self.mtu, self.memory_mib, self.n_cpus = mtu, memory_mib, n_cpus
        self.share, self.project, self.workdir = share, project, workdir
        self.variables = variables or {}
        self.binaries = list(binaries)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="recua-lab-"))
        self.machines = []

    def __enter__(self):
        try:
            (self.folder / "sync").mkdir()
            for node in ["a"] if self.topology == "one" else ["a", "b"]:
                self.machines.append(Machine(self, node))
            for machine in self.machines:
                machine.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for machine in self.machines:
            machine.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, line, seconds):
        """Gives every machine the line at the same time; (exit code, seconds) of each, in order.

        A machine that does not answer in time, or is gone, has None as its exit code."""
        for machine in self.machines:
            machine.tell(line)
        ends = time.monotonic() + seconds
        return [machine.result(ends) for machine in self.machines]


class Machine:
    def __init__(self, lab, node):
        self.lab, self.node = lab, node
        self.folder = lab.folder / node
        self.ctl = self.folder / "ctl"
        self.ctl.mkdir(parents=True)
        self._write_settings()
        self._ports = [Port(self.folder / name) for name in ("out", "err", "agent")]
        self._qemu_log = (self.folder / "qemu").open("wb")
        self._process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL,
                                         stdout=self._qemu_log, stderr=subprocess.STDOUT)
        self._copiers = []
        self._agent = None
        self._received = b""

    def _write_settings(self):
        lab = self.lab
        settings = {"LAB_NODE": self.node, "LAB_TOPOLOGY": lab.topology, "LAB_MTU": lab.mtu,
                    "LAB_SHARE": lab.share or "", "LAB_PROJECT": lab.project or "",
                    "LAB_WORKDIR": lab.workdir or "", **lab.variables}
        (self.ctl / "env").write_text("".join(
            f"export {name}={_quoted(value)}\n" for name, value in settings.items()))
        (self.ctl / "bin").mkdir()
        for binary in lab.binaries:
            shutil.copy(binary, self.ctl / "bin")

    def _command(self):
        lab = self.lab
        threads = "multi" if lab.n_cpus > 1 else "single"
        command = [
            "qemu-system-x86_64", "-M", "q35", "-accel", f"tcg,thread={threads}", "-cpu", "max",
            "-smp", lab.n_cpus, "-m", lab.memory_mib,
            "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
            "-kernel", lab.image.vmlinux, "-initrd", lab.image.initramfs, "-append", _kernel_arguments(),
            "-serial", f"file:{self.folder / 'console'}", "-device", "virtio-serial-pci"]
        for number, port in enumerate(self._ports, start=1):
            command += ["-chardev", f"socket,id=port{number},path={port.path}",
                        "-device", f"virtserialport,chardev=port{number},nr={number}"]
        command += [*_shared("lab", LAB, read_only=True), *_shared("ctl", self.ctl)]
        if lab.share:
            command += _shared("share", lab.share)
        if lab.project:
            command += _shared("project", lab.project, read_only=True)
        if lab.topology == "two":
            peer = "b" if self.node == "a" else "a"
            command += [
                *_shared("sync", lab.folder / "sync"),
                "-netdev", f"dgram,id=n,local.type=unix,local.path={lab.folder / f'link-{self.node}'},"
                           f"remote.type=unix,remote.path={lab.folder / f'link-{peer}'}",
                "-device", f"virtio-net-pci,netdev=n,mac={MAC_ADDRESSES[self.node]},speed=10000,duplex=full"]
        return [str(part) for part in command]

    def wait_ready(self):
        ends = time.monotonic() + BOOT_SECONDS_MAX
        try:
            out, err, self._agent = (port.accept(10) for port in self._ports)
        except TimeoutError:
            raise MachineError(f"QEMU did not start:\n{self.console()}") from None
        prefix = f"{self.node}| " if self.lab.topology == "two" else ""
        for source, target in ((out, sys.stdout), (err, sys.stderr)):
            thread = threading.Thread(target=_copy_lines, args=(source, target, prefix), daemon=True)
            thread.start()
            self._copiers.append(thread)
        answer = self._answer(ends)
        if answer != "ready":
            raise MachineError(f"machine {self.node}: {answer or 'no word from its agent'}\n{self.console()}")

    def tell(self, line):
        with contextlib.suppress(OSError):
            self._agent.sendall(f"{line}\n".encode())

    def result(self, ends):
        """(exit code, seconds) of what it was told to do; (None, None) if no answer came."""
        words = (self._answer(ends) or "").split()
        if len(words) != 4 or words[0] != "done":
            return None, None
        return int(words[2]), int(words[3]) / 1000

    def _answer(self, ends):
        """The agent's next line, or None when the time is over or the machine gone."""
        while b"\n" not in self._received:
            try:
                self._agent.settimeout(max(0.001, ends - time.monotonic()))
                piece = self._agent.recv(4096)
            except OSError:  # Too late, or the connection is broken.
                return None
            if not piece:
                return None
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return line.decode(errors="replace")

    def console(self, n_lines=40):
        """The end of what QEMU and the kernel said."""
        lines = []
        for name in ("qemu", "console"):
            path = self.folder / name
            if path.exists():
                lines += path.read_text(errors="replace").splitlines()[-n_lines:]
        return "".join(f"console {self.node}| {line}\n" for line in lines)

    def end(self):
        # Nothing inside is worth a clean power-off: results lie on the host's disk already.
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for thread in self._copiers:
            thread.join(timeout=5)
        self._qemu_log.close()


@functools.lru_cache(maxsize=None)
def _kernel_arguments():
    khz = counter_khz()
    return KERNEL_ARGUMENTS + (f" tsc_early_khz={khz}" if khz else "")


def _shared(tag, folder, read_only=False):
    options = ",readonly=on" if read_only else ""
    return ["-virtfs", f"local,id={tag},path={folder},mount_tag={tag},security_model=none,"
                       f"multidevs=remap{options}"]


def _quoted(value):
    return "'" + str(value).replace("'", "'\\''") + "'"


def _copy_lines(source, target, prefix):
    """Everything from a port to one of our streams, live, a prefix before each line."""
    at_line_start = True
    with source:
        while True:
            try:
                piece = source.recv(65536)
            except OSError:
                return
            if not piece:
                return
            text = piece.decode(errors="replace")
            if prefix:
                ended = text.endswith("\n")
                body = text[:-1] if ended else text
                body = body.replace("\n", f"\n{prefix}")
                text = (prefix if at_line_start else "") + body + ("\n" if ended else "")
                at_line_start = ended
            target.write(text)
            target.flush()
