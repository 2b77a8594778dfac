"""What processes leave that are killed amid their work, left by such processes."""

import subprocess
import sys
from pathlib import Path

_FILE = """
import os, signal, sys
from pathlib import Path
from flowblending.system.whole_file import whole_file
with whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""

_ASIDE = """
import os, signal, sys
from pathlib import Path
from flowblending.system.temporary import set_aside, temporary_folder
with temporary_folder(Path(sys.argv[2])) as folder:
    set_aside(Path(sys.argv[1]), folder)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave(target: Path) -> None:
    """Leave half a file of what would become ``target``."""
    subprocess.run([sys.executable, "-c", _FILE, target], check=False)


def leave_aside(target: Path, output: Path) -> None:
    """Leave ``target`` where a replacement of ``output``, which it is or in which it lies, has moved it."""
    subprocess.run([sys.executable, "-c", _ASIDE, target, output], check=False)
    assert not target.exists()
