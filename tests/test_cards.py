"""The model cards: front matter, sections, names, and that every Python block runs.

A block runs as it is printed, in a folder where each repository it names is a small model on disk, and each picture it
opens is there. The blocks of a card share their variables, from top to bottom.
"""

import ast
import re
from importlib import import_module

import pytest
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from tiny import TINY, image_processor, word_tokenizer
from transformers import CLIPConfig, CLIPModel, OPTConfig, OPTForCausalLM

from hf_mmunify import auto, hub
from hf_mmunify.registry import ARCHITECTURES


SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_clip(folder):
    text, vision = (
        SIZE | {"intermediate_size": 64, "vocab_size": 16},
        SIZE | {"intermediate_size": 64, "image_size": 32},
    )
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision | {"patch_size": 8})).save_pretrained(folder)
    image_processor().save_pretrained(folder)


def tiny_opt(folder):
    tokenizer = word_tokenizer()
    config = OPTConfig(**SIZE, word_embed_proj_dim=64, ffn_dim=64, vocab_size=len(tokenizer))
    OPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Repositories of others that cards name, and what stands in for them. Any other is one of the card's own architecture.
STAND_INS = {"openai/clip-vit-base-patch32": tiny_clip, "facebook/opt-125m": tiny_opt}


def problems(model_type, text):
    """What is wrong with a card, apart from its code."""
    card = ModelCard(text)
    keys = ("library_name", "pipeline_tag", "license", "tags")
    found = [f"the front matter has no {key}" for key in keys if not card.data.get(key)]
    sections = hub.card_sections(card.text)
    if tuple(sections) != hub.CARD_SECTIONS:
        found.append(
            f"the sections are {list(sections)}, expected {list(hub.CARD_SECTIONS)}, each once, in this order"
        )
    found += [f"the section {title!r} is empty" for title, body in sections.items() if not body]
    if len(re.findall(r"^# ", card.text.split("## ")[0], re.MULTILINE)) != 1:
        found.append("it does not start with one title")
    if "```python" not in sections.get("How to load", ""):
        found.append("'How to load' has no python block")
    if "@" not in sections.get("Citation", ""):
        found.append("'Citation' has no BibTeX entry")

    row = ARCHITECTURES.get(model_type, {})
    homes = [transformers, auto, *([import_module(f"hf_mmunify.models.{model_type}")] if row else [])]
    known = {name for home in homes for name in dir(home)}
    prefix = row.get("AutoConfig", "Auto").removesuffix("Config")
    mentioned = set(re.findall(rf"\b(?:{prefix}|Auto)[A-Z]\w*", card.text))
    found += [f"it mentions {name}, which does not exist" for name in sorted(mentioned - known)]
    return found


CARDS = sorted({*ARCHITECTURES, *TINY})


@pytest.mark.parametrize("model_type", CARDS)
def test_card_is_complete_and_names_what_exists(model_type):
    assert problems(model_type, str(hub.architecture_card(model_type))) == []


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda text: text.replace("license: mit\n", ""), "the front matter has no license"),
        (lambda text: text.replace("## Limits", "## Limitations"), "the sections are"),
        (lambda text: re.sub(r"## Limits\n.*?(?=\n## )", "## Limits\n", text, flags=re.DOTALL), "'Limits' is empty"),
        (
            lambda text: text.replace("FlamingoProcessor", "FlamingoPreprocessor"),
            "FlamingoPreprocessor, which does not",
        ),
        (lambda text: text.replace("```python", "```"), "no python block"),
        (lambda text: text.replace("\n# Flamingo", "\nFlamingo"), "one title"),
        (lambda text: text.replace("AutoModelForImageTextToText", "AutoModelForFlamingos"), "AutoModelForFlamingos"),
        (lambda text: text.replace("@", ""), "no BibTeX entry"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_spoiled_card_is_noticed(change, complaint):
    spoiled = change(str(hub.architecture_card("flamingo")))
    assert any(complaint in problem for problem in problems("flamingo", spoiled))


def test_a_missing_card_is_named():
    with pytest.raises(ValueError, match=r"no card of an architecture called 'bread'. There are: .*flamingo"):
        hub.architecture_card("bread")


@pytest.mark.parametrize("model_type", CARDS)
def test_every_python_block_runs(model_type, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    text, variables = hub.architecture_card(model_type).text, {"__name__": "card"}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for call in ast.walk(ast.parse(block)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                names = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
                if call.func.attr == "open":
                    Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / names[0])
                if call.func.attr.startswith("from_"):
                    provide(tmp_path, names, ast.unparse(call.func.value), model_type)
        exec(compile(block, f"model_cards/{model_type}.md", "exec"), variables)


def provide(folder, names, loader, model_type):
    """Put the repositories `names` that a `loader` takes into `folder`: small models with their processors."""
    for path in (folder / name for name in names):
        if path.exists():
            continue
        if stand_in := STAND_INS.get(str(path.relative_to(folder))):
            stand_in(path)
        else:
            head = next(key for key in ARCHITECTURES[model_type] if key.startswith("AutoModelFor"))
            TINY[model_type].model(loader if loader in ARCHITECTURES[model_type] else head).save_pretrained(path)
            TINY[model_type].processor().save_pretrained(path)


# ---- The card of particular weights.


@pytest.fixture
def model():
    return TINY["flamingo"].model("AutoModelForImageTextToText")


def test_a_card_says_what_the_caller_gave_and_no_more(model):
    card = hub.model_card(model, "user/small")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["hf_mmunify", *hub.architecture_card("flamingo").data.tags],
    }
    assert f"{model.num_parameters():,} parameters" in card.text
    assert "Where its weights come from was not recorded." in card.text
    assert "Nothing was recorded for these weights" in card.text
    assert "None was stated" in hub.card_sections(card.text)["Licence of the weights"]

    score = EvalResult(
        task_type="visual-question-answering",
        dataset_type="digit-scenes",
        dataset_name="digit scenes",
        metric_type="accuracy",
        metric_value=0.87,
    )
    card = hub.model_card(
        model,
        "user/small",
        origin="Converted from `a@b`.",
        base_model="user/base",
        license="mit",
        datasets=["digit-scenes"],
        results=[score],
        verified=["Its logits are those of the original."],
        tags=["tiny"],
    )
    again = ModelCard(str(card))  # through text, as the Hub reads it
    assert again.data.base_model == ["user/base"] and again.data.license == "mit" and "tiny" in again.data.tags
    assert again.data.metrics == ["accuracy"] and again.data.datasets == ["digit-scenes"]
    assert [result.metric_value for result in again.data.eval_results] == [0.87]
    assert "| digit scenes | accuracy | 0.87 |" in again.text
    assert "Converted from `a@b`." in again.text and "- Its logits are those of the original." in again.text


def test_a_card_names_the_models_that_the_parts_came_from(model):
    model.config.text_config._name_or_path = "facebook/opt-125m"
    model.config.vision_config._name_or_path = "openai/clip-vit-base-patch32"
    card = hub.model_card(model, "user/small")
    assert sorted(card.data.base_model) == ["facebook/opt-125m", "openai/clip-vit-base-patch32"]
    model.config._name_or_path = "user/start"
    assert hub.model_card(model, "user/small").data.base_model == ["user/start"]
    assert hub.model_card(model, "user/start").data.base_model != ["user/start"]  # no model is its own base


def test_a_card_is_for_registered_classes():
    with pytest.raises(ValueError, match=r"hf_mmunify registers, got OPTForCausalLM: take transformers' own card"):
        hub.model_card(OPTForCausalLM(OPTConfig(**SIZE, vocab_size=8)))


def test_writing_a_card_leaves_a_readme_alone(model, tmp_path):
    card = hub.model_card(model)
    assert hub.write_model_card(card, tmp_path) is True
    assert ModelCard.load(tmp_path / "README.md").text == card.text
    (tmp_path / "README.md").write_text("mine")
    assert hub.write_model_card(card, tmp_path) is False
    assert (tmp_path / "README.md").read_text() == "mine"


def test_an_empty_card_is_filled_and_keeps_its_front_matter(model, tmp_path):
    path = tmp_path / "README.md"
    empty = ModelCard.from_template(ModelCardData(), model_description=hub._EMPTY_CARD_DESCRIPTION)
    empty.data = ModelCardData(license="apache-2.0", language="en", tags=["mine"])
    empty.save(path)
    hub._fill_empty_card(path, model, "user/small")
    card = ModelCard.load(path)
    assert card.data.license == "apache-2.0" and card.data.language == "en" and "mine" in card.data.tags
    assert next(iter(hub.card_sections(card.text))) == "How to load"
    touched = str(empty).replace("[More Information Needed]", "It reads digits.", 1)
    path.write_text(touched)
    hub._fill_empty_card(path, model, "user/small")
    assert path.read_text() == touched
