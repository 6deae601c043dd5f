"""What the ranks of a sandboxed job see: the machine's programs, their run, and nothing else.

bubblewrap builds a new root around the launcher: system folders and the Python of the worker to
read, devices, an own /tmp, home and shared memory, and the mounts of the launch. What is not named
here is not there. A user namespace of its own keeps the ranks, even those of root, from the memory
and environment of every process outside: the kernel says no (ptrace_may_access, ptrace(2)).
Processes keep their numbers and the network is that of the machine; see decision 0010.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trainjob.errors import LaunchError, Problem
from trainjob.launch.bubblewrap import INSTALL_BWRAP, refusal
from trainjob.launch.launch import Device, Launch, Mount
from trainjob.workspace import workspaces_dir

SHOWN_ENV = "TRAINJOB_SANDBOX_SHOWS"
"""Names more folders of the worker's machine to show, to read only, separated as in PATH."""

_SYSTEM = ("bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr")
_SYSTEM_PARTS = [(), *((name,) for name in _SYSTEM)]
_SETTINGS = (
    *("passwd", "group", "hosts", "host.conf", "hostname", "resolv.conf", "nsswitch.conf"),
    *("gai.conf", "protocols", "services", "localtime", "timezone", "os-release", "alternatives"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "mime.types", "locale.alias", "fonts"),
    # Certificates, and no private keys.
    *("ssl/certs", "ssl/cert.pem", "ssl/openssl.cnf", "ca-certificates", "pki/tls/certs"),
    *("pki/tls/cert.pem", "pki/tls/openssl.cnf", "pki/ca-trust"),
    # Drivers and MPI.
    *("OpenCL", "vulkan", "libibverbs.d", "ascend_install.info", "hccn.conf", "openmpi"),
)
"""What programs read in /etc. The rest may hold keys and passwords."""

_ACCELERATORS: Mapping[Device, tuple[str, ...]] = {
    "cpu": (),
    "cuda": ("nvidia*", "dri", "kfd", "infiniband", "gdrdrv"),
    "npu": ("davinci*", "devmm_svm", "hisi_hdc", "infiniband"),
}
_PATHS_IN_ENV = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", SHOWN_ENV),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"),
)

_Placed = tuple[str, tuple[str, ...]]
"""A path, and the words that put something there."""


def sandbox_of(launch: Launch, search_path: str) -> list[str]:
    """Return the words that go before the command of a launch to have it in a sandbox.

    Args:
        launch: What is started; folders of its mounts that are not there are made.
        search_path: Where bubblewrap is looked for, as a PATH.

    Raises:
        LaunchError: If there is no sandbox to be had on this machine.
    """
    return sandbox_argv(
        launch.mounts,
        search_path,
        folder=launch.code_dir,
        device=launch.device,
        python=launch.python,
    )


def sandbox_argv(
    mounts: Sequence[Mount],
    search_path: str,
    *,
    folder: Path,
    device: Device = "cpu",
    python: Path | None = None,
) -> list[str]:
    """Return the words that go before a command to have it in a sandbox.

    Args:
        mounts: What is shown beside the system. A source that is not there is made, as a folder.
        search_path: Where bubblewrap is looked for, as a PATH.
        folder: The working directory.
        device: Kind of device that is shown.
        python: A Python in a virtual environment, to be shown beside that of this process.

    Raises:
        LaunchError: If there is no sandbox to be had on this machine.
    """
    if problems := sandbox_problems(search_path):
        raise LaunchError("\n".join(map(str, problems)))
    for mount in mounts:
        _make(mount)
    bwrap = str(shutil.which("bwrap", path=search_path))
    return _argv(bwrap, mounts, folder=folder, device=device, python=python)


def sandbox_problems(search_path: str) -> list[Problem]:
    """Return why there is no sandbox on this machine; nothing is changed."""
    bwrap = shutil.which("bwrap", path=search_path)
    if bwrap is None:
        do = f"{INSTALL_BWRAP}, or write sandbox: false"
        return [Problem("sandbox", "true", "no bubblewrap", do)]
    argv = _argv(bwrap, (), folder=Path("/"), device="cpu", python=None)
    if found := refusal([*argv, sys.executable, "-I", "-S", "-c", ""]):
        do = (
            "let the worker's user make user namespaces (docker run --security-opt "
            "seccomp=unconfined; a sysctl or an AppArmor profile of the distribution), or write "
            "sandbox: false"
        )
        return [Problem("sandbox", "true", f"a bubblewrap that may not run here ({found})", do)]
    return []


def shows(path: str, mounts: Sequence[Mount], python: Path | None) -> bool:
    """Tell whether a path lies in what a sandbox shows; the device does not matter.

    Args:
        path: An absolute path; there need be nothing.
        mounts: What is shown beside the system.
        python: A Python in a virtual environment, which is shown too.
    """
    places = [place for place, _ in (*_system(), *_settings(), *_programs(python))]
    places += ["/proc", "/sys", "/dev", *(mount.target for mount in mounts)]
    return any(Path(path).is_relative_to(place) for place in places)


def _make(mount: Mount) -> None:
    try:
        if not mount.source.exists():
            mount.source.mkdir(parents=True)
    except OSError as error:
        raise LaunchError(
            f"asked to show {str(mount.source)!r} as {mount.target}, found: {error.strerror}; "
            "have it made so that the worker's user can read it"
        ) from error


def _argv(
    bwrap: str, mounts: Sequence[Mount], *, folder: Path, device: Device, python: Path | None
) -> list[str]:
    placed = [*_system(), *_settings(), *_programs(python)]
    placed += [*_covers([path for path, _ in placed]), *map(_mounted, mounts)]
    words = [bwrap, "--die-with-parent", "--unshare-user", "--unshare-ipc", "--cap-drop", "ALL"]
    words += ("--ro-bind", "/proc", "/proc", "--ro-bind-try", "/sys", "/sys", "--dev", "/dev")
    for pattern in _ACCELERATORS[device]:
        for path in sorted(map(str, Path("/dev").glob(pattern))):
            words += ("--dev-bind-try", path, path)
    # Those above others first; of two at one place the one that was named later.
    for _, part in sorted(placed, key=lambda item: Path(item[0]).parts):
        words += part
    # What a script wrote anywhere else would be gone with the sandbox: better it is told.
    return [*words, "--remount-ro", "/", "--chdir", str(folder), "--"]


def _system() -> Iterator[_Placed]:
    for path in (Path("/", name) for name in _SYSTEM):
        if path.is_symlink():
            yield str(path), ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield _read_only(str(path))


def _settings() -> Iterator[_Placed]:
    return map(_read_only, (f"/etc/{name}" for name in _SETTINGS))


def _programs(python: Path | None) -> Iterator[_Placed]:
    """Yield what of Python, and of what the environment names, lies outside of the system."""
    paths = {
        *(sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix),
        *(path for path in sys.path if path.endswith("-packages")),
        *_links_of(Path(sys.executable)),
        str(Path(__file__).parents[1]),  # trainjob itself, which may be in a checkout
        *(path for name in _PATHS_IN_ENV for path in os.environ.get(name, "").split(os.pathsep)),
    }
    if python is not None:
        paths |= {str(python.parent.parent), *_links_of(python)}
    private = _private_places()
    for path in sorted(paths | {*map(os.path.realpath, paths)}):
        is_elsewhere = path.startswith("/") and Path(path).parts[1:2] not in _SYSTEM_PARTS
        if is_elsewhere and Path(path).exists() and Path(path).resolve() not in private:
            yield _read_only(path)


def _links_of(program: Path) -> Iterator[str]:
    """Yield the folders through which the links of a program lead."""
    while program.is_symlink():
        program = program.parent / program.readlink()
        yield str(program.parent)


def _covers(shown: Sequence[str]) -> Iterator[_Placed]:
    """Yield an empty folder for every private place that lies in something that is shown."""
    private = [place for place in _private_places() if place.is_dir()]
    for path in shown:
        real = Path(path).resolve()
        for place in private:
            if real in place.parents:
                target = str(Path(path) / place.relative_to(real))
                yield target, ("--tmpfs", target)


def _private_places() -> list[Path]:
    """Return where the worker keeps what is not the job's, without links."""
    names = ("TRAINJOB_CACHE_DIR", "TRAINJOB_REGISTRY", "PREFECT_HOME")
    places = [Path("~").expanduser(), workspaces_dir()]
    places += [Path(os.environ[name]) for name in names if os.environ.get(name)]
    return [place.resolve() for place in places]


def _read_only(path: str) -> _Placed:
    return path, ("--ro-bind-try", path, path)


def _mounted(mount: Mount) -> _Placed:
    how = "--ro-bind" if mount.is_read_only else "--bind"
    return mount.target, (how, str(mount.source), mount.target)
