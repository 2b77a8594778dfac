"""What a transformer is shown, and scored on, when it learns to go on from a first frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.shapes.first_frame import TOKENS, FirstFrames, FirstFrameTask
from benchmarks.shapes.tasks import Encoded
from benchmarks.shapes.training import Recipe

KNOWN = 40


class Seen(nn.Module):
    """Keeps what it is called with, and answers ``answer`` everywhere but on the tokens at timestep 0."""

    def __init__(self, answer: float, of_given: float) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer))
        self.of_given = of_given
        self.calls: list[dict[str, Any]] = []

    def forward(self, **inputs: Any) -> tuple[torch.Tensor]:
        self.calls.append(inputs)
        sampled = (inputs["timestep"] > 0)[..., None]
        return (torch.where(sampled, self.answer, self.of_given).expand(inputs["hidden_states"].shape),)


@pytest.fixture(scope="module")
def frames() -> FirstFrames:
    """Clip i is i everywhere, and so are its two captions and their masks' lengths; the encoder is sure to 0.1."""
    numbers = torch.arange(KNOWN, dtype=torch.float32)
    text = torch.cat([numbers, 100 + numbers, torch.tensor([-1.0])])[:, None, None].expand(-1, 3, 64)
    return FirstFrames(
        encoded=Encoded(
            latents=numbers[:, None, None].expand(-1, 4 * TOKENS, 32),
            text=text,
            mask=torch.ones(2 * KNOWN + 1, 3, dtype=torch.bool),
        ),
        spread=torch.full((KNOWN, TOKENS, 32), 0.1),
    )


def task(frames: FirstFrames, module: nn.Module) -> FirstFrameTask:
    return FirstFrameTask("small", module, frames, Recipe(steps=1, rate=1.0), 0)


def test_half_of_the_clips_begin_with_their_own_first_frame(frames: FirstFrames) -> None:
    module = Seen(0.0, 0.0)
    for step in range(20):
        task(frames, module).loss(step)
    given = tells = 0
    kinds = {True: [0, 0, 0], False: [0, 0, 0]}
    for call in module.calls:
        times, latents, text = call["timestep"], call["hidden_states"], call["encoder_hidden_states"][:, 0, 0]
        assert times.shape == latents.shape[:2]
        first, rest = times[:, :TOKENS], times[:, TOKENS:]
        assert (rest > 0).all()
        assert torch.equal(rest, rest[:, :1].expand_as(rest))
        held = (first == 0).all(1)
        assert torch.equal(first[~held], rest[~held, :TOKENS])
        # What is shown of a held frame is its clip's number, but for what the encoder is not sure of.
        numbers = latents[held, :TOKENS].mean((1, 2))
        off = latents[held, :TOKENS] - numbers.round()[:, None, None]
        assert off.std().item() == pytest.approx(0.1, rel=0.05)
        named = text[held] >= 0
        assert torch.equal(text[held][named] % 100, numbers.round()[named])
        given += int(held.sum())
        tells += len(held)
        for row, said in zip(held.tolist(), text.tolist(), strict=True):
            kinds[row][2 if said < 0 else int(said >= 100)] += 1
    assert given / tells == pytest.approx(FirstFrameTask.GIVEN, abs=0.07)
    for row, shares in ((True, FirstFrameTask.WITH_FRAME), (False, FirstFrameTask.TEXT_ONLY)):
        assert [count / sum(kinds[row]) for count in kinds[row]] == pytest.approx(shares, abs=0.09)
    assert kinds[False][1] == 0


def test_what_is_given_is_not_scored(frames: FirstFrames) -> None:
    losses = {answer: task(frames, Seen(*answer)).loss(3)[0].item() for answer in ((0.0, 0.0), (0.0, 9.0), (1.0, 0.0))}
    assert losses[0.0, 0.0] == losses[0.0, 9.0] != losses[1.0, 0.0]


def test_a_step_has_the_same_numbers_again_and_another_has_others(frames: FirstFrames) -> None:
    (first, figures), (again, _), (other, _) = (task(frames, Seen(0.0, 0.0)).loss(step) for step in (1, 1, 2))
    assert first.item() == again.item() != other.item()
    assert set(figures) == {"given", "text_only"}
