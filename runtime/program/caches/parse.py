"""The policies of a command line: ``scm:fast+taylor:1+guidance:3``."""

from __future__ import annotations

from flowblending import UsageError
from flowblending.runtime.program.caches.cache import Cache, Decides
from flowblending.runtime.program.caches.policy import StepCache
from flowblending.runtime.program.caches.registry import CACHES

OFF = "off"


def parse_cache(text: str) -> tuple[StepCache, ...]:
    """Read ``--cache``; no policy is ``off``.

    Raises:
        UsageError: ``text`` names no policy, or two that do not go together.
    """
    words = "".join(text.lower().split())
    if words == OFF:
        return ()
    found: dict[Decides, StepCache] = {}
    companions: list[str] = []
    for word in words.split("+"):
        cache, arguments = _find(word)
        if cache is None:
            raise UsageError(f"The cache {word or text!r} is unknown; give {_forms()}.")
        if cache.decides in found:
            raise UsageError(f"The cache {words} decides about the same engine calls twice; leave out {word}.")
        found[cache.decides] = cache.read(arguments, word)
        companions += [cache.steps] if cache.steps is not None else []
    if companions and Decides.STEPS not in found:
        (policy,) = parse_cache(companions[0])
        found[Decides.STEPS] = policy
    return tuple(found[kind] for kind in sorted(found))


def _find(word: str) -> tuple[Cache | None, str]:
    name, _, arguments = word.partition(":")
    return CACHES.find(name), arguments


def _forms() -> str:
    return f"{', '.join([OFF, *(each.example for each in CACHES.rows())])}, or several joined by +"
