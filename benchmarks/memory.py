"""Which pair runs on which card, by the plan of memory that runs go by.

``python -m benchmarks.memory`` prints, for the full-size pairs of the table below, the least memory of each way to run,
and for cards of 12 to 141 GB what ``--memory auto`` takes of a bundle that was built with ``--weight-streaming``; with
``--phases`` also the plan of each pair phase by phase.

The figures of weights and scratch memory are what TensorRT-RTX 1.7.1 states when it compiles these graphs for sm89 at
batch 1 (scratch at 1280x720 is that of 832x480 by the number of tokens, which it is linear in); LTX-Video's are partly
estimated from its parameters, and the scratch memory of Wan's decoder in tiles from their number of pixels. None was
measured on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from flowblending import OutOfMemoryError
from flowblending.contracts.graph import streams_weights
from flowblending.runtime.memory.choose import choose_plan
from flowblending.runtime.memory.describe import memory_lines, tell_memory
from flowblending.runtime.memory.plan import (
    EngineMemory,
    MemoryPlan,
    RunMemory,
    plan_phases,
    plan_resident,
    plan_stream,
)

GB = 10**9
CARDS = (12, 16, 24, 32, 48, 80, 141)
CONTEXT = 0.5
"""GB of a card that the driver's context and the libraries take before anything is read. An assumption."""

_HD = 1280 * 720 / (832 * 480)
_TILE = 256 * 256 / (832 * 480)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A pair at a size, in GB.

    Attributes:
        stages: the engine of each.
        engines: weights and scratch memory by name.
        conditions, slots, decoding: see `RunMemory`.
    """

    stages: tuple[str, ...]
    engines: Mapping[str, tuple[float, float]]
    conditions: float = 0.02
    slots: float
    decoding: float

    def memory(self) -> RunMemory:
        """In bytes."""
        return RunMemory(
            engines={
                name: EngineMemory(
                    name=name,
                    weights=round(weights * GB),
                    scratch=round(scratch * GB),
                    streams=True if streams_weights(name) else None,
                )
                for name, (weights, scratch) in self.engines.items()
            },
            encoders=("text_encoder",),
            stages=self.stages,
            decoders=tuple(name for name in self.engines if name.startswith("vae")),
            conditions=round(self.conditions * GB),
            slots=round(self.slots * GB),
            decoding=round(self.decoding * GB),
        )


def _wan(stages: str = "large small large", *, large: float = 28.6, tokens: float = 1.0, tiles: bool = False) -> Pair:
    """Wan 14B (28.6 GB in bf16, 16.7 in fp8) and 1.3B at 832x480 with 81 frames, or at ``tokens`` times that.

    With ``tiles``, decoded in those of 256x256: their caches and scratch memory, and the video in float32 and in bytes.
    """
    decoded, video = (_TILE if tiles else tokens), 81 * 832 * 480 * 3 * tokens * 5 / GB
    names = tuple(stages.split())
    big = {name: (large, 4.11 * tokens) for name in dict.fromkeys(names) if name != "small"}
    return Pair(
        stages=names,
        engines={
            **big,
            "small": (2.84, 1.36 * tokens),
            "text_encoder": (11.4, 0.30),
            "vae_first": (0.29, 1.24 * decoded),
            "vae_next": (0.29, 7.98 * decoded),
        },
        slots=0.1 * tokens,
        decoding=7.6 * decoded + (video if tiles else 0.0),
    )


PAIRS: Mapping[str, Pair] = {
    "Wan 14B/1.3B bf16, 832x480, 81 frames": _wan(),
    "Wan 14B/1.3B bf16, 832x480, 81 frames, decoded in tiles": _wan(tiles=True),
    "Wan 14B/1.3B large=fp8, 832x480, 81 frames": _wan(large=16.7),
    "Wan 14B/1.3B large=fp8, 832x480, 81 frames, decoded in tiles": _wan(large=16.7, tiles=True),
    "Wan 14B/1.3B bf16, 1280x720, 81 frames": _wan(tokens=_HD),
    "Wan 14B/1.3B bf16, 1280x720, 81 frames, decoded in tiles": _wan(tokens=_HD, tiles=True),
    "Wan 14B/1.3B large=fp8, 1280x720, 81 frames": _wan(large=16.7, tokens=_HD),
    "Wan 14B/1.3B large=fp8, 1280x720, 81 frames, decoded in tiles": _wan(large=16.7, tokens=_HD, tiles=True),
    "Wan A14B with 1.3B bf16, 832x480, 81 frames": _wan("large_high small large_low"),
    "LTX 13B/2B bf16, 704x512, 121 frames": Pair(
        stages=("large", "small", "large"),
        engines={"large": (26.1, 1.35), "small": (3.85, 0.6), "text_encoder": (9.5, 0.3), "vae": (1.2, 5.8)},
        slots=0.05,
        decoding=1.4,
    ),
}


def verdict(run: RunMemory, card: float) -> str:
    """What ``auto`` takes on a card of so many GB."""
    try:
        plan = choose_plan(run, "auto", round((card - CONTEXT) * GB))
    except OutOfMemoryError:
        return "no"
    if plan.streamed:
        return f"streams {max(phase.streamed for phase in plan.phases) / GB:.1f} GB"
    times = plan.reads / plan_resident(run).reads
    return plan.mode if times <= 1 else f"{plan.mode}, reads x {times:.1f}"


def _ways(run: RunMemory) -> tuple[MemoryPlan, ...]:
    return plan_resident(run), plan_phases(run, None), plan_phases(run, 0), plan_stream(run, 0)


def table() -> list[str]:
    """The table in Markdown."""
    head = ["pair", "resident", "phases", "phases at least", "stream at least", *(f"{card} GB" for card in CARDS)]
    rows = [head, ["---"] * len(head)]
    for name, pair in PAIRS.items():
        run = pair.memory()
        needs = [plan.needs for plan in _ways(run)]
        rows.append([name, *(f"{each / GB:.1f} GB" for each in needs), *(verdict(run, card) for card in CARDS)])
    return [f"| {' | '.join(row)} |" for row in rows]


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phases", action="store_true", help="also the plan of each pair, phase by phase")
    arguments = parser.parse_args()
    print("\n".join(table()))
    if arguments.phases:
        for name, pair in PAIRS.items():
            print(f"\n{name}")
            for mode in ("resident", "phases"):
                print("\n".join(memory_lines(tell_memory(pair.memory(), mode, None))))


if __name__ == "__main__":
    main()
