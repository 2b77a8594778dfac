"""What pyproject.toml cannot say: the source distribution keeps the links of the checkout.

``flowblending/runtime`` is a link to ``runtime``, and so are ``engine`` and ``export``. setuptools would copy what they
name, so that every module lay there twice.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

LINKS = ("export", "engine", "runtime")


class LinkedSdist(sdist):
    """A source distribution with the rooms as links, as git has them."""

    def make_release_tree(self, base_dir: str, files: Sequence[str]) -> None:
        """Make the tree, then put the links back."""
        super().make_release_tree(base_dir, files)
        for name in LINKS:
            copy = Path(base_dir, "flowblending", name)
            shutil.rmtree(copy, ignore_errors=True)
            copy.symlink_to(Path("..", name), target_is_directory=True)


setup(cmdclass={"sdist": LinkedSdist})
