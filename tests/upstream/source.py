"""Fetches the common tests of the installed transformers: they are in its source distribution, not in its wheel.

They lie in the user's cache, one folder a version, outside every repository, and are never committed.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers
from filelock import FileLock

from .stand_ins import stand_in


CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_mmunify"
TESTS = CACHE / f"transformers-{transformers.__version__}-tests"


class SourceUnavailable(RuntimeError):
    """The source distribution could not be had: no network, or no such version on the package index."""


def download() -> None:
    """Make the tests of the installed transformers importable, from `TESTS`; safe in parallel processes.

    pip fetches the source distribution from wherever it is configured to look, and checks its hash.

    Raises:
        SourceUnavailable: when pip cannot fetch it; the message ends with pip's own.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{TESTS.name}.lock"):
        if not TESTS.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                _unpack(_fetch(Path(folder)), Path(folder))
    importlib.invalidate_caches()  # the import system may have looked for the folder before it was there
    stand_in(TESTS)


def _fetch(folder: Path) -> Path:
    """The source distribution, downloaded into `folder`."""
    requirement = f"transformers=={transformers.__version__}"
    options = ["--quiet", "--retries", "1", "--no-deps", "--no-binary", "transformers", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    archives = list(folder.glob("*.tar.gz"))
    if result.returncode or len(archives) != 1:
        raise SourceUnavailable(
            f"pip could not download the source distribution of {requirement}: {result.stderr.strip()[-500:]}"
        )
    return archives[0]


def _unpack(archive: Path, folder: Path) -> None:
    """Move the tests in `archive` to `TESTS`, whole or not at all."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar if Path(member.name).parts[1:2] == ("tests",)]
        tar.extractall(folder, members, filter="data")
    (root,) = folder.glob("*/tests")
    (root / "__init__.py").touch()  # some of the tests look for one
    root.rename(TESTS)  # on one disk, as the temporary folder is made in the cache
