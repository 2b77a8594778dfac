"""Printed commands, read back by a shell."""

import subprocess
from pathlib import Path

import pytest

from flowblending.system.shell import command


@pytest.mark.parametrize(
    "name", ["plain", "two words", "it's", 'say "hi"', "$HOME", "a;b", "`x`", "new\nline", "*", "#1", "~", "猫", "a\\b"]
)
def test_a_shell_takes_it_apart_again(name: str) -> None:
    line = command("printf", "%s|", Path("videos") / name, name)
    found = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert found == f"videos/{name}|{name}|"


def test_a_path_is_no_option() -> None:
    assert command("fb-run", Path("-wan"), "--prompt", "a cat") == "fb-run ./-wan --prompt 'a cat'"
    assert command("fb-run", Path("wan"), "--quiet") == "fb-run wan --quiet"
