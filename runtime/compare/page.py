"""The page: the report as one HTML file that needs no network and no other file but the videos."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any
from urllib.parse import quote

from flowblending.runtime.compare.by_step import divergence_charts, steps_chart
from flowblending.runtime.compare.charts import colour_index, mark, scatter_charts
from flowblending.runtime.compare.columns import COSINE, PSNR, SECONDS, SSIM, Column
from flowblending.runtime.compare.report import ComparedRun, ComparedVideo, ComparisonReport, cell, text_of

TITLE = "fb-compare"
LONGEST = 90
"""Letters of a prompt in the list of prompts."""


def page(report: ComparisonReport) -> str:
    """The whole page. What users wrote (prompts, labels, file names) is escaped."""
    charts = "\n".join(filter(None, (_scatter(report), _steps(report), _divergence(report))))
    return Template(_asset("page.html")).substitute(
        title=TITLE,
        name=escape(report.name),
        subtitle=escape(report.subtitle),
        facts="".join(f"<div><dt>{escape(name)}</dt><dd>{_broken(value)}</dd></div>" for name, value in report.facts),
        options="".join(
            f'<option value="{index}">{escape(_short(case.title) or f"prompt {index + 1}")}</option>'
            for index, case in enumerate(report.cases)
        ),
        runs="".join(f"<option>{escape(run.label)}</option>" for run in report.runs),
        hint=_hint(report),
        warnings="".join(f'<p class="warning">{escape(warning)}</p>' for warning in report.warnings),
        headings=_headings(report),
        rows="\n".join(_row(report, run) for run in report.runs),
        charts=charts,
        notes="".join(f"<li>{escape(note)}</li>" for note in report.notes),
        terms="".join(f"<dt>{escape(column.heading)}</dt><dd>{escape(column.about)}</dd>" for column in report.columns),
        style=_asset("page.css"),
        script=_asset("page.js"),
        data=_data(report),
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _broken(text: str) -> str:
    """A path may go on in the next line after each folder."""
    return escape(text).replace("/", "/<wbr>")


def _mark(report: ComparisonReport, run: ComparedRun) -> str:
    return (
        f'<svg class="dot" viewBox="0 0 12 12" style="color:var(--run-{colour_index(report, run)})" '
        f'aria-hidden="true">{mark(report, run, 6, 6, 4.6)}</svg>'
    )


def _data(report: ComparisonReport) -> str:
    """What the script needs, as JSON that cannot end the element it stands in."""
    content: dict[str, Any] = {
        "frameRate": report.frame_rate,
        "runs": [{"label": run.label, "stages": run.stages, "mark": _mark(report, run)} for run in report.runs],
        "cases": [
            {
                "title": case.title,
                "note": case.note,
                "given": [{"about": each.about, "picture": each.picture} for each in case.given],
                "clips": {
                    label: {
                        "video": quote(clip.video),
                        "figures": _caption(clip, report.columns, reference=label == report.runs[0].label),
                    }
                    for label, clip in case.clips.items()
                },
            }
            for case in report.cases
        ],
    }
    return json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")


def _caption(clip: ComparedVideo, columns: Sequence[Column], *, reference: bool) -> list[str]:
    """The chief figures of one video."""
    scores = [column for column in columns if "/" in column.key][:1]
    shown = [*(column for column in columns if column.key in (SECONDS, PSNR, SSIM, COSINE)), *scores]
    texts = ["reference"] if reference else []
    for column in shown:
        if column.key in clip.values:
            text = text_of(clip.values[column.key], column, unit=True)
            heading = column.heading.removeprefix("latent ")
            texts.append(text if column.unit in ("s", "dB") else f"{heading} {text}")
    return ["equal to the reference" if text == "equal" else text for text in texts]


def _hint(report: ComparisonReport) -> str:
    count = len(report.cases)
    over = f"Over {count} prompts; ± is one standard error." if count > 1 else "Of one prompt."
    return f"{over} Click a heading to sort; point at it for what it means."


def _headings(report: ComparisonReport) -> str:
    """The table's head. The first click on a column puts its best on top."""
    stages = any(run.stages for run in report.runs)
    parts = [_heading("run", "Schedule and step cache.", first="ascending", text=True)]
    if stages:
        parts.append(_heading("stages", _letters(report), first="ascending", text=True))
    for column in report.columns:
        unit = f" ({column.unit})" if column.unit in ("s", "dB") else ""
        first = "ascending" if column.better < 0 else "descending"
        parts.append(_heading(column.heading + unit, column.about, first=first, key=column.key))
    return "".join(parts)


def _letters(report: ComparisonReport) -> str:
    return f"{', '.join(f'{letter}: {name} model' for letter, name in report.models.items())}."


def _heading(name: str, about: str, *, first: str, text: bool = False, key: str = "run") -> str:
    kind = ' class="left" data-text="1"' if text else ""
    return (
        f'<th scope="col" data-first="{first}" data-key="{escape(key, quote=True)}"{kind}>'
        f'<button title="{escape(about, quote=True)}">{escape(name)}</button></th>'
    )


def _row(report: ComparisonReport, run: ComparedRun) -> str:
    name = escape(run.label)
    cells = [
        f'<td data-value="{escape(run.label, quote=True)}"><span class="name">{_mark(report, run)}{name}</span></td>'
    ]
    if any(each.stages for each in report.runs):
        stages = escape(run.stages, quote=True)
        cells.append(f'<td class="left" data-value="{stages}">{stages}</td>')
    cells += [_figure(report, run, column) for column in report.columns]
    kind = ' class="reference"' if run is report.runs[0] else ""
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _figure(report: ComparisonReport, run: ComparedRun, column: Column) -> str:
    found = cell(report, run, column)
    if found.value is None:
        return '<td class="none" data-value="">–</td>'
    text = escape(text_of(found.value, column))
    about = f"of {found.count} videos"
    if found.error is not None:
        error = escape(_error(found.error, column))
        about += f", standard error {error}"
        # The other columns are narrow enough without it to fit on a screen.
        text += f" <small>± {error}</small>" if column.unit in ("dB", "%") else ""
    exact = "Infinity" if math.isinf(found.value) else repr(found.value)
    return f'<td data-value="{exact}" title="{about}">{text}</td>'


def _error(error: float, column: Column) -> str:
    return f"{100 * error:.1f}" if column.unit == "%" else f"{error:.{column.digits}f}"


def _legend(report: ComparisonReport) -> str:
    """Which mark is which cache, where there are several."""
    caches = {run.cache: run for run in reversed(report.runs)}
    if len(caches) < 2:
        return ""
    grey = "".join(
        f'<span><svg class="dot" viewBox="0 0 12 12" aria-hidden="true">{mark(report, run, 6, 6, 4.6)}</svg>'
        f"{escape(cache or 'no cache')}</span>"
        for cache, run in sorted(caches.items(), key=lambda item: report.runs.index(item[1]))
    )
    return f'<p class="legend">{grey}</p>'


def _steps(report: ComparisonReport) -> str:
    chart = steps_chart(report)
    if not chart:
        return ""
    names = list(report.models.values())
    keys = "".join(f'<span><i class="key"></i>{escape(first)} model</span>' for first in names[:1])
    if others := names[1:]:
        keys += f'<span><i class="key light"></i>{escape(" or ".join(others))} model</span>'
    if any(set(run.computed) - {"1"} for run in report.runs):
        keys += '<span><i class="key low"></i>reused by the cache</span>'
        keys += "<span>dashed: with a cache</span>"
    return (
        '<section><h2>Step by step</h2><p class="hint">How far each run has come away from the reference after every '
        "step, the mean over the prompts, and which model runs there.</p>"
        f'<figure class="chart" id="steps">{chart}</figure><p class="legend">{keys}</p></section>'
    )


def _divergence(report: ComparisonReport) -> str:
    charts = divergence_charts(report)
    if report.divergence is None:
        return ""
    figures = "".join(
        f'<figure class="chart measure" data-measure="{escape(each.measure, quote=True)}"'
        f"{' hidden' if index else ''}>{each.svg}</figure>"
        for index, each in enumerate(charts)
    )
    lines = next(iter(report.divergence.lines.values()))
    keys = "".join(
        f'<span><i class="key line{" followed" if index else ""}"></i>{escape(line.about)}</span>'
        for index, line in enumerate(lines)
    )
    return (
        '<section id="divergence"><h2>Where the two models differ</h2>'
        f'<p class="hint">{escape(report.divergence.about)}</p>'
        f'<p class="choices">{_select("measure", "measure", [each.measure for each in charts])}</p>'
        f'{figures}<p class="legend">{keys}</p></section>'
    )


def _select(name: str, label: str, options: Sequence[str]) -> str:
    chosen = "".join(f"<option>{escape(option)}</option>" for option in options)
    return f'<label>{label} <select id="{name}">{chosen}</select></label>'


def _scatter(report: ComparisonReport) -> str:
    charts = scatter_charts(report)
    if not charts or len(report.runs) < 2:
        return ""
    costs, qualities = (
        list(dict.fromkeys(values)) for values in zip(*((each.x, each.y) for each in charts), strict=True)
    )
    figures = "".join(
        f'<figure class="chart scatter" data-x="{escape(each.x, quote=True)}" data-y="{escape(each.y, quote=True)}"'
        f"{' hidden' if index else ''}>{each.svg}</figure>"
        for index, each in enumerate(charts)
    )
    return (
        '<section><h2>Quality against cost</h2><p class="hint">Up and to the left is better; the dotted line joins the '
        "runs that no other beats in both.</p>"
        f'<p class="choices">{_select("quality", "quality", qualities)}{_select("cost", "cost", costs)}</p>'
        f"{figures}{_legend(report)}</section>"
    )
