"""What a machine's options were set to, from a command line and from the texts of a file."""

from __future__ import annotations

import pytest

from flowblending.runtime.machine_options import DEFAULTS, MachineSettings

SETTINGS = [
    DEFAULTS,
    MachineSettings(threads=3),
    MachineSettings(cuda_graph=False),
    MachineSettings(memory="phases"),
    MachineSettings(threads=1, cuda_graph=False, memory="stream"),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_texts_give_the_same_settings(settings: MachineSettings) -> None:
    assert MachineSettings.of(settings.values()) == settings


def test_only_what_is_not_as_usual_is_written() -> None:
    assert DEFAULTS.values() == {}
    assert SETTINGS[-1].values() == {"threads": "1", "cuda_graph": "off", "memory": "stream"}


def test_what_a_program_does_not_offer_is_as_usual() -> None:
    assert MachineSettings.of({"prompt": "x", "threads": None, "cuda_graph": "auto"}) == DEFAULTS
    assert MachineSettings.of({"threads": 2}) == MachineSettings(threads=2)
