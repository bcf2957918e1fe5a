"""The rooms of the package: who may import whom, what an architecture consists of, and that importing is silent.

Every message says what is missing, and how it is added.
"""

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from hf_mmunify.conversion.declarations import MACHINERY, conversion_module, conversion_names, declared, manifest_path
from hf_mmunify.registry import ARCHITECTURES


ROOT = Path(__file__).resolve().parents[1]

# Room -> the rooms of hf_mmunify that it may import. An architecture is a room of its own: "own" is its model folder.
MAY_IMPORT = {
    "layers": {"layers", "losses"},
    "losses": {"losses"},
    "evaluation": {"evaluation"},
    "models": {"own", "layers", "losses"},
    "data": {"data", "layers", "losses", "evaluation"},
    "training": {"training", "data", "layers", "losses", "evaluation", "auto", "hub"},
    "hub": {"auto", "model_cards"},
    "auto": set(),
    "embedding_index": {"auto", "data", "evaluation"},
    "registry": {"auto", "hub", "models"},
    "tasks": {"auto", "registry"},
    "conversion": {"conversion", "own", "registry"},
}
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc"}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported(source: str, package: list[str]) -> list[str]:
    """Dotted names of everything a module imports, wherever in it; relative ones are resolved against `package`."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = start + (node.module.split(".") if node.module else [])
            names += [".".join([*module, alias.name]) for alias in node.names]
    return names


def broken_rules(path: Path, source: str) -> list[str]:
    """Which imports of the file at `path` (relative to the root of the repository) its room may not have, and why."""
    parts = list(path.with_suffix("").parts)
    if parts[0] == "conversion":
        parts = ["hf_mmunify", *parts]
    room = parts[1] if parts[0] == "hf_mmunify" else parts[0]
    # The architecture this file belongs to: hf_mmunify/models/<x>/..., hf_mmunify/conversion/<x>.py.
    own = parts[2] if room in ("models", "conversion") and len(parts) > 2 else None
    found = []
    for name in imported(source, parts[:-1]):
        target = name.split(".")
        if name.startswith("transformers.models."):
            found.append(f"{path} imports {name}: use the public names of transformers, its model modules are private")
        if target[0] in ("tests", "conversion", "model_cards"):
            found.append(f"{path} imports {name}: the installed package has no such top-level module")
        if target[0] != "hf_mmunify" or len(target) == 1:
            continue
        if room == "examples" and (any(part.startswith("_") for part in target) or "modeling" in name):
            found.append(f"{path} imports {name}: an example shows public names, export this one from its room")
        is_architecture = room == "conversion" and own not in MACHINERY | {"__init__"}
        if is_architecture and target[1] == "conversion" and target[2] not in MACHINERY:
            found.append(f"{path} imports {name}: a conversion knows the engine, not another architecture")
        is_own = target[1] == "models" and target[2:3] == [own]
        if room in MAY_IMPORT and not (is_own and "own" in MAY_IMPORT[room]) and target[1] not in MAY_IMPORT[room]:
            allowed = ", ".join(sorted(MAY_IMPORT[room])) or "no room"
            found.append(f"{path} imports {name}: `{room}` may import {allowed}; move what is shared to `layers`")
    return found


def test_every_room_imports_only_what_it_may():
    files = python_files("hf_mmunify", "conversion", "examples", "benchmarks")
    found = [
        message for path in files for message in broken_rules(path.relative_to(ROOT), path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "path, source, is_allowed",
    [
        ("hf_mmunify/models/albef/modeling_albef.py", "from ...layers import Resampler", True),
        ("hf_mmunify/models/albef/modeling_albef.py", "from .configuration_albef import AlbefConfig", True),
        ("hf_mmunify/models/albef/modeling_albef.py", "from transformers import ViTConfig", True),
        ("hf_mmunify/models/albef/modeling_albef.py", "from ..coca import CocaModel", False),
        ("hf_mmunify/models/albef/modeling_albef.py", "from .. import coca", False),
        ("hf_mmunify/models/albef/modeling_albef.py", "import hf_mmunify.models.coca", False),
        ("hf_mmunify/models/albef/modeling_albef.py", "def f():\n    from ...training import lora", False),
        ("hf_mmunify/models/albef/modeling_albef.py", "from transformers.models.vit import ViTModel", False),
        ("hf_mmunify/layers/resampler.py", "from ..models.flamingo import FlamingoConfig", False),
        ("hf_mmunify/losses/__init__.py", "from .captioning import captioning_loss", True),
        ("hf_mmunify/evaluation/vqa.py", "from ..data import masks", False),
        ("hf_mmunify/training/lora.py", "from transformers import AutoModel", True),
        ("hf_mmunify/training/lora.py", "from hf_mmunify.models.albef import AlbefModel", False),
        ("conversion/albef.py", "from hf_mmunify.models.albef import AlbefConfig", True),
        ("conversion/albef.py", "from hf_mmunify.conversion.engine import bind", True),
        ("conversion/albef.py", "from .engine import bind", True),
        ("conversion/albef.py", "from hf_mmunify.models.coca import CocaConfig", False),
        ("conversion/albef.py", "from hf_mmunify.conversion.coca import KEY_MAP", False),
        ("conversion/albef.py", "from conversion.engine import bind", False),
        ("examples/caption.py", "from hf_mmunify.data import DigitScenes", True),
        ("examples/caption.py", "from hf_mmunify.models.flamingo.modeling_flamingo import FlamingoModel", False),
        ("examples/caption.py", "from hf_mmunify.registry import _register", False),
    ],
)
def test_the_import_rules_see_what_they_should(path, source, is_allowed):
    assert (broken_rules(Path(path), source) == []) is is_allowed


def test_no_file_is_a_bag():
    files = python_files("hf_mmunify", "conversion", "examples", "benchmarks", "tests")
    bags = [str(path.relative_to(ROOT)) for path in files if {path.stem, path.parent.name} & FORBIDDEN_NAMES]
    assert not bags, f"{bags}: name a file after what it holds, not utils, common, helpers or misc"


def with_manifests() -> set[str]:
    """The conversions whose published variants all have a manifest. Where nothing was published, none is due."""
    modules = {name: conversion_module(name) for name in conversion_names()}
    return {
        name
        for name, module in modules.items()
        if all(manifest_path(module, variant).is_file() for variant in declared(module, "VARIANTS"))
    }


def tiny_rows() -> set[str]:
    from tiny import TINY

    return set(TINY)


# What an architecture consists of: where it is looked for, and how it is added.
PARTS = {
    "model folder": (
        lambda: {path.parent.name for path in (ROOT / "hf_mmunify" / "models").glob("*/__init__.py")},
        "add hf_mmunify/models/{x}/ with configuration_{x}.py, modeling_{x}.py, and __init__.py importing * from both",
    ),
    "conversion": (
        lambda: set(conversion_names()),
        "add conversion/{x}.py with what hf_mmunify.conversion.engine reads; no `VARIANTS` if nothing was published",
    ),
    "manifest": (
        with_manifests,
        "add conversion/manifests/{x}/<variant>.txt for every entry of its `VARIANTS`, with `write_manifest`",
    ),
    "model card": (
        lambda: {path.stem for path in (ROOT / "model_cards").glob("*.md")},
        "add model_cards/{x}.md with the sections of hf_mmunify.hub.CARD_SECTIONS",
    ),
    "row of tests/tiny": (
        tiny_rows,
        "add tests/tiny/{x}.py with a `ROW`: its smallest config and one batch",
    ),
    "row of README's table": (
        lambda: {
            name
            for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
            if line.startswith("|")
            for name in re.findall(r"`(\w+)`", line)
            if name in ARCHITECTURES
        },
        "add a row to the table of systems in README.md that names `{x}` in backticks",
    ),
    "golden or paper test": (
        lambda: (
            {path.parent.name for path in (ROOT / "tests" / "golden").glob("*/*.json")}
            | {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "models").glob("test_*.py")}
        ),
        "add tests/golden/{x}/ with tensors of the authors' code, or tests/models/test_{x}.py for the paper",
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_every_architecture_has_every_part(part):
    where, how = PARTS[part]
    present = where()
    missing = [x for x in ARCHITECTURES if x not in present]
    assert not missing, "\n".join(f"{x} has no {part}: {how.format(x=x)}" for x in missing)
    # The other way round: nothing half-added. A native model may have a conversion, a card, a row and goldens too.
    unknown = sorted(present - set(ARCHITECTURES) - set(CONFIG_MAPPING))
    if part in ("model folder", "conversion", "model card", "row of tests/tiny"):
        assert not unknown, f"{unknown} have a {part} but no row in hf_mmunify/registry.py: add it to ARCHITECTURES"


def test_importing_prints_nothing_and_stays_light():
    """`auto_docstring` reports on stdout what a model leaves undocumented, so this also lints the docstrings."""
    heavy = ("bitsandbytes", "sklearn", "matplotlib", "datasets", "peft", "hf_mmunify.conversion.engine")
    probe = (
        f"import sys, hf_mmunify; loaded = [name for name in {heavy} if name in sys.modules]; sys.exit(len(loaded))"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout + result.stderr == "", "importing hf_mmunify prints: see above for what it has to say"
    assert result.returncode == 0, (
        f"importing hf_mmunify imports {result.returncode} of {heavy}: import them where used"
    )


def test_the_linter_of_transformers_finds_nothing():
    command = [sys.executable, "-m", "mlinter", "--no-progress", "--no-cache", "hf_mmunify/models"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_finds_nothing(command):
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", "--quiet", "."],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_public_names_exist_and_are_documented(model_type):
    package = import_module(f"hf_mmunify.models.{model_type}")
    for path in sorted((ROOT / "hf_mmunify" / "models" / model_type).glob("*_*.py")):
        if path.name == "__init__.py":
            continue
        module = import_module(f"{package.__name__}.{path.stem}")
        for name in module.__all__:
            thing = getattr(module, name)
            assert getattr(package, name) is thing, f"{package.__name__} does not export {name} of {path.name}"
            if inspect.isfunction(thing) or inspect.isclass(thing):  # a constant is described by the string below it
                # Read from the class itself: an inherited docstring describes the parent.
                doc = thing.__doc__ if inspect.isfunction(thing) else vars(thing).get("__doc__")
                assert inspect.cleandoc(doc or ""), f"{name} in {path.name} has no docstring"
    for name in ARCHITECTURES[model_type].values():
        homes = package, import_module("transformers")  # which has its names when they are asked for, not before
        assert any(hasattr(home, name) for home in homes) or hasattr(package, f"{name}Pil"), name


def test_every_file_says_what_it_is():
    for path in python_files("hf_mmunify", "conversion", "examples", "benchmarks", "tests", "model_cards"):
        source = path.read_text(encoding="utf-8")
        is_model_file = path.relative_to(ROOT).parts[:2] == ("hf_mmunify", "models") and path.parent.name != "models"
        if path.name == "__init__.py" and is_model_file:
            continue  # two or three star-imports
        assert ast.get_docstring(ast.parse(source)), f"{path.relative_to(ROOT)} has no module docstring"
        if is_model_file:
            assert source.startswith("# Copyright 20"), f"{path.relative_to(ROOT)}: copy the licence header of another"
