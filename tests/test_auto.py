"""The Auto classes of `hf_mmunify.auto`, and how a row of the registry becomes known to all of them.

What the registry does is shown on an architecture that lives in this file alone.
"""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from huggingface_hub.dataclasses import strict
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    BertConfig,
    CLIPConfig,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SiglipConfig,
    SiglipModel,
    ViltConfig,
    VisualBertConfig,
    VisualBertForVisualReasoning,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from hf_mmunify import (
    AutoModelForImageTextRetrieval,
    AutoModelForVisualEntailment,
    AutoModelForVisualReasoning,
    auto,
    hub,
    registry,
)
from hf_mmunify.models import clip, vilt


@strict
class ToyConfig(PreTrainedConfig):
    model_type = "toy"
    hidden_size: int = 4


class ToyModel(PreTrainedModel):
    config: ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()


class ToyForImageTextRetrieval(ToyModel):
    pass


class ToyImageProcessorPil(PilBackend):
    do_resize, size, resample = True, {"height": 8, "width": 8}, PILImageResampling.BILINEAR


class ToyProcessor(ProcessorMixin):
    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)


TOY_ROW = {
    "AutoConfig": "ToyConfig",
    "AutoModel": "ToyModel",
    "AutoModelForImageTextRetrieval": "ToyForImageTextRetrieval",
    "AutoImageProcessor": "ToyImageProcessor",
    "AutoProcessor": "ToyProcessor",
}


@pytest.fixture
def toy(monkeypatch):
    """The architecture of this file, registered as the loop of the registry does it."""
    classes = (ToyConfig, ToyModel, ToyForImageTextRetrieval, ToyImageProcessorPil, ToyProcessor)
    module = ModuleType("hf_mmunify.models.toy")
    module.__dict__.update({cls.__name__: cls for cls in classes})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "is_torchvision_available", lambda: False)
    registry._register("toy", TOY_ROW)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    return SimpleNamespace(
        module=module,
        model=ToyForImageTextRetrieval(ToyConfig()),
        processor=ToyProcessor(ToyImageProcessorPil(), tokenizer),
    )


NATIVE = [
    (auto_class, config_class)
    for auto_class in (getattr(auto, name) for name in auto.__all__)
    for config_class in auto_class._model_mapping
    if config_class.__module__.startswith("transformers.")
]


@pytest.mark.parametrize("auto_class, config_class", NATIVE, ids=lambda cls: cls.__name__)
def test_a_native_row_names_a_model_that_reads_images_and_text(auto_class, config_class):
    """A public one, or one of ours that completes it, under the same name where there is such a native class."""
    model_class = auto_class._model_mapping[config_class]
    native = getattr(transformers, model_class.__name__, PreTrainedModel)
    is_completed = config_class.__name__ in {row["AutoConfig"] for row in registry.ARCHITECTURES.values()}
    assert issubclass(model_class, native) and (model_class is not native) is is_completed
    assert model_class.config_class is config_class
    parameters = model_class.forward.__annotations__
    assert "input_ids" in parameters and {"pixel_values", "visual_embeds"} & set(parameters)


TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize(
    "auto_class, config, model_class",
    [
        (
            AutoModelForImageTextRetrieval,
            CLIPConfig(text_config=TINY | {"vocab_size": 11}, vision_config=TINY | {"image_size": 8, "patch_size": 4}),
            clip.CLIPModel,
        ),
        (
            AutoModelForImageTextRetrieval,
            SiglipConfig(
                text_config=TINY | {"vocab_size": 11}, vision_config=TINY | {"image_size": 8, "patch_size": 4}
            ),
            SiglipModel,
        ),
        (
            AutoModelForVisualReasoning,
            ViltConfig(**TINY, vocab_size=11, image_size=8, patch_size=4, num_images=2, modality_type_vocab_size=3),
            vilt.ViltForImagesAndTextClassification,
        ),
        (
            AutoModelForVisualReasoning,
            VisualBertConfig(**TINY, vocab_size=11, visual_embedding_dim=8),
            VisualBertForVisualReasoning,
        ),
    ],
    ids=["CLIP", "SigLIP", "ViLT", "VisualBERT"],
)
def test_a_native_model_is_made_saved_and_loaded(auto_class, config, model_class, tmp_path):
    model = auto_class.from_config(config, attn_implementation="eager")
    assert type(model) is model_class and model.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path)
    again, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is model_class and not again.training
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]  # native: no stub


def test_a_config_without_such_a_model_is_told_which_have_one(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)BertConfig.*AutoModelForVisualReasoning.*ViltConfig, VisualBertConfig"):
        AutoModelForVisualReasoning.from_config(BertConfig())
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)BertConfig.*AutoModelForImageTextRetrieval.*BlipConfig.*ViltConfig"):
        AutoModelForImageTextRetrieval.from_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"AutoModelForVisualEntailment.from_config"):
        AutoModelForVisualEntailment()


def test_register_keeps_what_is_there_unless_told_otherwise(monkeypatch):
    mapping = auto._ModelMapping({"CLIPConfig": "CLIPModel"})
    monkeypatch.setattr(AutoModelForVisualEntailment, "_model_mapping", mapping)
    AutoModelForVisualEntailment.register(ToyConfig, ToyModel)
    AutoModelForVisualEntailment.register(ToyConfig, ToyModel)  # a second import of the same thing is no conflict
    with pytest.raises(ValueError, match=r"ToyModel already answers for ToyConfig, got ToyForImageTextRetrieval"):
        AutoModelForVisualEntailment.register(ToyConfig, ToyForImageTextRetrieval)
    AutoModelForVisualEntailment.register(ToyConfig, ToyForImageTextRetrieval, exist_ok=True)
    assert dict(mapping) == {CLIPConfig: CLIPModel, ToyConfig: ToyForImageTextRetrieval}


def test_a_row_is_known_to_every_auto_class(toy, tmp_path):
    registry._register("toy", TOY_ROW)  # again: nothing changes
    toy.model.save_pretrained(tmp_path)
    toy.processor.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is ToyConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is ToyModel
    assert type(AutoModelForImageTextRetrieval.from_pretrained(tmp_path)) is ToyForImageTextRetrieval
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is ToyImageProcessorPil
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is ToyProcessor and type(processor.image_processor) is ToyImageProcessorPil
    image = processor.image_processor(Image.new("RGB", (20, 10)), return_tensors="pt")
    assert image["pixel_values"].shape == (1, 3, 8, 8)


def test_a_row_that_names_no_class_says_what_to_do(toy):
    with pytest.raises(ImportError, match=r"names `ToyForBread`, which neither hf_mmunify.models.toy"):
        registry._register("toy", TOY_ROW | {"AutoModelForCausalLM": "ToyForBread"})


def test_a_row_may_name_a_public_processor_of_transformers(toy):
    before = transformers.CLIPProcessor.to_json_file
    registry._register("toy", TOY_ROW | {"AutoProcessor": "CLIPProcessor"})
    assert transformers.CLIPProcessor.to_json_file is before
    assert "CLIPProcessor" not in hub._served and "AutoProcessor" not in hub._auto_maps[ToyConfig]
    registry._register("toy", TOY_ROW)


def test_saved_files_name_the_stub_and_keep_naming_it(toy, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    toy.model.save_pretrained(first)
    toy.processor.save_pretrained(first)
    for cls, auto_class in (
        (ToyConfig, AutoConfig),
        (ToyForImageTextRetrieval, AutoModel),
        (ToyProcessor, AutoProcessor),
    ):
        cls.register_for_auto_class(auto_class)  # what transformers does with a class it found through `auto_map`
    assert ToyForImageTextRetrieval.is_remote_code() is False
    AutoModelForImageTextRetrieval.from_pretrained(first).save_pretrained(second)
    AutoProcessor.from_pretrained(first).save_pretrained(second)
    AutoImageProcessor.from_pretrained(first).save_pretrained(tmp_path / "third")

    for folder in (first, second):
        assert {path.name for path in folder.glob("*.py")} == {"from_hf_mmunify.py"}
        assert (folder / "from_hf_mmunify.py").read_text() == hub.STUB_CODE
        image_processor = {
            "pil": "from_hf_mmunify.ToyImageProcessorPil",
            "torchvision": "from_hf_mmunify.ToyImageProcessor",
        }
        assert json.loads((folder / "config.json").read_text())["auto_map"] == {
            "AutoConfig": "from_hf_mmunify.ToyConfig",
            "AutoModel": "from_hf_mmunify.ToyModel",
            "AutoModelForImageTextRetrieval": "from_hf_mmunify.ToyForImageTextRetrieval",
            "AutoImageProcessor": image_processor,
            "AutoProcessor": "from_hf_mmunify.ToyProcessor",
        }
        saved = json.loads((folder / "processor_config.json").read_text())
        assert saved["auto_map"] == {"AutoProcessor": "from_hf_mmunify.ToyProcessor"}
        assert saved["image_processor"]["auto_map"] == {"AutoImageProcessor": image_processor}
        assert get_class_from_dynamic_module("from_hf_mmunify.ToyConfig", folder) is ToyConfig
    assert sorted(path.name for path in (tmp_path / "third").iterdir()) == [
        "from_hf_mmunify.py",
        "preprocessor_config.json",
    ]


def test_a_card_loads_a_model_of_our_auto_classes_through_them(toy, monkeypatch):
    text = "".join(f"## {section}\n\nAs it is.\n\n" for section in hub.CARD_SECTIONS)
    monkeypatch.setattr(
        hub, "architecture_card", lambda model_type: ModelCard(f"---\ntags: [toy]\n---\n# Toy\n\n{text}")
    )
    code = hub.card_sections(hub.model_card(toy.model, "user/toy").text)["How to load"]
    assert "from hf_mmunify import AutoModelForImageTextRetrieval\nfrom transformers import AutoProcessor\n" in code
    assert 'AutoModelForImageTextRetrieval.from_pretrained("user/toy")' in code


def test_the_stub_knows_only_what_is_registered(toy, tmp_path):
    toy.model.config.save_pretrained(tmp_path)
    with pytest.raises(AttributeError, match=r"no class `ToyForBread`.*pip install --upgrade hf-mmunify"):
        get_class_from_dynamic_module("from_hf_mmunify.ToyForBread", tmp_path)


def test_a_file_by_another_name_gets_no_stub(toy, tmp_path):
    toy.model.config.to_json_file(tmp_path / "settings.json")
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    assert "auto_map" not in json.loads((tmp_path / "settings.json").read_text())


def test_two_classes_of_one_name_are_refused(toy):
    impostor = type("ToyModel", (PreTrainedModel,), {"config_class": ToyConfig})
    with pytest.raises(ValueError, match=r"Two classes are called ToyModel"):
        hub.carry_stub(TOY_ROW, [ToyConfig, impostor])


def test_a_subclass_of_the_user_shares_its_own_code(toy, tmp_path):
    class UserConfig(ToyConfig):
        model_type = "users_toy"

    UserConfig().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    UserConfig.register_for_auto_class()
    assert UserConfig._auto_class == "AutoConfig" and ToyConfig._auto_class is None
