"""A replica: engines of some of the bundles, and one video at a time. Runs on a node, and knows no Ray.

`deployment` makes a class of Ray Serve of it, which keeps the bundles that were used last open.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from flowblending import FlowBlendingError
from flowblending.runtime.batch.messages import Failed, Ready, Unable
from flowblending.runtime.batch.tasks import Cause, cause_of
from flowblending.runtime.cluster.node import bundle_here, device_here
from flowblending.runtime.serve.http.messages import Cancelled, Made, Told
from flowblending.runtime.serve.http.replicas.messages import Remote, RemoteMade, RemoteWork, ReplicaSetting
from flowblending.runtime.serve.http.worker import Maker, make
from flowblending.system.output import cannot_write
from flowblending.system.scratch import scratch, sweep_scratch

_LOOK: Final = 0.5
"""Seconds between two looks at whether somebody watches the video in the making."""

_TELLING: Final = 1.0
"""Seconds in which what was told last reaches the service before the process ends."""


class Opened:
    """A bundle's engines, which its owner closes by `__del__` when others take their place, as Ray Serve does.

    Args:
        thread: the one that uses the engines, and so closes them: before it opens those of another bundle.
    """

    def __init__(self, maker: Maker, thread: ThreadPoolExecutor) -> None:
        self.maker = maker
        self._thread = thread
        self._closed = False

    def __del__(self) -> None:
        if not self._closed:
            self._closed = True
            self._thread.submit(self.maker.close)


class Replica(ABC):
    """Makes videos where it is.

    Args:
        setting: what it needs to know.
        node: the id of its node.

    Raises:
        FlowBlendingError: the node has not what it needs.
    """

    def __init__(self, setting: ReplicaSetting, node: str) -> None:
        self._setting = setting
        self._busy = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "engines")
        sweep_scratch()
        for wanted in setting.bundles.values():
            bundle = bundle_here(wanted, verify=node not in setting.checked)
            device_here(setting.device, bundle).close()

    @abstractmethod
    async def model(self, name: str) -> Opened:
        """A bundle's engines: those that are open, or else those of `opened`."""

    @abstractmethod
    async def watched(self, id: str) -> bool | None:
        """Whether somebody wants to see previews of a video; None where the service has gone."""

    async def opened(self, name: str) -> Opened:
        """Open a bundle's engines.

        Raises:
            FlowBlendingError: it cannot work here.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._open, name)

    def _open(self, name: str) -> Opened:
        setting = self._setting
        bundle = bundle_here(setting.bundles[name], verify=False)
        return Opened(Maker.of(bundle, device_here(setting.device, bundle), setting.machine), self._thread)

    async def open(self) -> Ready | Unable:
        """Open every bundle, the first of them last, to know whether all can work here."""
        async with self._busy:
            try:
                for name in reversed(list(self._setting.bundles)):
                    await self.model(name)
            except FlowBlendingError as error:
                return Unable(why=str(error))
            return Ready()

    async def make(self, work: RemoteWork) -> AsyncIterator[Remote]:
        """Make a video, and tell how far it is.

        A caller that goes has it given up at the next step; the next one waits for that.
        """
        async with self._busy:
            loop = asyncio.get_running_loop()
            told: asyncio.Queue[Told | None] = asyncio.Queue()
            control = _Control(work.watched)

            def tell(what: Told) -> None:
                loop.call_soon_threadsafe(told.put_nowait, what)

            following = asyncio.create_task(self._follow(work.id, control))
            making = asyncio.create_task(self._made(work, tell, control))
            making.add_done_callback(lambda _: told.put_nowait(None))
            try:
                while (what := await told.get()) is not None:
                    yield what
                answer = making.result()
                yield answer
                if isinstance(answer, Failed) and answer.cause == Cause.DEVICE:
                    await self._end()
            finally:
                control.gone.set()
                following.cancel()
                await asyncio.wait([making])

    async def _end(self) -> None:
        """End the process, whose device is of no use any more: another one may do better."""
        await asyncio.sleep(_TELLING)
        os._exit(1)

    async def _follow(self, id: str, control: _Control) -> None:
        """Know what the service says about a video as long as it is made."""
        while (watched := await self.watched(id)) is not None:
            control.watched = watched
            await asyncio.sleep(_LOOK)
        control.gone.set()

    async def _made(self, work: RemoteWork, tell: Callable[[Told], None], control: _Control) -> Remote:
        try:
            opened = await self.model(work.model)
        except FlowBlendingError as error:
            return Failed(why=str(error), cause=cause_of(error))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, _made, opened.maker, work, tell, control)


def _made(maker: Maker, work: RemoteWork, tell: Callable[[Told], None], control: _Control) -> Remote:
    """A video, made in a folder that goes with it."""
    if control.cancelled():
        return Cancelled(id=work.id)
    try:
        with scratch() as folder:
            task = work.unpacked(folder)
            answer = make(maker, task, tell, control)
            if isinstance(answer, Made):
                video, thumbnail = task.video.read_bytes(), task.thumbnail.read_bytes()
                return RemoteMade(made=answer, video=video, thumbnail=thumbnail)
            return answer
    except OSError as error:
        failure = cannot_write(Path(tempfile.gettempdir()), error)
        return Failed(why=str(failure), cause=cause_of(failure))


class _Control:
    """What the service says about a video.

    Attributes:
        watched: whether previews are wanted.
        gone: whether it is wanted no more.
    """

    def __init__(self, watched: bool) -> None:
        self.watched = watched
        self.gone = threading.Event()

    def cancelled(self) -> bool:
        """Whether the video is wanted no more."""
        return self.gone.is_set()
