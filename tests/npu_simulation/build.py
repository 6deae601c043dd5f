"""Makes the simulated NPU of tests; compiled once a machine, since that takes most of a minute."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

_HERE = Path(__file__).parent
_SOURCE = _HERE / "device.cpp"
_OPTIONS = ("-std=c++20", "-O0", "-fPIC", "-shared", "-w", "-DAT_PER_OPERATOR_HEADERS")
_DISTRIBUTION = {
    "METADATA": "Metadata-Version: 2.1\nName: npu-simulation\nVersion: 1\n",
    "entry_points.txt": "[torch.backends]\nnpu_simulation = npu_simulation:load\n",
}


def simulated_npu(folder: Path) -> Path:
    """Make a folder which, on the PYTHONPATH, gives torch a simulated device ``npu``; return it.

    It looks as if a distribution like torch-npu were installed there. The test that asks is skipped
    where there is no g++.
    """
    library = _library()
    distribution = folder / "npu_simulation-1.dist-info"
    distribution.mkdir(parents=True)
    for name, content in _DISTRIBUTION.items():
        (distribution / name).write_text(content)
    shutil.copy(_HERE / "npu_simulation.py", folder)
    (folder / library.name).symlink_to(library)
    return folder


def _library() -> Path:
    """Return the compiled device.cpp, of this session or an earlier one."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++, which compiles the simulated NPU")
    made_of = [_SOURCE.read_bytes(), torch.__version__.encode(), " ".join(_OPTIONS).encode()]
    digest = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"npu-simulation-{os.getuid()}-{digest}")
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / "device.so"
    if not library.exists():
        # Complete or absent, also when two sessions compile at the same time.
        partial = folder / f"device-{os.getpid()}.part"
        _compile(compiler, partial)
        partial.replace(library)
    return library


def _compile(compiler: str, target: Path) -> None:
    paths = [f"-I{path}" for path in include_paths()]
    for path in library_paths():
        paths += [f"-L{path}", f"-Wl,-rpath,{path}"]
    libraries = ("-ltorch", "-ltorch_cpu", "-lc10")
    command = [compiler, *_OPTIONS, *paths, str(_SOURCE), *libraries, "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
