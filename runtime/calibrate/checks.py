"""What fb-calibrate refuses before any work: arguments that make no sense, and results that could not be written."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowblending import UsageError
from flowblending.runtime.arguments import check_machine, flag_of, given
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.option import CALIBRATE
from flowblending.runtime.options import Job
from flowblending.runtime.program.caches.registry import measured_caches

if TYPE_CHECKING:
    from flowblending.engine.bundle.bundle import Bundle
    from flowblending.system.console import Console

LEAST_PARTS = 2


def check_arguments(arguments: argparse.Namespace, line: argparse.ArgumentParser) -> None:
    """Refuse arguments that make no sense.

    Raises:
        UsageError: names the first, and what to do.
    """
    from flowblending.engine.bundle.bundle import check_outside
    from flowblending.runtime.calibrate.budget import read_budget

    if arguments.show or arguments.reset:
        _check_alone(arguments, line)
        return
    if arguments.prompts is None:
        raise UsageError("--prompts FILE is missing; give a file of prompts to measure, or --show or --reset.")
    if not 0 < arguments.threshold <= 1:
        raise UsageError(f"The threshold is {arguments.threshold}, but a similarity above 0, up to 1, was expected.")
    if arguments.parts < LEAST_PARTS:
        raise UsageError(
            f"{arguments.parts} parts were asked for, but at least {LEAST_PARTS} make a boundary; "
            f"try --parts {line.get_default('parts')}."
        )
    check_machine(arguments)
    given(arguments, CALIBRATE)
    if arguments.cache and (arguments.proxy_only or arguments.blended or arguments.budget is not None):
        raise UsageError(
            "--cache measures constants and chooses no schedule; leave out --proxy-only, --blended and --budget."
        )
    if arguments.budget is not None:
        read_budget(arguments.budget)
    if arguments.switches < 1:
        raise UsageError(f"{arguments.switches} switches were allowed, but at least 1 is needed; try --switches 2.")
    _check_used(arguments, line)
    for path in (arguments.work, None if arguments.no_plot else arguments.plot):
        if path is not None:
            check_outside(path)


def _check_alone(arguments: argparse.Namespace, line: argparse.ArgumentParser) -> None:
    """Refuse options beside --show or --reset, which measure nothing."""
    if arguments.show and arguments.reset:
        raise UsageError("--show and --reset were both given; look first, and take back then.")
    what = "--show" if arguments.show else "--reset"
    for name, value in vars(arguments).items():
        if name not in ("bundle", "show", "reset", "quiet", "json") and value != line.get_default(name):
            raise UsageError(f"{flag_of(line, name)} does nothing for {what}, which measures nothing; leave it out.")


def _check_used(arguments: argparse.Namespace, line: argparse.ArgumentParser) -> None:
    """Refuse options that would do nothing beside the others."""
    criteria = ["similarity", "distance", "threshold"]
    if arguments.cache:
        what, unused = "--cache", [*criteria, "parts", "switches", "plot", "by"]
    elif arguments.budget is not None:
        what, unused = "--budget", [*criteria, *["parts"] * arguments.proxy_only]
    elif arguments.proxy_only:
        what, unused = "--proxy-only", [*criteria, "parts", "switches"]
    else:
        what, unused = "schedules without a --budget", ["switches"]
    if arguments.no_apply and arguments.by != line.get_default("by"):
        raise UsageError("--by does nothing for --no-apply, which keeps nothing; leave it out.")
    for name in unused:
        if getattr(arguments, name) != line.get_default(name):
            raise UsageError(f"--{name} does nothing for {what}; leave it out.")


def check_spread(arguments: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Refuse to make a bundle's default of what one prompt says.

    Raises:
        UsageError: results of one prompt would be compared.
    """
    if len(jobs) == 1 and not (arguments.cache or arguments.proxy_only or arguments.no_apply):
        raise UsageError(
            f"{arguments.prompts} holds 1 prompt, which has no spread to compare a difference with; give at least 2 "
            "(8 or more say much more), or --no-apply to look only."
        )


def check_targets(arguments: argparse.Namespace, bundle: Bundle) -> None:
    """Find out before hours of work whether its results can be written.

    Raises:
        FlowBlendingError: they cannot.
    """
    from flowblending.contracts.manifest import MANIFEST
    from flowblending.runtime.calibrate.plot import check_plotting
    from flowblending.system.output import check_file

    if not arguments.no_apply:
        check_file(bundle.folder / MANIFEST)
    if not arguments.no_plot and not arguments.cache:
        check_plotting()
        check_file(arguments.plot)


def check_signals(caches: Sequence[str], bundle: Bundle) -> None:
    """Refuse caches whose constants come of graphs that the bundle was built without.

    Raises:
        UsageError: names the first, and the command that builds them.
    """
    for name in caches:
        cache, measurement = measured_caches()[name]
        if measurement.needs_signal and not bundle.manifest.signals:
            raise UsageError(
                f"The bundle {bundle.folder} was built without the graphs that {cache.name} looks at; build it again, "
                f"which reuses its engines: {bundle.rebuild} --teacache"
            )


def warn_unused(arguments: argparse.Namespace, job: Job, bundle: Bundle, console: Console) -> None:
    """Tell of options that do nothing on this bundle."""
    from flowblending.runtime.devices.open import device_kind
    from flowblending.runtime.jobs import compile_job
    from flowblending.runtime.unused import unused_machine, unused_options

    program = compile_job(dataclasses.replace(job, schedule=bundle.manifest.models[0].letter), bundle.manifest)
    for line in unused_options(job, program, bundle.manifest, timed=False):
        console.warn(line)
    device = device_kind(arguments.device, bundle.manifest)
    for line in unused_machine(MachineSettings.of(vars(arguments)), device, bundle.manifest).values():
        console.warn(line)
