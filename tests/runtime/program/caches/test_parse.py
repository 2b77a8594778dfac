"""What step caches decide: masks as published, the refusals, and the command line's words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL, WAN_T2V_1_3B, WAN_T2V_14B
from flowblending.runtime.program.caches.guidance import GuidanceSkip
from flowblending.runtime.program.caches.magcache import CONSTANTS, MagCache
from flowblending.runtime.program.caches.mask import Interval, Scm, StaticMask
from flowblending.runtime.program.caches.parse import parse_cache
from flowblending.runtime.program.caches.policy import Decisions, Outline, StepCache, decide
from flowblending.runtime.program.caches.taylor import Taylor
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.visits import Visits
from tests.support.schedules import visits

WAN = {LARGE: WAN_T2V_14B, SMALL: WAN_T2V_1_3B}


def outline(schedule: str, *, guided: bool = True, timesteps: tuple[float, ...] | None = None) -> Outline:
    steps = sum(int(run[1:]) for run in schedule.split())
    return Outline(
        schedule=visits(schedule),
        timesteps=timesteps or tuple(np.linspace(1000.0, 20.0, steps).tolist()),
        guided=guided,
        architectures=WAN,
    )


def mask(flags: tuple[bool, ...]) -> str:
    return "".join("01"[each] for each in flags)


def computed(cache: str, schedule: str) -> str:
    decisions = decide(parse_cache(cache), outline(schedule))
    assert decisions.uncond == decisions.cond
    return mask(decisions.cond)


@pytest.mark.parametrize("guided", [False, True])
def test_off_is_every_call(guided: bool) -> None:
    assert decide(parse_cache("off"), outline("L3 S2", guided=guided)) == Decisions(
        cond=(True,) * 5, uncond=(guided,) * 5
    )


def test_a_mask_of_the_users_own() -> None:
    assert computed("mask:110100110", "L6 S3") == "110100110"


@pytest.mark.parametrize(
    ("schedule", "digits", "message"),
    [
        ("L4", "111", "The mask has 3 digits, but the run has 4 steps; give one digit per step"),
        ("L4", "11111", "The mask has 5 digits, but the run has 4 steps"),
        ("L4", "0111", "skips step 1, the first of a stage of the large model"),
        ("L2 S3 L1", "110111", "skips step 3, the first of a stage of the small model, which has nothing to reuse"),
        ("L2 S3 L1", "101000", "skips step 6, the first of a stage of the large model"),
    ],
)
def test_masks_that_do_not_fit(schedule: str, digits: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        decide(parse_cache(f"mask:{digits}"), outline(schedule))


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        # What cache-dit's own function gives for the number of steps that its tables are for.
        ("slow", 28, "1111111101110011100110010001"),
        ("medium", 28, "1111110110001100011000110001"),
        ("fast", 28, "1111110100010000100000100001"),
        ("ultra", 28, "1111001000001000000100000001"),
        ("fast", 56, "11111111111100110000001100000000110000000000110000000011"),
        ("ultra", 14, "11010010010001"),
        ("ultra", 1, "1"),
    ],
)
def test_scm_masks(name: str, steps: int, expected: str) -> None:
    assert computed(f"scm:{name}", f"L{steps}") == expected


@pytest.mark.parametrize("steps", range(1, 61))
def test_scm_masks_start_and_end_with_a_computed_step(steps: int) -> None:
    for name, share in (("slow", 18 / 28), ("medium", 15 / 28), ("fast", 11 / 28), ("ultra", 8 / 28)):
        found = computed(f"scm:{name}", f"S{steps}")
        assert (found[0], found[-1]) == ("1", "1")
        # Six runs of computed steps, each of which may be a step longer than its share.
        assert abs(found.count("1") - share * steps) < 6


EVERY_KIND = ("LLL", "SSS", "LSL", "LSS", "SLL", "LSL with other shares", "a switch at every third step")


def stages(kind: str, steps: int) -> str:
    """Runs of a schedule of a kind."""
    if kind.startswith("a switch"):
        return " ".join(f"{'LS'[start // 3 % 2]}{min(3, steps - start)}" for start in range(0, steps, 3))
    early, late = (0.55, 0.05) if kind.endswith("shares") else (0.4, 0.2)
    return str(StageSchedule.parse(kind.split(maxsplit=1)[0], steps, early, late))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_slower_scm_mask_computes_no_less_in_any_stage(kind: str, guided: bool) -> None:
    for steps in range(1, 61):
        run = outline(stages(kind, steps), guided=guided)
        bounds = [*sorted(run.starts), steps]
        calls = []
        for name in ("slow", "medium", "fast", "ultra"):
            found = decide(parse_cache(f"scm:{name}"), run)
            each = [cond + uncond for cond, uncond in zip(found.cond, found.uncond, strict=True)]
            calls.append([sum(each[start:end]) for start, end in itertools.pairwise(bounds)])
        for slower, faster in itertools.pairwise(calls):
            assert all(more >= less for more, less in zip(slower, faster, strict=True)), (steps, calls)


def test_a_stage_where_a_scm_mask_would_fall_below_the_faster_one_has_that_ones_steps() -> None:
    assert computed("scm:medium", "L4 S4 L2") == "1111101111"
    assert computed("scm:slow", "L4 S4 L2") == "1111111011"


def test_the_first_step_of_a_stage_computes() -> None:
    assert computed("scm:ultra", "L5 S20 L3") == "1111011000001000000100000101"
    assert computed("interval:3", "L5 S4 L2") == "10010100110"
    assert computed("taylor:1", "L7 S3") == "1000010100"


MAGCACHE_MASKS = {
    # 50 steps, simulated from the published arrays of both branches.
    ("0.12,2", WAN_T2V_14B): "11111111110010010010010010010010010010010010101011",
    ("0.12,4", WAN_T2V_14B): "11111111110000100001000010000100001000100100101011",
    ("0.24,6", WAN_T2V_14B): "11111111110000001000000100000010000010000100100101",
    ("0.12,2", WAN_T2V_1_3B): "11111111110010010010010010010010010010010010101011",
    ("0.12,4", WAN_T2V_1_3B): "11111111110000100001000010000100001000100100101011",
}


def test_magcache_decides_as_published() -> None:
    for (arguments, model), expected in MAGCACHE_MASKS.items():
        letter = {WAN_T2V_14B: "L", WAN_T2V_1_3B: "S"}[model]
        assert computed(f"magcache:{arguments}", f"{letter}50") == expected
    assert computed("magcache", "L50") == MAGCACHE_MASKS["0.24,6", WAN_T2V_14B]
    assert computed("magcache", "S50") == MAGCACHE_MASKS["0.12,4", WAN_T2V_1_3B]
    few = computed("magcache:0.24,6", "S50")
    assert (few[-10:], few.count("1")) == ("0100010101", 18)


def magcache(schedule: Visits, thresholds: dict[str, float], most: dict[str, int]) -> str:
    """The published loop, for one branch, with the state set back whenever the model changes."""
    steps = len(schedule.models)
    ratios = {
        model: np.array(CONSTANTS[name].ratios)[np.round(np.arange(steps) * (49 / max(steps - 1, 1))).astype(int)]
        for model, name in WAN.items()
    }
    digits, ratio, error, count, before = "", 1.0, 0.0, 0, ""
    for step, model in enumerate(schedule.models):
        skip = False
        if 2 * step >= int(2 * steps * 0.2):
            ratio, count = ratio * ratios[model][step], count + 1
            error += np.abs(1 - ratio)
            skip = error < thresholds[model] and count <= most[model]
        if not skip or model != before:
            skip, ratio, error, count = False, 1.0, 0.0, 0
        digits, before = digits + "10"[skip], model
    return digits


@pytest.mark.parametrize("schedule", ["L50", "S30", "L20 S20 L10", "L3 S4 L1", "L8", "S1", "L40 S37 L9 S14"])
def test_magcache_is_the_published_loop(schedule: str) -> None:
    stages = outline(schedule).schedule
    published = magcache(stages, {LARGE: 0.24, SMALL: 0.12}, {LARGE: 6, SMALL: 4})
    assert computed("magcache", schedule) == published
    assert computed("magcache:0.06,3", schedule) == magcache(stages, dict.fromkeys(WAN, 0.06), dict.fromkeys(WAN, 3))


@pytest.mark.parametrize("name", [None, "ltx"])
def test_magcache_needs_constants_of_the_models_that_run(name: str | None) -> None:
    run = outline("S4")
    strange = Outline(
        schedule=run.schedule, timesteps=run.timesteps, guided=True, architectures={LARGE: name, SMALL: WAN_T2V_1_3B}
    )
    decide([MagCache()], strange)
    message = r"constants for wan2\.1-t2v-1\.3b and wan2\.1-t2v-14b only, and the bundle's small model is"
    with pytest.raises(UsageError, match=message):
        decide(
            [MagCache()],
            Outline(schedule=run.schedule, timesteps=run.timesteps, guided=True, architectures={SMALL: name}),
        )


def test_guidance_is_skipped_late_and_counted_by_stage() -> None:
    timesteps = (1000.0, 900.0, 800.0, 641.0, 640.0, 500.0, 400.0, 300.0, 200.0, 100.0)
    run = outline("L7 S3", timesteps=timesteps)
    decisions = decide(parse_cache("guidance:3"), run)
    assert mask(decisions.cond) == "1111111111"
    # In the first stage steps 1, 4 and 7 would do, but above 640 every step has both branches.
    assert mask(decisions.uncond) == "1111" + "001" + "100"
    assert mask(decide(parse_cache("guidance:3,1001"), run).uncond) == "1001001" + "100"
    # Every third of the steps that the mask leaves.
    decisions = decide(parse_cache("guidance:3,1001+mask:1101110111"), run)
    assert mask(decisions.cond) == "1101110111"
    assert mask(decisions.uncond) == "1000100100"


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        # A step at the very limit has both branches, as in FasterCache, where the range has open ends.
        ("641", "1111000"),
        ("640.5", "1111000"),
        ("641.5", "1110000"),
        ("900", "1100000"),
        ("100", "1111111"),
        ("99", "1111111"),
    ],
)
def test_the_timestep_at_which_guidance_skipping_begins(below: str, expected: str) -> None:
    timesteps = (1000.0, 900.0, 800.0, 641.0, 640.0, 500.0, 100.0)
    decisions = decide(parse_cache(f"guidance:7,{below}"), outline("L7", timesteps=timesteps))
    assert mask(decisions.uncond) == expected


def test_guidance_that_is_off_cannot_be_skipped() -> None:
    with pytest.raises(UsageError, match="but guidance is off; leave guidance out of --cache"):
        decide(parse_cache("guidance"), outline("L4", guided=False))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("off", ()),
        ("mask:10", (StaticMask(digits="10"),)),
        ("SCM:Fast", (Scm(name="fast"),)),
        ("interval:4", (Interval(every=4),)),
        ("taylor", (Interval(every=5), Taylor(order=1))),
        ("taylor:2 + mask: 1 0 1", (StaticMask(digits="101"), Taylor(order=2))),
        ("magcache", (MagCache(),)),
        ("magcache:0.1", (MagCache(threshold=0.1),)),
        ("magcache:0.1,3", (MagCache(threshold=0.1, most=3),)),
        ("guidance", (GuidanceSkip(every=5, below=641.0),)),
        ("guidance:2,900", (GuidanceSkip(every=2, below=900.0),)),
        (
            "guidance:3+taylor:0+scm:slow",
            (Scm(name="slow"), Taylor(order=0), GuidanceSkip(every=3)),
        ),
    ],
)
def test_words_become_policies(text: str, expected: tuple[StepCache, ...]) -> None:
    assert parse_cache(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The cache '' is unknown; give off, mask:"),
        ("seacache", "The cache 'seacache' is unknown"),
        ("off+mask:10", "The cache 'off' is unknown"),
        ("mask", "The cache mask has no mask; write a digit for every step"),
        ("mask:1021", "The cache mask:1021 has no mask"),
        ("scm", "The cache scm is no mask that is published; give scm: and slow, medium, fast, ultra"),
        ("scm:turbo", "scm:turbo is no mask"),
        ("interval", "The cache interval has nothing where a whole number from 2 on was expected"),
        ("interval:1", "interval:1 has 1 where"),
        ("interval:²", "interval:² has ² where"),
        ("interval:" + "9" * 5000, "where a whole number from 2 on"),
        ("taylor:3", "taylor:3 has 3 where a whole number from 0 to 2 was expected"),
        ("taylor:-1", "has -1 where"),
        ("magcache:x", "magcache:x has x where a number above 0 was expected"),
        ("magcache:nan", "has nan where"),
        ("magcache:0.1,0", "has 0 where a whole number from 1 on"),
        ("guidance:1", "guidance:1 has 1 where"),
        ("guidance:2,-5", "has -5 where a number above 0"),
        ("mask:10+scm:fast", "decides about the same engine calls twice; leave out scm:fast"),
        ("taylor+taylor", "leave out taylor"),
        ("mask:10+", "is unknown"),
    ],
)
def test_words_that_are_no_policies(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_cache(text)
