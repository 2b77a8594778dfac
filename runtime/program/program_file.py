"""File contract 3 on disk: a sampling program together with what an interpreter must know of the engines.

The JSON schema is ``flowblending/contracts/schema/program.schema.json``. Whatever reads such a file and a bundle can
sample:
the C++ library in ``cpp/`` does. A program file belongs to one bundle, whose id it repeats.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from flowblending import FlowBlendingError
from flowblending.contracts import upgrade
from flowblending.contracts.conditions import own_input
from flowblending.contracts.graph import Dim, GraphSpec
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.program import LATENTS, TIMESTEP, Program
from flowblending.system.whole_file import write_whole

CONDITION = "condition"

Source = Literal["latents", "timestep", "condition"]


@dataclass(frozen=True, kw_only=True)
class InputBinding:
    """An engine's input: what it is called, what it is, and where it comes from.

    Attributes:
        name: of the input.
        dtype: numpy name.
        shape: sizes, ``batch`` first unless all rows of a call share the input.
        source: ``latents``: the slot of that name, repeated for each branch of a call; ``timestep``: the step's,
            repeated alike, or its timesteps of the latent frames; ``condition``: the branches' own, one row after the
            other.
        key: under which name the caller gives a condition, once for every branch.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    source: Source
    key: str


@dataclass(frozen=True, kw_only=True)
class EngineBinding:
    """What one model's engine is given, and the one output that goes to the slots of a run."""

    inputs: tuple[InputBinding, ...]
    output: str


@dataclass(frozen=True, kw_only=True)
class ProgramFile:
    """A program, and the bundle that it was compiled for.

    Attributes:
        bundle: id of the bundle.
        slots: every buffer that the program uses, ``latents`` first.
        engines: by the model names in the program's runs.
        program: what to execute.
    """

    bundle: str
    slots: tuple[str, ...]
    engines: Mapping[str, EngineBinding]
    program: Program

    @classmethod
    def of(
        cls, program: Program, *, bundle: str, specs: Mapping[str, GraphSpec], own: Collection[str] = ()
    ) -> ProgramFile:
        """Bind a program to the engines that it runs.

        Args:
            program: that runs them.
            bundle: id of theirs.
            specs: of engines, which may be more.
            own: inputs of which every engine is given a value of its own.
        """
        models = sorted(name for name in specs if program.calls(name))
        return cls(
            bundle=bundle,
            slots=program.slots(),
            engines={name: _binding(name, specs[name], own) for name in models},
            program=program,
        )

    @classmethod
    def for_bundle(cls, program: Program, manifest: Manifest) -> ProgramFile:
        """Bind a program to a bundle's engines."""
        return cls.of(
            program,
            bundle=manifest.id,
            specs={name: component.spec for name, component in manifest.components.items()},
            own=[each.name for each in manifest.pipeline.conditions if each.is_own],
        )

    def to_json(self) -> dict[str, object]:
        """Plain data for ``json.dumps``; it is also what ``Program.from_json`` reads."""
        content = self.program.to_json()
        return {
            "format": content.pop("format"),
            "bundle": self.bundle,
            "latent_shape": content.pop("latent_shape"),
            "slots": self.slots,
            "engines": {name: dataclasses.asdict(engine) for name, engine in self.engines.items()},
            **content,
        }

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            FlowBlendingError: it cannot be written.
        """
        write_whole(path, (json.dumps(self.to_json(), indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> ProgramFile:
        """Read and check a file.

        Raises:
            FlowBlendingError: it is missing, damaged, of a later format, or contradicts itself.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FlowBlendingError(
                f"{path} is no readable sampling program ({error}); write it with fb-run --emit-program."
            ) from None
        if not isinstance(content, dict):
            raise FlowBlendingError(f"{path} is no sampling program; write it with fb-run --emit-program.")
        try:
            content = upgrade.PROGRAM.upgrade(content, path, "write it again with fb-run --emit-program")
        except ValueError as error:
            raise FlowBlendingError(f"{path} is damaged ({error}); write it again.") from None
        program = Program.from_json(content)
        names = ("bundle", "slots", "engines")
        try:
            rest = {name: content[name] for name in names if name in content}
            file = TypeAdapter(cls).validate_python({**rest, "program": program})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise FlowBlendingError(f"{path} is damaged at {place} ({first['msg']}); write it again.") from None
        if file.slots != program.slots():
            raise FlowBlendingError(
                f"{path} lists the slots {', '.join(file.slots)}, but its instructions use "
                f"{', '.join(program.slots())}; write it again."
            )
        return file


def _binding(model: str, spec: GraphSpec, own: Collection[str]) -> EngineBinding:
    sources: dict[str, Source] = {LATENTS: "latents", TIMESTEP: "timestep"}
    (output,) = spec.outputs
    return EngineBinding(
        inputs=tuple(
            InputBinding(
                name=each.name,
                dtype=each.dtype,
                shape=each.shape,
                source=sources.get(each.name, "condition"),
                key=own_input(model, each.name) if each.name in own else each.name,
            )
            for each in spec.inputs
        ),
        output=output.name,
    )
