import dataclasses
import json
from typing import Any

import pytest

from flowblending import FlowBlendingError
from flowblending.contracts.graph import LARGE, SMALL
from flowblending.contracts.program import COND, GUIDED, LATENTS, UNCOND, Mix, Program, Rescale, Run, Step
from flowblending.runtime.program.held import hold

PROGRAM = Program(
    schedule="L1 S1",
    solver="euler",
    guidance=5.0,
    latent_shape=(4, 3, 2, 5),
    steps=(
        Step(
            model=LARGE,
            timestep=1000.0,
            sigma=1.0,
            instructions=(
                Run(model=LARGE, branches=(UNCOND, COND), out=(UNCOND, COND)),
                Mix(out=LATENTS, terms=((1.0, LATENTS), (-1.25, COND), (1.0, UNCOND))),
            ),
        ),
        Step(
            model=SMALL,
            timestep=750.0,
            sigma=0.75,
            instructions=(
                Run(model=SMALL, branches=(COND,), out=(COND,)),
                Mix(out=LATENTS, terms=((1.0, LATENTS), (-0.75, COND))),
            ),
        ),
    ),
)


def test_slots_and_calls() -> None:
    assert PROGRAM.slots() == (LATENTS, UNCOND, COND)
    assert (PROGRAM.calls(LARGE), PROGRAM.calls(SMALL)) == (2, 1)


def test_listing() -> None:
    assert PROGRAM.listing().splitlines() == [
        "L1 S1, euler, guidance 5",
        "step 1: large, timestep 1000, sigma 1.000000",
        "    uncond, cond = large(latents, uncond, cond)",
        "    latents = +1 latents -1.25 cond +1 uncond",
        "step 2: small, timestep 750, sigma 0.750000",
        "    cond = small(latents, cond)",
        "    latents = +1 latents -0.75 cond",
    ]


def test_json_keeps_every_digit() -> None:
    step = dataclasses.replace(PROGRAM.steps[0], sigma=0.1 + 0.2, timestep=1000 / 3)
    program = dataclasses.replace(PROGRAM, steps=(step, *PROGRAM.steps[1:]))
    assert Program.from_json(json.loads(json.dumps(program.to_json()))) == program


RESCALED = dataclasses.replace(
    PROGRAM,
    guidance_rescale=0.7,
    steps=(
        Step(
            model=LARGE,
            timestep=1000.0,
            sigma=1.0,
            instructions=(
                Run(model=LARGE, branches=(UNCOND, COND), out=(UNCOND, COND)),
                Mix(out=GUIDED, terms=((5.0, COND), (-4.0, UNCOND))),
                Rescale(out=GUIDED, reference=COND, share=0.7),
                Mix(out=LATENTS, terms=((1.0, LATENTS), (-0.25, GUIDED))),
            ),
        ),
    ),
)


def test_a_rescaling_is_told_and_kept() -> None:
    assert RESCALED.slots() == (LATENTS, UNCOND, COND, GUIDED)
    assert RESCALED.listing().splitlines()[0] == "L1 S1, euler, guidance 5, rescaled by 0.7"
    assert RESCALED.listing().splitlines()[4] == "    guided *= 0.7 std(cond) / std(guided) + 0.3"
    assert Program.from_json(json.loads(json.dumps(RESCALED.to_json()))) == RESCALED


def test_the_format_before_is_read() -> None:
    content = json.loads(json.dumps(PROGRAM.to_json()))
    del content["guidance_rescale"]
    assert Program.from_json(content | {"format": 1}) == PROGRAM
    for name in ("partial", "given", "extra"):
        del content[name]
    assert Program.from_json(content | {"format": 2}) == PROGRAM


HELD = hold(PROGRAM, (0.5, 1.0, 0.0, 0.0), noise_scale=0.15, train_timesteps=1000, extra=1)


def test_latents_that_are_held_are_told_and_kept() -> None:
    content = json.loads(json.dumps(HELD.to_json()))
    assert Program.from_json(content) == HELD
    assert (content["extra"], content["partial"]["held_0"], content["given"][:2]) == (1, [1], ["held_0", "held_1"])
    assert content["steps"][0]["frame_timesteps"] == [500.0, 0.0, 1000.0, 1000.0]
    assert {"out": "latents", "source": "held_noised"} in content["steps"][0]["instructions"]
    assert "frame_timesteps" not in json.loads(json.dumps(PROGRAM.to_json()))["steps"][0]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_cannot_be_made(share: float) -> None:
    with pytest.raises(ValueError, match="a share above 0 and at most 1"):
        Rescale(out=GUIDED, reference=COND, share=share)
    with pytest.raises(ValueError, match="takes two slots"):
        Rescale(out=GUIDED, reference=GUIDED, share=0.5)


def test_json_names_what_is_wrong() -> None:
    def damaged(**changes: Any) -> Any:
        return {**json.loads(json.dumps(PROGRAM.to_json())), **changes}

    with pytest.raises(FlowBlendingError, match="is a sampling program of format 4, written by a later"):
        Program.from_json(damaged(format=4))
    with pytest.raises(
        FlowBlendingError,
        match=r"is damaged .a sampling program has a format, a number from 1 on, and this one's is None\.*",
    ):
        Program.from_json({})
    with pytest.raises(FlowBlendingError, match="damaged at steps"):
        Program.from_json(damaged(steps=[{"model": LARGE}]))
    content = damaged()
    content["steps"][1]["instructions"][1]["terms"][1][0] = float("nan")
    with pytest.raises(FlowBlendingError, match=r"damaged at steps\.1\.instructions\.1"):
        Program.from_json(content)


@pytest.mark.parametrize(
    "terms",
    [(), ((float("inf"), LATENTS),), ((1.0, COND), (2.0, COND)), ((1.0, COND), (1.0, LATENTS))],
    ids=["empty", "infinite", "twice", "out not first"],
)
def test_a_mix_that_cannot_be_executed_cannot_be_made(terms: tuple[tuple[float, str], ...]) -> None:
    with pytest.raises(ValueError, match="must"):
        Mix(out=LATENTS, terms=terms)
