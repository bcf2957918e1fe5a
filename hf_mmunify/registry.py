"""One row per architecture: the Auto classes that answer for it. Importing this module registers every row.

A row maps an Auto class, of transformers or of `hf_mmunify.auto`, to the name of a class that `models/<model_type>`
exports, or else of a public class of transformers. "AutoConfig" is in every row. "AutoImageProcessor" names the class
for torchvision; the one for PIL has the same name and ends in "Pil".

Where "AutoConfig" names a config of transformers, the architecture is native and the row completes it: its classes
answer for that config, also where a native class did, which ours then extends or repairs under the same parameter
names. Auto classes that the row does not name go on as before.
"""

from importlib import import_module
from types import ModuleType

import transformers
from transformers.utils import is_torchvision_available
from transformers.utils.auto_docstring import HARDCODED_CONFIG_FOR_MODELS

from . import auto, hub


ARCHITECTURES: dict[str, dict[str, str]] = {
    "albef": {
        "AutoConfig": "AlbefConfig",
        "AutoModel": "AlbefModel",
        "AutoModelForImageTextRetrieval": "AlbefForImageTextRetrieval",
        "AutoModelForPreTraining": "AlbefForPreTraining",
        "AutoModelForVisualEntailment": "AlbefForVisualEntailment",
        "AutoModelForVisualQuestionAnswering": "AlbefForQuestionAnswering",
        "AutoModelForVisualReasoning": "AlbefForImagesAndTextClassification",
        "AutoProcessor": "BlipProcessor",
    },
    "blip": {
        "AutoConfig": "BlipConfig",
        "AutoModelForImageTextRetrieval": "BlipForImageTextRetrieval",
        "AutoModelForImageTextToText": "BlipForConditionalGeneration",
        "AutoModelForPreTraining": "BlipForPreTraining",
        "AutoModelForVisualQuestionAnswering": "BlipForQuestionAnswering",
        "AutoModelForVisualReasoning": "BlipForImagesAndTextClassification",
        "AutoProcessor": "BlipProcessor",
    },
    "blip_2": {
        "AutoConfig": "Blip2Config",
        "AutoModelForImageTextRetrieval": "Blip2ForImageTextRetrieval",
        "AutoModelForPreTraining": "Blip2ForPreTraining",
        "AutoProcessor": "Blip2Processor",
    },
    "clip": {
        "AutoConfig": "CLIPConfig",
        "AutoModelForImageTextRetrieval": "CLIPModel",
        "AutoProcessor": "CLIPProcessor",
    },
    "coca": {
        "AutoConfig": "CocaConfig",
        "AutoModel": "CocaModel",
        "AutoModelForImageClassification": "CocaForImageClassification",
        "AutoModelForImageTextRetrieval": "CocaForImageTextRetrieval",
        "AutoModelForImageTextToText": "CocaForConditionalGeneration",
        "AutoModelForVideoClassification": "CocaForVideoClassification",
        "AutoModelForZeroShotImageClassification": "CocaForImageTextRetrieval",
        "AutoProcessor": "CLIPProcessor",
    },
    "flamingo": {
        "AutoConfig": "FlamingoConfig",
        "AutoModel": "FlamingoModel",
        "AutoModelForImageTextToText": "FlamingoForConditionalGeneration",
        "AutoProcessor": "FlamingoProcessor",
    },
    "flip": {
        "AutoConfig": "FlipConfig",
        "AutoModel": "FlipModel",
        "AutoModelForImageTextRetrieval": "FlipModel",
        "AutoModelForZeroShotImageClassification": "FlipModel",
        "AutoProcessor": "CLIPProcessor",
    },
    "scan": {
        "AutoConfig": "ScanConfig",
        "AutoModel": "ScanModel",
        "AutoModelForImageTextRetrieval": "ScanForImageTextRetrieval",
        "AutoProcessor": "ScanProcessor",
    },
    "vilt": {
        "AutoConfig": "ViltConfig",
        "AutoModel": "ViltModel",
        "AutoModelForImageTextRetrieval": "ViltForImageAndTextRetrieval",
        "AutoModelForPreTraining": "ViltForPreTraining",
        "AutoModelForVisualEntailment": "ViltForVisualEntailment",
        "AutoModelForVisualQuestionAnswering": "ViltForQuestionAnswering",
        "AutoModelForVisualReasoning": "ViltForImagesAndTextClassification",
        "AutoProcessor": "ViltProcessor",
    },
}


def _class_named(name: str, module: ModuleType) -> type:
    """The class of our architecture, or the public one of transformers that serves it as it is."""
    if name in vars(module):
        return vars(module)[name]
    if hasattr(transformers, name):
        return getattr(transformers, name)
    raise ImportError(
        f"The registry names `{name}`, which neither {module.__name__} nor transformers exports: "
        "correct the row, or add the class to the `__all__` of its file."
    )


def _register(model_type: str, row: dict[str, str]) -> None:
    """Make `model_type` known to the Auto classes, and its saved files loadable where nothing was imported."""
    # `auto_docstring` looks a model up by its folder, with dashes, and reports on stdout one that it does not know.
    HARDCODED_CONFIG_FOR_MODELS.setdefault(model_type.replace("_", "-"), row["AutoConfig"])
    module = import_module(f".models.{model_type}", __package__)
    config_class = _class_named(row["AutoConfig"], module)
    is_native = row["AutoConfig"] not in vars(module)
    if not is_native:
        transformers.AutoConfig.register(model_type, config_class)
    classes = [config_class]
    for auto_name, name in row.items():
        if auto_name == "AutoImageProcessor":
            backends = {"pil": _class_named(f"{name}Pil", module)}
            if is_torchvision_available():
                backends["torchvision"] = _class_named(name, module)
            transformers.AutoImageProcessor.register(config_class, image_processor_classes=backends)
            classes += backends.values()
        elif auto_name != "AutoConfig":
            auto_class = getattr(auto if auto_name in auto.__all__ else transformers, auto_name)
            # transformers ignores, without a word, what is registered for a config of its own without `exist_ok`.
            auto_class.register(config_class, _class_named(name, module), exist_ok=is_native)
            classes.append(_class_named(name, module))
    if not is_native:  # what a native config saves must stay loadable for those who have transformers alone
        hub.carry_stub(row, classes)


def config_class_of(model_type: str) -> type[transformers.PreTrainedConfig]:
    """The config class of an architecture of the registry, ours or, where the row completes a native one, native."""
    return _class_named(ARCHITECTURES[model_type]["AutoConfig"], import_module(f".models.{model_type}", __package__))


for _model_type, _row in ARCHITECTURES.items():
    _register(_model_type, _row)
