"""The process that makes a service's videos: it opens every bundle once, and takes one video at a time."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from flowblending import FlowBlendingError
from flowblending.contracts.graph import TEXT_ENCODER
from flowblending.engine.bundle.bundle import Bundle, open_bundle
from flowblending.runtime.batch.messages import Failed, Ready, Unable
from flowblending.runtime.batch.process import WorkerConfig, receive, run_worker, tell
from flowblending.runtime.batch.tasks import Cause, cause_of
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.events import (
    EncodeEvent,
    FinishedEvent,
    FramesEvent,
    LoadEvent,
    PreviewEvent,
    SamplingEvent,
    WarningEvent,
)
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.media.preview import Picture
from flowblending.runtime.media.video import png_bytes
from flowblending.runtime.option_values import make_job
from flowblending.runtime.pipeline import Pipeline
from flowblending.runtime.run import VideoRun
from flowblending.runtime.sampler.loop import StepEvent
from flowblending.runtime.serve.http.messages import (
    DECODING,
    ENCODING,
    LOADING,
    SAMPLING,
    Answer,
    Cancel,
    Cancelled,
    Made,
    Preview,
    Progress,
    Told,
    Watched,
    Work,
)
from flowblending.runtime.serve.http.texts import Texts
from flowblending.runtime.stage_times import TOTAL
from flowblending.runtime.warm_up import warm_up
from flowblending.system.whole_file import replace_file


def work(config: WorkerConfig, bundles: Mapping[str, Path], device: str, connection: Connection) -> None:
    """The process: ends when it is terminated, told so, or left alone.

    Args:
        config: its place.
        bundles: folders by the models' names.
        device: ``auto``, ``cpu`` or ``cuda``.
        connection: to the service.
    """
    run_worker(config, lambda: _work(config, bundles, device, connection))


def _work(config: WorkerConfig, bundles: Mapping[str, Path], device: str, connection: Connection) -> None:
    say: Callable[[Answer], None] = partial(tell, connection)
    with contextlib.ExitStack() as opened:
        try:
            makers = {}
            for name, folder in bundles.items():
                bundle = open_bundle(folder)
                makers[name] = Maker.of(bundle, open_device(device, bundle.manifest), config.machine)
                opened.callback(makers[name].close)
        except FlowBlendingError as error:
            say(Unable(why=str(error)))
            return
        say(Ready())
        while task := receive(connection):
            if isinstance(task, Work):
                say(make(makers[task.model], task, say, _PipeControl(connection, task)))


class JobControl(Protocol):
    """What the service says about a video in the making.

    Attributes:
        watched: whether previews are wanted.
    """

    watched: bool

    def cancelled(self) -> bool:
        """Whether the video is wanted no more."""
        ...


class _PipeControl:
    """Control that comes through a pipe."""

    def __init__(self, connection: Connection, task: Work) -> None:
        self._connection = connection
        self._id = task.id
        self.watched = task.watched

    def cancelled(self) -> bool:
        """Hear what has been said since the last time: whether the video is wanted no more, or the service has gone."""
        while self._connection.poll():
            match receive(self._connection):
                case Cancel(id=self._id):
                    return True
                case Watched(id=self._id, watched=watched):
                    self.watched = watched
                case None:
                    sys.exit(1)
        return False


class Maker:
    """An opened bundle, and what it remembers between videos."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.texts = Texts(pipeline)

    @classmethod
    def of(cls, bundle: Bundle, device: Device, machine: MachineSettings) -> Maker:
        """A bundle with all open that stays open.

        One that cannot work is known before the first request, and one whose folder goes afterwards works on where its
        engines stay open.

        Args:
            device: closed with the engines, also where they cannot be opened.

        Raises:
            FlowBlendingError: it cannot work here.
        """
        pipeline = Pipeline(bundle=bundle, device=device, machine=machine)
        maker = cls(pipeline)
        try:
            warm_up(pipeline)
            pipeline.tokenizer()
            pipeline.preview_map()
        except BaseException:
            maker.close()
            raise
        return maker

    def close(self) -> None:
        """Close the engines and the device."""
        self.pipeline.close()
        self.pipeline.device.close()


def make(maker: Maker, task: Work, tell: Callable[[Told], None], control: JobControl) -> Made | Failed | Cancelled:
    """Make one video, and tell how it ended.

    Args:
        maker: of the task's model.
        tell: is told of progress, previews and warnings.
        control: heard at every event, so between steps and decoded chunks.
    """
    try:
        with task.uploads.told():
            return _made(maker, task, tell, control)
    except FlowBlendingError as error:
        return Failed(why=str(error), cause=cause_of(error))
    except MemoryError:
        return Failed(why="Memory ran out; make a smaller video.", cause=Cause.MEMORY)
    except Exception as error:
        # One video must not take the worker down for the others.
        return Failed(why=f"{type(error).__name__}: {error}; please report this.", cause=cause_of(error))


def _made(maker: Maker, task: Work, tell: Callable[[Told], None], control: JobControl) -> Made | Cancelled:
    pipeline, job = maker.pipeline, make_job({**task.fields, **task.uploads.fields})
    told = _Teller(task.id, tell)
    told.put(Progress(stage=ENCODING))
    # Marks and not the clock: on a GPU, encoding has only been enqueued when it returns.
    began, ended = pipeline.device.mark(), pipeline.device.mark()
    began.record()
    texts = maker.texts.encoded(job, compile_job(job, pipeline.bundle.manifest))
    ended.record()
    for line in texts.warnings:
        tell(Told(id=task.id, warning=line))
    run = VideoRun(
        pipeline,
        job,
        embeddings=texts.conditions,
        named=task.uploads.named(job),
        outputs=[task.video],
        preview=lambda _: control.watched,
    )
    told.begin(run)
    middle = run.geometry.frames // 2
    # Written while further frames are encoded and the disk takes the video; the pool waits for it in any case.
    with ThreadPoolExecutor(1, "thumbnail") as pool, contextlib.closing(run.events()) as events:
        for event in events:
            if control.cancelled():
                return Cancelled(id=task.id)
            told.show(event)
            match event:
                case WarningEvent():
                    tell(Told(id=task.id, warning=task.uploads.tell(event.message)))
                case PreviewEvent():
                    preview = Preview(step=event.index + 1, png=png_bytes(event.picture, {}))
                    tell(Told(id=task.id, preview=preview))
                case FramesEvent() if event.first <= middle < event.first + event.count:
                    saved = pool.submit(_save_picture, task.thumbnail, event.images()[middle - event.first].copy())
                case FinishedEvent():
                    saved.result()
                    full: Counter[str] = Counter()
                    for step in run.program.steps:
                        full[step.model] += 1 + run.program.guided(step)
                    encoding = pipeline.device.seconds(began, ended)
                    seconds = {**event.seconds, TEXT_ENCODER: encoding, TOTAL: event.seconds[TOTAL] + encoding}
                    return Made(id=task.id, seconds=seconds, calls=event.sample.calls, full=full, texts=texts.counts)
    raise AssertionError("a run ends with its last event")


def _save_picture(path: Path, picture: Picture) -> None:
    replace_file(path, png_bytes(picture, {}))


class _Teller:
    """Makes progress of a run's events."""

    def __init__(self, id: str, tell: Callable[[Told], None]) -> None:
        self._id = id
        self._tell = tell
        self._plan: tuple[str, ...] = ()
        self._frames = self._of_frames = 0
        self._seconds: dict[str, list[float]] = {}

    def begin(self, run: VideoRun) -> None:
        """Know the plan."""
        self._plan = tuple(step.model for step in run.program.steps)
        self._of_frames = run.geometry.frames

    def put(self, progress: Progress) -> None:
        """Tell it."""
        self._tell(Told(id=self._id, progress=progress))

    def show(self, event: object) -> None:
        """Tell what an event comes to."""
        steps = len(self._plan)
        match event:
            case LoadEvent():
                self.put(Progress(stage=LOADING, steps=steps, plan=self._plan))
            case EncodeEvent():
                self.put(Progress(stage=ENCODING, steps=steps, plan=self._plan))
            case SamplingEvent():
                self.put(Progress(stage=SAMPLING, steps=steps, plan=self._plan))
            case StepEvent():
                self._seconds.setdefault(event.model, []).append(event.seconds)
                done = event.index + 1
                left = self._left(done)
                self.put(
                    Progress(
                        stage=SAMPLING, step=done, steps=steps, model=event.model, seconds_left=left, plan=self._plan
                    )
                )
            case FramesEvent():
                self._frames += event.count
                self.put(
                    Progress(
                        stage=DECODING,
                        step=steps,
                        steps=steps,
                        frames=self._frames,
                        of_frames=self._of_frames,
                        plan=self._plan,
                    )
                )

    def _left(self, done: int) -> float:
        """Seconds of the steps to come: each as long as those of its model were, or as all were."""
        every = [each for seconds in self._seconds.values() for each in seconds]
        mean = {model: sum(seconds) / len(seconds) for model, seconds in self._seconds.items()}
        return sum(mean.get(model, sum(every) / len(every)) for model in self._plan[done:])
