"""What processes do together, or one after the other: two ranks beside one process, and a training run that is killed.

    python processes.py FOLDER

Everything heavy is imported once; the processes are forked. `FOLDER/<model_type>-<Auto class>/` then holds what each
process measured, for `test_conformance.py` to compare: tensors in `alone.pt`, `rank0.pt` and `rank1.pt`; the runs of a
Trainer in `whole`, `killed` and `cut`; `error.txt`, where a process failed.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path


os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from tiny import TINY, Tiny, rows_of_answers
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    modeling_utils,
)

from hf_mmunify.registry import ARCHITECTURES
from hf_mmunify.training import last_complete_checkpoint


Batch = dict[str, torch.Tensor]
WORLD, PATIENCE = 2, 120  # seconds until a process counts as stuck


def examples(row: Tiny, auto_name: str, seeds: int = 2) -> list[Batch]:
    """Training batches of several seeds, as a list of their rows."""
    batches = [row.training_batch(auto_name, seed) for seed in range(seeds)]
    return [{key: value[i] for key, value in batch.items()} for batch in batches for i in range(rows_of(batch))]


def rows_of(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def share(batch: Batch) -> Batch:
    """This rank's rows of a batch: the first half or the second; all of them for a process alone."""
    if not distributed.is_initialized():
        return batch
    number = rows_of(batch) // WORLD
    start = distributed.get_rank() * number
    return {key: value[start : start + number] for key, value in batch.items()}


def loss_of(model: torch.nn.Module, bare: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of this rank's share as `Trainer` computes it, so that the ranks' mean gradient is the whole batch's.

    Returns:
        The loss, and what the model answers.
    """
    ranks = distributed.get_world_size() if distributed.is_initialized() else 1
    counted = {}
    if "labels" in batch and getattr(bare, "accepts_loss_kwargs", True):
        counted["num_items_in_batch"] = (batch["labels"][..., 1:] != -100).sum()
    else:
        ranks = 1
    outputs = model(**share(batch), **counted)
    return outputs["loss"] * ranks, rows_of_answers(outputs)


def gradients(row: Tiny, auto_name: str) -> Batch:
    """Gradients of one batch: `DistributedDataParallel` over its halves, or one process over all of it."""
    bare = row.model(auto_name).train()
    model = DistributedDataParallel(bare) if distributed.is_initialized() else bare
    loss, _ = loss_of(model, bare, row.training_batch(auto_name))
    loss.backward()
    return {"loss": loss, **{name: p.grad for name, p in bare.named_parameters() if p.requires_grad}}


def sharded(row: Tiny, auto_name: str) -> Batch:
    """Loss, outputs, gradients, and what SGD makes of the weights, with every layer and the root `fully_shard`ed."""
    model = row.model(auto_name).train()
    if distributed.is_initialized():
        mesh = init_device_mesh("cpu", (WORLD,))
        # `fully_shard` refuses scalars, which native models have (temperatures). They stay whole on every rank, and
        # get the same gradient there, because every rank computes the loss of the whole batch.
        scalars = {p for p in model.parameters() if p.dim() == 0}
        for module in list(model.modules()):
            if type(module).__name__ in model._no_split_modules:
                fully_shard(module, mesh=mesh, ignored_params=scalars)
        fully_shard(model, mesh=mesh, ignored_params=scalars)
    loss, outputs = loss_of(model, model, row.training_batch(auto_name))
    loss.backward()
    measured = {"loss": loss, "outputs": outputs}
    measured |= {f"gradient.{name}": full(p.grad) for name, p in model.named_parameters() if p.requires_grad}
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    return measured | {f"weight.{name}": full(p) for name, p in model.named_parameters()}


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, distributed.tensor.DTensor) else tensor


def arguments(folder: Path, **changes) -> TrainingArguments:
    settings = {
        "output_dir": folder,
        "optim": "sgd",  # Adam would hide a gradient of the wrong size
        "max_grad_norm": 0,  # and so would clipping
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "remove_unused_columns": False,
        "num_train_epochs": 1,
        "seed": 0,
    }
    return TrainingArguments(**{**settings, **changes})


def trainer(row: Tiny, auto_name: str, folder: Path, **changes) -> Trainer:
    return Trainer(
        row.model(auto_name),
        arguments(folder, **changes),
        train_dataset=examples(row, auto_name),
        data_collator=default_data_collator,
    )


def trained(row: Tiny, auto_name: str, batch_size: int, accumulate: int = 1) -> Batch:
    """How two steps of `Trainer` moved each weight; its losses; how fast the gradient was at each step."""
    before = {name: p.detach().clone() for name, p in row.model(auto_name).named_parameters()}
    run = trainer(
        row, auto_name, Path("."), per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulate
    )
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    moved = {name: p.detach() - before[name] for name, p in run.model.named_parameters() if p.requires_grad}
    return {"losses": torch.tensor(losses), **moved}


def measure_alone(row: Tiny, auto_name: str, folder: Path) -> None:
    whole = rows_of(row.training_batch(auto_name))
    measured = {
        "ddp": gradients(row, auto_name),
        "fully_shard": sharded(row, auto_name),
        "trainer": trained(row, auto_name, whole),
        "accumulated": trained(row, auto_name, whole // 2, accumulate=2),
    }
    torch.save(measured, folder / "alone.pt")


def measure_as_rank(row: Tiny, auto_name: str, folder: Path, rank: int) -> None:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": WORLD,
        "LOCAL_WORLD_SIZE": WORLD,
        "MASTER_ADDR": "localhost",
    }
    os.environ |= {name: str(value) for name, value in place.items()}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    whole = rows_of(row.training_batch(auto_name))
    measured = {
        "ddp": gradients(row, auto_name),
        "fully_shard": sharded(row, auto_name),
        "trainer": trained(row, auto_name, whole // WORLD),
        "accumulated": trained(row, auto_name, whole // WORLD // 2, accumulate=2),
    }
    torch.save(measured, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


class Dies(TrainerCallback):
    """Kills its process, as the kernel does when memory runs out, at the end of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run_trainer(
    row: Tiny, auto_name: str, folder: Path, dies_after: int | None = None, checkpoint: str | None = None
) -> None:
    """Four steps of Adam, a checkpoint after every second one; the log of the run is `folder/trainer_state.json`."""
    settings = {
        "per_device_train_batch_size": rows_of(row.training_batch(auto_name)) // 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
    }
    run = trainer(row, auto_name, folder, **settings)
    if dies_after is not None:
        run.add_callback(Dies(dies_after))
    run.train(resume_from_checkpoint=checkpoint)
    run.save_state()


def run_cut(row: Tiny, auto_name: str, folder: Path) -> None:
    """As `run_trainer`, killed when it is about to write the weights of its second checkpoint."""
    write, written = modeling_utils.safe_save_file, []

    def write_once(tensors, filename, metadata=None):
        if written:
            os.kill(os.getpid(), signal.SIGKILL)
        write(tensors, filename, metadata)
        written.append(filename)

    modeling_utils.safe_save_file = write_once
    run_trainer(row, auto_name, folder)


def resume(row: Tiny, auto_name: str, folder: Path) -> None:
    """Go on with the run of `folder` where it can be gone on."""
    run_trainer(row, auto_name, folder, checkpoint=last_complete_checkpoint(folder))


def guarded(folder: Path, function: Callable, *parameters) -> None:
    """Run `function` in this process, which was forked for it; write down why it failed."""
    torch.set_num_threads(1)
    try:
        function(*parameters)
    except BaseException:
        (folder / "error.txt").write_text(f"{function.__name__}:\n{traceback.format_exc()}")
        os._exit(1)


def fork(folder: Path, *tasks: tuple) -> list[int]:
    """Run tasks (a function and its arguments) at the same time, a process each; return their exit codes."""
    processes = [get_context("fork").Process(target=guarded, args=(folder, *task), daemon=True) for task in tasks]
    for process in processes:
        process.start()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join()
            with contextlib.suppress(FileExistsError), open(folder / "error.txt", "x") as file:
                file.write(f"A process did not end within {PATIENCE} s: the ranks wait for each other.")
    return [process.exitcode for process in processes]


def main(root: Path) -> None:
    transformers.logging.set_verbosity_error()
    for model_type, auto_names in ARCHITECTURES.items():
        row = TINY[model_type]
        for auto_name in (name for name in auto_names if name.startswith("AutoModel")):
            if not row.labels(auto_name, row.batch(0, auto_name)):
                continue
            folder = root / f"{model_type}-{auto_name}"
            folder.mkdir()
            case = (row, auto_name, folder)
            fork(
                folder,
                (measure_alone, *case),
                (measure_as_rank, *case, 0),
                (measure_as_rank, *case, 1),
            )
            whole, killed, cut = (folder / name for name in ("whole", "killed", "cut"))
            fork(
                folder,
                (run_trainer, row, auto_name, whole),
                (run_trainer, row, auto_name, killed, 3),
                (run_cut, row, auto_name, cut),
            )
            fork(folder, (resume, row, auto_name, killed), (resume, row, auto_name, cut))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
