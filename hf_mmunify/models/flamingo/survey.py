# Copyright 2026 The hf_mmunify authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Which causal language models of the installed transformers can Flamingo sit on?

`python -m hf_mmunify.models.flamingo.survey` prints a table of all of them, `... survey llama mamba` of some. Every
type is built from its default config, at full size but with tensors that hold no numbers, a Flamingo is attached, and
a text with an image is read up to the first layer.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, logging

from .configuration_flamingo import FlamingoConfig
from .modeling_flamingo import FlamingoModel, find_decoder_layers


@dataclass
class LanguageModelFinding:
    """What was found out about one type of language model.

    Attributes:
        model_type (`str`): its name in transformers.
        layers (`str`, *optional*): where in the causal language model its decoder layers are.
        cache (`str`, *optional*): how it calls its cache; None where Flamingo generates without one.
        problem (`str`, *optional*): why Flamingo cannot sit on it; None where it can.
        is_built (`bool`): False where not even the language model could be made from its default config.
    """

    model_type: str
    layers: str | None = None
    cache: str | None = None
    problem: str | None = None
    is_built: bool = True


class _FirstLayerReached(Exception):
    """Enough was seen."""


def survey_language_models(model_types: Iterable[str] | None = None) -> list[LanguageModelFinding]:
    """Attach a Flamingo to each type of causal language model, and say where, or why not.

    Args:
        model_types (iterable of `str`, *optional*):
            Names of transformers; by default all that `AutoModelForCausalLM` knows (half a minute).
    """
    configs = {config_class.model_type: config_class for config_class in MODEL_FOR_CAUSAL_LM_MAPPING}
    return [_try(name, configs[name]) for name in (configs if model_types is None else model_types)]


def _try(model_type: str, config_class: type[PreTrainedConfig]) -> LanguageModelFinding:
    finding = LanguageModelFinding(model_type)
    try:
        text_config = config_class()
        with torch.device("meta"):
            text_model = AutoModelForCausalLM.from_config(text_config).eval()
    except Exception as error:  # whatever a language model may raise is what there is to report
        finding.is_built, finding.problem = False, _in_a_line(error)
        return finding
    try:
        config = FlamingoConfig(
            text_config=text_config,
            vision_hidden_size=8,
            image_token_id=1,
            cross_attention_interval=text_config.get_text_config(decoder=True).num_hidden_layers,  # one block will do
            resampler_num_layers=1,
        )
        layers = find_decoder_layers(text_model, config)
        finding.layers = next(path for path, module in text_model.named_modules() if module is layers)
        with torch.device("meta"):
            model = FlamingoModel(config, text_model=text_model).eval()
        finding.cache = model.cache_name
        layers[0].register_forward_pre_hook(_stop)
        with FakeTensorMode(allow_non_fake_inputs=True), torch.device("meta"), torch.no_grad():
            text, features = torch.ones(2, 5, dtype=torch.long), torch.zeros(2, 1, 1, 4, 8)
            model.read(text_model, input_ids=text, image_features=features)
    except _FirstLayerReached:
        return finding
    except Exception as error:  # as above
        finding.problem = _in_a_line(error)
    return finding


def _stop(module: torch.nn.Module, args: tuple) -> None:
    raise _FirstLayerReached


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def as_table(findings: Iterable[LanguageModelFinding]) -> str:
    """The findings as a Markdown table."""
    rows = [
        f"| `{x.model_type}` | {f'`{x.layers}`' if x.layers else ''} | {f'`{x.cache}`' if x.cache else ''} | "
        f"{x.problem or ''} |"
        for x in findings
    ]
    return "\n".join(("| language model | decoder layers | cache | problem |", "|---|---|---|---|", *rows))


if __name__ == "__main__":
    logging.set_verbosity_error()
    found = survey_language_models(sys.argv[1:] or None)
    print(as_table(found))
    print(f"\nFlamingo sits on {sum(x.problem is None for x in found)} of {len(found)} types of language models.")
