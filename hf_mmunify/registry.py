"""One row per architecture: the Auto classes that answer for it. Importing this module registers every row."""

from importlib import import_module

import transformers
from transformers.utils.auto_docstring import HARDCODED_CONFIG_FOR_MODELS


ARCHITECTURES: dict[str, dict[str, str]] = {}


def _register(model_type: str, autos: dict[str, str]) -> None:
    """Make `model_type` known to transformers' Auto classes, as its own architectures are."""
    HARDCODED_CONFIG_FOR_MODELS[model_type] = autos["AutoConfig"]  # else `auto_docstring` reports an unknown model
    module = import_module(f".models.{model_type}", __package__)
    config_class = getattr(module, autos["AutoConfig"])
    transformers.AutoConfig.register(model_type, config_class)
    for auto, name in autos.items():
        if auto != "AutoConfig":
            getattr(transformers, auto).register(config_class, getattr(module, name))


for _model_type, _autos in ARCHITECTURES.items():
    _register(_model_type, _autos)
