"""The guest: a Debian kernel and an initramfs of Debian packages, unpacked by hand.

Nothing is installed on the host and no root is needed: apt resolves against an empty package state,
dpkg-deb unpacks, cpio packs. All of it is kept in the cache and made again only when this file or
the guest's init changes.
"""

import contextlib
import fcntl
import hashlib
import lzma
import os
import pathlib
import re
import shutil
import subprocess

LAB = pathlib.Path(__file__).resolve().parent.parent
INIT = LAB / "guest" / "init"

# What scenarios use, and the libraries of recua and of the tools in bench/net.
PACKAGES = """
    bash busybox-static coreutils grep sed iproute2 kmod tcpdump
    ibverbs-providers ibverbs-utils librdmacm1 rdmacm-utils perftest
    python3-minimal python3-pyverbs libpython3-stdlib
    libstdc++6 libgomp1 libssl3 libprotobuf32 libpcre2-8-0 libutf8proc2 libspdlog1.10 libfmt9
    libhwloc15 libibverbs1 libudev1 zlib1g
""".split()
KERNEL_PACKAGE = "linux-image-amd64"
# rxe asks for "crc32" by name and pulls in no module that has it.
MODULES = """
    virtio_pci 9pnet_virtio 9p virtio_console virtio_net veth sch_netem sch_prio cls_u32
    crc32_generic ib_uverbs rdma_ucm rdma_rxe
""".split()
# Dependencies of dependencies that nothing in the guest runs.
SKIPPED_PACKAGES = re.compile(
    r"(adduser|debconf|dpkg|init-system-helpers|libdebconfclient|libpam|libperl|libsemanage|passwd|perl|"
    r"tar|usrmerge|base-files|udev|libdb5|libsepol)")
SKIPPED_PATHS = ["./usr/share", "./usr/include", "./var", "./usr/lib/x86_64-linux-gnu/gconv",
                 "./usr/lib/python3*/pydoc_data"]
TOOLS = ["qemu-system-x86_64", "apt-get", "apt-cache", "dpkg-deb", "tar", "cpio", "ldd"]
LIBRARIES = "usr/lib/x86_64-linux-gnu"


class ImageError(Exception):
    pass


def missing_tools(more=()):
    return [tool for tool in [*TOOLS, *more] if shutil.which(tool) is None]


def cache_folder():
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(os.environ.get("RECUA_LAB_CACHE") or pathlib.Path(home) / "recua-lab")


class Image:
    def __init__(self, say=lambda _: None):
        self.folder = cache_folder()
        self.vmlinux = self.folder / "vmlinux"
        self.initramfs = self.folder / "initramfs.cpio"
        self.libraries = self.folder / "libraries"  # Names of the shared libraries inside.
        self._stamp = self.folder / "stamp"
        self._root = self.folder / "root"
        self._say = say

    def prepare(self, force=False):
        """Makes what is missing or out of date; a no-op otherwise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "lock"):
            wanted = _wanted_stamp()
            if not force and self._stamp.exists() and self._stamp.read_text() == wanted:
                return
            self._say(f"preparing the virtual machine in {self.folder}")
            self._stamp.unlink(missing_ok=True)
            self._make()
            self._stamp.write_text(wanted)

    def clean(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def check_libraries(self, binary):
        """ImageError when the guest lacks a shared library that the binary needs."""
        inside = set(self.libraries.read_text().split())
        listed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
        needed = re.findall(r"^\s*(\S+) =>", listed, re.MULTILINE)
        absent = [name for name in needed if name not in inside]
        if absent:
            raise ImageError(f"{binary} needs {', '.join(absent)}, which the guest does not have: "
                             "add the package to lab/host/image.py")

    # Each step below leaves its result in the cache folder.

    def _make(self):
        apt = _Apt(self.folder)
        debs = apt.fetch(PACKAGES)
        kernel, version = apt.fetch_kernel(KERNEL_PACKAGE)
        shutil.rmtree(self._root, ignore_errors=True)
        self._unpack([deb for deb in debs if not SKIPPED_PACKAGES.match(deb.name)])
        self._install_kernel(kernel, version)
        self._install_files()
        self.libraries.write_text("".join(
            f"{path.name}\n" for path in sorted((self._root / LIBRARIES).glob("*.so*"))))
        self._pack()
        shutil.rmtree(self._root)

    def _unpack(self, debs):
        for name in ("bin", "sbin", "lib", "lib64"):
            (self._root / "usr" / name).mkdir(parents=True)
            (self._root / name).symlink_to(f"usr/{name}")
        excludes = [f"--exclude={path}" for path in SKIPPED_PATHS]
        for deb in debs:
            _unpack_deb(deb, self._root, ["--keep-directory-symlink", *excludes])

    def _kmod(self, name, *arguments):
        """depmod or modprobe out of the unpacked packages: the host need not have them."""
        libraries = self._root / LIBRARIES
        done = subprocess.run(
            [libraries / "ld-linux-x86-64.so.2", "--library-path", libraries, "--argv0", name,
             self._root / "usr/bin/kmod", *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ImageError(f"{name} {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def _install_kernel(self, deb, version):
        tree = self.folder / "kernel-tree"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        _unpack_deb(deb, tree, [])
        self.vmlinux.write_bytes(_extract_vmlinux((tree / "boot" / f"vmlinuz-{version}").read_bytes()))

        self._kmod("depmod", "-b", tree, version)
        modules = f"lib/modules/{version}"
        (self._root / modules).mkdir(parents=True)
        for path in [tree / modules / "modules.order", *(tree / modules).glob("modules.builtin*")]:
            shutil.copy(path, self._root / modules)
        for module in MODULES:
            shown = self._kmod("modprobe", "-d", tree, "-S", version, "--show-depends", module)
            for line in shown.splitlines():
                if line.startswith("insmod "):
                    source = pathlib.Path(line.split()[1])
                    target = self._root / source.relative_to(tree)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, target)
        self._kmod("depmod", "-b", self._root, version)
        shutil.rmtree(tree)

    def _install_files(self):
        root = self._root
        for name in ("proc", "sys", "dev", "ctl", "lab", "tmp", "run", "root", "etc", "var/tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "etc/lab-modules").write_text(" ".join(MODULES) + "\n")
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n"
                                         "nobody:x:65534:65534:nobody:/tmp:/bin/bash\n"
                                         "tcpdump:x:0:0:tcpdump:/:/bin/false\n")
        (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
        (root / "etc/hosts").write_text("127.0.0.1 localhost\n10.9.0.1 node-a\n10.9.0.2 node-b\n")
        shutil.copy(INIT, root / "init")
        (root / "init").chmod(0o755)
        if not (root / "usr/bin/sh").exists():
            (root / "usr/bin/sh").symlink_to("bash")
        if not (root / "usr/bin/python3").exists():
            (root / "usr/bin/python3").symlink_to("python3.11")
        applets = subprocess.run([root / "usr/bin/busybox", "--list"], capture_output=True, text=True,
                                 check=True).stdout.split()
        for name in applets:
            if not any(os.path.lexists(root / folder / name) for folder in ("usr/bin", "usr/sbin")):
                (root / "usr/bin" / name).symlink_to("busybox")

    def _pack(self):
        names = sorted(str(path.relative_to(self._root)) for path in self._root.rglob("*"))
        unfinished = self.initramfs.with_suffix(".new")
        with unfinished.open("wb") as out:
            subprocess.run(["cpio", "-0", "-o", "-H", "newc", "-R", "0:0", "--quiet"], cwd=self._root,
                           input="\0".join(names).encode(), stdout=out, check=True)
        unfinished.replace(self.initramfs)


def _wanted_stamp():
    return hashlib.sha256(pathlib.Path(__file__).read_bytes() + INIT.read_bytes()).hexdigest()


@contextlib.contextmanager
def _locked(path):
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unpack_deb(deb, folder, tar_options):
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as source:
        subprocess.run(["tar", "-x", "-C", folder, "--no-same-owner", *tar_options],
                       stdin=source.stdout, check=True)
    if source.returncode != 0:
        raise ImageError(f"dpkg-deb cannot read {deb}")


def _extract_vmlinux(image):
    """The kernel that a bzImage holds packed: the emulated CPU needs seconds to unpack it, we one."""
    at = image.find(b"\xfd7zXZ\0")
    while at >= 0:
        with contextlib.suppress(lzma.LZMAError):
            unpacked = lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(image[at:])
            if unpacked.startswith(b"\x7fELF"):
                return unpacked
        at = image.find(b"\xfd7zXZ\0", at + 1)
    raise ImageError("no XZ-compressed kernel found in the kernel package's image")


class _Apt:
    """apt with a state of its own: an empty package status makes it name every dependency."""

    def __init__(self, folder):
        self._debs = folder / "debs"
        self._lists = folder / "apt-lists"
        (self._debs / "partial").mkdir(parents=True, exist_ok=True)
        (folder / "no-debs" / "partial").mkdir(parents=True, exist_ok=True)
        (folder / "dpkg-status").write_text("")
        self._options = [
            "-o", f"Dir::State::status={folder / 'dpkg-status'}", "-o", "Debug::NoLocking=1",
            "-o", "APT::Sandbox::User=", "-o", "APT::Install-Recommends=false"]
        self._archives = ["-o", f"Dir::Cache::archives={self._debs}"]
        self._no_archives = ["-o", f"Dir::Cache::archives={folder / 'no-debs'}"]

    def fetch(self, packages):
        """Paths of the packages' .deb files and of all they depend on."""
        if not self._works(packages):
            self._update()
        listed = self._get([*self._no_archives, "--print-uris", "-y", "install", *packages])
        names = re.findall(r"^'[^']*' (\S+\.deb) ", listed, re.MULTILINE)
        self._get([*self._archives, "-y", "--download-only", "install", *packages])
        return [self._debs / name for name in names]

    def fetch_kernel(self, meta_package):
        """The .deb of the kernel that the meta package names now, and its version."""
        depends = subprocess.run(["apt-cache", *self._options, "depends", meta_package],
                                 capture_output=True, text=True, check=False).stdout
        found = re.search(r"Depends: (linux-image-(\S+))", depends)
        if found is None:
            raise ImageError(f"apt knows no package that {meta_package} depends on")
        package, version = found.groups()
        listed = self._get([*self._no_archives, "--print-uris", "download", package])
        name = re.search(r"^'[^']*' (\S+\.deb) ", listed, re.MULTILINE).group(1)
        if not (self._debs / name).exists():
            self._get(["download", package], cwd=self._debs)
        return self._debs / name, version

    def _works(self, packages):
        with contextlib.suppress(ImageError):
            self._get([*self._no_archives, "--print-uris", "-y", "install", *packages, KERNEL_PACKAGE])
            return True
        return False

    def _update(self):
        """The host's package lists are missing or old: fetch some of our own."""
        (self._lists / "partial").mkdir(parents=True, exist_ok=True)
        self._options += ["-o", f"Dir::State::lists={self._lists}"]
        self._get(["update"])

    def _get(self, arguments, cwd=None):
        done = subprocess.run(["apt-get", "-qq", *self._options, *arguments], cwd=cwd,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                              env={**os.environ, "LC_ALL": "C"})
        if done.returncode != 0:
            raise ImageError(f"apt-get {' '.join(arguments[-3:])}: {done.stderr.strip()}")
        return done.stdout
