"""``--precision fp8-middle``: one checkpoint as both models, fp8 between two stages in the back end's usual precision.

What NVIDIA's checkpoints of Cosmos3 do by a policy of their own, as a bundle of two models: text encoder, decoder and
calibration are the bundle's, and every schedule, cache and program takes it as it takes a pair of two sizes.
"""

from __future__ import annotations

import dataclasses

from flowblending import UsageError
from flowblending.contracts.graph import SMALL, Precision
from flowblending.engine.build.lora import LoraRequest
from flowblending.engine.build.request import BuildRequest, named_models

FP8_MIDDLE = "fp8-middle"


def with_fp8_middle(request: BuildRequest) -> BuildRequest:
    """The request of a pair that ``fp8-middle`` stands for; any other request as it is.

    LoRA of the checkpoint go into both models.

    Raises:
        UsageError: there are several models already, the only one has the second's name or letter, or the second is
            given another precision.
    """
    words = [word.strip() for word in (request.precision or "").split(",")]
    if FP8_MIDDLE not in words:
        return request
    others = [word for word in words if word != FP8_MIDDLE]
    first = request.first
    (second,) = named_models(None, first.source)
    if len(request.models) > 1 or first.name == second.name or second.letter in first.letter + first.expert_letters:
        given = ", ".join(f"{model.name} ({model.letter})" for model in request.models)
        raise UsageError(
            f"--precision {FP8_MIDDLE} builds one checkpoint as large and small (L and S), but {given} was given; give "
            f"--large alone, or the precisions of your own models, such as {first.name}=fp8."
        )
    if any(word.partition("=")[0].strip().partition("_")[0] == SMALL for word in others):
        raise UsageError(
            f"--precision {request.precision} was given, but the model {SMALL} of {FP8_MIDDLE} is in fp8; leave its "
            f"precision out, or name both: large=fp16,{SMALL}=bf16, for example."
        )
    loras = tuple(each for lora in request.loras for each in _in_both(lora, first.name))
    return dataclasses.replace(
        request,
        models=(first, dataclasses.replace(second, sampling=first.sampling)),
        precision=",".join([*others, f"{SMALL}={Precision.FP8}"]),
        loras=loras,
    )


def _in_both(lora: LoraRequest, first: str) -> tuple[LoraRequest, ...]:
    """A LoRA of the first model, or of one of its experts, for the second as well; one of the second as it is."""
    name = lora.model or first
    if name.partition("_")[0] != first:
        return (lora,)
    return tuple(dataclasses.replace(lora, model=each) for each in (name, name.replace(first, SMALL, 1)))
