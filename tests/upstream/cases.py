"""Test classes: upstream's mixins on every architecture of the registry. Import after `upstream.download`.

A model class has a class of tests of its own, `FlamingoModelTest`, so that every head meets the inputs and labels of
its own task; one that generates has three more, for learning a text and for two processes; a processor has one.
"""

import re
import unittest
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from unittest.mock import patch

import pytest
import torch
import transformers
from tiny import TINY, auto_class
from transformers import PreTrainedConfig
from transformers.testing_utils import torch_device

from hf_mmunify import auto

from . import test_fsdp_mixin, test_tensor_parallel_mixin
from .rows import JUSTIFIED, ROWS, Row
from .stand_ins import causal_lms, our_classes
from .test_modeling_common import GenerationTesterMixin, ModelTesterMixin
from .test_processing_common import ProcessorTesterMixin
from .test_training_mixin import TrainingTesterMixin


with patch("transformers.utils.direct_transformers_import", return_value=transformers):  # it looks for a checkout
    from .test_configuration_common import ConfigTester

# Upstream runs these tests on a few models only
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES = None
test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None


class ModelTester:
    """What upstream's tests ask about a model: its config, its inputs, and the sizes that its outputs must have."""

    is_training = True

    def __init__(self, row: Row, model_type: str, auto_name: str, model_class: type):
        self.row, self.tiny, self.auto_name = row, TINY[model_type], auto_name
        config, inputs = self.prepare_config_and_inputs_for_common()
        text = config.get_text_config()
        self.batch_size, self.seq_length = inputs[model_class.main_input_name].shape[:2]
        self.hidden_size = text.hidden_size
        self.num_hidden_layers = text.num_hidden_layers
        self.num_attention_heads = getattr(text, "num_attention_heads", None)  # recurrent networks have none
        self.base_model_class = transformers.MODEL_MAPPING[type(config)]
        self.causal_lm_class = model_class if model_class.can_generate() else None
        for name in config.sub_configs:
            if getattr(config, name) is not None:
                setattr(self, name, getattr(config, name).to_dict())

    def get_config(self) -> PreTrainedConfig:
        return self.tiny.config(**self.row.settings)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        inputs = self.tiny.batch(auto_name=self.auto_name) if self.row.inputs is None else self.row.inputs()
        return self.get_config(), {name: tensor.to(torch_device) for name, tensor in inputs.items()}


class TextTester(ModelTester):
    """For the tests that draw texts of their own: the config says, at its top, how many tokens are words."""

    def get_config(self) -> PreTrainedConfig:
        config = super().get_config()
        config.vocab_size = self.row.num_words or config.get_text_config().vocab_size
        return config


class Case:
    """First base of every class of tests: whom it tests, and no skip without a reason."""

    model_type: str
    auto_name: str
    subject: type

    @property
    def row(self) -> Row:
        return ROWS.get(self.model_type, Row())

    @classmethod
    def skips(cls) -> dict[str, str]:
        """Name of each test that this class of ours does not pass -> why."""
        name = cls.subject.__name__
        keys = {test: (f"{test}[{name}]", test) for test in dir(cls) if test.startswith("test_")}
        skips = ROWS.get(cls.model_type, Row()).skips
        return {test: skips[key] for test, names in keys.items() for key in names if key in skips}

    def skipTest(self, reason: str):
        skip = f"{self._testMethodName}[{self.subject.__name__}]: {reason}"
        why = next((why for pattern, why in JUSTIFIED.items() if re.search(pattern, skip)), None)
        if why is None:
            self.fail(f"Upstream skips, and `JUSTIFIED` of {Row.__module__} does not say why that is right: {reason}")
        super().skipTest(why)


def skipped(test: Callable, why: str) -> Callable:
    """`test`, skipped as long as it fails: the day it passes, the row that keeps it out must go."""

    @wraps(test)
    def run(self: unittest.TestCase):
        try:
            with patch.object(self, "subTest", lambda *args, **kwargs: nullcontext()):  # the first failure will do
                test(self)
        except unittest.SkipTest:
            raise
        except Exception as error:
            raise unittest.SkipTest(why) from error
        self.fail(f"It passes: take {self._testMethodName} of {self.subject.__name__} out of `skips` ({why}).")

    return run


class ModelCase(Case):
    model_tester_class = ModelTester
    model_tester = None

    @property
    def all_model_classes(self) -> tuple[type, ...]:
        return (self.subject,)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Upstream finds the task of a class in these tables of names, where registering does not enter it; of the
        # tasks that are ours it knows nothing
        if cls.auto_name not in auto.__all__:
            names = auto_class(cls.auto_name)._model_mapping._model_mapping
            cls.enterClassContext(patch.dict(names, {cls.model_type: cls.subject.__name__}))
        # Upstream draws its models itself, and what training would open (gates at zero) must be open in them
        draw, wake = cls.subject.initialize_weights, TINY[cls.model_type].wake

        @torch.no_grad()
        def initialize_weights(model):
            draw(model)
            wake(model)

        cls.enterClassContext(patch.object(cls.subject, "initialize_weights", initialize_weights))

    def setUp(self):
        super().setUp()
        self.model_tester = self.model_tester_class(self.row, self.model_type, self.auto_name, self.subject)


class CommonCase(ModelCase, ModelTesterMixin):
    """Upstream's tests of every model and its config."""

    test_can_init_all_missing_weights_before_2023 = True  # it goes by the age of the config, not of the model

    @property
    def _is_composite(self) -> bool:
        return bool(self.model_tester.get_config().sub_configs)

    @property
    def is_encoder_decoder(self) -> bool:
        return self.model_tester.get_config().is_encoder_decoder

    @property
    def additional_model_inputs(self) -> set[str]:
        _, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        return inputs.keys() - {self.subject.main_input_name, "attention_mask"}

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:
            inputs.update(self.model_tester.tiny.labels(self.auto_name, inputs))
        if self._testMethodName in self.row.also:
            inputs.update(self.row.also[self._testMethodName](inputs))
        return inputs

    def test_config(self):
        config = self.model_tester.get_config()
        tester = ConfigTester(self, config_class=type(config), has_text_modality=not config.sub_configs)
        tester.run_common_tests()


class GeneratingCase(CommonCase, GenerationTesterMixin):
    """And those of models that generate."""


class TrainingCase(ModelCase, TrainingTesterMixin):
    """Upstream's test that a model learns a text by heart, and writes it."""

    model_tester_class = TextTester


class TensorParallelCase(ModelCase, test_tensor_parallel_mixin.TensorParallelTesterMixin):
    """Upstream's tests that two processes with half the width of each layer are one."""

    model_tester_class = TextTester
    pytestmark = [pytest.mark.slow]


class FSDPCase(ModelCase, test_fsdp_mixin.FSDPTesterMixin):
    """Upstream's tests that two processes with half of each parameter are one."""

    model_tester_class = TextTester
    pytestmark = [pytest.mark.slow]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        registered = transformers.AutoModelForCausalLM._model_mapping._extra_content
        cls.enterClassContext(patch.dict(registered, causal_lms()))

    def _get_tiny_config(self):
        config = self.model_tester.get_config()
        return type(config), config.to_diff_dict()


class ProcessorCase(Case, ProcessorTesterMixin):
    """Upstream's tests of a processor, which is made of the parts of the tiny one."""

    @classmethod
    def setUpClass(cls):
        cls.processor_class = cls.subject
        super().setUpClass()

    @classmethod
    def _setup_tokenizer(cls):
        tokenizer = TINY[cls.model_type].processor().tokenizer
        tokenizer.model_max_length = 512  # upstream pads up to 300 tokens
        return tokenizer

    @classmethod
    def _setup_image_processor(cls):
        return TINY[cls.model_type].processor().image_processor


def bases(auto_name: str, subject: type) -> dict[str, type]:
    """What is tested of a class of ours: ending of the name of a class of tests -> its base."""
    if auto_name == "AutoProcessor":
        return {"Test": ProcessorCase}
    if not auto_name.startswith("AutoModel"):
        return {}
    if not subject.can_generate():
        return {"Test": CommonCase}
    return {
        "Test": GeneratingCase,
        "TrainingTest": TrainingCase,
        "TensorParallelTest": TensorParallelCase,
        "FSDPTest": FSDPCase,
    }


def cases() -> dict[str, type]:
    """Every class of tests, by its name."""
    made = {}
    for model_type, auto_name, subject in our_classes():
        about = {"model_type": model_type, "auto_name": auto_name, "subject": subject}
        for ending, base in bases(auto_name, subject).items():
            name = subject.__name__ + ending
            case = made[name] = type(name, (base, unittest.TestCase), about)
            for test, why in case.skips().items():
                setattr(case, test, skipped(getattr(case, test), why))
    return made
