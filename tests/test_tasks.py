"""The tasks: which architecture does what, as the Auto classes say; README.md shows it; every script is there."""

import re
from pathlib import Path

import pytest
import transformers

from hf_mmunify import auto, tasks
from hf_mmunify.cli import main
from hf_mmunify.registry import ARCHITECTURES
from hf_mmunify.tasks import TASKS, task_table


ROOT = Path(__file__).resolve().parents[1]


def test_readme_shows_the_table_of_tasks():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- tasks -->\n(.*?)\n<!-- /tasks -->", readme, re.DOTALL)
    assert shown and shown[1] == task_table(), "put what `hf-mmunify tasks` prints between the marks in README.md"


def test_the_command_prints_the_table(capsys):
    assert main(["tasks"]) == 0
    assert capsys.readouterr().out.strip() == task_table()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_has_its_script_and_its_models(task):
    assert (ROOT / "examples" / task.script).is_file()
    assert task.auto_class in (ROOT / "examples" / task.script).read_text(encoding="utf-8")
    assert all(getattr(transformers, name) in task.models for name in task.native)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_a_row_of_the_registry_names_is_what_does_the_task(model_type):
    for task in TASKS:
        if task.auto_class in ARCHITECTURES[model_type]:
            assert task.model_of(model_type) == ARCHITECTURES[model_type][task.auto_class]


def test_an_architecture_that_an_auto_class_learns_appears(monkeypatch):
    before = task_table().count("✓")
    monkeypatch.setitem(auto.AutoModelForVisualEntailment._model_mapping._models, transformers.CLIPConfig, object)
    assert tasks.task_table().count("✓") == before + 1
