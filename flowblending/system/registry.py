"""Tables of things that have a name: solvers, step caches, back ends, model families.

What the project brings stands in the table's own file, a row each. Another package adds rows by calling `register`, or
by declaring an entry point of the table's group, whose object is a row or a list of rows; that is how the command-line
programs and their worker processes know them too. Entry points are looked for when a name is not found or when all
rows are asked for, so that --help does not wait for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from flowblending import FlowBlendingError, UsageError


class Named(Protocol):
    """A row."""

    @property
    def name(self) -> str:
        """As command lines and files write it."""
        ...


Row = TypeVar("Row", bound=Named)


class Registry(Generic[Row]):
    """Rows by name, in the order in which they are offered.

    Args:
        kind: what a row is, for messages: ``solver``.
        group: of the entry points with which other packages add rows: ``flowblending.solvers``.
        rows: the project's own.
    """

    def __init__(self, kind: str, group: str, rows: Iterable[Row]) -> None:
        self._kind = kind
        self._group = group
        self._rows: dict[str, Row] = {}
        self._looked = False
        for row in rows:
            self.register(row)
        self.built_in = tuple(self._rows)
        """Names of the project's own rows, for help texts."""

    def register(self, row: Row) -> None:
        """Add a row; the same object may be added again.

        Raises:
            FlowBlendingError: another row has the name.
        """
        if self._rows.setdefault(row.name, row) is not row:
            raise FlowBlendingError(
                f"Two packages register a {self._kind} named {row.name}; rename or uninstall one of them."
            )

    def get(self, name: str) -> Row:
        """The row of a name.

        Raises:
            UsageError: there is none; the message lists those there are.
        """
        row = self.find(name)
        if row is None:
            raise UsageError(f"The {self._kind} {name} is unknown; choose one of {', '.join(self._rows)}.")
        return row

    def find(self, name: str) -> Row | None:
        """The row of a name, or None."""
        if name not in self._rows:
            self._look()
        return self._rows.get(name)

    def argument(self, text: str) -> str:
        """A name, as the ``type`` of an option of argparse.

        Raises:
            ArgumentTypeError: no row has it.
        """
        from argparse import ArgumentTypeError

        try:
            return self.get(text).name
        except UsageError as error:
            raise ArgumentTypeError(str(error)) from None

    def rows(self) -> tuple[Row, ...]:
        """Every row, those of other packages last."""
        self._look()
        return tuple(self._rows.values())

    def names(self) -> tuple[str, ...]:
        """Every name, those of other packages last."""
        return tuple(row.name for row in self.rows())

    def _look(self) -> None:
        """Add the rows of installed packages, once."""
        if self._looked:
            return
        from importlib.metadata import entry_points

        for point in entry_points(group=self._group):
            try:
                found = point.load()
            except Exception as error:  # whatever another package's code raises
                raise FlowBlendingError(
                    f"The {self._kind} {point.name} of {point.value} cannot be loaded ({type(error).__name__}: {error})"
                    "; mend or uninstall its package."
                ) from error
            for row in found if isinstance(found, list | tuple) else (found,):
                self.register(row)
        self._looked = True
