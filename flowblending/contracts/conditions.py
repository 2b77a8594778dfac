"""What a transformer takes beside latents and timestep, declared by its family as plain data.

A family lists its conditions in `flowblending.contracts.graph.PipelineSpec`, and so they stand in a bundle's manifest.
Whatever has to know where an input comes from (calibration, proof, binding, text encoding, command lines, services)
reads the list; nothing is told from an input's name. How a condition of images or videos is made is its recipe, a row
of `flowblending.runtime.conditions.registry`.

Standard library only, as everything that `--help` needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

_Value = TypeVar("_Value")

LATENT_SIZES = ("batch", "frames", "height", "width")
"""Symbols that shapes have in common."""


class Source(StrEnum):
    """What of a job a condition is made from.

    ``text`` is the embedding of a prompt, one for each guidance branch, and ``text_mask`` tells its tokens from
    padding. All others are the same for every branch. ``frame_times`` say which
    frame of the video each latent frame begins with. ``latents`` are the noise that a run starts from.
    """

    TEXT = "text"
    TEXT_MASK = "text_mask"
    FRAME_RATE = "frame_rate"
    FRAME_TIMES = "frame_times"
    IMAGE = "image"
    VIDEO = "video"
    MASK = "mask"
    LATENTS = "latents"


class Entry(StrEnum):
    """How a condition enters the transformer.

    ``input``: an input of its own. ``channels``: an input of the latents' frames and size, whose channels the graph
    puts beside those of the latents. ``held``: no input; latent frames that keep what was given. ``timesteps``: the
    input ``timestep`` has a value for every latent frame, [batch, frames], lower where latents are held. ``start``: no
    input; what a run begins from at a noise level below the first.
    """

    INPUT = "input"
    CHANNELS = "channels"
    HELD = "held"
    TIMESTEPS = "timesteps"
    START = "start"


CROP, LETTERBOX, STRETCH = "crop", "letterbox", "stretch"
FITS = (CROP, LETTERBOX, STRETCH)
"""How a picture comes to a video's size; see `flowblending.runtime.media.fit`."""

PIXELS = (Source.IMAGE, Source.VIDEO, Source.MASK)
"""Sources that are read from files of images and videos."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition of a family.

    Attributes:
        name: of the transformer's input; of held latents, what they are called.
        sources: what it is made from: one, or those of which any may be given.
        enters: how it reaches the transformer.
        shape: in symbols, as the input has it: ``batch``, ``frames``, ``height``, ``width`` of the latents.
        dtype: numpy's name.
        recipe: how the runtime makes it, if it is not the source itself; conditions of one recipe are made together.
        room: of held latents, and of reference images: the latent frames that may be put before the video's own.
        images: how many images it is made of, no more and no fewer; 0 leaves that to the recipe.
        required: whether there is no video without one of its sources.
    """

    name: str
    sources: tuple[Source, ...]
    enters: Entry
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    recipe: str = ""
    room: int = 0
    images: int = 0
    required: bool = False

    @property
    def is_input(self) -> bool:
        """Whether the transformer has an input of this name that the sampler is given as a whole."""
        return self.enters in (Entry.INPUT, Entry.CHANNELS)

    @property
    def is_own(self) -> bool:
        """Whether every model is given a value of its own: one of sizes in which models differ; see `own_input`."""
        return any(isinstance(size, str) and size not in LATENT_SIZES for size in self.shape)


def text_conditions(length: int, width: int, *, mask: bool) -> tuple[Condition, ...]:
    """The embedding of a prompt, fp32 [batch, length, width], and with ``mask`` which tokens are no padding, int64."""
    text = Condition(name="text", sources=(Source.TEXT,), enters=Entry.INPUT, shape=("batch", length, width))
    if not mask:
        return (text,)
    shape = ("batch", length)
    return text, Condition(
        name="text_mask", sources=(Source.TEXT_MASK,), enters=Entry.INPUT, shape=shape, dtype="int64"
    )


FRAME_RATE = Condition(name="frame_rate", sources=(Source.FRAME_RATE,), enters=Entry.INPUT, shape=(1,))
"""Frames per second of the video."""

FRAME_TIMES = Condition(name="frame_times", sources=(Source.FRAME_TIMES,), enters=Entry.INPUT, shape=("frames",))
"""The frame of the video, counted from 0 on, that each latent frame begins with."""

FRAME_TIMESTEPS = Condition(
    name="timestep", sources=(Source.IMAGE, Source.VIDEO), enters=Entry.TIMESTEPS, shape=("batch", "frames")
)
"""A timestep for every latent frame: 0 where what was given is held."""


def frame_times(frames: int, factor: int) -> list[float]:
    """The frames of the video that latent frames begin with: the first stands for one frame, others for ``factor``."""
    return [float(max(0, index * factor + 1 - factor)) for index in range(frames)]


def inputs_from(conditions: Iterable[Condition], given: Mapping[str, _Value]) -> dict[str, _Value]:
    """By input name, what the transformer takes as it is of what is given by source."""
    return {
        each.name: given[each.sources[0]]
        for each in conditions
        if each.is_input and not each.recipe and each.sources[0] in given
    }


def sources_of(conditions: Iterable[Condition]) -> frozenset[Source]:
    """Everything that may be given."""
    return frozenset(source for each in conditions for source in each.sources)


def takes(conditions: Iterable[Condition], source: Source) -> bool:
    """Whether something of this kind may be given."""
    return source in sources_of(conditions)


def pixel_sources(conditions: Sequence[Condition]) -> tuple[Source, ...]:
    """The kinds of images and videos that may be given."""
    return tuple(source for source in PIXELS if takes(conditions, source))


def start_from(channels: int) -> Condition:
    """The latents of a video, from which a run may begin at a noise level."""
    shape = (1, channels, "frames", "height", "width")
    return Condition(name="start", sources=(Source.VIDEO,), enters=Entry.START, shape=shape, recipe="strength")


CONTROL = "control"
CONTROL_SCALE = "control_scale"
"""Inputs of a transformer with a control: its latents and masks, and what each hint is multiplied by, [hints]."""


REFERENCES = 3
"""Reference images that bundles are built for."""


def control_conditions(channels: int) -> tuple[Condition, ...]:
    """What a video keeps and what is made anew, and how much it counts; models may have different numbers of hints.

    A reference image takes a latent frame before the video's own.
    """
    shape = ("batch", channels, "frames", "height", "width")
    sources = (Source.IMAGE, Source.VIDEO, Source.MASK)
    return (
        Condition(
            name=CONTROL,
            sources=sources,
            enters=Entry.CHANNELS,
            shape=shape,
            recipe=CONTROL,
            room=REFERENCES,
        ),
        Condition(name=CONTROL_SCALE, sources=sources, enters=Entry.INPUT, shape=("hints",), recipe=CONTROL),
    )


def room_for_references(conditions: Iterable[Condition]) -> int:
    """How many reference images may be given."""
    return max((each.room for each in conditions if each.recipe == CONTROL), default=0)


def takes_control(conditions: Iterable[Condition]) -> bool:
    """Whether videos are given as a control, and no run begins from one."""
    return any(each.recipe == CONTROL for each in conditions)


IMAGE_CHANNELS = "image_channels"
"""Input of a transformer that is shown the first frame: a mask of the frames that are given, and latents."""


def image_channels_condition(channels: int) -> Condition:
    """The first frame, without which there is no video, and perhaps the last, as channels beside the latents."""
    shape = ("batch", channels, "frames", "height", "width")
    return Condition(
        name=IMAGE_CHANNELS,
        sources=(Source.IMAGE,),
        enters=Entry.CHANNELS,
        shape=shape,
        recipe=IMAGE_CHANNELS,
        required=True,
    )


def takes_image_channels(conditions: Iterable[Condition]) -> bool:
    """Whether the first frame is given as channels beside the latents."""
    return any(each.recipe == IMAGE_CHANNELS for each in conditions)


IMAGE_TOKENS = "image_tokens"
"""Input of a transformer that looks at its images through CLIP: their tokens, one image's behind the other's."""


def image_tokens_condition(tokens: int, width: int, images: int) -> Condition:
    """The images that a video begins with, and may have to end with, as CLIP sees them.

    Args:
        tokens: of all images together.
        width: of a token.
        images: how many: 1 for the first frame, or 2 for the first and the last.
    """
    shape = ("batch", tokens, width)
    return Condition(
        name=IMAGE_TOKENS,
        sources=(Source.IMAGE,),
        enters=Entry.INPUT,
        shape=shape,
        recipe=IMAGE_TOKENS,
        images=images,
        required=True,
    )


def takes_image_tokens(conditions: Iterable[Condition]) -> bool:
    """Whether the transformers look at images through CLIP."""
    return any(each.recipe == IMAGE_TOKENS for each in conditions)


def images_taken(conditions: Iterable[Condition]) -> int:
    """How many images there have to be; 0 where only the recipes say."""
    return max((each.images for each in conditions), default=0)


def channels_beside(conditions: Iterable[Condition]) -> int:
    """How many channels the graph puts beside those of the latents, in the transformer's own input."""
    return sum(int(each.shape[1]) for each in conditions if each.recipe == IMAGE_CHANNELS)


def is_shown(conditions: Iterable[Condition]) -> bool:
    """Whether models have inputs that are made of images or videos before the first step."""
    return any(each.is_input and each.recipe for each in conditions)


def own_input(model: str, name: str) -> str:
    """The name under which a model is given an input that has another shape or value in other models."""
    return f"{model}.{name}"


def is_own(name: str) -> bool:
    """Whether it is such a name."""
    return "." in name


def input_key(given: Collection[str], model: str, name: str) -> str:
    """Under which name a model finds what it is given for an input: its own, if it has one of its own."""
    own = own_input(model, name)
    return own if own in given else name


def starts_from_video(conditions: Iterable[Condition]) -> bool:
    """Whether a run may begin from a video's latents."""
    return any(each.enters is Entry.START for each in conditions)
