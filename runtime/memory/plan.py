"""How a run fits into a device's memory: phase by phase, from plain data. Pure, and standard library only.

A run encodes its texts, samples stage after stage, and decodes. ``resident`` has every engine open from when it is
first needed on, ready for the next video. ``phases`` has only those open that a phase needs: the text encoder until the
texts are encoded, a model from its first stage to its last, the decoder after sampling. Where that fits, a model that
comes again stays in between, and the next one is opened while the stage before runs; where it does not, each is opened
when its stage begins and closed when it ends. ``stream`` is the same with engines that need not have all of their
weights on the device: what does not fit stays in the host's memory, and every call streams it from there. So models
that come again stay open, where the host's memory holds them. All engines that are open take turns with one scratch
memory (arena).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

AUTO: Final = "auto"
RESIDENT: Final = "resident"
PHASES: Final = "phases"
STREAM: Final = "stream"
MODES: Final = (AUTO, RESIDENT, PHASES, STREAM)

ENCODE_FRAMES: Final = "encode frames"
"""The phase of images and videos that are given."""

SLACK: Final = 0.02
"""Share of a phase's memory that is kept free for what no compiler states, such as kernels. Not measured."""

LEAST: Final = 0.2
"""Share of an engine's weights that the device holds at least while the others are streamed: those that the library
does not stream, and what it streams into. No compiler states it and it was not measured: a text encoder's table of
words, which may not be divided, is 0.18 of UMT5. An engine that turns out to need more is refused when it is opened."""


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """What an engine takes of the device.

    Attributes:
        name: of its component.
        weights: bytes; of the engine's files where no compiler has stated them.
        scratch: bytes that a call of this run takes beside its tensors; None where nobody has stated them.
        streams: whether weights can be left in the host's memory; None where its back end knows no such thing, and
            False where it was not built for it.
    """

    name: str
    weights: int
    scratch: int | None
    streams: bool | None = None


@dataclass(frozen=True, kw_only=True)
class RunMemory:
    """What a run takes.

    Attributes:
        engines: by name, all of them.
        frame_encoders: that run first; none where no images or videos are given.
        encoders: of texts, that run next; none where embeddings are given.
        stages: the model of every stage, in order.
        decoders: that run last; none where no frames are wanted.
        framing: bytes of what the encoders of frames take and give, caches between their steps among it.
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
    frame_encoders: tuple[str, ...] = ()
    framing: int = 0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run.

    Attributes:
        name: ``encode frames``, ``encode``, ``sample large`` or ``decode``.
        runs: the engine, or the decoders, that it is for.
        resident: the engines that are open in it, those that are opened ahead among them.
        opened: those of them that were not open in the phase before.
        reads: bytes of weights that opening them reads.
        arena: bytes of scratch memory.
        tensors: bytes of latents, conditions and frames.
        peak: bytes in all.
        streamed: bytes of weights that one call of each engine that it is for streams from the host's memory.
        host: bytes of weights that the host's memory holds for engines that can stream them.
    """

    name: str
    runs: tuple[str, ...]
    resident: tuple[str, ...]
    opened: tuple[str, ...]
    reads: int
    arena: int
    tensors: int
    peak: int
    streamed: int
    host: int


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How a run goes about memory.

    Attributes:
        mode: ``resident``, ``phases`` or ``stream``.
        phases: in order; of sampling, one for each stage.
        unknown: the engines whose scratch memory nobody has stated; it comes on top.
        streamed: by engine, bytes of its weights that are not on the device, but streamed in every call.
    """

    mode: str
    phases: tuple[Phase, ...]
    unknown: tuple[str, ...]
    streamed: Mapping[str, int]

    @property
    def by_phases(self) -> bool:
        """Whether engines are closed that a phase has no use for."""
        return self.mode != RESIDENT

    @property
    def framing(self) -> Phase | None:
        """The phase that encodes images and videos; None without."""
        return next((each for each in self.phases if each.name == ENCODE_FRAMES), None)

    @property
    def first(self) -> Phase:
        """The phase after that, or the first one."""
        return next(each for each in self.phases if each.name != ENCODE_FRAMES)

    @property
    def host(self) -> int:
        """Bytes of weights that the host's memory holds at most."""
        return max((each.host for each in self.phases), default=0)

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
_NONE: Final[Mapping[str, int]] = {}


def plan_resident(run: RunMemory, open_now: Sequence[str] = ()) -> MemoryPlan:
    """Every engine stays open.

    Args:
        run: what it takes.
        open_now: engines that are open before it begins.
    """
    everything = {*run.frame_encoders, *run.encoders, *run.stages, *run.decoders, *open_now}
    opened = [name for name in run.engines if name in everything]
    return _plan(run, RESIDENT, [opened] * (len(run.stages) + 3), open_now)


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
        wanted = [*(name for name in run.engines if name in before and name in later), *later[:1]]
        for name in dict.fromkeys(wanted):
            if name not in now and _fits(run, [*now, name], budget):
                now.append(name)
        stages.append(now)
        before = set(now)
    return _plan(run, PHASES, _parts(run, stages), open_now)


def plan_stream(
    run: RunMemory, budget: int | None, open_now: Sequence[str] = (), host: int | None = None
) -> MemoryPlan:
    """As by phases, with those weights in the host's memory for which a phase has no room.

    The largest engine is streamed before others, so that its calls, which take the longest, have the time for it.

    Args:
        run: what it takes.
        budget: bytes of the device that there are; None for no limit, and 0 for the least that the run can take.
        open_now: engines that are open before it begins; the run closes those that its first phase does not need.
        host: bytes of the host's memory that there are; None for no limit.
    """
    room = None if budget is None else int(budget / (1 + SLACK))
    stages: list[list[str]] = []
    for index, model in enumerate(run.stages):
        before, later = stages[-1] if stages else [], run.stages[index + 1 :]
        kept = [model, *(name for name in before if name in later and name != model)]
        least = _weights(run, kept, {name: _streamable(run, name) for name in kept}) + _beside(run)
        held = (host is None or _held(run, kept) <= host) and (room is None or least <= room)
        stages.append(kept if held else [model])
    opened = _parts(run, stages)
    streamed: dict[str, int] = {}
    for phase in _plan(run, STREAM, opened, open_now).phases:
        excess = 0 if room is None else phase.peak - sum(streamed.get(name, 0) for name in phase.resident) - room
        for name in sorted(phase.resident, key=lambda each: -run.engines[each].weights):
            more = max(0, min(excess, _streamable(run, name) - streamed.get(name, 0)))
            if more:
                streamed[name] = streamed.get(name, 0) + more
                excess -= more
    return _plan(run, STREAM, opened, open_now, streamed)


def _streamable(run: RunMemory, name: str) -> int:
    """Bytes of an engine's weights that need not be on the device."""
    engine = run.engines[name]
    return int(engine.weights * (1 - LEAST)) if engine.streams else 0


def _held(run: RunMemory, names: Sequence[str]) -> int:
    """Bytes of weights that the host's memory holds: of engines that can stream some, all are there."""
    return sum(run.engines[name].weights for name in names if run.engines[name].streams)


def _parts(run: RunMemory, stages: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The engines that are open in each phase, with these in the stages."""
    return [run.frame_encoders, run.encoders, *stages, run.decoders]


def _fits(run: RunMemory, names: Sequence[str], budget: int | None) -> bool:
    return budget is None or round(_sampling(run, names) * (1 + SLACK)) <= budget


def _sampling(run: RunMemory, names: Sequence[str]) -> int:
    return _weights(run, names) + _beside(run)


def _beside(run: RunMemory) -> int:
    """What sampling takes beside weights."""
    return _arena(run, run.stages) + run.conditions + run.slots


def _weights(run: RunMemory, names: Sequence[str], streamed: Mapping[str, int] = _NONE) -> int:
    return sum(run.engines[name].weights - streamed.get(name, 0) for name in names)


def _arena(run: RunMemory, names: Sequence[str]) -> int:
    return max((run.engines[name].scratch or 0 for name in names), default=0)


def _plan(
    run: RunMemory,
    mode: str,
    opened: Sequence[Sequence[str]],
    open_now: Sequence[str],
    streamed: Mapping[str, int] = _NONE,
) -> MemoryPlan:
    """The phases, of which each has these engines open, and so many bytes of their weights in the host's memory."""
    everything = (*run.frame_encoders, *run.encoders, *run.stages, *run.decoders)
    parts = [(ENCODE_FRAMES, run.frame_encoders, run.frame_encoders, run.framing)] if run.frame_encoders else []
    parts += [("encode", run.encoders, run.encoders, run.conditions)] if run.encoders else []
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
                peak=_weights(run, resident, streamed) + arena + tensors,
                streamed=sum(streamed.get(each, 0) for each in runs),
                host=_held(run, resident),
            )
        )
        before = set(resident)
    unknown = tuple(name for name in run.engines if name in everything and run.engines[name].scratch is None)
    return MemoryPlan(mode=mode, phases=tuple(phases), unknown=unknown, streamed=streamed)


def _there(run: RunMemory) -> list[bool]:
    return [bool(run.frame_encoders), bool(run.encoders), *([True] * len(run.stages)), bool(run.decoders)]
