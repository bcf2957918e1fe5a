"""A Flamingo is trained and saved by a recipe of `examples/accelerate` as on GPUs, on two CPUs.

    accelerate launch --config_file RECIPE --num_processes 2 --mixed_precision no sharded.py FOLDER START [CHECKPOINT]
    python sharded.py FOLDER START

On CPUs accelerate replaces FSDP by DDP and leaves DeepSpeed out. Here it is told that there are GPUs, which are CPUs
and talk through gloo; what it then does is its own, with the settings of the recipe. The second command runs one
process. With the word CHECKPOINT, activations are computed again in the backward pass.

`START` is "whole" (`FOLDER/start` is read) or "parts" (`FOLDER/vision` and `FOLDER/text` are; `FOLDER/drawn` gets the
new adapter, before `FOLDER/start_adapter` is loaded into it). Afterwards `FOLDER/losses.json` has the losses and what
each process held, `FOLDER/trained` the model, `FOLDER/adapter` the adapter alone, and `FOLDER/resumed` the model of a
run that went on from the checkpoint after the second of three updates.
"""

import json
import os
import sys
from pathlib import Path


os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate.state import DistributedType, PartialState
from accelerate.utils import DeepSpeedPlugin, gather_object
from flamingo_parts import ADAPTER, EOC, IMAGE, images, tokens
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from transformers import TrainingArguments, default_data_collator

from hf_mmunify.models.flamingo import FlamingoForConditionalGeneration
from hf_mmunify.training import MixtureDataset, MixtureTrainer, last_complete_checkpoint


def treat_cpus_as_gpus() -> None:
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    read = DeepSpeedPlugin.__post_init__

    def divide_small_parameters_too(plugin: DeepSpeedPlugin) -> None:
        read(plugin)
        plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    DeepSpeedPlugin.__post_init__ = divide_small_parameters_too


def rows(*texts: str) -> list[dict[str, torch.Tensor]]:
    batch = {**tokens(*texts), "pixel_values": images(len(texts), 2)}
    batch["labels"] = batch["input_ids"]
    return [{name: value[i] for name, value in batch.items()} for i in range(len(texts))]


def load(folder: Path, start: str) -> FlamingoForConditionalGeneration:
    if start == "whole":
        return FlamingoForConditionalGeneration.from_pretrained(folder / "start", dtype=torch.float32)
    model = FlamingoForConditionalGeneration.from_vision_text_pretrained(
        str(folder / "vision"),
        str(folder / "text"),
        image_token_id=IMAGE,
        end_of_chunk_token_id=EOC,
        trained_token_ids=[EOC, IMAGE],
        **ADAPTER,
    )
    model.save_flamingo_adapter(folder / "drawn")
    model.load_flamingo_adapter(folder / "start_adapter")
    return model


def trainer_of(folder: Path, start: str) -> MixtureTrainer:
    """Two datasets, so that there are two backward passes in each update."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = TrainingArguments(
        folder / "run",
        adam_epsilon=1.0,  # a small one would hide a gradient of the wrong size,
        max_grad_norm=0,  # and so would clipping
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_steps=3,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2 // world,
        activation_checkpointing="CHECKPOINT" in sys.argv,
        save_steps=2,
        logging_steps=1,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=world == 1,
    )
    documents = rows("a*bc*def", "gh*ijk*l", "*mnop*qr", "stu*vw*x", "*a*bcdef", "ghij*kl*")
    pairs = rows("*abc", "*def", "*ghi", "*jkl")
    mixture = MixtureDataset({"documents": documents, "pairs": pairs}, {"pairs": 2})
    return MixtureTrainer(
        load(folder, start), args, default_data_collator, train_dataset=mixture, loss_weights={"pairs": 0.2}
    )


def held(parameter: torch.nn.Parameter) -> int:
    """Numbers of a parameter that this process keeps."""
    if isinstance(parameter, distributed.tensor.DTensor):
        return parameter.to_local().numel()
    return parameter.ds_tensor.numel() if hasattr(parameter, "ds_tensor") else parameter.numel()


def main(folder: Path, start: str) -> None:
    trainer = trainer_of(folder, start)
    trainer.train()
    model = trainer.model
    trainer.save_model(folder / "trained")
    model.save_flamingo_adapter(folder / "adapter")
    measured = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "pairs": [entry["loss_pairs"] for entry in trainer.state.log_history if "loss" in entry],
        "held": gather_object([sum(held(parameter) for parameter in model.parameters())]),
        "divided": sorted({type(module).__name__ for module in model.modules() if isinstance(module, FSDPModule)}),
    }
    if trainer.is_world_process_zero():
        (folder / "losses.json").write_text(json.dumps(measured))
    again = trainer_of(folder, start)
    again.train(resume_from_checkpoint=last_complete_checkpoint(folder / "run"))
    again.save_model(folder / "resumed")
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        treat_cpus_as_gpus()
    main(Path(sys.argv[1]), sys.argv[2])
