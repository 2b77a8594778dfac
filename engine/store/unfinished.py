"""What a component in work leaves for the next build when it is killed: its exported, verified graph.

Exporting and verifying a large transformer takes minutes and compiling it takes minutes more, so the graph is
marked once it has passed. A graph with a mark is whole; everything else that a killed build leaves is rubbish.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.contracts.graph import ExportedGraph
from flowblending.system.whole_file import flush, replace_file

EXPORT = "export"
"""The folder for a graph's files in the folder of a component in work."""

_MARK = "verified.json"


def mark_verified(graph: ExportedGraph) -> None:
    """Note beside a graph that it, and all that lies with it, is whole and verified, for `verified_graph` to find."""
    files = sorted(path for path in graph.onnx.parent.iterdir() if path.is_file())
    for path in files:
        flush(path)
    mark = graph.onnx.with_name(_MARK)
    replace_file(mark, json.dumps({path.name: _identity(path) for path in files}).encode(), durable=False)


def verified_graph(work: Path, name: str) -> ExportedGraph | None:
    """The graph of component ``name`` that an interrupted build left verified in ``work``, untouched since."""
    folder = work / EXPORT
    try:
        mark = json.loads((folder / _MARK).read_text())
        if any(_identity(folder / file) != identity for file, identity in mark.items()):
            return None
        return ExportedGraph.read(folder / f"{name}.onnx")
    except (OSError, ValueError, AttributeError, FlowBlendingError):
        return None


def clear(work: Path, name: str) -> bool:
    """Remove what is in ``work``, the folder itself included, but for a verified graph; tells whether there is one."""
    if verified_graph(work, name) is None:
        remove(work)
        return False
    for path in work.iterdir():
        if path.name != EXPORT:
            remove(path)
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder with all that it holds; nothing if there is none.

    Raises:
        OSError: it is there and cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
