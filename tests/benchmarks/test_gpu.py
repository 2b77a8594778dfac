"""The measuring of a GPU: stages that fail, die, hang or are stopped, what is kept of them, and the table of it all."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.goals import MET, MISSED, NOT_MEASURED, goals
from benchmarks.gpu.record import FAILED, FINISHED, LEFT_OUT, STOPPED, Record, read_record
from benchmarks.gpu.report import markdown, write_report
from benchmarks.gpu.runner import check_out, failed, run_stages
from benchmarks.gpu.stages import STAGES
from benchmarks.gpu.wheels import install, join_parts
from flowblending import FlowBlendingError, UsageError
from flowblending.system.console import Console
from tests.support.gpu_stages import STAGES as FAKE
from tests.support.gpu_stages import WHERE, done


def run(
    folder: Path, *names: str, seconds: float = 60.0, again: bool = False, gpu: str | None = "a GPU"
) -> list[Record]:
    (folder / "out").mkdir(exist_ok=True)
    return list(
        run_stages(
            [stage for stage in FAKE if stage.name in names],
            where=WHERE,
            out=folder / "out",
            work=folder / "work",
            seconds=seconds,
            gpu=gpu,
            tiny=False,
            again=again,
            console=Console(quiet=True),
        )
    )


def test_what_is_finished_is_not_repeated(tmp_path: Path) -> None:
    (record,) = run(tmp_path, "good")
    assert record.state == FINISHED
    assert record.gpu == "a GPU"
    assert {key: told["value"] for key, told in record.items.items()} == {"one": 3, "two": 3}
    run(tmp_path, "good")
    assert done(tmp_path / "work") == ["one", "two"]
    run(tmp_path, "good", again=True)
    assert done(tmp_path / "work") == ["one", "two", "one", "two"]


def test_what_fails_says_so_in_a_sentence_and_the_rest_runs(tmp_path: Path) -> None:
    refused, died, broke, good = (run(tmp_path, name)[0] for name in ("refuses", "dies", "breaks", "good"))
    assert refused.state == FAILED
    assert refused.sentence == "bad: The back end said no; ask it again."
    assert list(refused.items) == ["before", "after"]
    assert died.state == FAILED
    assert died.sentence is not None
    assert "SIGSEGV at dead (the last words)" in died.sentence
    assert list(died.items) == ["alive"], "what was measured before it died is kept"
    assert broke.sentence == "ImportError: no module of that name"
    assert good.state == FINISHED
    assert failed([refused])
    assert not failed([good])
    # The next run repeats what failed, and that alone; what the process did not survive comes last.
    (again,) = run(tmp_path, "dies")
    assert again.state == FAILED
    assert list(again.items) == ["alive", "later"]
    (tmp_path / "work" / "mended").touch()
    (mended,) = run(tmp_path, "refuses")
    assert mended.state == FINISHED
    assert done(tmp_path / "work")[:3] == ["before", "bad", "after"]
    assert done(tmp_path / "work")[-1] == "bad"
    assert mended.failures == {}
    (alive,) = run(tmp_path, "dies")
    assert alive.state == FINISHED
    assert alive.ended == []


def test_a_stage_that_nears_its_limit_stops_and_goes_on_the_next_time(tmp_path: Path) -> None:
    (stopped,) = run(tmp_path, "long")
    assert stopped.state == STOPPED
    assert stopped.sentence is not None
    assert stopped.sentence.startswith("long may take 1000000 s and ")
    assert list(stopped.items) == ["short"]
    (tmp_path / "work" / "mended").touch()
    (record,) = run(tmp_path, "long")
    assert record.state == FINISHED
    assert done(tmp_path / "work") == ["short", "long"]
    assert record.seconds > stopped.seconds


def test_a_stage_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    (record,) = run(tmp_path, "hangs", seconds=12.0)
    assert record.state == STOPPED
    assert record.sentence is not None
    assert record.sentence.startswith("never was ended after 12 s")
    assert list(record.items) == ["quick"]
    child = int((tmp_path / "work" / "child").read_text())
    for _ in range(100):
        if not _lives(child):
            break
        time.sleep(0.05)
    assert not _lives(child)


def _lives(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(process, 0)
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    return False


def test_what_is_not_installed_is_left_out(tmp_path: Path) -> None:
    (record,) = run(tmp_path, "absent")
    assert record.state == LEFT_OUT
    assert record.sentence == "It is not installed here; install it."
    assert not failed([record])


def test_measurements_of_two_gpus_are_not_mixed(tmp_path: Path) -> None:
    run(tmp_path, "absent")
    check_out(tmp_path / "out", FAKE, "a GPU", tiny=False)
    with pytest.raises(UsageError, match="has the stage absent of a GPU, but here is another; give another --out"):
        check_out(tmp_path / "out", FAKE, "another", tiny=False)
    with pytest.raises(UsageError, match="has measurements of the stage absent, and this run is a trial"):
        check_out(tmp_path / "out", FAKE, "a GPU", tiny=True)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text('{"format": 1, "stage": "good"')
    with pytest.raises(FlowBlendingError, match=r"good.json is no record of a stage"):
        read_record(tmp_path, "good")


def recorded(schedules: dict[str, tuple[float, float]], *, steps: int = 50) -> dict[str, dict[str, Any]]:
    """A record's items: seconds of sampling and the bound, by video."""
    memory = {"peak bytes": 40_000_000_000, "planned bytes": 36_000_000_000, "mode": "resident"}
    videos = {
        key: {"steps": steps, "sampling": seconds, "video": seconds + 6.0, "bound": bound, "memory": memory}
        for key, (seconds, bound) in schedules.items()
    }
    models = {"large": {"seconds": 2.0, "TFLOPs per second": 450.0}}
    return {"calls": {"models": models}, "switch": {"seconds per switch": 0.001}, **videos}


def test_the_table_and_the_goals_are_made_of_what_was_recorded(tmp_path: Path) -> None:
    host = {"host microseconds per step": 14.0, "GPU microseconds per step": 50.0, "wall microseconds per step": 60.0}
    records = {
        "environment": Record(stage="environment", state=FINISHED, gpu="NVIDIA H100", items={"gpu": {"count": 1}}),
        "overhead": Record(stage="overhead", state=FINISHED, items={"unipc": host, "graph": {**host, "graph": True}}),
        "wan-480p-torch": Record(stage="wan-480p-torch", state=FINISHED, items={"large eager": {"median": 3.25}}),
        "wan-480p-tensorrt-bf16": Record(
            stage="wan-480p-tensorrt-bf16",
            state=FAILED,
            sentence="SSS: no",
            gpu="NVIDIA H100",
            items=recorded({"LLL": (194.0, 1.0), "LSL": (130.0, 1.5)}),
        ),
        "wan-480p-tensorrt-fp8": Record(
            stage="wan-480p-tensorrt-fp8",
            state=FINISHED,
            items=recorded({"LLL": (80.0, 1.0), "LSL": (48.0, 1.6), "LSL taylor:1": (20.0, 4.0)}, steps=20),
        ),
    }
    found = {goal.goal.partition(": ")[2] or goal.goal: goal for goal in goals(records)}
    fast, slow, cached = (
        next(goal for name, goal in found.items() if what in name)
        for what in ("all-large in bf16", "LSL with fp8 within", "a step cache")
    )
    assert (fast.verdict, fast.measured) == (MET, "200.0 s on NVIDIA H100 (tensorrt bf16 LLL)")
    assert slow.verdict == MISSED
    assert slow.measured.startswith("126.0 s"), "48 s in 20 steps are 120 in 50, and 6 s come beside"
    assert "scaled from 20 steps" in slow.measured
    assert cached.verdict == MET
    shares = [goal for goal in goals(records) if "832x480" in goal.goal and "FLOPs bounds" in goal.goal]
    assert (shares[0].verdict, shares[0].measured) == (MET, "at least 0.995 (tensorrt bf16 LSL: 1.492x of 1.500x)")
    assert shares[1].verdict == NOT_MEASURED
    overhead = next(goal for goal in goals(records) if "CUDA graph" in goal.goal)
    assert (overhead.verdict, overhead.measured) == (MET, "14.0 (graph)")
    text = markdown(records)
    for row in (
        "| torch eager, bf16 | large | 3.2500 |  |",
        "| tensorrt bf16 | large | 2.0000 | 450 |",
        "| tensorrt bf16: LSL | 50 | 130.00 | 136.00 | 136.0 | 1.492x | 1.500x | 0.995 | 40.0 | 36.0 resident |",
        "| wan-480p-tensorrt-bf16 | failed | 0 | SSS: no |",
    ):
        assert row in text, text
    write_report(records, tmp_path)
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["gpu"] == "NVIDIA H100"
    assert set(content["stages"]) == set(records)


def test_a_share_below_its_goal_is_missed_with_both_numbers() -> None:
    record = Record(stage="x", items=recorded({"LLL": (100.0, 1.0), "LSL": (80.0, 1.6), "SSS": (12.0, 8.0)}))
    share = next(goal for goal in goals({"ltx-704p-tensorrt-fp8": record}) if "LTX 13B / 2B, 1216x704" in goal.goal)
    assert share.verdict == MISSED
    assert share.measured == "at least 0.781 (tensorrt fp8 LSL: 1.250x of 1.600x)"


def test_wheels_in_parts_are_joined(tmp_path: Path) -> None:
    for number, content in enumerate((b"one", b"two", b"three")):
        (tmp_path / f"a-1.0-py3-none-any.whl.part{number}").write_bytes(content)
    (tmp_path / "b-1.0-py3-none-any.whl").write_bytes(b"whole")
    wheels = join_parts(tmp_path)
    assert [path.name for path in wheels] == ["a-1.0-py3-none-any.whl", "b-1.0-py3-none-any.whl"]
    assert wheels[0].read_bytes() == b"onetwothree"
    (tmp_path / "a-1.0-py3-none-any.whl.part1").unlink()
    with pytest.raises(UsageError, match=r"whl.part1 is missing; bring it, too"):
        join_parts(tmp_path)
    with pytest.raises(UsageError, match="is no folder"):
        join_parts(tmp_path / "nowhere")


def test_wheels_are_installed_beside_the_python_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    about = "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n"
    with zipfile.ZipFile(tmp_path / "brought-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought.py", "VALUE = 7\n")
        wheel.writestr("brought-1.0.dist-info/METADATA", about)
        wheel.writestr("brought-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("brought-1.0.dist-info/RECORD", "")
    install(tmp_path, tmp_path / "packages")
    command = [sys.executable, "-c", "import brought; print(brought.VALUE)"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "7\n"
    (tmp_path / "broken-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    with pytest.raises(FlowBlendingError, match="pip cannot install the wheels of"):
        install(tmp_path, tmp_path / "packages")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((), "give --out results"),
        (("--stage", "nothing"), "There is no stage nothing; --list prints them"),
        (("--limit", "1"), "a stage needs at least 30 s"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, given: Sequence[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        program.main([*(("--out", str(tmp_path / "out")) if given else ()), *given])


def test_the_stages_are_listed_and_without_a_gpu_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--list"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [each.name for each in STAGES]
    assert len({each.name for each in STAGES}) == len(STAGES)
    if program.main(["--out", str(tmp_path), "--table"]) == 0:
        assert "not measured" in (tmp_path / "gpu.md").read_text()
