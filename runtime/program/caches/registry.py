"""Every step cache, in the order in which --help tells them, and which of them fb-calibrate measures."""

from __future__ import annotations

from flowblending.runtime.program.caches.cache import Cache, Decides, Measurement
from flowblending.runtime.program.caches.easycache import EASYCACHE_ONLINE, EASYCACHE_STATIC
from flowblending.runtime.program.caches.guidance import GUIDANCE
from flowblending.runtime.program.caches.magcache import MAGCACHE
from flowblending.runtime.program.caches.mask import INTERVAL, MASK, SCM
from flowblending.runtime.program.caches.taylor import TAYLOR
from flowblending.runtime.program.caches.teacache import TEACACHE
from flowblending.system.registry import Registry

CACHES: Registry[Cache] = Registry(
    "step cache",
    "flowblending.caches",
    (MASK, SCM, INTERVAL, MAGCACHE, TEACACHE, EASYCACHE_ONLINE, EASYCACHE_STATIC, TAYLOR, GUIDANCE),
)

MEASURED = tuple(each.measurement.name for each in map(CACHES.get, CACHES.built_in) if each.measurement is not None)
"""What --help of fb-calibrate offers; installed packages may add others."""


def measured_caches() -> dict[str, tuple[Cache, Measurement]]:
    """Every cache that has constants to be measured, by what fb-calibrate calls them."""
    return {each.measurement.name: (each, each.measurement) for each in CACHES.rows() if each.measurement is not None}


def measured_name(text: str) -> str:
    """The name of one of them, as the ``type`` of an option of argparse.

    Raises:
        ArgumentTypeError: there is none.
    """
    from argparse import ArgumentTypeError

    if text not in MEASURED and text not in measured_caches():
        raise ArgumentTypeError(f"nothing is measured for {text}; choose one of {', '.join(measured_caches())}.")
    return text


def cache_help() -> str:
    """What ``--cache`` does, in the words of every cache."""
    rows = [CACHES.get(name) for name in CACHES.built_in]
    alone = ", ".join(_form(each) for each in rows if each.decides is Decides.STEPS and not each.online)
    beside = " and ".join(f"+{each.form} {each.help}" for each in rows if each.decides is not Decides.STEPS)
    online = " or ".join(f"{each.form}, {each.help}" for each in rows if each.online)
    return f"leave out engine calls: {alone}, each with {beside}; or {online}"


def _form(cache: Cache) -> str:
    return f"{cache.form} ({cache.help})" if cache.help else cache.form
