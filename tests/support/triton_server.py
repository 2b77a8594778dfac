"""The real Triton server, as the package nvidia-pytriton carries it, in an environment of its own.

``python -m tests.support.triton_server`` installs it ahead of the tests, under ``.venv/triton``. The server's
Python backend is older than numpy 2, and so its models cannot run in the environment of the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv" / "triton"
SERVER = "nvidia-pytriton==0.7.0"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

MODEL_PACKAGES = ("numpy<2", "onnxruntime", "tokenizers", "ftfy", "av", "pillow", "pydantic", "rich")
"""What flowblending needs to run a bundle on a CPU; flowblending itself is found by PYTHONPATH."""

START_SECONDS = 180
"""For the server, and for the process of a model: on busy cores they take half a minute and more."""


class Unavailable(Exception):
    """The server cannot run on this machine; the message says why."""


def install(folder: Path = FOLDER) -> Path:
    """The environment with the server, made if it is not there.

    Raises:
        Unavailable: there is no server for this platform, or the Python library that it loads is missing.
    """
    if sys.platform != "linux":
        raise Unavailable(f"tritonserver runs on Linux, and this is {sys.platform}")
    library = str(sysconfig.get_config_var("INSTSONAME") or f"libpython{PYTHON}.so.1.0")
    try:
        ctypes.CDLL(_library_path(library))
    except OSError:
        raise Unavailable(f"{library} is missing; on Debian: apt-get install libpython{PYTHON}") from None
    wanted = "\n".join([SERVER, PYTHON, platform.machine(), *MODEL_PACKAGES])
    marker = folder / "installed"
    if not marker.is_file() or marker.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder)
        pins = folder / "constraints.txt"
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        pins.write_text("\n".join(line for line in lines if not line.startswith("numpy==")))
        # Without its dependencies: they are those of a client library that is not used here.
        _install(folder, "--no-deps", SERVER)
        _install(folder, "--constraint", str(pins), *MODEL_PACKAGES)
        marker.write_text(wanted)
    return folder


def _library_path(name: str) -> str:
    """A shared Python beside the interpreter, else one that the loader knows."""
    local = Path(str(sysconfig.get_config_var("LIBDIR"))) / name
    return str(local) if local.is_file() else name


def _install(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(folder / "bin" / "python")]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if "No solution found" in result.stderr:
        raise Unavailable(f"There is no {' '.join(arguments)} for this platform")
    if result.returncode:
        raise RuntimeError(result.stderr)


@dataclass(kw_only=True)
class TritonServer:
    """A running server without any model loaded.

    Attributes:
        http, grpc: its ports on 127.0.0.1.
        log: where everything that it prints goes.
    """

    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    log: Path

    @property
    def url(self) -> str:
        """Where a gRPC client connects to."""
        return f"127.0.0.1:{self.grpc}"

    def post(self, path: str, body: object = None, timeout: float = START_SECONDS) -> bytes:
        """The answer to a POST; an answer with an error status raises ``urllib.error.HTTPError``."""
        data = json.dumps({} if body is None else body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/{path}", data, timeout) as answer:
            content: bytes = answer.read()
        return content

    def load(self, model: str) -> None:
        """Load a model, or load it anew when it was unloaded."""
        self.post(f"repository/models/{model}/load")

    def unload(self, model: str) -> None:
        """Unload a model; one that is still answering goes when it has answered."""
        self.post(f"repository/models/{model}/unload")

    def wait_until_gone(self, model: str) -> None:
        """Wait for a model that was unloaded. One whose process was killed at work never goes, but can be loaded."""
        deadline = time.monotonic() + 30
        while any(each["name"] == model and each.get("state") != "UNAVAILABLE" for each in self.index()):
            assert time.monotonic() < deadline, f"{model} is not unloaded: {self.index()}"
            time.sleep(0.05)

    def index(self) -> list[dict[str, Any]]:
        """Name, state and reason of every model in the repository."""
        found: list[dict[str, Any]] = json.loads(self.post("repository/index"))
        return found

    def stubs(self, model: str) -> list[int]:
        """The processes in which a Python model runs."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_bytes()
                if parent == self.process.pid and b"stub" in command and f"/{model}/".encode() in command:
                    found.append(int(folder.name))
        return found


@contextlib.contextmanager
def serve(environment: Path, repository: Path, scratch: Path) -> Iterator[TritonServer]:
    """A server that loads models when it is told to; ended, and its shared memory removed, at the end."""
    packages = environment / "lib" / f"python{PYTHON}" / "site-packages"
    distribution = packages / "pytriton"
    # The backend wants the stub for this Python beside it; an installed package is not written into.
    backends = scratch / "backends"
    shutil.copytree(distribution / "tritonserver" / "backends" / "python", backends / "python")
    stub = distribution / "tritonserver" / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    http, grpc = _free_port(), _free_port()
    prefix = f"flowblending_{os.getpid()}_{http}_"
    command = [
        str(distribution / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        f"--backend-config=python,stub-timeout-seconds={START_SECONDS}",
        *(f"--{each}-address=127.0.0.1" for each in ("http", "grpc")),
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        "--allow-metrics=false",
        "--model-control-mode=explicit",
        "--exit-timeout-secs=3",
    ]
    python_library = sysconfig.get_config_var("LIBDIR")
    variables = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{python_library}",
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(scratch / "cache"),
    }
    log = scratch / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)
    try:
        server = TritonServer(process=process, http=http, grpc=grpc, log=log)
        _wait_until_live(server)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for region in Path("/dev/shm").glob(f"{prefix}*"):
            region.unlink()


def _wait_until_live(server: TritonServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{server.http}/v2/health/live"):
            return
        time.sleep(0.1)
    raise RuntimeError(f"tritonserver did not start:\n{server.log.read_text(errors='replace')[-3000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    try:
        print(install())
    except Unavailable as error:
        print(f"skipped: {error}")
