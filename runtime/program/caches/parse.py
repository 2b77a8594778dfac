"""The policies of a command line: ``scm:fast+taylor:1+guidance:3``."""

from __future__ import annotations

import math
from collections.abc import Callable

from flowblending import UsageError
from flowblending.runtime.options import OFF
from flowblending.runtime.program.caches.easycache import FIRST, THRESHOLD, EasyCache, EasyMask
from flowblending.runtime.program.caches.guidance import GuidanceSkip
from flowblending.runtime.program.caches.magcache import MagCache
from flowblending.runtime.program.caches.mask import SCM, Interval, Scm, StaticMask
from flowblending.runtime.program.caches.policy import StepCache
from flowblending.runtime.program.caches.taylor import MAX_ORDER, Taylor
from flowblending.runtime.program.caches.teacache import TeaCache

FORMS = (
    "off, mask:1101..., scm:fast, interval:5, magcache, teacache, easycache, easycache-static, taylor:1, guidance:5, "
    "or several joined by +"
)

_TAYLOR_INTERVAL = 5
"""Of ``taylor`` alone: TaylorSeer's own for Wan 2.1 (``fresh_threshold``)."""


def parse_cache(text: str) -> tuple[StepCache, ...]:
    """Read ``--cache``; no policy is ``off``.

    Raises:
        UsageError: ``text`` names no policy, or two that do not go together.
    """
    words = "".join(text.lower().split())
    if words == OFF:
        return ()
    found: dict[int, StepCache] = {}
    for word in words.split("+"):
        name, _, arguments = word.partition(":")
        if name not in _KINDS:
            raise UsageError(f"The cache {word or text!r} is unknown; give {FORMS}.")
        kind, read = _KINDS[name]
        if kind in found:
            raise UsageError(f"The cache {words} decides about the same engine calls twice; leave out {word}.")
        found[kind] = read(arguments, word)
    if _TAYLOR in found and _STEPS not in found:
        found[_STEPS] = Interval(every=_TAYLOR_INTERVAL)
    return tuple(found[kind] for kind in sorted(found))


def _mask(arguments: str, word: str) -> StaticMask:
    if not arguments or set(arguments) - {"0", "1"}:
        raise UsageError(f"The cache {word} has no mask; write a digit for every step, 1 to compute and 0 to reuse.")
    return StaticMask(digits=arguments)


def _scm(arguments: str, word: str) -> Scm:
    if arguments not in SCM:
        raise UsageError(f"The cache {word} is no mask that is published; give scm: and {', '.join(SCM)}.")
    return Scm(name=arguments)


def _interval(arguments: str, word: str) -> Interval:
    return Interval(every=_whole(word, arguments, low=2))


def _taylor(arguments: str, word: str) -> Taylor:
    return Taylor(order=_whole(word, arguments or "1", low=0, high=MAX_ORDER))


def _magcache(arguments: str, word: str) -> MagCache:
    if not arguments:
        return MagCache()
    threshold, _, most = arguments.partition(",")
    return MagCache(threshold=_positive(word, threshold), most=_whole(word, most, low=1) if most else None)


def _teacache(arguments: str, word: str) -> TeaCache:
    return TeaCache(threshold=_positive(word, arguments)) if arguments else TeaCache()


def _easycache(arguments: str, word: str) -> EasyCache:
    threshold, first = _threshold_and_first(arguments, word)
    return EasyCache(threshold=threshold, first=first)


def _easymask(arguments: str, word: str) -> EasyMask:
    threshold, first = _threshold_and_first(arguments, word)
    return EasyMask(threshold=threshold, first=first)


def _threshold_and_first(arguments: str, word: str) -> tuple[float, int]:
    threshold, _, first = arguments.partition(",")
    return (
        _positive(word, threshold) if arguments else THRESHOLD,
        _whole(word, first, low=1) if first else FIRST,
    )


def _guidance(arguments: str, word: str) -> GuidanceSkip:
    if not arguments:
        return GuidanceSkip()
    every, _, below = arguments.partition(",")
    number = _whole(word, every, low=2)
    return GuidanceSkip(every=number, below=_positive(word, below)) if below else GuidanceSkip(every=number)


def _whole(word: str, text: str, *, low: int, high: int | None = None) -> int:
    # Nine digits are enough for anything, and int() refuses thousands of them with an error of its own.
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= (high or int(text))):
        wanted = f"from {low} on" if high is None else f"from {low} to {high}"
        raise UsageError(f"The cache {word} has {text or 'nothing'} where a whole number {wanted} was expected.")
    return int(text)


def _positive(word: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"The cache {word} has {text or 'nothing'} where a number above 0 was expected.")
    return value


_STEPS, _TAYLOR, _GUIDANCE = range(3)
_KINDS: dict[str, tuple[int, Callable[[str, str], StepCache]]] = {
    "mask": (_STEPS, _mask),
    "scm": (_STEPS, _scm),
    "interval": (_STEPS, _interval),
    "magcache": (_STEPS, _magcache),
    "teacache": (_STEPS, _teacache),
    "easycache": (_STEPS, _easycache),
    "easycache-static": (_STEPS, _easymask),
    "taylor": (_TAYLOR, _taylor),
    "guidance": (_GUIDANCE, _guidance),
}
"""At most one of each kind, applied in this order: guidance counts the steps that the others leave."""
