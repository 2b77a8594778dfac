"""Formats that last: every file that is written for a later day has a format number, and earlier ones are still read.

What an earlier version wrote is upgraded in memory, from one format to the next; the file stays as it is. The number of
a format is one more than its upgrades are, so that there is no new one without a way to it. docs/formats.md has the
table, and what to do about a new format.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flowblending
from flowblending import FlowBlendingError

Content = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Format:
    """The format of one kind of file.

    Attributes:
        name: of the kind, in messages.
        upgrades: from format 1 to 2, from 2 to 3, and so on; each may change what it is given, and returns it.
    """

    name: str
    upgrades: Sequence[Callable[[Content], Content]] = ()

    @property
    def number(self) -> int:
        """The present format."""
        return len(self.upgrades) + 1

    def upgrade(self, content: object, where: object, remedy: str) -> Content:
        """What a file says, as the present format has it.

        Args:
            content: of the file, parsed.
            where: the file, for messages.
            remedy: what makes the file anew, as ``do this``, for messages.

        Raises:
            ValueError: it has no format, or contradicts the one that it has.
            FlowBlendingError: it was written by a later version.
        """
        found = content.get("format") if isinstance(content, Mapping) else None
        if not isinstance(content, Mapping) or not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise ValueError(f"a {self.name} has a format, a number from 1 on, and this one's is {found!r}")
        if found > self.number:
            writer = content.get("created_by", "a later version")
            raise FlowBlendingError(
                f"{where} is a {self.name} of format {found}, written by {writer}, but this is flowblending "
                f"{flowblending.__version__}, which reads formats up to {self.number}; install a later version, "
                f"or {remedy}."
            )
        upgraded: Content = copy.deepcopy(dict(content))
        for number, step in enumerate(self.upgrades[found - 1 :], start=found + 1):
            try:
                upgraded = step(upgraded) | {"format": number}
            except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                raise ValueError(f"it is no {self.name} of format {found}: {error!r}") from None
        return upgraded


def _several_sizes(content: Content) -> Content:
    """Bundle manifest 1 to 2: one video became a list of profiles, and costs became polynomials in its tokens."""
    geometry = content.pop("geometry")
    content["profiles"] = [{"min": geometry, "opt": geometry, "max": geometry}]
    pipeline = content["pipeline"]
    tokens = math.prod(geometry["latent_shape"][1:]) // math.prod(pipeline["patch"])
    for component in [*content["components"].values(), *content.get("signals", {}).values()]:
        if component.get("flops") is not None:
            component["flops"] = _polynomials(component["flops"], tokens, pipeline["text_length"])
    # For a few hours, fp8's calibration had the name that fb-calibrate's has now.
    if "path" in (content.get("calibration") or {}):
        content["fp8_calibration"] = content.pop("calibration")
    return content


def _named_models(content: Content) -> Content:
    """Bundle manifest 2 to 3: the two models became a list of any number, which says what they ask for, too."""
    content["models"] = [
        {
            "name": name,
            "letter": letter,
            "components": [name],
            "sampling": content["components"][name].pop("sampling", None),
        }
        for name, letter in (("large", "L"), ("small", "S"))
    ]
    for component in content["components"].values():
        component.pop("sampling", None)
    return content


def _declared_conditions(content: Content) -> Content:
    """Bundle manifest 3 to 4: what its models take beside latents and timestep is said, and not told from names.

    There were a prompt's embedding, its mask and a frame rate, and every bundle was made from text alone.
    """
    sources = {"text": "text", "text_mask": "text_mask", "frame_rate": "frame_rate"}
    component = content["components"][content["models"][0]["components"][0]]
    content["pipeline"]["conditions"] = [
        {
            "name": each["name"],
            "sources": [sources[each["name"]]],
            "enters": "input",
            "shape": each["shape"],
            "dtype": each["dtype"],
        }
        for each in component["spec"]["inputs"]
        if each["name"] in sources
    ]
    return content


def _polynomials(flops: Content, tokens: int, text: int) -> Content:
    """Costs of a video of so many tokens as polynomials that give the same there.

    Every block attends to the video and to the text, to each pair of tokens alike. What the linear layers do for the
    text is not told apart from what they do for the video, so that other sizes' costs are estimates.
    """
    linear, attention = flops["linear"], flops["attention"]
    pairs = tokens * (tokens + text)
    each = attention // pairs
    return {
        "linear": [linear % tokens, linear // tokens],
        "attention": [attention - each * pairs, each * text, each],
    }


def _all_velocities(content: Content) -> Content:
    """Build report 1 to 2: a model is judged by all of its velocities together.

    Those that were kept are the worst of each step; none of the new figures can be larger than the worst of them.
    """
    pair = content["pair"]
    if pair is not None:
        by_model: dict[str, list[Any]] = {}
        for value, model in zip(pair["velocity"], pair["models"], strict=True):
            by_model.setdefault(model, []).append(value)
        # A figure that is not a number is written as a text, and is the worst.
        pair["overall"] = {
            name: max(values, key=lambda value: (math.isnan(float(value)), float(value)))
            for name, values in by_model.items()
        }
    return content


def _short_run(content: Content) -> Content:
    """Build report 2 to 3: the bundle itself is run once, which nobody has done here yet."""
    detail = "it was not run; needs fb-build-engines --prove"
    claim = {"component": "bundle", "claim": "runs from a prompt to pixels", "state": "open", "detail": detail}
    content["claims"] = [*content["claims"], claim]
    content["run"] = None
    return content


def _rescaling(content: Content) -> Content:
    """Sampling program 1 to 2: there is an instruction more, and what was there is as it was."""
    return content


def _decided(content: Content) -> Content:
    """Calibration 1 to 2: of the late boundary it is told whether the prompts decided it, which nobody asked before."""
    if content.get("late") is not None:
        content["late"] = content["late"] | {"spread": None, "decided": True, "prompts_needed": None}
    return content


def _with_letters(content: Content) -> Content:
    """Calibration 2 to 3: the two models have letters, which were L and S."""
    return content if "caches" in content else content | {"letters": ["L", "S"]}


def _without_sampling(content: Content) -> Content:
    """Cache entry 1 to 2: what a model asks for is the bundle's to say, and was none of a component's here."""
    content["made"].pop("sampling", None)
    return content


def _held_latents(content: Content) -> Content:
    """Sampling program 2 to 3: latent frames may be held, and an input may be a model's own."""
    for engine in content.get("engines", {}).values():
        for each in engine["inputs"]:
            each["key"] = each["name"]
    return content


MANIFEST = Format(name="bundle manifest", upgrades=(_several_sizes, _named_models, _declared_conditions))
PROGRAM = Format(name="sampling program", upgrades=(_rescaling, _held_latents))
REPORT = Format(name="build report", upgrades=(_all_velocities, _short_run))
PROOF = Format(name="component's proof")
EVIDENCE = Format(name="calibration", upgrades=(_decided, _with_letters))
FP8_CALIBRATION = Format(name="fp8 calibration")
GRAPH = Format(name="description of an exported graph")
ENTRY = Format(name="cache entry", upgrades=(_without_sampling,))
