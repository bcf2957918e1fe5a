"""The package as users install it: wheel, editable, and from the source archive, each into an environment of its own.

The environments see the packages of the one that runs the tests, so nothing is downloaded; only ours is installed.
"""

import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest


pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]

# Runs in the new environment, away from the clone, and prints which copy was imported.
PROBE = """
import importlib
from importlib.resources import files
import hf_mmunify
from hf_mmunify.registry import ARCHITECTURES
for x in ARCHITECTURES:
    importlib.import_module(f"hf_mmunify.conversion.{x}")
    assert (files("hf_mmunify.model_cards") / f"{x}.md").read_text().startswith("---"), x
print(hf_mmunify.__file__)
"""


def run(*command, cwd):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def tracked(*folders):
    """The files of the clone that belong to it."""
    return set(run("git", "ls-files", *folders, cwd=ROOT).splitlines())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What a release uploads: the source archive of this clone, and its wheel."""
    folder = tmp_path_factory.mktemp("dist")
    for kind in ("sdist", "wheel"):
        run(sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", folder, cwd=ROOT)
    return {"wheel": next(folder.glob("*.whl")), "sdist": next(folder.glob("*.tar.gz"))}


@pytest.mark.parametrize("mode", ["wheel", "sdist", "editable"])
def test_an_installed_package_is_whole(mode, built, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python, command = (tmp_path / "env" / "bin" / name for name in ("python", "hf-mmunify"))
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # The packages of the environment that runs the tests. A `.pth` file in that path is not read, so that an editable
    # installation of ours there stays unseen.
    (packages / "parent.pth").write_text(sysconfig.get_path("purelib"))
    source = ["--editable", ROOT] if mode == "editable" else [built[mode]]
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--no-index", "--no-deps", "--no-build-isolation", *source, cwd=tmp_path)

    imported = Path(run(python, "-I", "-c", PROBE, cwd=tmp_path).strip())
    assert imported.is_relative_to(ROOT if mode == "editable" else packages)
    rooms = {"conversion", "model_cards", "tests", "examples", "benchmarks"}
    assert rooms.isdisjoint(path.name for path in packages.iterdir())
    if mode != "editable":
        for name in tracked("hf_mmunify", "conversion", "model_cards"):
            assert (packages / "hf_mmunify" / name.removeprefix("hf_mmunify/")).is_file(), name
    assert "convert" in run(command, "--help", cwd=tmp_path)


def test_the_archive_holds_what_a_clone_does(built):
    with tarfile.open(built["sdist"]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert tracked("hf_mmunify", "conversion", "model_cards", "examples", "tests", "README.md", "LICENSE") <= names
