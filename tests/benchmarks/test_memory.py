"""What fits which card, as the documents have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import memory

DOCUMENT = Path(__file__).parents[2] / "docs" / "memory.md"


def test_the_documents_table_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["memory", "--phases"])
    memory.main()
    lines = capsys.readouterr().out.splitlines()
    assert "\n".join(lines[: 2 + len(memory.PAIRS)]) in DOCUMENT.read_text()
    # The figures that were worked out by hand, of the phases of sampling and decoding.
    assert any(line.startswith("memory    phases, at most 35.7 GB; reads 43.4 GB of weights") for line in lines)
    assert any(line.startswith("  decode         16.2 GB: opens vae_first, vae_next (580.0 MB)") for line in lines)


@pytest.mark.parametrize(
    ("pair", "card"),
    [
        ("Wan 14B/1.3B bf16, 832x480, 81 frames", 48),
        ("Wan 14B/1.3B large=fp8, 832x480, 81 frames", 24),
        ("Wan 14B/1.3B bf16, 1280x720, 81 frames", 48),
        ("Wan A14B with 1.3B bf16, 832x480, 81 frames", 48),
        ("LTX 13B/2B bf16, 704x512, 121 frames", 32),
    ],
)
def test_the_pairs_run_on_the_cards_that_they_are_to_run_on(pair: str, card: int) -> None:
    run = memory.PAIRS[pair].memory()
    assert memory.verdict(run, card).startswith("phases")
    assert all(memory.verdict(run, larger) != "no" for larger in memory.CARDS if larger >= card)
