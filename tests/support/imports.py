"""What a file imports, and whether it may: statements wherever they stand, names given to import functions, strings."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROJECT = "flowblending"
FACE = "flowblending/__init__.py"
_STAND_IN = "flowblending/diffusers.py"

_ROOMS = ("export", "engine", "runtime")
_INSIDE = ("contracts", "system")
_IMPORT_FUNCTIONS = {"import_module", "__import__", "find_spec", "run_module", "resolve_name"}
_NAMED = re.compile(rf"\b{PROJECT}(?:\.\w+)+")
_PUT_TOGETHER = re.compile(rf"\b{PROJECT}(?:\.\w+)*\.(?:\0|$)")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Who may import what.

    Attributes:
        packages: by a package's or a file's path (``engine/build``, ``runtime/jobs``), those that it may import beside
            itself. The longest path that a file lies in is its package.
        face: what of the project's face is everybody's: errors, the version.
        libraries: by a library, the folders and files that may import it; others may be imported anywhere.
        dynamic: files that import what a user names, or look whether a library is there.
    """

    packages: Mapping[str, Collection[str]]
    face: Collection[str]
    libraries: Mapping[str, Collection[str]]
    dynamic: Collection[str]


@dataclass(frozen=True)
class Import:
    """A module, or a name in it, as it is written at a line; ``None`` where the file does not say which."""

    line: int
    name: str | None


def files(root: Path) -> Iterator[str]:
    """Every file of the product, from the project's folder."""
    folders = [*(root / room for room in _ROOMS), *(root / PROJECT / name for name in _INSIDE)]
    yield from (FACE, _STAND_IN)
    yield from (str(path.relative_to(root)) for folder in folders for path in sorted(folder.rglob("*.py")))


def violations(root: Path, file: str, source: str, rules: Rules) -> list[str]:
    """Everything that a file may not import.

    Args:
        root: the project's folder.
        file: the file's path from there; it need not exist.
        source: its content.
        rules: that hold.
    """
    found = []
    own = PROJECT if file == FACE else _package(_plain(file).removesuffix(".py").removesuffix("/__init__"), rules)
    if own is None and not file.endswith("/__init__.py"):
        found.append(f"{file} lies in no package of the table; give it a row there")
    for each in imports(source, lambda name: is_module(root, name)):
        reason = _refused(file, own, each.name, rules)
        if reason is not None:
            found.append(f"{file}:{each.line} {reason}")
    return found


def _refused(file: str, own: str | None, name: str | None, rules: Rules) -> str | None:
    if name is None:
        return None if file in rules.dynamic else "imports by a name that is made while it runs"
    top, _, rest = name.partition(".")
    if top in ("tests", "benchmarks"):
        return f"imports {name}, which is no part of the product"
    if top != PROJECT:
        allowed = rules.libraries.get(top)
        if allowed is None or any(file == each or file.startswith(f"{each}/") for each in allowed):
            return None
        return f"imports {name}, which belongs to {' and '.join(sorted(allowed))}"
    path = rest.replace(".", "/")
    if path.partition("/")[0] not in (*_ROOMS, *_INSIDE):
        return None if path in ("", *rules.face) else f"imports {name}, which is for users of the product"
    other = _package(path, rules)
    if other is None:
        return f"imports {name}, which lies in no package of the table"
    if other == own or (own is not None and other in rules.packages[own]):
        return None
    return f"imports {name}, but {own or 'this file'} may not know {other}"


def _package(path: str, rules: Rules) -> str | None:
    fitting = [each for each in rules.packages if path == each or path.startswith(f"{each}/")]
    return max(fitting, key=len, default=None)


def _plain(file: str) -> str:
    return file.removeprefix(f"{PROJECT}/")


def is_module(root: Path, name: str) -> bool:
    """Whether a dotted name of the project is a file or a folder."""
    path = name.removeprefix(PROJECT).removeprefix(".").replace(".", "/")
    if not path:
        return True
    base = root / (PROJECT if path.partition("/")[0] in _INSIDE else "") / path
    return base.is_dir() or base.with_name(f"{base.name}.py").is_file()


def imports(source: str, known: Callable[[str], bool]) -> list[Import]:
    """Everything that a file imports.

    Args:
        source: its content.
        known: whether a dotted name of the project is a module: a string with one is an import, as some other part
            of the program will make it one; an entry point's group is none.
    """
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # A relative import does not say which: nobody finds it by searching for the module.
            found += [Import(node.lineno, None if node.level else f"{node.module}.{a.name}") for a in node.names]
        elif isinstance(node, ast.Call):
            found += _called(node)
        elif isinstance(node, ast.JoinedStr):
            text = "".join(str(each.value) if isinstance(each, ast.Constant) else "\0" for each in node.values)
            found += _written(node.lineno, text, known)
        elif isinstance(node, ast.Attribute):
            found += _reached(node, known)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (prose | parts):
            found += _written(node.lineno, node.value, known)
    return found


def _called(node: ast.Call) -> list[Import]:
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in _IMPORT_FUNCTIONS:
        return []
    given = [*node.args, *(each.value for each in node.keywords)][:1]
    literal = given and isinstance(given[0], ast.Constant) and isinstance(given[0].value, str)
    text = str(given[0].value) if literal and isinstance(given[0], ast.Constant) else ""
    return [Import(node.lineno, text if text and not text.startswith(".") else None)]


def _written(line: int, text: str, known: Callable[[str], bool]) -> list[Import]:
    found: list[Import] = []
    for name in _NAMED.findall(text):
        module = name
        while not known(module):
            module = module.rpartition(".")[0]
        if module != PROJECT:
            found.append(Import(line, module))
    if _PUT_TOGETHER.search(text):
        found.append(Import(line, None))
    return found


def _reached(node: ast.Attribute, known: Callable[[str], bool]) -> list[Import]:
    """``flowblending.engine.bundle``, of which some other import has made attributes."""
    names, value = [node.attr], node.value
    while isinstance(value, ast.Attribute):
        names.append(value.attr)
        value = value.value
    if not isinstance(value, ast.Name) or value.id != PROJECT:
        return []
    name = ".".join((PROJECT, *reversed(names)))
    return [Import(node.lineno, name)] if known(name) else []
