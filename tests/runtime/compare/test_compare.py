"""fb-compare's parts that need no bundle: what is compared, sums, charts, the page's text, judges and folders."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.manifest import FusedLora
from flowblending.contracts.models import Model
from flowblending.engine.bundle.bundle import Bundle
from flowblending.runtime.compare import by_step, charts, layout, scoring
from flowblending.runtime.compare.columns import COLUMNS
from flowblending.runtime.compare.compare import Reference, _against
from flowblending.runtime.compare.facts import facts_of_runs
from flowblending.runtime.compare.figures import Against
from flowblending.runtime.compare.notes import busy_note
from flowblending.runtime.compare.page import page
from flowblending.runtime.compare.report import (
    CalibrationDivergence,
    ChartLine,
    ComparedPrompt,
    ComparedRun,
    ComparedVideo,
    ComparisonReport,
    as_json,
    cell,
    in_use,
    steps_of,
    text_of,
)
from flowblending.runtime.compare.runs import (
    Variant,
    check_jobs,
    file_stem,
    parse_variants,
    prompts_of,
    reference_schedule,
    usual_schedules,
)
from flowblending.runtime.compare.sample import TRAIL, Sampled, trail_indices
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.measures.function import MeasureError
from flowblending.runtime.options import Job
from flowblending.runtime.prompt_file import read_jobs
from tests.support import manifests
from tests.support.left_behind import left_behind

COLUMN = {column.key: column for column in COLUMNS}
NASTY = 'a <b>"cat"</b> & </script><script>alert(1)</script> 一只猫'


def labels(schedules: str, caches: str = "off") -> list[str]:
    return [variant.label for variant in parse_variants(schedules, caches, "LLL")]


def test_the_reference_comes_first_and_nothing_twice() -> None:
    assert labels("lsl, SSS,LSL") == ["LLL", "LSL", "SSS"]
    assert labels("SSS,LLL,l20  s20 l10") == ["LLL", "SSS", "L20 S20 L10"]
    assert labels("LLL,l4 s4:t600, 400 L2,Auto") == ["LLL", "L4 S4:t600, 400 L2", "auto"]
    both = labels("LLL,LSL", "magcache:0.12,4,off,guidance:5, 0.5")
    assert both == ["LLL"] + [f"{name}{cache}" for name in ("LLL", "LSL") for cache in (
        " + magcache:0.12,4", "", " + guidance:5,0.5") if name + cache != "LLL"]  # fmt: skip


def test_what_is_compared_follows_the_models(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "toy")
    large, small = manifest.models
    draft = Model(name="draft", letter="D", components=("draft",))
    for models, usual in (
        ((large, small), "LLL,LSL,SSS"),
        ((draft, large, small), "DDD,DLD,LLL,SSS"),
        ((small,), "SSS"),
    ):
        found = manifest.model_copy(update={"models": models})
        assert usual_schedules(found) == usual
        assert reference_schedule(found) == usual.partition(",")[0]


@pytest.mark.parametrize(("schedules", "caches"), [("", "off"), ("LLL,,LSL", "off"), ("LLL", "off,"), (" ", "off")])
def test_lists_with_nothing_in_them(schedules: str, caches: str) -> None:
    with pytest.raises(UsageError, match="has nothing where a name was expected"):
        parse_variants(schedules, caches, "LLL")


def prompts(tmp_path: Path, text: str) -> list[Job]:
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    return prompts_of(read_jobs(path, Job(prompt="", seed=3)), path)


def test_prompts(tmp_path: Path) -> None:
    jobs = prompts(tmp_path, 'a cat\n{"prompt": "a dog", "seed": 7}\na cat\n')
    assert [(job.prompt, job.seed) for job in jobs] == [("a cat", 3), ("a dog", 7)]
    for name, value in (("schedule", "SSS"), ("cache", "taylor:1")):
        with pytest.raises(UsageError, match=f"Line 2 of .* sets its {name}, which --{name}s gives"):
            prompts(tmp_path, "a cat\n" + json.dumps({"prompt": "a dog", name: value}))
    with pytest.raises(UsageError, match=r"Line 1 of .*The prompt is empty"):
        prompts(tmp_path, '{"prompt": ""}')


def test_every_combination_is_compiled_first(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "toy")
    jobs = [Job(prompt="a cat", steps=10)]
    check_jobs(jobs, parse_variants("LLL,L4 S4 L2", "off,interval:2", "LLL"), manifest)
    with pytest.raises(UsageError, match=r"^L20 S20: The runs of the schedule L20 S20 add up to 40 steps, but 10"):
        check_jobs(jobs, parse_variants("LLL,L20 S20", "off", "LLL"), manifest)
    with pytest.raises(UsageError, match=r"^LLL \+ mask:101: The mask has 3 digits"):
        check_jobs(jobs, parse_variants("LLL", "off,mask:101", "LLL"), manifest)


def test_a_run_of_other_steps_is_not_set_beside_the_reference_step_by_step(tmp_path: Path) -> None:
    """A distilled model visits steps of its own; its video and its final latents are compared all the same."""
    program = compile_job(Job(prompt="x", steps=2, schedule="LLL"), manifests.write(tmp_path / "toy"))
    frames, latents = np.zeros((2, 16, 16, 3), np.uint8), np.ones((1, 2, 1, 1, 1), np.float32)

    def against(steps: int) -> Against:
        trail = np.ones((steps, 2), np.float32)
        made = Sampled(
            program=program, latents=latents, trail=trail, frames=frames, seconds={}, flops=0, computed="1" * steps
        )
        return _against(made, Reference(frames=frames, latents=latents, trail=np.ones((4, 2), np.float32)))

    assert against(4).steps == pytest.approx((1.0,) * 4)
    assert against(2).steps == ()
    assert against(2).cosine == pytest.approx(1.0)


def test_another_place_or_option_is_another_file(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "toy")
    job = Job(prompt="A cat: on 'grass'/..", seed=1)
    variants = parse_variants("LLL,LSL", "off,taylor:1", "LLL")
    stems = {file_stem(job, variant, manifest, place) for variant in variants for place in ("cpu None", "cpu 2")}
    stems |= {file_stem(Job(prompt=job.prompt, seed=2), variants[0], manifest, "cpu 2")}
    assert len(stems) == 2 * len(variants) + 1
    assert all(re.fullmatch(r"[\w-]+", stem) for stem in stems)
    assert file_stem(job, variants[0], manifest, "cpu 2") in stems


def test_the_trail_keeps_the_same_numbers_each_time() -> None:
    assert trail_indices(50).tolist() == list(range(50))
    chosen = trail_indices(1_000_000)
    assert len(set(chosen.tolist())) == TRAIL
    assert 0 <= chosen.min() < 1000 < 999_000 < chosen.max() < 1_000_000
    assert np.array_equal(chosen, trail_indices(1_000_000))
    # Of random vectors with a cosine of 0.8, the chosen numbers tell the cosine to a few thousandths.
    a, b = np.random.default_rng(1).standard_normal((2, 1_000_000))
    b = 0.8 * a + 0.6 * b
    x, y = a[chosen], b[chosen]
    assert x @ y / np.linalg.norm(x) / np.linalg.norm(y) == pytest.approx(0.8, abs=0.012)


def report(*, cases: tuple[ComparedPrompt, ...] | None = None) -> ComparisonReport:
    """Three runs of three prompts; one video of SSS is missing, and one of LSL equals LLL's."""

    def clip(run: str, case: int, **values: float) -> ComparedVideo:
        steps = () if run == "LLL" else (1.0, 0.9 - 0.1 * case, 0.5)
        return ComparedVideo(video=f"videos/{run}-{case}.mp4", values=values, steps=steps)

    psnr = (20.0, 26.0, math.inf)
    made = cases or tuple(
        ComparedPrompt(
            title=(NASTY, "two", "three")[case],
            note=f"seed {case}",
            clips={
                "LLL": clip("LLL", case, seconds=(4.0, 5.0, 9.0)[case], flops=8.0),
                "LSL": clip("LSL", case, seconds=(2.0, 2.5, 2.6)[case], flops=5.0, psnr=psnr[case], ssim=0.9),
                **({"SSS": clip("SSS", case, seconds=1.0, flops=1.0, psnr=10.0, ssim=0.1)} if case else {}),
            },
        )
        for case in range(3)
    )
    return ComparisonReport(
        name="<wan>",
        subtitle="A & B",
        facts=(("bundle", "<x>"),),
        runs=(
            ComparedRun(label="LLL", schedule="LLL", stages="L3", computed="111"),
            ComparedRun(label="LSL", schedule="LSL", stages="L1 S1 L1", computed="1c0"),
            ComparedRun(label="SSS", schedule="SSS", cache="off-beat", stages="S3", computed="111"),
        ),
        cases=made,
        columns=in_use(COLUMNS, made),
        notes=("Nothing else was <measured>.",),
        frame_rate=8,
        models={"L": "large", "S": "small"},
    )


def test_the_table_sums_up() -> None:
    whole = report()
    lll, lsl, sss = whole.runs
    assert [column.key for column in whole.columns] == ["seconds", "speedup", "flops", "bound", "psnr", "ssim"]
    assert cell(whole, lsl, COLUMN["seconds"]).value == 2.5
    assert cell(whole, lsl, COLUMN["speedup"]).value == 2.0
    # Of the two prompts that SSS has, LLL takes 7 seconds.
    assert cell(whole, sss, COLUMN["speedup"]).value == 7.0
    assert cell(whole, lsl, COLUMN["bound"]).value == 1.6
    psnr = cell(whole, lsl, COLUMN["psnr"])
    assert (psnr.value, psnr.count) == (23.0, 2)
    assert psnr.error == pytest.approx(3.0)
    assert cell(whole, lll, COLUMN["psnr"]).value is None
    assert steps_of(whole, lsl) == pytest.approx([1.0, 0.8, 0.5])
    assert steps_of(whole, sss) == pytest.approx([1.0, 0.75, 0.5])
    assert steps_of(whole, lll) == []


def test_figures_as_they_are_read() -> None:
    assert text_of(None, COLUMN["psnr"]) == "–"
    assert text_of(math.inf, COLUMN["psnr"]) == "equal"
    assert text_of(21.456, COLUMN["psnr"]) == "21.46"
    assert text_of(21.456, COLUMN["psnr"], unit=True) == "21.46 dB"
    assert text_of(0.01234, COLUMN["seconds"], unit=True) == "0.0123 s"
    assert text_of(29950, COLUMN["flops"]) == "29950"
    assert [text_of(value, COLUMN["seconds"]) for value in (4, 12.34, 123.4)] == ["4.00", "12.3", "123"]
    assert text_of(1.558, COLUMN["speedup"]) == "1.56x"


def test_the_json_is_standard_json() -> None:
    text = json.dumps(as_json(report()), allow_nan=False)
    content = json.loads(text)
    assert content["runs"][1]["table"]["psnr"] == {"value": 23.0, "standard_error": pytest.approx(3.0), "count": 2}
    assert content["prompts"][2]["videos"]["LSL"]["figures"]["psnr"] is None
    assert content["prompts"][0]["videos"].keys() == {"LLL", "LSL"}


@pytest.mark.parametrize(
    ("values", "zero", "ticks"),
    [
        ([0.13, 0.97], True, (0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        ([20.1, 23.9], False, (20, 21, 22, 23, 24)),
        ([0.9991, 1.0], False, (0.999, 0.9992, 0.9994, 0.9996, 0.9998, 1.0)),
        ([3000, 29950], True, (0, 10000, 20000, 30000)),
    ],
)
def test_scales_have_round_ticks_around_all_values(values: list[float], zero: bool, ticks: tuple[float, ...]) -> None:
    scale = charts.scale(values, 100, 300, zero=zero)
    assert scale.ticks == pytest.approx(ticks)
    assert scale(scale.low) == pytest.approx(100)
    assert scale(scale.high) == pytest.approx(300)


@pytest.mark.parametrize("value", [0.0, 5.0, -2.0, 1e-12])
def test_a_scale_of_one_value(value: float) -> None:
    scale = charts.scale([value, value], 0, 1)
    assert scale.low <= value <= scale.high
    assert scale.low < scale.high


def test_the_pareto_front() -> None:
    points = [(3, 3), (1, 1), (2, 2), (2, 2.5), (2.5, 2.4), (4, 3), (0.5, 0)]
    assert charts.pareto(points) == [(0.5, 0), (1, 1), (2, 2.5), (3, 3)]


def test_charts_are_whole_and_hold_every_run() -> None:
    whole = report()
    every = {(chart.x, chart.y): chart.svg for chart in charts.scatter_charts(whole)}
    assert every.keys() == {(x, y) for x in ("sampling", "TFLOPs") for y in ("PSNR", "SSIM")}
    steps = by_step.steps_chart(whole)
    for svg in (*every.values(), steps):
        texts = " ".join(ElementTree.fromstring(svg).itertext())
        assert all(run.label in texts for run in whole.runs)
    # Places on the page by hand: seconds 2.5 of a scale 0..5, PSNR 23 of 10..25.
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', every["sampling", "PSNR"])
    assert circles == [(f"{64 + 2.5 / 5 * 540:.1f}", f"{316 - (23 - 10) / 15 * 296:.1f}")]
    root = ElementTree.fromstring(steps)
    shades = [each.get("class") for each in root.iter() if each.tag == "rect"]
    assert shades == ["large"] * 3 + ["large", "small", "large"] + ["small"] * 3
    heights = [float(each.get("height", 0)) for each in root.iter() if each.tag == "rect"]
    assert heights == [13, 13, 13, 13, 8, 3, 13, 13, 13]


def test_the_divergence_lies_on_the_stages_that_were_chosen() -> None:
    lines = (ChartLine(about="along L3", mean=(0.4, 0.2, 0.1), spread=(0.1, 0.2, 0.2)),)
    divergence = CalibrationDivergence(about="a & b", first="L", stages="L1 S2", lines={"cosine distance": lines})
    (chart,) = by_step.divergence_charts(dataclasses.replace(report(), divergence=divergence))
    root = ElementTree.fromstring(chart.svg)
    # Three steps from 64 to 604; distances 0..0.5 from 240 up to 20, and none below zero.
    shades = [(each.get("class"), each.get("x"), each.get("width")) for each in root.iter("rect")][:2]
    assert shades == [("shade large", "64.0", "180.0"), ("shade small", "244.0", "360.0")]
    (line,) = root.iter("polyline")
    assert line.get("points") == "154.0,64.0 334.0,152.0 514.0,196.0"
    (band,) = root.iter("polygon")
    assert band.get("points") == "154.0,20.0 334.0,64.0 514.0,108.0 514.0,240.0 334.0,240.0 154.0,108.0"
    assert [label for label in root.itertext() if label in ("L1", "S2", "LLL", "LSL", "SSS")] == [
        *("L1", "S2"),
        *("LLL", "LSL", "SSS"),
    ]
    text = page(dataclasses.replace(report(), divergence=divergence))
    assert "a &amp; b" in text
    assert "along L3" in text
    assert by_step.divergence_charts(report()) == []


def test_less_is_better_turns_a_chart_over() -> None:
    columns = tuple(dataclasses.replace(COLUMN["ssim"], heading="LPIPS", better=-1) for _ in range(1))
    whole = dataclasses.replace(report(), columns=(COLUMN["seconds"], *columns))
    (chart,) = charts.scatter_charts(whole)
    # 0.9 of LSL lies below 0.1 of SSS, which is faster too: alone on the front.
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', chart.svg)]
    assert heights == [pytest.approx(20 + 0.9 * 296, abs=0.1)]
    assert "LPIPS, less is better" in chart.svg
    assert "polyline" not in chart.svg


def test_a_report_without_anything_made_is_still_a_page() -> None:
    whole = report(cases=(ComparedPrompt(title="a cat"),))
    assert by_step.steps_chart(whole) == ""
    assert charts.scatter_charts(whole) == []
    assert "a cat" in page(whole)


def test_the_page_escapes_what_users_write_and_needs_nothing_else() -> None:
    text = page(report())
    assert "<b>" not in text
    assert "alert(1)</script>" not in text
    assert text.count("</script>") == 2
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["cases"][0]["title"] == NASTY
    assert data["cases"][2]["clips"]["LSL"]["figures"] == ["2.60 s", "equal to the reference", "SSIM 0.900"]
    assert "Nothing else was &lt;measured&gt;." in text
    # No address but the SVG's and the videos': nothing is fetched.
    assert not re.findall(r'(?:src|href)="(?!data:,)', text)
    assert "http" not in text


def test_folders(tmp_path: Path) -> None:
    new = tmp_path / "a" / "report"
    new.mkdir(parents=True)
    left = left_behind(new / layout.FIGURES)  # of the first time, which was killed before it had written any
    layout.prepare(new, ("videos",))
    assert not left.exists()
    left = left_behind(new / "videos" / "a.mp4")
    layout.write(new, report())
    layout.prepare(new, ("videos",))
    assert not left.exists()
    with pytest.raises(UsageError, match="holds a report of existing videos, which this one would replace"):
        layout.prepare(new, ("videos", "latents"))
    (new / "latents").mkdir()
    with pytest.raises(UsageError, match="holds a report of a bundle's runs, which this one would replace"):
        layout.prepare(new, ("videos",))
    layout.prepare(new, ("videos", "latents"))
    assert json.loads((new / "report.json").read_text())["runs"][0]["label"] == "LLL"
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files and no report"):
        layout.prepare(tmp_path, ())
    with pytest.raises(FlowBlendingError, match="Cannot make the folder"):
        layout.prepare(tmp_path / "notes.txt", ())
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_layout_for_vbench(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    cases = []
    for index, title in enumerate(("a cat.", "a dog", "a cat.")):
        (tmp_path / f"videos/{index}.mp4").write_bytes(bytes([index]))
        cases.append(ComparedPrompt(title=title, clips={"LSL": ComparedVideo(video=f"videos/{index}.mp4", values={})}))
    count = layout.lay_out(report(cases=tuple(cases)), tmp_path, tmp_path / "vbench")
    found = {str(path.relative_to(tmp_path / "vbench")): path.read_bytes() for path in tmp_path.glob("vbench/*/*")}
    assert found == {"LSL/a cat.-0.mp4": b"\0", "LSL/a dog-0.mp4": b"\1", "LSL/a cat.-1.mp4": b"\2"}
    assert count == 3
    layout.check_names(["a cat", "x" * 240])
    for prompt in ("a cat/dog", "x" * 260, "猫" * 90):
        with pytest.raises(UsageError, match="cannot be a file's name"):
            layout.check_names([prompt])


JUDGE = """
import numpy as np
def share(frames, prompt): return np.float32(frames.mean() / 255)
def several(frames, prompt): return {"bright": frames.mean() / 255, "long": len(prompt) > 3}
def too_much(frames, prompt): return 1.5
def nothing(frames, prompt): return None
def broken(frames, prompt): raise RuntimeError("no [idea]")
number = 3
"""


@pytest.fixture
def judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the working directory."""
    (tmp_path / "my_judge.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_judge", raising=False)


@pytest.mark.usefixtures("judges")
def test_judges() -> None:
    frames = np.full((2, 4, 4, 3), 51, np.uint8)
    assert scoring.Judge("my_judge:share").score(frames, "a", None) == {"adherence": pytest.approx(0.2)}
    several = scoring.Judge("my_judge:several")
    assert several.score(frames, "a cat", None) == {"bright": pytest.approx(0.2), "long": 1}
    assert [column.heading for column in several.columns(["bright", "long"])] == ["bright", "long"]
    for name, message in (
        ("too_much", "gave 1.5 as adherence, but a number from 0 to 1 was expected"),
        ("nothing", "gave None as adherence"),
        ("broken", r"failed on the prompt 'a cat' \(RuntimeError: no \[idea\]\)"),
    ):
        with pytest.raises(MeasureError, match=message):
            scoring.Judge(f"my_judge:{name}").score(frames, "a cat", None)


@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_judge", "MODULE:FUNCTION was expected"),
        ("my_judge:", "MODULE:FUNCTION was expected"),
        ("no_such_module:f", "cannot be imported .ModuleNotFoundError"),
        ("my_judge:missing", "cannot be imported .AttributeError"),
        ("my_judge:number", "is no function"),
    ],
)
def test_judges_that_are_none(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        scoring.Judge(name)


def test_a_busy_machine_is_told() -> None:
    idle, busy = {"wall": 2.0, "processor": 1.9}, {"wall": 2.0, "processor": 0.5}
    assert busy_note([idle, {}], "cpu") == []
    assert busy_note([idle, busy], "cuda") == []
    (note,) = busy_note([idle, busy], "cpu, 1 thread")
    assert "the runs got 60% of one processor" in note
    assert f'<p class="warning">{note}</p>' in page(dataclasses.replace(report(), warnings=(note,)))


def test_a_way_keeps_the_rest_of_a_prompt() -> None:
    job = Variant(schedule="LSL", cache="taylor:1").job(Job(prompt="a", seed=5, steps=7))
    assert job == Job(prompt="a", seed=5, steps=7, schedule="LSL", cache="taylor:1")


def test_the_head_names_checkpoints_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "home/bundles/wan"
    manifest = manifests.write(folder)
    rebuild = ("fb-build-engines", "--large", str(tmp_path / "home/14B"), "--small", "Wan-AI/1.3B", "--out", "x")
    bundle = Bundle(folder=folder, manifest=manifest.model_copy(update={"rebuild": rebuild}))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    facts = dict(facts_of_runs(bundle, manifest.geometry, [], prompts=2, machine="cpu"))
    assert facts["folder"] == "~/bundles/wan"
    assert (facts["large"], facts["small"]) == ("~/14B, fp32", "Wan-AI/1.3B, fp32")
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    facts = dict(facts_of_runs(bundle, manifest.geometry, [], prompts=2, machine="cpu"))
    assert facts["folder"] == str(folder)
    # What is fused into a model is a part of it.
    lora = FusedLora(file="style.safetensors", strength=0.8, sha256="0")
    components = manifest.components | {"large": manifest.components["large"].model_copy(update={"loras": (lora,)})}
    styled = Bundle(folder=folder, manifest=bundle.manifest.model_copy(update={"components": components}))
    facts = dict(facts_of_runs(styled, manifest.geometry, [], prompts=2, machine="cpu"))
    assert facts["large"].endswith("14B, fp32, LoRA style.safetensors:0.8")
    assert facts["small"] == "Wan-AI/1.3B, fp32"
    # A bundle that does not say what it was built from has none.
    bare = Bundle(folder=folder, manifest=manifest.model_copy(update={"rebuild": ()}))
    assert "large" not in dict(facts_of_runs(bare, manifest.geometry, [], prompts=2, machine="cpu"))
