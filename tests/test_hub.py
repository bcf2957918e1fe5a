"""Pushing to the Hub and pulling from it, as its users do: in processes that know only a repository's name.

The Hub is `fakehub.FakeHub`; the users are `hub_users.py`, whose functions are asked for by name.
"""

import json
import subprocess
import sys
from types import SimpleNamespace

import hub_users
import pytest
from fakehub import FakeHub
from huggingface_hub import ModelCard
from tiny import TINY
from transformers.conversion_mapping import get_model_conversion_mapping

from hf_mmunify import hub
from hf_mmunify.registry import ARCHITECTURES


class Users:
    """The process that answers questions, and the Hub it knows."""

    def __init__(self, hub, home):
        self.hub, self.home = hub, home
        self.process = subprocess.Popen(
            [sys.executable, hub_users.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
            env=hub.environment(home / "hub") | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )

    def ask(self, function, *arguments, **named):
        self.hub.requests.clear()
        self.process.stdin.write(json.dumps([function.__name__, arguments, named], default=str) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    """Processes that know a Hub on which nothing was published."""
    with FakeHub() as hub:
        users = Users(hub, tmp_path_factory.mktemp("users"))
        yield users
        users.process.stdin.close()
        users.process.wait(timeout=60)


# One architecture stands for all in the quick suite: what is tested is attached to every class by the same loop.
SUBJECTS = [
    pytest.param(model_type, marks=[] if model_type == "flamingo" else pytest.mark.slow)
    for model_type in ARCHITECTURES
]


@pytest.fixture(scope="module", params=SUBJECTS)
def published(request, users):
    """A model, its processor and a LoRA on the Hub of `users`, and what their publisher knows of them."""
    row = ARCHITECTURES[request.param]
    auto_name = next(name for name in row if name.startswith("AutoModelFor"))
    users.hub.repositories.clear()
    folder = users.home / request.param
    folder.mkdir()
    facts = users.ask(hub_users.publish, request.param, auto_name, folder)
    assert "error" not in facts, facts["message"]
    return SimpleNamespace(model_type=request.param, row=row, auto_name=auto_name, folder=folder, **facts)


def assert_is_the_published(answer, published):
    assert "error" not in answer, answer["message"]
    assert answer["class"] == published.row[published.auto_name]
    assert answer["module"].startswith(f"hf_mmunify.models.{published.model_type}.")  # the installed class, no copy
    assert answer["unfilled"] == [] and answer["distance"] == 0.0


def test_a_stranger_loads_with_the_flag_saves_and_loads_again(users, published):
    again = published.folder / "again"
    answer = users.ask(
        hub_users.load, "user/model", published.auto_name, published.folder, resave=again, trust_remote_code=True
    )
    assert_is_the_published(answer, published)
    answer = users.ask(hub_users.load, again, published.auto_name, published.folder, trust_remote_code=True)
    assert_is_the_published(answer, published)
    assert users.hub.requests == []  # a folder is loaded without a word to the Hub


@pytest.mark.parametrize("auto_name", ["AutoConfig", "AutoProcessor"])
def test_a_stranger_loads_a_part_first(users, published, auto_name):
    answer = users.ask(hub_users.load_part, "user/model", auto_name, trust_remote_code=True)
    assert answer["class"] == published.row[auto_name]
    if auto_name == "AutoProcessor":
        assert answer["described"] == published.processor
        assert users.ask(hub_users.load_part, published.folder / "again", auto_name, trust_remote_code=True) == answer


def test_a_native_part_needs_no_flag(users, published):
    answer = users.ask(hub_users.load_part, "user/model", "AutoTokenizer")
    assert "error" not in answer, answer["message"]


def test_who_imported_the_package_needs_no_flag(users, published):
    answer = users.ask(hub_users.load, "user/model", published.auto_name, published.folder, first="import")
    assert_is_the_published(answer, published)
    assert not any(path.endswith(".py") for _, path in users.hub.requests)  # the stub is not even fetched


def test_without_flag_and_import_nothing_is_run(users, published):
    answer = users.ask(hub_users.load, "user/model", published.auto_name, published.folder)
    assert answer["error"] == "ValueError" and "trust_remote_code=True" in answer["message"]


def test_without_the_package_the_error_says_what_to_install(users, published):
    answer = users.ask(
        hub_users.load, "user/model", published.auto_name, published.folder, first="hide", trust_remote_code=True
    )
    assert answer["error"] == "ImportError" and "pip install --upgrade hf-mmunify" in answer["message"]


def test_what_trainer_saves_and_pushes_loads_alike(users, published):
    checkpoint = published.folder / "checkpoint"
    assert not (checkpoint / "README.md").exists()
    answer = users.ask(hub_users.load, checkpoint, published.auto_name, published.folder, trust_remote_code=True)
    assert_is_the_published(answer, published)
    part = users.ask(hub_users.load_part, checkpoint, "AutoProcessor", trust_remote_code=True)
    assert part["described"] == published.processor
    assert users.hub.requests == []
    answer = users.ask(hub_users.load, "user/trained", published.auto_name, published.folder, trust_remote_code=True)
    assert_is_the_published(answer, published)


def test_an_adapter_is_small_and_loads_both_ways(users, published):
    files = users.hub.files("user/adapter")
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert len(files["adapter_model.safetensors"]) < 4 * published.trained + 20_000  # the LoRA, and a header
    answer = users.ask(
        hub_users.load, "user/adapter", published.auto_name, published.folder, answer="adapter", trust_remote_code=True
    )
    assert answer.get("distance") == 0.0, answer
    assert users.ask(hub_users.load_with_peft, published.auto_name, published.folder) == {"distance": 0.0}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_no_parameter_has_a_name_that_transformers_rewrites(model_type):
    """Names of older versions get their new form when a file is read, in every model: `model.language_model.model`
    is one. An adapter, or a base model read from a checkpoint with a head, would lose parameters of such a name."""
    for auto_name in ARCHITECTURES[model_type]:
        if auto_name.startswith("AutoModel"):
            model = TINY[model_type].model(auto_name)
            rules = get_model_conversion_mapping(model)
            rewritten = [key for key in model.state_dict() for rule in rules if rule.rename_source_key(key)[0] != key]
            assert not rewritten, f"{type(model).__name__}: name the module of {rewritten[:3]} otherwise"


def test_a_pushed_model_has_a_card(users, published):
    card = ModelCard(users.hub.files("user/model")["README.md"].decode())
    assert {"hf_mmunify", published.model_type, "tiny"} <= set(card.data.tags)
    assert card.data.library_name == "transformers"
    assert f'{published.auto_name}.from_pretrained("user/model")' in card.text
    assert "Citation" in hub.card_sections(card.text)
    assert "automatically generated" not in card.text


def test_a_readme_that_somebody_wrote_stays(users, published):
    users.ask(hub_users.write_readme, "user/mine")
    assert users.ask(hub_users.push_again, published.auto_name, "user/mine") == {}
    assert users.hub.files("user/mine")["README.md"].decode() == hub_users.OWN_README
    assert "model.safetensors" in users.hub.files("user/mine")
    assert users.ask(hub_users.push_again, published.auto_name, "user/derived") == {}
    card = ModelCard(users.hub.files("user/derived")["README.md"].decode())
    assert card.data.base_model == ["user/model"]


def test_a_dataset_of_images_goes_there_and_back(users):
    assert users.ask(hub_users.share_dataset) == [[["black", 0, 0, 0], ["red", 200, 0, 0]]] * 2
