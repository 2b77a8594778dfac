"""Existing videos, each read, copied for the page and measured; one that fails is left out, and the others are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flowblending import DiskError, FlowBlendingError, UsageError
from flowblending.runtime.compare.assemble import MeasuredVideo, of_videos
from flowblending.runtime.compare.existing import ExistingVideo, nothing_left, open_all, place
from flowblending.runtime.compare.figures import VIDEOS
from flowblending.runtime.compare.layout import prepare, words_of, write
from flowblending.runtime.compare.measure_existing import look, measure
from flowblending.runtime.compare.report import ComparisonReport
from flowblending.runtime.compare.scoring import Asked
from flowblending.runtime.compare.sets import set_distances
from flowblending.runtime.measures.function import MeasureError
from flowblending.system.console import Console
from flowblending.system.printable import printable


def compare_existing(
    paths: Sequence[Path], *, judged: bool, load: Callable[[], Asked], out: Path, console: Console
) -> tuple[ComparisonReport, int]:
    """Measure videos against the first of them, and write the page. Returns the report, and how many were left out.

    Args:
        judged: whether a judge was asked for, who needs prompts.
        load: gets what was asked for; called once everything is known that can be refused without.

    Raises:
        UsageError: the videos cannot be compared, or a copy would replace one of them.
        FlowBlendingError: the first one fails, all others do, or something cannot be written.
    """
    with console.phase("reading the videos"):
        videos, failures = open_all(paths)
    for failure in failures:
        console.warn(_left_out(failure))
    unknown = [video.file.path for video in videos if "prompt" not in video.about]
    if judged and unknown:
        raise UsageError(
            f"{printable(unknown[0])} does not say what its prompt was, as videos of fb-run do, so that nothing can be "
            "judged by it; leave out --judge."
        )
    placed = _places(videos, out)
    asked = load()
    prepare(out, (VIDEOS,))
    measured: list[MeasuredVideo] = []
    with console.progress("frames", total=sum(len(video.frames) for video in videos)) as advance:
        for video, name in zip(videos, placed, strict=True):
            first = None if video is videos[0] else videos[0]
            try:
                # Copied first, which is quicker than measuring, and may fail as well.
                place(video, out / name)
                found = measure(video, first, advance)
                measured.append(MeasuredVideo(video=video, found=found, scored=look(video, first, asked), copy=name))
            except DiskError:
                raise  # every other video would meet it too
            except FlowBlendingError as error:
                if first is None:
                    raise  # there is nothing to measure the others against
                failures.append(f"{video.label} failed: {error}" if isinstance(error, MeasureError) else str(error))
                console.warn(_left_out(failures[-1]))
    if len(measured) == 1:
        raise FlowBlendingError(nothing_left(videos[0], iter(failures)))
    features = {each.video.label: each.scored.features for each in measured}
    distances = set_distances(asked.sets, list(features), 1, lambda key, label, _prompt: features[label][key])
    report = of_videos(measured, asked=asked, distances=distances, warnings=[_left_out(each) for each in failures])
    write(out, report)
    return report, len(failures)


def _left_out(failure: str) -> str:
    return f"A video is left out: {failure}"


def _places(videos: Sequence[ExistingVideo], out: Path) -> list[str]:
    """The copies' names, from the report's folder on."""
    names = [
        f"{VIDEOS}/{index}-{words_of(video.file.path.stem)}{video.suffix}" for index, video in enumerate(videos, 1)
    ]
    sources = {video.file.path.resolve() for video in videos}
    for name in names:
        if (out / name).resolve() in sources:
            raise UsageError(
                f"The page's copy {out / name} would replace a video that is compared; give another --out."
            )
    return names
