"""Measure a GPU: every stage that is not finished, in a process of its own each, and a table of all.

A stage takes ten minutes at most. One that is stopped, fails, or is killed keeps what it has measured, and goes on
where it was when the command is given again; what is finished is not repeated. ``gpu.md`` and ``gpu.json`` are written
after every stage. docs/gpu.md tells more.

    python -m benchmarks.gpu --out results
    python -m benchmarks.gpu --out results --stage environment,tiny-onnxruntime,overhead
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from flowblending import UsageError
from flowblending.system.console import Console, run_program

_LEAST = 30.0


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure a GPU in stages.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for records and tables")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for checkpoints and engines (default: OUT/work)")
    parser.add_argument("--stage", metavar="NAMES", help="stages to run, with commas between them (default: all)")
    parser.add_argument("--limit", type=float, default=570.0, metavar="SECONDS", help="of a stage (default: 570)")
    parser.add_argument("--again", action="store_true", help="measure finished stages again, too")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="wheels to install first, whole or in parts")
    parser.add_argument("--list", action="store_true", help="print the stages and end")
    parser.add_argument("--table", action="store_true", help="write the tables of what was measured and end")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and write tables.

    Returns:
        1 if a stage failed or has to be run again.
    """
    arguments, console = _arguments(given), Console()
    from benchmarks.gpu.record import Record, read_records
    from benchmarks.gpu.stages import STAGES

    if arguments.list:
        for stage in STAGES:
            console.result(f"{stage.name}: {stage.title}")
        return 0
    if arguments.out is None:
        raise UsageError("No folder for results was given; give --out results.")
    names = [stage.name for stage in STAGES]
    chosen = names if arguments.stage is None else [name.strip() for name in arguments.stage.split(",")]
    for name in chosen:
        if name not in names:
            raise UsageError(f"There is no stage {name}; --list prints them.")
    if not arguments.limit >= _LEAST:
        raise UsageError(
            f"--limit {arguments.limit:g} was given, but a stage needs at least {_LEAST:.0f} s; give more."
        )
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    work: Path = (arguments.work or out / "work").absolute()
    if arguments.wheels is not None:
        from benchmarks.gpu.wheels import install

        for wheel in install(arguments.wheels, work / "packages"):
            console.log(f"installed {wheel.name}")
    from benchmarks.gpu.report import MARKDOWN, write_report

    if arguments.table:
        write_report(read_records(out, names), out)
        console.result(f"{out / MARKDOWN}")
        return 0
    from benchmarks.gpu.environment import gpu_name
    from benchmarks.gpu.runner import check_out, failed, run_stages

    gpu = gpu_name()
    check_out(out, STAGES, gpu, tiny=arguments.tiny)
    records: list[Record] = []
    for record in run_stages(
        [stage for stage in STAGES if stage.name in chosen],
        where="benchmarks.gpu.stages:STAGES",
        out=out,
        work=work,
        seconds=arguments.limit,
        gpu=gpu,
        tiny=arguments.tiny,
        again=arguments.again,
        console=console,
    ):
        records.append(record)
        write_report(read_records(out, names), out)
    console.result(f"{out / MARKDOWN}")
    return int(failed(records))


if __name__ == "__main__":
    run_program(main)
