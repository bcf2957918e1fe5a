"""What training with `Trainer` and PEFT still lacks for these architectures."""

from .adversarial import AdversarialTrainer, AdversarialTrainingArguments
from .augmentation import ImageAugmentation
from .checkpoints import last_complete_checkpoint
from .contrastive import ContrastiveTrainer, ContrastiveTrainingArguments, LogitScaleCallback
from .distillation import AlphaRampCallback, DistillationTrainer, DistillationTrainingArguments
from .fine_tuning import (
    RESULTS_FILE,
    FineTuningArguments,
    TaskArguments,
    finish,
    fit,
    load_for_task,
    predict,
    score,
    task_rows,
    training_rows,
)
from .layerwise import LayerDepth, freeze_layers, layer_decay_parameter_groups, layer_depths
from .lora import lora_config, qlora_config
from .loss_scaling import TaskTrainer, TaskTrainingArguments, guard_loss_scaling, uses_num_items_in_batch
from .mixing import MixingCollator, soft_target_loss
from .mixture import (
    FLAMINGO_LOSS_WEIGHTS,
    CollatorEpochCallback,
    MixtureCollator,
    MixtureDataset,
    MixtureItem,
    MixtureTrainer,
    StreamedMixture,
)
from .multi_task import MultiTaskWeights
from .optimizer import FLAMINGO_ARGUMENTS, NO_DECAY, cast_frozen_parts, decay_parameter_names, parameter_groups
from .patch_dropout import PatchDropout
