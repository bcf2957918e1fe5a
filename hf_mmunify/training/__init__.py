"""What training with `Trainer` and PEFT still lacks for these architectures."""

from .augmentation import ImageAugmentation
from .checkpoints import last_complete_checkpoint
from .lora import lora_config, qlora_config
from .mixture import (
    FLAMINGO_LOSS_WEIGHTS,
    CollatorEpochCallback,
    MixtureCollator,
    MixtureDataset,
    MixtureItem,
    MixtureTrainer,
    StreamedMixture,
)
from .optimizer import FLAMINGO_ARGUMENTS, NO_DECAY, cast_frozen_parts, decay_parameter_names, parameter_groups
