"""Models, their letters and engines, and what no bundle can have."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from flowblending import UsageError
from flowblending.contracts.models import (
    Model,
    by_letter,
    check_letters,
    check_models,
    components_of,
    default_schedule,
    is_name,
)

BASE = Model(name="base", letter="B", components=("base_high", "base_low"), boundary=0.875, letters=("H", "W"))
SMALL = Model(name="small", letter="S", components=("small",))
DRAFT = Model(name="draft", letter="D", components=("draft",))


def test_experts_are_models_of_their_own_behind_all_others() -> None:
    letters = by_letter((BASE, SMALL, DRAFT))
    assert {letter: model.components for letter, model in letters.items()} == {
        "B": ("base_high", "base_low"),
        "S": ("small",),
        "D": ("draft",),
        "H": ("base_high",),
        "W": ("base_low",),
    }
    assert components_of((BASE, SMALL)) == ("base_high", "base_low", "small")


@pytest.mark.parametrize("boundary", [0.0, 0.3, 0.7, 0.875, 0.9, 1.0])
def test_a_boundary_is_compared_as_torch_compares_it(boundary: float) -> None:
    model = BASE.model_copy(update={"boundary": boundary})
    near = np.nextafter(np.float32(boundary * 1000), np.float32(-1))
    for timestep in (near, np.float32(boundary * 1000), np.float32(500.5), np.float32(1000), np.float32(0.5)):
        high = bool(torch.tensor(timestep, dtype=torch.float32) >= boundary * 1000)
        assert model.component(float(timestep), 1000) == ("base_high" if high else "base_low")
    # UniPC's timesteps are whole numbers.
    for whole in (int(boundary * 1000), int(boundary * 1000) - 1):
        high = bool(torch.tensor(whole) >= boundary * 1000)
        assert model.component(float(whole), 1000) == ("base_high" if high else "base_low")


def test_the_default_schedule_is_of_the_first_two_models() -> None:
    assert default_schedule((BASE,)) == "B"
    assert default_schedule((BASE, SMALL)) == default_schedule((BASE, SMALL, DRAFT)) == "BSB"


@pytest.mark.parametrize(
    ("models", "schedule", "message"),
    [
        (
            (DRAFT, SMALL),
            "DXD",
            "The schedule DXD has the letter X, but this bundle has the models D (draft), S (small); use their "
            "letters.",
        ),
        (
            (DRAFT,),
            "LSL",
            "The schedule LSL has the letter L, but this bundle has one model, D (draft); use its letter, such as "
            "--schedule D, or build a bundle of more models.",
        ),
        (
            (BASE,),
            "L",
            "The schedule L has the letter L, but this bundle has one model, B (base), H (base_high), W (base_low); "
            "use its letter, such as --schedule B, or build a bundle of more models.",
        ),
    ],
)
def test_letters_that_no_model_has(models: tuple[Model, ...], schedule: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        check_letters(schedule, models, schedule)


def test_letters_that_there_are() -> None:
    check_letters("BSDHW", (BASE, SMALL, DRAFT), "BSDHW")


@pytest.mark.parametrize(
    ("models", "what"),
    [
        ((), "names"),
        ((SMALL, SMALL), "names"),
        ((SMALL, DRAFT.model_copy(update={"letter": "S"})), "letters"),
        ((BASE, DRAFT.model_copy(update={"letter": "W"})), "letters"),
        ((SMALL, DRAFT.model_copy(update={"components": ("small",)})), "components"),
    ],
)
def test_models_that_cannot_be_told_apart(models: tuple[Model, ...], what: str) -> None:
    with pytest.raises(ValueError, match=f"the {what} of a bundle's models differ"):
        check_models(models)


@pytest.mark.parametrize(
    "change",
    [{"boundary": None}, {"letters": ()}, {"components": ("a",)}, {"boundary": 1.5}, {"letter": "b"}, {"name": "A"}],
)
def test_experts_have_a_boundary_and_letters(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Model.model_validate(BASE.model_dump() | change)


def test_names() -> None:
    assert [name for name in ("large", "a1", "vae", "report", "text_encoder", "Large", "1a", "") if is_name(name)] == [
        "large",
        "a1",
    ]
