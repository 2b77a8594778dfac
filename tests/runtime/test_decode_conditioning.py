"""What a decoder is told, by the bundle and by the user."""

import dataclasses

import pytest

from flowblending import UsageError
from flowblending.runtime.decode_conditioning import DecodeConditioning, decode_conditioning
from tests.support.manifests import PIPELINE

LTX = dataclasses.replace(PIPELINE, decode_timestep=0.05, decode_noise_scale=0.025)
PLAIN = dataclasses.replace(PIPELINE, decode_timestep=None, decode_noise_scale=None)


@pytest.mark.parametrize(
    ("timestep", "scale", "expected"),
    [(None, None, (0.05, 0.025)), (0.0, None, (0.0, 0.025)), (None, 0.0, (0.05, 0.0)), (1.0, 0.5, (1.0, 0.5))],
)
def test_what_is_given_goes_before_the_bundles_own(
    timestep: float | None, scale: float | None, expected: tuple[float, float]
) -> None:
    found = decode_conditioning(LTX, timestep, scale)
    assert found == DecodeConditioning(timestep=expected[0], noise_scale=expected[1])


@pytest.mark.parametrize(("timestep", "expected"), [(None, 0.05), (0.1, 0.1)])
def test_a_noise_scale_that_nobody_gives_is_the_timestep(timestep: float | None, expected: float) -> None:
    """As in diffusers, whose decode_noise_scale is None by default."""
    found = decode_conditioning(dataclasses.replace(LTX, decode_noise_scale=None), timestep)
    assert found == DecodeConditioning(timestep=expected, noise_scale=expected)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_refuses_what_is_no_share(value: float) -> None:
    with pytest.raises(UsageError, match=f"The decode timestep is {value}, but a number from 0 to 1 was expected"):
        decode_conditioning(LTX, timestep=value)
    with pytest.raises(UsageError, match=f"The decode noise scale is {value}, but a number from 0 to 1 was expected"):
        decode_conditioning(LTX, noise_scale=value)


def test_refuses_what_would_do_nothing() -> None:
    assert decode_conditioning(PLAIN) == DecodeConditioning()
    with pytest.raises(UsageError, match="A decode timestep was given, but this bundle's VAE decoder takes neither"):
        decode_conditioning(PLAIN, timestep=0.05)
    with pytest.raises(UsageError, match="A decode noise scale was given"):
        decode_conditioning(PLAIN, noise_scale=0.025)
