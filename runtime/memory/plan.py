"""How a run fits into a device's memory: phase by phase, from plain data. Pure, and standard library only.

A run encodes its texts, samples stage after stage, and decodes. ``resident`` has every engine open from when it is
first needed on, ready for the next video. ``phases`` has only those open that a phase needs: the text encoder until the
texts are encoded, a model from its first stage to its last, the decoder after sampling. Where that fits, a model that
comes again stays in between, and the next one is opened while the stage before runs; where it does not, each is opened
when its stage begins and closed when it ends. All engines that are open take turns with one scratch memory (arena).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

AUTO: Final = "auto"
RESIDENT: Final = "resident"
PHASES: Final = "phases"
MODES: Final = (AUTO, RESIDENT, PHASES)

SLACK: Final = 0.02
"""Share of a phase's memory that is kept free for what no compiler states, such as kernels. Not measured."""


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """What an engine takes of the device.

    Attributes:
        name: of its component.
        weights: bytes; of the engine's files where no compiler has stated them.
        scratch: bytes that a call of this run takes beside its tensors; None where nobody has stated them.
    """

    name: str
    weights: int
    scratch: int | None


@dataclass(frozen=True, kw_only=True)
class RunMemory:
    """What a run takes.

    Attributes:
        engines: by name, all of them.
        encoders: that run first; none where embeddings are given.
        stages: the model of every stage, in order.
        decoders: that run last; none where no frames are wanted.
        conditions: bytes of what the models are told beside latents and timestep, from encoding to the last step.
        slots: bytes of latents and velocities, while sampling.
        decoding: bytes of what decoders take and give, caches between their steps and pictures among it.
    """

    engines: Mapping[str, EngineMemory]
    encoders: tuple[str, ...]
    stages: tuple[str, ...]
    decoders: tuple[str, ...]
    conditions: int
    slots: int
    decoding: int


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run.

    Attributes:
        name: ``encode``, ``sample large`` or ``decode``.
        runs: the engine, or the decoders, that it is for.
        resident: the engines that are open in it, those that are opened ahead among them.
        opened: those of them that were not open in the phase before.
        reads: bytes of weights that opening them reads.
        arena: bytes of scratch memory.
        tensors: bytes of latents, conditions and frames.
        peak: bytes in all.
    """

    name: str
    runs: tuple[str, ...]
    resident: tuple[str, ...]
    opened: tuple[str, ...]
    reads: int
    arena: int
    tensors: int
    peak: int


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How a run goes about memory.

    Attributes:
        mode: ``resident`` or ``phases``.
        phases: in order; of sampling, one for each stage.
        unknown: the engines whose scratch memory nobody has stated; it comes on top.
    """

    mode: str
    phases: tuple[Phase, ...]
    unknown: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes of the phase that takes the most."""
        return max((each.peak for each in self.phases), default=0)

    @property
    def needs(self) -> int:
        """Bytes that have to be free: the peak, and some for what no compiler states."""
        return round(self.peak * (1 + SLACK))

    @property
    def reads(self) -> int:
        """Bytes of weights that are read in all."""
        return sum(each.reads for each in self.phases)

    @property
    def stages(self) -> tuple[Phase, ...]:
        """The phases of sampling."""
        return tuple(each for each in self.phases if each.name.startswith(_SAMPLE))


_SAMPLE: Final = "sample "


def plan_resident(run: RunMemory, open_now: Sequence[str] = ()) -> MemoryPlan:
    """Every engine stays open.

    Args:
        run: what it takes.
        open_now: engines that are open before it begins.
    """
    everything = {*run.encoders, *run.stages, *run.decoders, *open_now}
    opened = [name for name in run.engines if name in everything]
    return _plan(run, RESIDENT, [opened] * (len(run.stages) + 2), open_now)


def plan_phases(run: RunMemory, budget: int | None, open_now: Sequence[str] = ()) -> MemoryPlan:
    """Only what a phase needs is open, and what fits beside it of what comes again or next.

    Args:
        run: what it takes.
        budget: bytes of the device that there are; None for no limit, and 0 for the least that the run can take.
        open_now: engines that are open before it begins; the run closes those that its first phase does not need.
    """
    stages: list[list[str]] = []
    before: set[str] = set()
    for index, model in enumerate(run.stages):
        now, later = [model], run.stages[index + 1 :]
        wished = [*(name for name in run.engines if name in before and name in later), *later[:1]]
        for name in dict.fromkeys(wished):
            if name not in now and _fits(run, [*now, name], budget):
                now.append(name)
        stages.append(now)
        before = set(now)
    return _plan(run, PHASES, [[*run.encoders], *stages, [*run.decoders]], open_now)


def _fits(run: RunMemory, names: Sequence[str], budget: int | None) -> bool:
    return budget is None or round(_sampling(run, names) * (1 + SLACK)) <= budget


def _sampling(run: RunMemory, names: Sequence[str]) -> int:
    return _weights(run, names) + _arena(run, run.stages) + run.conditions + run.slots


def _weights(run: RunMemory, names: Sequence[str]) -> int:
    return sum(run.engines[name].weights for name in names)


def _arena(run: RunMemory, names: Sequence[str]) -> int:
    return max((run.engines[name].scratch or 0 for name in names), default=0)


def _plan(run: RunMemory, mode: str, opened: Sequence[Sequence[str]], open_now: Sequence[str]) -> MemoryPlan:
    """The phases, of which each has these engines open."""
    everything = (*run.encoders, *run.stages, *run.decoders)
    parts = [("encode", run.encoders, run.encoders, run.conditions)] if run.encoders else []
    # The arena of sampling is that of its largest model from the first stage on: addresses stay what they are.
    parts += [(f"{_SAMPLE}{model}", (model,), run.stages, run.conditions + run.slots) for model in run.stages]
    parts += [("decode", run.decoders, run.decoders, run.decoding)] if run.decoders else []
    held = [each for each, there in zip(opened, _there(run), strict=True) if there]
    phases: list[Phase] = []
    before = set(open_now)
    for (name, runs, users, tensors), resident in zip(parts, held, strict=True):
        arena = _arena(run, everything if mode == RESIDENT else users)
        new = tuple(each for each in resident if each not in before)
        phases.append(
            Phase(
                name=name,
                runs=tuple(runs),
                resident=tuple(resident),
                opened=new,
                reads=_weights(run, new),
                arena=arena,
                tensors=tensors,
                peak=_weights(run, resident) + arena + tensors,
            )
        )
        before = set(resident)
    unknown = tuple(name for name in run.engines if name in everything and run.engines[name].scratch is None)
    return MemoryPlan(mode=mode, phases=tuple(phases), unknown=unknown)


def _there(run: RunMemory) -> list[bool]:
    return [bool(run.encoders), *([True] * len(run.stages)), bool(run.decoders)]
