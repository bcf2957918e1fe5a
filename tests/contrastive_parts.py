"""Two towers at their smallest, pairs for them, and one step of contrastive training whose gradients can be read."""

from pathlib import Path

import torch
import transformers
from torch import nn

from hf_mmunify.training import ContrastiveTrainer, ContrastiveTrainingArguments


VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 8}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"vocab_size": 64, "max_position_embeddings": 16}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def clip(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> transformers.CLIPModel:
    transformers.set_seed(0)
    config = transformers.CLIPConfig(
        vision_config=VISION | {"attention_dropout": dropout},
        text_config=TEXT | SPECIAL | {"attention_dropout": dropout},
        projection_dim=16,
        logit_scale_init_value=1.0,
    )
    return transformers.CLIPModel(config).to(dtype)


def pairs(number: int = 8, dtype: torch.dtype = torch.float64, ids: bool = True) -> list[dict[str, torch.Tensor]]:
    """Pairs of noise; two of them at a time, half a batch apart, show the same image."""
    draw = torch.Generator().manual_seed(1)
    return [
        {
            "pixel_values": torch.randn(3, 16, 16, generator=draw, dtype=torch.float64).to(dtype),
            "input_ids": torch.randint(3, 64, (7,), generator=draw),
            "attention_mask": (torch.arange(7) < 4 + row % 4).long(),
            **({"image_ids": torch.tensor(row % (number // 2))} if ids else {}),
        }
        for row in range(number)
    ]


def collate(rows: list[dict[str, torch.Tensor]]) -> dict:
    return {**{key: torch.stack([row[key] for row in rows]) for key in rows[0]}, "return_loss": True}


def trainer(model: nn.Module, rows: list, folder: str | Path, **settings) -> ContrastiveTrainer:
    """One step of gradient descent at a rate of 1, on all rows unless `settings` say otherwise."""
    defaults = {
        "per_device_train_batch_size": len(rows),
        "max_steps": 1,
        "learning_rate": 1.0,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    args = ContrastiveTrainingArguments(str(folder), **{**defaults, **settings})
    return ContrastiveTrainer(model, args, collate, train_dataset=rows, eval_dataset=rows)


def step(model: nn.Module, rows: list, folder: str | Path, **settings) -> dict[str, torch.Tensor]:
    """Gradients of one step, by the name of the parameter, and its loss."""
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    made = trainer(model, rows, folder, **settings)
    made.train()
    loss = next(log["loss"] for log in made.state.log_history if "loss" in log)
    after = dict(made.accelerator.unwrap_model(made.model).named_parameters())
    return {"loss": torch.tensor(loss)} | {name: before[name] - after[name].detach() for name in before}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Greatest difference of two sets of gradients, as a share of the greatest gradient."""
    names = [name for name in one if name != "loss"]
    greatest = max(float(one[name].abs().max()) for name in names)
    return max(float((one[name] - other[name]).abs().max()) for name in names) / greatest
