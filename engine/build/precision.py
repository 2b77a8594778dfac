"""Which precision each component is built in: ``bf16``, or ``large=bf16,small=fp16``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL, TEXT_ENCODER, Precision
from flowblending.engine.backends.registry import BACKENDS

VAE_KEY = "vae"
_TRANSFORMERS_ONLY = (Precision.FP16_MIXED, Precision.FP8)
_KEYS = (LARGE, SMALL, TEXT_ENCODER, VAE_KEY)


def choose_precisions(text: str | None, backend: str) -> Mapping[str, Precision]:
    """The precision of ``large``, ``small``, ``text_encoder`` and ``vae``.

    A bare precision is meant for both transformers. The text encoder and the VAE decoder follow only
    where they are named: the reference pipelines decode in fp32, and T5's feed-forward overflows fp16.
    fp16-mixed and fp8 are for the transformers alone: the text encoder's fp16 keeps its sums in fp32 as it is, and the
    VAE has fp32.

    Args:
        text: the option as given, or None for the back end's usual precision of the transformers and the text
            encoder, and fp32 for the VAE.
        backend: the library that will run the engines.

    Raises:
        UsageError: an unknown component or precision, or one that the back end or the component does not have.
    """
    high = base_precision(backend)
    chosen = {LARGE: high, SMALL: high, TEXT_ENCODER: high, VAE_KEY: Precision.FP32}
    for item in text.split(",") if text is not None else []:
        key, equals, value = item.strip().rpartition("=")
        if equals and key not in _KEYS:
            raise UsageError(f"--precision names {key!r}, but the components are {', '.join(_KEYS)}; use one of them.")
        for name in [key] if equals else [LARGE, SMALL]:
            chosen[name] = _parse(value, backend)
    for name, instead in ((TEXT_ENCODER, "fp16, whose sums are fp32 already"), (VAE_KEY, Precision.FP32)):
        if chosen[name] in _TRANSFORMERS_ONLY:
            raise UsageError(
                f"--precision asks for {name}={chosen[name]}, but only the transformers have that; "
                f"use {name}={instead}."
            )
    facts = BACKENDS.get(backend)
    for name, precision in chosen.items():
        if precision not in facts.precisions:
            whole = name in (LARGE, SMALL)
            named = "" if whole else f"{name}="
            fitting = [each for each in facts.precisions if whole or each not in _TRANSFORMERS_ONLY]
            raise UsageError(
                f"{precision} was asked for, but {facts.title} has no {precision} kernels for these graphs; use "
                f"--precision {named}{_either(fitting)}, or --backend {_either(_with(precision))}."
            )
    return chosen


def base_precision(backend: str) -> Precision:
    """A back end's usual precision of transformers, and that of an fp8 transformer where it is not fp8."""
    return BACKENDS.get(backend).base


def _with(precision: Precision) -> list[str]:
    """The back ends that have a precision."""
    return [each.name for each in BACKENDS.rows() if precision in each.precisions]


def _either(words: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def component_precision(chosen: Mapping[str, Precision], component: str) -> Precision:
    """The precision of a bundle's component; ``vae_first`` and ``vae_next`` are both ``vae``."""
    return chosen[VAE_KEY if component.startswith(VAE_KEY) else component]


def _parse(text: str, backend: str) -> Precision:
    facts = BACKENDS.get(backend)
    try:
        return Precision(text)
    except ValueError:
        raise UsageError(
            f"Precision {text!r} was given, but {facts.title} has {', '.join(facts.precisions)}; use --precision "
            f"{facts.base}, for example."
        ) from None


def fp8_models(precisions: Mapping[str, Precision]) -> tuple[str, ...]:
    """The transformers that are built in fp8."""
    return tuple(name for name in (LARGE, SMALL) if precisions[name] is Precision.FP8)
