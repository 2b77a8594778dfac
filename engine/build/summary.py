"""A bundle as it is told at the end of a build: its components, its proof, and how to use it."""

from __future__ import annotations

from flowblending.contracts.conditions import images_taken, takes_image_channels
from flowblending.contracts.models import listed as listed_models
from flowblending.engine.build.proof.report import read_report
from flowblending.engine.build.proof.table import proof_document, show_report
from flowblending.engine.bundle.bundle import REPORT, Bundle
from flowblending.engine.bundle.video_choice import listed
from flowblending.system.console import Console
from flowblending.system.shell import command


def show_bundle(bundle: Bundle, console: Console) -> None:
    """Tell what was built."""
    manifest, report = bundle.manifest, read_report(bundle)
    rows = [
        (
            name,
            str(component.spec.precision),
            f"{component.backend} {component.backend_version}",
            " ".join(component.targets) or "any",
            f"{component.engine_bytes / 1e6:.1f} MB",
        )
        for name, component in manifest.components.items()
    ]
    columns = ("component", "precision", "back end", "target", "size")
    console.table(f"{bundle.folder}: {manifest.pipeline.family}, {listed(manifest)}", columns, rows)
    console.result(f"models: {listed_models(manifest.models)}")
    for model in manifest.models:
        if model.sampling is not None:
            console.result(f"{model.name}: {model.sampling}")
    for name, component in manifest.components.items():
        for lora in component.loras:
            console.result(f"{name}: with LoRA {lora}")
    if report is not None:
        show_report(report, console)
        if report.left and any(component.targets for component in manifest.components.values()):
            console.result(f"Finish the proof on the GPU: {command('fb-build-engines', '--prove', bundle.folder)}")
    image = " --image cat.png" if takes_image_channels(manifest.pipeline.conditions) else ""
    if images_taken(manifest.pipeline.conditions) > 1:
        image += f" --image end.png@{manifest.geometry.frames - 1}"
    console.result(f'Run it: {command("fb-run", bundle.folder)} --prompt "..."{image}')
    content = {**_described(bundle), "proof": None if report is None else proof_document(report)}
    console.document("fb-build-engines", content)


def _described(bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "bundle": bundle.folder,
        "id": manifest.id,
        "family": manifest.pipeline.family,
        "videos": [
            {name: {"size": each.size, "frames": each.frames} for name, each in ends.items()}
            for ends in ({"min": one.min, "opt": one.opt, "max": one.max} for one in manifest.profiles)
        ],
        "models": [
            {
                "name": model.name,
                "letter": model.letter,
                "components": model.components,
                "boundary": model.boundary,
                "expert_letters": model.letters,
            }
            for model in manifest.models
        ],
        "components": {
            name: {
                "precision": str(component.spec.precision),
                "backend": component.backend,
                "backend_version": component.backend_version,
                "targets": component.targets,
                "bytes": component.engine_bytes,
                "loras": [str(lora) for lora in component.loras],
            }
            for name, component in manifest.components.items()
        },
        "report": bundle.folder / REPORT,
    }
