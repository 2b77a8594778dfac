"""The JSON schemas that the package ships, made from the models that read the files.

    python -m tests.support.schemas       # writes flowblending/contracts/schema/ anew

The program's is written by hand: it also says what each instruction does, for interpreters in other languages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from flowblending.contracts import upgrade
from flowblending.contracts.evidence import Evidence
from flowblending.contracts.fp8_calibration import Fp8Calibration
from flowblending.contracts.manifest import Manifest
from flowblending.contracts.proof import Facts, Proof
from flowblending.contracts.upgrade import Format
from flowblending.engine.build.proof.report import BuildReport

FOLDER = Path(upgrade.__file__).parent / "schema"
COMMAND = "python -m tests.support.schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

MODELS: Mapping[str, tuple[Format, Any]] = {
    "manifest": (upgrade.MANIFEST, Manifest),
    "report": (upgrade.REPORT, BuildReport),
    "proof": (upgrade.PROOF, Proof),
    "calibration": (upgrade.EVIDENCE, Evidence),
    "fp8_calibration": (upgrade.FP8_CALIBRATION, Fp8Calibration),
}
_NOT_A_NUMBER = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}


def path_of(name: str) -> Path:
    """The file of a schema."""
    return FOLDER / f"{name}.schema.json"


def make(name: str) -> str:
    """The content of a schema's file."""
    kind, model = MODELS[name]
    made = TypeAdapter(model).json_schema()
    # A file says what it is; that a model has the number as a default is for those who write one.
    _require_format(made, kind)
    for each, schema in made.get("$defs", {}).items():
        if "format" in schema.get("properties", {}):
            _require_format(schema, upgrade.PROOF if each == Proof.__name__ else kind)
    facts = isinstance(model, type) and issubclass(model, Facts)
    content = {"$schema": DIALECT, **_tidy(made, not_a_number=facts), "title": f"FlowBlending {kind.name}"}
    return json.dumps(content, indent=1) + "\n"


def _require_format(schema: dict[str, Any], kind: Format) -> None:
    if "properties" in schema:
        number = {"format": {"const": kind.number}}
        schema["properties"] = number | schema["properties"] | number
        schema["required"] = sorted({"format", *schema.get("required", [])})


def _tidy(schema: Any, *, not_a_number: bool) -> Any:
    """Without titles that repeat names; of descriptions the first sentences; figures that are no number as texts."""
    if isinstance(schema, list):
        return [_tidy(each, not_a_number=not_a_number) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if not_a_number and schema.get("type") == "number":
        return _NOT_A_NUMBER
    tidied = {}
    for name, value in schema.items():
        if name == "description":
            tidied[name] = " ".join(value.partition("\n\n")[0].split())
        elif name != "title" or isinstance(value, dict):
            tidied[name] = _tidy(value, not_a_number=not_a_number)
    # Readers refuse what they do not know, dataclasses too.
    return {"additionalProperties": False} | tidied if isinstance(tidied.get("properties"), dict) else tidied


def main() -> None:
    """Write them."""
    for name in MODELS:
        path_of(name).write_text(make(name))


if __name__ == "__main__":
    main()
