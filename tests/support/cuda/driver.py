"""What tests ask of the stand-in: its journal, its memory, and when its streams run. Only where it is loaded."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.cuda.build import LIBRARY

HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@dataclass(frozen=True)
class Entry:
    """An entry of the journal; see ``driver/journal.hpp``."""

    what: str
    name: str
    device: int
    stream: int
    bytes: int
    address: int
    captured: bool

    @classmethod
    def read(cls, line: str) -> Entry:
        what, name, device, stream, size, address, captured = line.split("|")
        return cls(what, name, int(device), int(stream), int(size), int(address), captured == "1")

    def __str__(self) -> str:
        return f"{self.what} {self.name}".strip()


class Driver:
    """The loaded stand-in."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        for name in ("journal", "faults"):
            self._function(name).restype = ctypes.c_void_p
        self._function("free").argtypes = [ctypes.c_void_p]
        for name in ("used", "reserved", "used_high", "limit"):
            self._function(name).restype = ctypes.c_uint64
        self._function("set_limit").argtypes = [ctypes.c_int, ctypes.c_uint64]
        self._function("alias").restype = ctypes.c_void_p
        self._function("alias").argtypes = [ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p]
        self._library.cuLaunchHostFunc.argtypes = [ctypes.c_void_p, HOST_FUNCTION, ctypes.c_void_p]
        self._library.cuMemAlloc_v2.argtypes = [ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t]
        self._library.cuMemFree_v2.argtypes = [ctypes.c_uint64]

    def journal(self) -> list[Entry]:
        """Everything since it was last asked for."""
        return [Entry.read(line) for line in self._text("journal")]

    def note(self, name: str) -> None:
        """Write a line of the test's own into the journal."""
        self._function("note")(name.encode())

    def faults(self) -> list[str]:
        """What no GPU would survive, since it was last asked for; a test that leaves any fails."""
        return self._text("faults")

    def say_fault(self, sentence: str) -> None:
        """Add a fault."""
        self._function("fault")(sentence.encode())

    def revive(self) -> list[str]:
        """The faults; what was enqueued is forgotten, and the driver works again."""
        self._function("revive")()
        return self.faults()

    def used(self, device: int = 0) -> int:
        """Bytes allocated and not yet freed in some stream's order."""
        return int(self._function("used")(device))

    def reserved(self, device: int = 0) -> int:
        """Bytes that other programs cannot have, those kept by pools among them."""
        return int(self._function("reserved")(device))

    @contextlib.contextmanager
    def measured(self, device: int = 0) -> Iterator[list[int]]:
        """A list that holds, in the end, the most bytes that were allocated at once."""
        self._function("forget_high")(device)
        peak: list[int] = []
        yield peak
        peak.append(int(self._function("used_high")(device)))

    @contextlib.contextmanager
    def limited(self, size: int, device: int = 0) -> Iterator[None]:
        """A GPU with as much memory as is allocated by now and ``size`` bytes more."""
        before = int(self._function("limit")(device))  # setting one has pools give back what they keep
        self._function("set_limit")(device, self.used(device) + size)
        try:
            yield
        finally:
            self._function("set_limit")(device, before)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Streams that run what they are given at once, which a fast GPU may do as well."""
        self._function("set_late")(0)
        try:
            yield
        finally:
            self._function("set_late")(1)

    def alias(self, address: int, size: int, device: int, user: str) -> int | None:
        """Where the host finds what is at a device address; None, and a fault, for memory that does not live."""
        found: int | None = self._function("alias")(address, size, device, user.encode())
        return found

    def call(self, function: ctypes._CFunctionType, stream: int) -> None:
        """Enqueue a function of the host; the caller keeps it alive."""
        status = self._library.cuLaunchHostFunc(stream, function, None)
        if status:
            raise RuntimeError(f"the stand-in refuses a host function with error {status}")

    def allocate(self, size: int) -> int:
        """Memory outside of every pool, as libraries take it. 0 if there is none left."""
        address = ctypes.c_uint64()
        status = self._library.cuMemAlloc_v2(ctypes.byref(address), size)
        return 0 if status else address.value

    def free(self, address: int) -> None:
        """Give such memory back; waits for everything."""
        assert self._library.cuMemFree_v2(address) == 0

    def _function(self, name: str) -> ctypes._NamedFuncPointer:
        return getattr(self._library, f"stand_in_{name}")  # type: ignore[no-any-return] # ctypes makes it

    def _text(self, name: str) -> list[str]:
        pointer = self._function(name)()
        try:
            return ctypes.string_at(pointer).decode().splitlines()
        finally:
            self._function("free")(pointer)
