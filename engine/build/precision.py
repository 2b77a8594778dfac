"""Which precision each component is built in: ``bf16``, or ``large=bf16,small=fp16``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flowblending import UsageError
from flowblending.contracts.graph import IMAGE_ENCODER, TEXT_ENCODER, Precision
from flowblending.contracts.models import EXPERTS
from flowblending.engine.backends.gpu import gpu_architecture
from flowblending.engine.backends.registry import BACKENDS

VAE_KEY = "vae"
ENCODER_KEY = "vae_encoder"
_IN_FP32 = (VAE_KEY, ENCODER_KEY, IMAGE_ENCODER)
_TRANSFORMERS_ONLY = (Precision.FP16_MIXED, Precision.FP8)


def choose_precisions(text: str | None, backend: str, models: Sequence[str]) -> Mapping[str, Precision]:
    """The precision of every model and component, by its name, and of experts that are named alone.

    A bare precision is meant for every model, and a model's for both of its experts, if it has two
    (``large_high=fp8`` is meant for one). The text encoder, the VAE's decoder and encoder (``vae``,
    ``vae_encoder``) and CLIP (``image_encoder``) follow only where they are named: the reference pipelines decode and
    look at images in fp32, bf16 loses much of an image, and T5's feed-forward overflows fp16.
    fp16-mixed and fp8 are for the transformers alone: the text encoder's fp16 keeps its sums in fp32 as it is, and the
    VAE has fp32.

    Args:
        text: the option as given, or None for the back end's usual precision of the transformers and the text
            encoder, and fp32 for the VAE and CLIP.
        backend: the library that will run the engines.
        models: their names.

    Raises:
        UsageError: an unknown component or precision, or one that the back end or the component does not have.
    """
    high = usual_precision(backend)
    encoder = Precision.FP16 if high is Precision.FP16_MIXED else high
    own = {TEXT_ENCODER: encoder, **dict.fromkeys(_IN_FP32, Precision.FP32)}
    chosen = {**dict.fromkeys(models, high), **own}
    keys, experts = tuple(chosen), [f"{model}{end}" for model in models for end in EXPERTS]
    for item in text.split(",") if text is not None else []:
        key, equals, value = item.strip().rpartition("=")
        if equals and key not in (*keys, *experts):
            raise UsageError(f"--precision names {key!r}, but the components are {', '.join(keys)}; use one of them.")
        for name in [key] if equals else models:
            chosen[name] = _parse(value, backend)
    sums = "fp16, whose sums are fp32 already"
    for name, instead in {TEXT_ENCODER: sums, **dict.fromkeys(_IN_FP32, Precision.FP32)}.items():
        if chosen[name] in _TRANSFORMERS_ONLY:
            raise UsageError(
                f"--precision asks for {name}={chosen[name]}, but only the transformers have that; "
                f"use {name}={instead}."
            )
    facts = BACKENDS.get(backend)
    for name, precision in chosen.items():
        if precision not in facts.precisions:
            whole = name in models
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


def usual_precision(backend: str) -> Precision:
    """Of transformers that nobody gave one: half of fp32, if there is that, where this machine's GPU will run them."""
    facts = BACKENDS.get(backend)
    if facts.on_gpu is not None and gpu_architecture() is not None and facts.uses_gpu():
        return facts.on_gpu
    return facts.base


def _with(precision: Precision) -> list[str]:
    """The back ends that have a precision."""
    return [each.name for each in BACKENDS.rows() if precision in each.precisions]


def _either(words: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def component_precision(chosen: Mapping[str, Precision], component: str) -> Precision:
    """The precision of a bundle's component; the steps of a VAE's halves are one, and so are experts."""
    if component.startswith(ENCODER_KEY):
        return chosen[ENCODER_KEY]
    return chosen.get(component) or chosen[component.partition("_")[0]]


def _parse(text: str, backend: str) -> Precision:
    facts = BACKENDS.get(backend)
    try:
        return Precision(text)
    except ValueError:
        raise UsageError(
            f"Precision {text!r} was given, but {facts.title} has {', '.join(facts.precisions)}; use --precision "
            f"{facts.base}, for example."
        ) from None


def fp8_models(precisions: Mapping[str, Precision], components: Iterable[str]) -> tuple[str, ...]:
    """Those of a bundle's components that are built in fp8: transformers, since nothing else can be."""
    return tuple(name for name in components if component_precision(precisions, name) is Precision.FP8)
