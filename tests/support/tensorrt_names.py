"""Names of TensorRT's Python bindings: those that this package uses, and those that a release has.

    python -m pip download --no-deps tensorrt-cu13-bindings==11.4.0.106
    python -m tests.support.tensorrt_names tensorrt_cu13_bindings-11.4.0.106-*.whl

writes what the wheel has to `RECORD`. Its libraries, gigabytes, are not needed: the bindings are loaded over empty
ones.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.cuda.build import compiler

RECORD: Final = Path(__file__).parents[1] / "engine/backends/tensorrt/names.json"
_SOURCES: Final = Path(__file__).parents[2] / "engine/backends/tensorrt"
_MODULE: Final = frozenset(("trt", "library.trt", "self._trt", "self._library.trt"))
_OBJECTS: Final = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "layer": "ILayer",
    "layer.attention": "IAttention",
    "constant": "IConstantLayer",
    "inspector": "EngineInspector",
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "self._runtime": "Runtime",
    "self.context": "IExecutionContext",
    "context.context": "IExecutionContext",
    "self._context.context": "IExecutionContext",
}
"""What the package calls the library's objects."""
_OBJECTS_OF: Final = {
    "compile.py": {"config": "IBuilderConfig"},
    "contexts.py": {"config": "IRuntimeConfig", "context": "IExecutionContext", "self._cache": "IRuntimeCache"},
}
_DUMP: Final = """
import json, sys
import tensorrt_bindings as trt
kinds = {name: kind for name, kind in vars(trt).items() if name in sys.argv[1:]}
names = {name: sorted(each for each in dir(kind) if each[0] != "_") for name, kind in kinds.items()}
print(json.dumps({"version": trt.__version__, "module": sorted(vars(trt)), "names": names}))
"""


def used_names() -> set[str]:
    """As ``IBuilderConfig.set_flag``, or ``fp8`` for what is the module's own."""
    return {name for path in sorted(_SOURCES.glob("*.py")) for name in _used(path)}


def _used(path: Path) -> Iterator[str]:
    objects = {**_OBJECTS, **_OBJECTS_OF.get(path.name, {})}
    for node in ast.walk(ast.parse(path.read_text())):
        parts = _chain(node)
        for cut in range(1, len(parts)):
            base = ".".join(parts[:cut])
            if base in _MODULE and parts[cut][0] != "_":
                yield ".".join(each for each in parts[cut : cut + 2] if each[0] != "_")
            elif base in objects and parts[cut][0] != "_":
                # A layer of attention is known as such once its class has been set.
                kind = "IAttentionInputLayer" if parts[cut] == "attention" else objects[base]
                yield f"{kind}.{parts[cut]}"


def _chain(node: ast.AST) -> list[str]:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) and parts else []


def read_names(wheel: Path) -> dict[str, object]:
    """What the bindings in a wheel have: their ``version``, the ``module``'s names, and ``names`` by class."""
    classes = sorted({name.partition(".")[0] for name in used_names()})
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        (library,) = Path(folder).glob("tensorrt_bindings/tensorrt.so")
        _empty_libraries(library, Path(folder))
        environment = {"LD_LIBRARY_PATH": folder, "PYTHONPATH": folder}
        told = subprocess.check_output([sys.executable, "-c", _DUMP, *classes], text=True, env=environment)
    found: dict[str, object] = json.loads(told)
    return found


def _empty_libraries(library: Path, folder: Path) -> None:
    """Libraries in place of TensorRT's, with functions of the names that the bindings look for."""
    listed = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True)
    symbols = re.findall(r" U ((?:create|get|init)\w+)$", listed, re.MULTILINE)
    needed = re.findall(r"\[(libnv\w+\.so\.\d+)\]", subprocess.check_output(["readelf", "-d", library], text=True))
    source = folder / "empty.cpp"
    source.write_text("".join(f'extern "C" void* {name}() {{ return nullptr; }}\n' for name in symbols))
    for name in needed:
        command = [str(compiler()), "-shared", "-fPIC", f"-Wl,-soname,{name}", source, "-o", folder / name]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    RECORD.write_text(json.dumps(read_names(Path(sys.argv[1])), indent=1) + "\n")
