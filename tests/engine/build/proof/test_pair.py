"""A pair against fp32 along its schedule: the same trajectory as the runtime's, and errors that were planted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flowblending.contracts.graph import LARGE, SMALL, Precision
from flowblending.contracts.manifest import Manifest
from flowblending.engine.backends.tensor import Tensor
from flowblending.engine.build.proof.pair import (
    ALLOWED,
    Floats,
    PairFacts,
    compare_pair,
    follow,
    pair_claims,
    slots_of,
    unmeasured,
)
from flowblending.engine.build.proof.report_build import proof_program
from flowblending.export.verify.verify import TOLERANCE
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.golden.closed_form import CASES, FORMS, engines
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.sampler.loop import Sampler
from tests.support.manifests import spec, write

LIMITS = {LARGE: 1e-2, SMALL: 5e-2}


def velocity(model: str, latents: Floats, timestep: float, branch: str) -> Floats:
    """A formula: another one for each model and branch."""
    gain = {LARGE: -0.9, SMALL: -0.8}[model] - (0.1 if branch == "cond" else 0.0)
    return np.asarray(np.float32(gain) * latents + np.float32(timestep / 5000), np.float32)


def noise() -> Floats:
    return np.random.default_rng(0).standard_normal((1, 16, 3, 4, 8)).astype(np.float32)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write(tmp_path / "bundle")


def program_of(manifest: Manifest, **options: Any) -> Mapping[str, Any]:
    return compile_job(Job(prompt="", **options), manifest).to_json()


def test_the_runtime_tells_the_proof_program(manifest: Manifest) -> None:
    found = proof_program(manifest)
    assert found == program_of(manifest)
    assert found["schedule"] == "L20 S20 L10"
    assert slots_of(found) == len(compile_job(Job(prompt=""), manifest).slots())


def euler(manifest: Manifest, steps: int, guidance: float) -> npt.NDArray[np.float64]:
    """Euler's method with guidance, written out: x += (next sigma - sigma) * (u + g * (c - u))."""
    program = compile_job(Job(prompt="", steps=steps, solver="euler", guidance=guidance), manifest)
    sigmas = [step.sigma for step in program.steps] + [0.0]
    x = noise().astype(np.float64)
    for step, following in zip(program.steps, sigmas[1:], strict=True):
        gain, shift = {LARGE: -0.9, SMALL: -0.8}[step.model], step.timestep / 5000
        cond, uncond = (gain - 0.1) * x + shift, gain * x + shift
        x = x + (following - step.sigma) * (uncond + guidance * (cond - uncond))
    return x


def test_a_program_is_followed(manifest: Manifest) -> None:
    program = program_of(manifest, steps=10, solver="euler", guidance=4.0)
    final, calls = follow(program, velocity, noise())
    np.testing.assert_allclose(final, euler(manifest, 10, 4.0), rtol=1e-4, atol=1e-5)
    assert [call.model for call in calls[::2]] == [step["model"] for step in program["steps"]]
    assert [call.branch for call in calls[:2]] == ["cond", "uncond"]
    assert len(calls) == 20
    batched, _ = follow(
        program_of(manifest, steps=10, solver="euler", guidance=4.0, batched_guidance=True), velocity, noise()
    )
    np.testing.assert_allclose(batched, final, rtol=1e-5, atol=1e-6)


# A proof samples from text alone, and follows no program that begins from given latents.
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.strengths])
def test_a_program_is_followed_as_the_runtime_runs_it(name: str) -> None:
    case = CASES[name]
    random = np.random.default_rng(3)
    conditions, latents = case.conditions(random), random.standard_normal((1, *case.latent)).astype(np.float32)

    def formula(model: str, latents: Floats, timestep: float, branch: str) -> Floats:
        given = {"latents": latents, "timestep": np.array([timestep], np.float32), **conditions[branch]}
        return np.asarray(FORMS[model](given)["velocity"], np.float32)

    program = case.program().program
    tensors = {
        branch: {name: Tensor.of(array) for name, array in inputs.items()} for branch, inputs in conditions.items()
    }
    result = Sampler(engines(), HostDevice()).sample(program, latents, tensors)
    final, calls = follow(program.to_json(), formula, latents)
    np.testing.assert_array_equal(final, result.latents.numpy())
    assert len(calls) == sum(result.calls.values())


def measure(manifest: Manifest, large: float, small: float) -> PairFacts:
    """A pair whose models give a little too much."""
    program = program_of(manifest, steps=10)
    final, calls = follow(program, velocity, noise())
    factors = {LARGE: 1 + large, SMALL: 1 + small}

    def ours(model: str, latents: Floats, timestep: float, branch: str) -> Floats:
        return np.asarray(np.float32(factors[model]) * velocity(model, latents, timestep, branch), np.float32)

    return compare_pair(program, calls, final, ours, noise(), where="cpu", allowed=LIMITS)


def precision(manifest: Manifest, **precisions: Precision) -> Manifest:
    components = dict(manifest.components)
    for name, each in precisions.items():
        components[name] = components[name].model_copy(update={"spec": dataclasses.replace(spec(name), precision=each)})
    return manifest.model_copy(update={"components": components})


def test_planted_errors_are_found_and_judged(manifest: Manifest) -> None:
    mixed = precision(manifest, large=Precision.BF16, small=Precision.FP8)
    pair = measure(manifest, 1e-3, 4e-2)
    assert pair.overall == {LARGE: pytest.approx(1e-3, rel=1e-2), SMALL: pytest.approx(4e-2, rel=1e-2)}
    worst, step = pair.worst(SMALL)
    assert worst == pytest.approx(4e-2, rel=1e-2)
    assert program_of(manifest, steps=10)["steps"][step - 1]["model"] == SMALL
    assert pair.velocity[:4] == pytest.approx([1e-3] * 4, rel=1e-2)
    assert pair.final is not None
    assert 1e-3 < pair.final < 1
    (claim,) = pair_claims(pair, mixed)
    assert (claim.state, claim.component) == ("proved", "pair")
    assert "small 4.0e-02 of 0.05, at most 4.0e-02 at step " in claim.detail
    for large, small in ((2e-2, 0.0), (0.0, 6e-2), (float("nan"), 0.0)):
        (claim,) = pair_claims(measure(manifest, large, small), mixed)
        assert claim.state == "failed"


def test_one_bad_call_counts_as_one_of_many_unless_it_is_no_number(manifest: Manifest) -> None:
    mixed = precision(manifest, large=Precision.BF16, small=Precision.FP8)
    program = program_of(manifest, steps=10)
    final, calls = follow(program, velocity, noise())
    last = [call for call in calls if call.step == 9]

    def spoilt(factor: float) -> PairFacts:
        def ours(model: str, latents: Floats, timestep: float, branch: str) -> Floats:
            gain = factor if timestep == last[0].timestep else 1.0
            return np.asarray(np.float32(gain) * velocity(model, latents, timestep, branch), np.float32)

        limits = {LARGE: 0.05, SMALL: 0.05}
        return compare_pair(program, calls, final, ours, noise(), where="cpu", allowed=limits)

    pair = spoilt(1.06)
    large = [call for call in calls if call.model == LARGE]
    length, lengths = (np.linalg.norm([np.linalg.norm(call.velocity) for call in each]) for each in (last, large))
    worst, step = pair.worst(LARGE)
    assert worst == pytest.approx(0.06, rel=1e-3)
    assert step == 10
    assert pair.overall[LARGE] == pytest.approx(0.06 * length / lengths, rel=1e-3)
    (claim,) = pair_claims(pair, mixed)
    assert claim.state == "proved"
    for factor in (float("nan"), 10.0):
        pair = spoilt(factor)
        (claim,) = pair_claims(pair, mixed)
        assert claim.state == "failed"
        again = PairFacts.model_validate_json(pair.model_dump_json())
        (claim,) = pair_claims(again, mixed)
        assert claim.state == "failed"


@pytest.mark.parametrize("end", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("late", [1, 12])
def test_a_trajectory_that_ends_in_no_number_is_not_proved(manifest: Manifest, end: float, late: int) -> None:
    """Every call alone is right; but on its own way the pair comes to nothing, in the last calls."""
    mixed = precision(manifest, large=Precision.BF16, small=Precision.FP8)
    program = program_of(manifest, steps=10)
    final, calls = follow(program, velocity, noise())
    done = 0

    def ours(model: str, latents: Floats, timestep: float, branch: str) -> Floats:
        nonlocal done
        done += 1
        found = velocity(model, latents, timestep, branch)
        return np.full_like(found, end) if done > 2 * len(calls) - late else found

    with np.errstate(invalid="ignore"):
        pair = compare_pair(program, calls, final, ours, noise(), where="cpu", allowed=LIMITS)
    assert done == 2 * len(calls)
    assert (set(pair.velocity), set(pair.overall.values())) == ({0.0}, {0.0})
    (claim,) = pair_claims(pair, mixed)
    assert claim.state == "failed"
    again = PairFacts.model_validate_json(pair.model_dump_json())
    assert not again.holds


def test_what_holds_of_a_pair() -> None:
    facts = PairFacts(
        schedule="L1 S1",
        where="cpu",
        velocity=(0.01, 0.05),
        models=(LARGE, SMALL),
        overall={LARGE: 0.01, SMALL: 0.05},
        final=0.2,
        allowed=LIMITS,
        reason="",
    )
    # Exactly what is allowed is allowed; how far the latents come apart in the end is not judged.
    assert facts.holds
    assert facts.model_copy(update={"final": 1e6}).holds
    above = float(np.nextafter(0.05, 1))
    for overall in ({LARGE: above, SMALL: 0.0}, {LARGE: 0.0, SMALL: above}, {SMALL: float("nan")}):
        assert not facts.model_copy(update={"overall": overall}).holds
    for final in (None, float("nan"), float("inf")):
        assert not facts.model_copy(update={"final": final}).holds
    spoilt = facts.model_copy(update={"velocity": (0.3, float("nan"), 0.9), "models": (SMALL, SMALL, SMALL)})
    assert str(spoilt.worst(SMALL)) == "(nan, 2)"


def test_a_limit_is_never_below_what_the_verification_of_one_call_allows() -> None:
    assert ALLOWED.keys() == set(Precision)
    assert all(ALLOWED[precision] >= TOLERANCE[precision].relative for precision in Precision)


def test_the_reference_itself_does_not_differ_and_is_claimed_nothing_of(manifest: Manifest) -> None:
    pair = measure(manifest, 0.0, 0.0)
    assert (set(pair.velocity), pair.final) == ({0.0}, 0.0)
    assert pair_claims(None, manifest) == []
    mixed = precision(manifest, small=Precision.FP8)
    for given in (None, unmeasured(program_of(manifest), "too much work")):
        (claim,) = pair_claims(given, mixed)
        assert claim.state == "open"
    assert claim.detail == "too much work"
