"""Every architecture keeps every promise. A row of `tiny` is a column of tests here, one for each Auto class.

What an architecture cannot keep is an exception of its row, with the reason. What takes several processes is done by
`distributed/processes.py`, once for all tests that read from it.
"""

import copy
import inspect
import json
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers
from filelock import FileLock
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file
from tiny import TINY, Tiny, auto_class, rows_of_answers
from torch import nn
from transformers import AutoConfig, AutoProcessor, GenerationMixin, Trainer, TrainingArguments, default_data_collator
from transformers.utils import is_torchvision_available

from hf_mmunify.registry import ARCHITECTURES
from hf_mmunify.training import last_complete_checkpoint, lora_config, qlora_config


Batch = dict[str, torch.Tensor]
TEXTS = ("input_ids", "masked_input_ids")
PADDING = {"attention_mask": 0, "labels": -100, "token_type_ids": 0}  # and the config's pad token for texts
PIPELINES = {"AutoModelForImageTextToText": "image-text-to-text"}


@dataclass(frozen=True)
class Case:
    """An architecture behind one of its Auto classes."""

    row: Tiny
    auto_name: str

    def __str__(self) -> str:
        return f"{self.row.model_type}-{self.auto_name}"

    @property
    def auto(self) -> type:
        return auto_class(self.auto_name)

    @property
    def class_name(self) -> str:
        return ARCHITECTURES[self.row.model_type][self.auto_name]

    @property
    def model_class(self) -> type:
        module = import_module(f"hf_mmunify.models.{self.row.model_type}")
        return vars(module).get(self.class_name) or getattr(transformers, self.class_name)

    @property
    def goes_on_writing(self) -> bool:
        """Whether it writes behind a text that it is given, and not an answer to it."""
        return issubclass(self.model_class, GenerationMixin) and self.auto_name in PIPELINES

    @property
    def has_loss(self) -> bool:
        return bool(self.row.labels(self.auto_name, self.batch()))

    def model(self, **kwargs):
        return self.row.model(self.auto_name, **kwargs)

    def batch(self, seed: int = 0) -> Batch:
        return self.row.batch(seed, self.auto_name)

    def training_batch(self, seed: int = 0) -> Batch:
        return self.row.training_batch(self.auto_name, seed)

    def load(self, folder: Path, **kwargs):
        """The model in `folder`, and the keys that were missing or unexpected."""
        model, report = self.auto.from_pretrained(folder, output_loading_info=True, **kwargs)
        return model, [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]


CASES = [Case(TINY[x], name) for x, names in ARCHITECTURES.items() for name in names if name.startswith("AutoModel")]
every_model = pytest.mark.parametrize("case", CASES, ids=str, indirect=True)
every_loss = pytest.mark.parametrize("case", [case for case in CASES if case.has_loss], ids=str, indirect=True)
every_writer = pytest.mark.parametrize(
    "case", [case for case in CASES if case.goes_on_writing], ids=str, indirect=True
)
every_processor = pytest.mark.parametrize(
    "row", [TINY[x] for x, names in ARCHITECTURES.items() if "AutoProcessor" in names], ids=lambda row: row.model_type
)


@pytest.fixture
def case(request) -> Case:
    promise, exceptions = request.function.__name__.removeprefix("test_"), request.param.row.exceptions
    reason = exceptions.get(promise) or exceptions.get(f"{promise}[{request.param.auto_name}]")
    if reason is not None:
        pytest.skip(reason)
    return request.param


def answer(outputs, batch: Batch) -> torch.Tensor:
    """What the model answers; of a text, which may have patches behind it, only at tokens that are no padding."""
    first = rows_of_answers(outputs).detach()
    mask = batch.get("attention_mask")
    is_sequence = mask is not None and first.dim() == 3 and first.shape[1] >= mask.shape[1]
    return first[:, : mask.shape[1]][mask.bool()] if is_sequence else first


def answers(model: nn.Module, batch: Batch, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return answer(model(**batch, **kwargs), batch)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def distance(actual: Batch, expected: Batch) -> float:
    """How far two sets of tensors are from each other, relative to the length of the second."""
    assert actual.keys() == expected.keys()
    length = lambda tensors: torch.stack([tensor.float().square().sum() for tensor in tensors]).sum().sqrt().item()  # noqa: E731
    return length(actual[name] - expected[name] for name in expected) / length(expected.values())


def gradients(model: nn.Module, batch: Batch, **kwargs) -> Batch:
    model.zero_grad()
    model(**batch, **kwargs).loss.backward()
    parameters = {name.removeprefix("_orig_mod."): p for name, p in model.named_parameters()}  # of a compiled model
    return {name: p.grad.clone() for name, p in parameters.items() if p.requires_grad}


def padding(case: Case, key: str) -> int | None:
    """What fills up a text of the batch under `key`; None for what is no text."""
    return case.row.config().pad_token_id if key in TEXTS else PADDING.get(key)


def single(case: Case, batch: Batch, index: int) -> Batch:
    """One row of a batch, without its padding; without images, where it has none."""
    length = int(batch["attention_mask"][index].sum()) if "attention_mask" in batch else None
    number = int(batch["image_mask"][index].sum()) if "image_mask" in batch else None
    row = {}
    for key, value in batch.items():
        value = value[index : index + 1]
        if padding(case, key) is not None:
            row[key] = value[:, :length]
        elif number is None or key not in ("pixel_values", "image_mask"):
            row[key] = value
        elif number > 0:
            row[key] = value[:, :number]
    return row


def padded(case: Case, batch: Batch, side: str) -> Batch:
    """The batch with three tokens of padding more, all on one side; an image slot more, and noise in it."""

    def beside(filler: torch.Tensor, value: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        for row, length in enumerate(lengths.tolist()):
            place = slice(0, length) if side == "right" else slice(filler.shape[1] - length, None)
            filler[row, place] = value[row, :length]
        return filler

    wider = dict(batch)
    for key, value in batch.items() if "attention_mask" in batch else ():
        if (fill := padding(case, key)) is not None and value.shape == batch["attention_mask"].shape:
            filler = value.new_full((len(value), value.shape[1] + 3), fill)
            wider[key] = beside(filler, value, batch["attention_mask"].sum(dim=1))
    if "image_mask" in batch:
        for key, scale in (("image_mask", 0), ("pixel_values", 100)):
            value = batch[key]
            noise = scale * torch.randn(len(value), value.shape[1] + 1, *value.shape[2:])
            wider[key] = beside(noise.to(value.dtype), value, batch["image_mask"].sum(dim=1))
    return wider


# The table ---------------------------------------------------------------------------------------------------------


def test_table_is_complete_and_small():
    assert set(TINY) == set(ARCHITECTURES)
    promises = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    for row in TINY.values():
        assert {name.partition("[")[0] for name in row.exceptions} <= promises and all(row.exceptions.values())
    for case in CASES:
        model = case.model()
        assert type(model) is case.model_class
        assert model.num_parameters() <= 1_000_000, f"{case} has {model.num_parameters():,} parameters"
        assert not model.training and torch.equal(answers(model, case.batch()), answers(case.model(), case.batch()))


@every_model
def test_every_input_matters(case):
    """Each word and each image acts on the output: a tiny model that is blind would pass every other test."""
    model, batch = case.model(), case.batch()
    whole = answers(model, batch)
    for key in ("pixel_values", "input_ids"):
        if key not in batch:
            continue
        mask = batch.get("image_mask" if key == "pixel_values" else "attention_mask")
        slots = torch.ones(batch[key].shape[:1], dtype=torch.long) if mask is None else mask
        for place in slots.nonzero().tolist():
            changed = batch[key].clone()
            changed[tuple(place)] = changed[tuple(place)].neg() if key == "pixel_values" else 5
            if not torch.equal(changed, batch[key]):
                difference = (answers(model, {**batch, key: changed}) - whole).abs().max()
                assert difference > 1e-2, f"{key}{place} changes the output by {difference:.1e}"


# Loading and saving ------------------------------------------------------------------------------------------------


@every_model
def test_saves_and_loads_bit_equal(case, tmp_path):
    model, batch = case.model(), case.batch()
    model.save_pretrained(tmp_path, max_shard_size="200kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1  # in pieces, as large models are
    again, wrong = case.load(tmp_path)
    assert type(again) is case.model_class and not again.training and wrong == []
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name for name, p in again.named_parameters() if not p.requires_grad} == frozen
    assert torch.equal(answers(again, batch), answers(model, batch))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(model.config)
    saving_adds = {"architectures", "auto_map", "dtype"}
    fields = [
        (config.to_diff_dict() | dict.fromkeys(saving_adds)) for config in (config, case.row.config(case.auto_name))
    ]
    assert fields[0] == fields[1]


@every_model
def test_base_and_heads_load_from_each_other(case, tmp_path):
    """A head starts from the base with only its own weights new; the base takes its part out of a head."""
    model, base = case.model(), Case(case.row, "AutoModel")
    model.save_pretrained(tmp_path / "head")
    taken, wrong = base.load(tmp_path / "head")
    assert [key for key in wrong if key in taken.state_dict()] == []
    base_batch = base.batch()
    assert torch.equal(answers(taken, base_batch), answers(model.base_model, base_batch))
    taken.save_pretrained(tmp_path / "base")
    head, wrong = case.load(tmp_path / "base")
    assert [key for key in wrong if key.startswith(f"{head.base_model_prefix}.")] == []
    assert torch.equal(answers(head.base_model, base_batch), answers(taken, base_batch))


@every_model
def test_a_full_disk_leaves_what_was_saved(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limit[1]))  # no file of this process may grow beyond
    try:
        with pytest.raises(Exception, match="File too large"):
            case.model(seed=1).save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    again, wrong = case.load(tmp_path)
    assert wrong == [] and torch.equal(answers(again, case.batch()), answers(model, case.batch()))


@every_model
def test_a_copy_is_independent(case):
    """`copy.deepcopy`, of which averaged weights and reference models are made, keeps no tie to the model."""
    model, batch = case.model(), case.batch()
    expected = answers(model, batch)
    twin = copy.deepcopy(model)
    assert torch.equal(answers(twin, batch), expected)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5)
    assert not torch.equal(answers(twin, batch), expected)
    assert torch.equal(answers(model, batch), expected)


@every_processor
def test_processor_reads_pictures_and_comes_back(row, tmp_path):
    if (reason := row.exceptions.get("processor_reads_pictures_and_comes_back")) is not None:
        pytest.skip(reason)
    images = row.images()
    processor = row.processor()
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again).__name__ == ARCHITECTURES[row.model_type]["AutoProcessor"]
    if is_torchvision_available():  # which Auto prefers, and which resizes a little differently
        again.image_processor = processor.image_processor
    assert again.to_dict() | {"auto_map": None} == processor.to_dict() | {"auto_map": None}
    text = f"{getattr(processor, 'image_token', '')} a red three" if hasattr(processor, "tokenizer") else None
    given = {"images": images[:1]} | ({} if text is None else {"text": text})
    for one in (processor, again):
        tensors = one(**given, return_tensors="pt")
        assert all(isinstance(value, torch.Tensor) and len(value) == 1 for value in tensors.values())
        assert tensors["pixel_values"].is_floating_point() and tensors["pixel_values"].std() > 0.1
        assert set(tensors) <= set(one.model_input_names)
    assert all(torch.equal(value, processor(**given, return_tensors="pt")[key]) for key, value in tensors.items())


# Numbers -----------------------------------------------------------------------------------------------------------


@every_model
def test_eager_equals_sdpa(case):
    model, batch = case.model(attn_implementation="eager"), case.batch()
    expected = answers(model, batch)
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    close(answers(model, batch), expected)
    close(answers(case.model(attn_implementation="sdpa"), batch), expected)


@every_model
def test_a_batch_equals_its_rows_alone(case):
    model, batch = case.model(), case.batch()
    rows = [single(case, batch, index) for index in range(len(next(iter(batch.values()))))]
    close(answers(model, batch), torch.cat([answers(model, row) for row in rows]))


@every_model
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(case, side):
    model, batch = case.model(), case.training_batch()
    wider = padded(case, batch, side)
    assert any(wider[key].shape != batch[key].shape for key in batch) or "attention_mask" not in batch
    close(answers(model, wider), answers(model, batch))
    if case.has_loss:
        close(model(**wider).loss, model(**batch).loss)


@every_model
def test_bfloat16_runs_and_stays_close(case, tmp_path):
    model, batch = case.model(), case.batch()
    exact = answers(model, batch)
    model.save_pretrained(tmp_path)
    half = case.auto.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    outputs = answers(half, batch)
    assert outputs.dtype == torch.bfloat16
    assert distance({"": outputs}, {"": exact}) < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        assert distance({"": answers(model, batch)}, {"": exact}) < 0.05
    if case.has_loss:
        halves = gradients(half.train(), case.training_batch())
        assert all(gradient.isfinite().all() for gradient in halves.values())
        assert distance(halves, gradients(model.train(), case.training_batch())) < 0.2


@every_model
def test_outputs_can_be_looked_into(case):
    """Hidden states and attentions come when asked for, and change nothing; a tuple comes when asked for."""
    model, batch = case.model(attn_implementation="eager"), case.batch()
    plain = answers(model, batch)
    with torch.no_grad():
        outputs = model(**batch, output_hidden_states=True, output_attentions=True)
        as_tuple = model(**batch, return_dict=False)
        named = dict(zip(model(**batch), as_tuple, strict=True))
    assert torch.equal(answer(named, batch), plain)
    if case.row.model_type == "flamingo":  # it has weights where it reads by a mask, and groups its tokens otherwise
        close(answer(outputs, batch), plain)
    else:
        assert torch.equal(answer(outputs, batch), plain)
    layers = model.config.get_text_config().num_hidden_layers
    inner = {
        f"{part}.{key}": v for part, tower in outputs.items() if isinstance(tower, dict) for key, v in tower.items()
    }
    found = {key: value for key, value in (outputs | inner).items() if key.endswith(("hidden_states", "attentions"))}
    assert any(len(value) >= layers + 1 for key, value in found.items() if "hidden_states" in key)
    attentions = {key: value for key, value in found.items() if "attentions" in key}
    assert attentions
    for weights in (weights for value in attentions.values() for weights in value):
        close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))


@every_model
def test_compiles_as_one_graph(case):
    model, batch = case.model(), case.training_batch()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(answers(compiled, batch), answers(model, batch))
    if case.has_loss:
        assert distance(gradients(compiled.train(), batch), gradients(model.train(), batch)) < 1e-5
    torch.compiler.reset()


@every_model
def test_exports(case):
    """The exported program answers for other values too, and for another set of padding."""
    model, batch = case.model(), case.batch()
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    program = torch.export.export(model, (), kwargs={**batch, **options}, strict=False).module()
    other = {key: value.flip(0) for key, value in case.batch(seed=1).items()}
    for given in (batch, other):
        close(answers(program, given, **options), answers(model, given))


# Training ----------------------------------------------------------------------------------------------------------


@every_loss
def test_loss_reaches_what_is_trained_and_nothing_else(case):
    model = case.model().train()
    model(**case.training_batch()).loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    silent = [name for name, grad in trained.items() if grad is None or not grad.abs().max() > 0]
    assert silent == [], "the loss does not reach these; remove them, or give them a task"
    assert [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None] == []


@every_loss
def test_loss_survives_nothing_to_learn(case):
    """No label in a batch counts, as happens when text is cut or nothing was masked: zero, and no NaN."""
    model, batch = case.model().train(), case.training_batch()
    ignored = {key: torch.full_like(value, -100) for key, value in batch.items() if (value == -100).any()}
    if not ignored:
        return
    for counted in ({}, {"num_items_in_batch": torch.tensor(0)}):
        model.zero_grad()
        loss = model(**{**batch, **ignored}, **counted).loss
        assert loss == 0
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_loss
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_gradient_checkpointing_changes_nothing(case, reentrant):
    model, batch = case.model().train(), case.training_batch()
    passes = {}
    for layer in model.modules():
        name = type(layer).__name__
        linear = next((module for module in layer.modules() if isinstance(module, nn.Linear)), None)
        if name in model._no_split_modules and linear and any(p.requires_grad for p in layer.parameters()):
            count = passes.setdefault(name, Counter())
            linear.register_forward_hook(lambda *_, count=count, linear=linear: count.update([linear]))
    expected = gradients(model, batch)
    once = {name: sum(count.values()) for name, count in passes.items()}
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    actual = gradients(model, batch)
    again = {name: sum(count.values()) - once[name] for name, count in passes.items()}
    twice = {name: 2 * times for name, times in once.items() if times}
    assert again and again == twice, f"layers are to run twice as often as the {once}, ran {again}"
    assert distance(actual, expected) < 1e-6


def trained_a_little(model: nn.Module, batch: Batch, steps: int = 3) -> list[float]:
    """The losses of a few steps of Adam on one batch."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@every_loss
@pytest.mark.parametrize("preset", ["LoRA alone", "as preset"])
def test_lora_trains_saves_and_loads(case, preset, tmp_path):
    """With what is trained in full beside the LoRA by the preset, and with the LoRA alone."""
    changes = {"r": 4} if preset == "as preset" else {"r": 4, "target_modules": case.row.lora, "modules_to_save": None}
    base, batch = case.model(), case.training_batch()
    base.save_pretrained(tmp_path / "base")
    plain, frozen = answers(base, batch), copy.deepcopy(base.state_dict())
    model = get_peft_model(base, lora_config(base, **changes))
    assert torch.equal(answers(model, batch), plain)  # a fresh LoRA changes nothing

    losses = trained_a_little(model.train(), batch)
    assert losses[-1] < losses[0]
    expected = answers(model.eval(), batch)
    assert not torch.equal(expected, plain)
    with model.disable_adapter():
        assert torch.equal(answers(model, batch), plain)

    model.save_pretrained(tmp_path / "lora")
    saved = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    in_full = model.peft_config["default"].modules_to_save or ()
    assert all("lora_" in name or any(f".{part}." in name for part in in_full) for name in saved)
    onto = case.auto.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(onto, tmp_path / "lora")
    assert torch.equal(answers(again, batch), expected)

    merged = again.merge_and_unload()
    assert type(merged) is case.model_class and merged.state_dict().keys() == frozen.keys()
    close(answers(merged, batch), expected)
    merged.save_pretrained(tmp_path / "merged")
    close(answers(case.auto.from_pretrained(tmp_path / "merged"), batch), expected)


@every_loss
def test_4_bit_loads_answers_and_trains_a_lora(case, tmp_path):
    model, batch = case.model(), case.training_batch()
    exact = answers(model, batch)
    model.save_pretrained(tmp_path)
    quantization = qlora_config(AutoConfig.from_pretrained(tmp_path))
    load = partial(case.auto.from_pretrained, tmp_path, quantization_config=quantization, device_map="cpu")
    small = load()
    quantized = {name for name, module in small.named_modules() if type(module).__name__ == "Linear4bit"}
    assert quantized
    kept = [pattern.rpartition(")?")[2] for pattern in quantization.llm_int8_skip_modules]
    assert [name for name in quantized if set(name.split(".")) & set(kept)] == []
    untouched = {name for name, p in small.named_parameters() if p.dtype != torch.uint8}
    assert all(torch.equal(small.get_parameter(name), model.get_parameter(name)) for name in untouched)
    assert 0 < distance({"": answers(small, batch)}, {"": exact}) < 0.3  # four bits a weight, and tiny layers
    if case.goes_on_writing:
        prompt = single(case, case.batch(), 0)
        assert (
            small.generate(**prompt, max_new_tokens=3, min_new_tokens=3).shape[1] == prompt["input_ids"].shape[1] + 3
        )

    fresh = load()  # on some CPUs no gradient passes 4-bit weights that have answered: `qlora_config`
    trained = get_peft_model(prepare_model_for_kbit_training(fresh), lora_config(fresh, r=4)).train()
    losses = trained_a_little(trained, batch)
    assert losses[-1] < losses[0]
    assert all(p.abs().max() > 0 for name, p in trained.named_parameters() if "lora_B" in name)  # gradients pass them
    expected = answers(trained.eval(), batch)
    trained.save_pretrained(tmp_path / "lora")
    again = PeftModel.from_pretrained(load(), tmp_path / "lora")
    close(answers(again, batch), expected, tolerance=1e-4)


@every_loss
def test_trainer_trains_evaluates_and_saves(case, tmp_path):
    model, batch = case.model(), case.training_batch()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = [{key: value[i] for key, value in batch.items()} for i in range(len(next(iter(batch.values()))))]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=len(rows),
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        label_names=list(case.row.labels(case.auto_name, batch)),
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    processor = case.row.processor()
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=processor,
        data_collator=default_data_collator,
    )
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[1] < losses[0] and evaluated[-1] < first
    # What Trainer counts and what the model counts as a label is the same
    assert losses[0] == pytest.approx(case.model()(**batch).loss.item(), rel=1e-4)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    again, wrong = case.load(tmp_path / "checkpoint-2")
    assert wrong == [] and torch.equal(answers(again, batch), answers(model.eval(), batch))
    assert type(AutoProcessor.from_pretrained(tmp_path / "checkpoint-2")) is type(processor)


# Writing -----------------------------------------------------------------------------------------------------------


@every_writer
def test_writes_the_same_however_it_is_asked(case):
    """With a cache and without, static or not, greedily and with beams; in a batch and alone."""
    model, batch = case.model(), padded(case, case.batch(), "left")
    write = partial(model.generate, max_new_tokens=5, min_new_tokens=5)
    length = batch["input_ids"].shape[1]
    greedy = write(**batch)[:, length:]
    assert torch.equal(write(**batch, use_cache=False)[:, length:], greedy)
    assert torch.equal(write(**batch, cache_implementation="static", disable_compile=True)[:, length:], greedy)
    beams = write(**batch, num_beams=3)[:, length:]
    assert torch.equal(write(**batch, num_beams=3, use_cache=False)[:, length:], beams)
    for index in range(len(greedy)):
        prompt = single(case, case.batch(), index)
        assert torch.equal(write(**prompt)[0, prompt["input_ids"].shape[1] :], greedy[index])


@every_writer
def test_pipeline_writes(case, tmp_path):
    model, processor, image = case.model(), case.row.processor(), case.row.images()[0]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = transformers.pipeline(PIPELINES[case.auto_name], model=str(tmp_path), device="cpu")
    assert type(pipe.model) is case.model_class
    prompt = f"{getattr(processor, 'image_token', '')} a red"
    written = pipe(images=[image], text=prompt, generate_kwargs={"max_new_tokens": 4}, return_full_text=False)
    inputs = processor(images=[image], text=prompt, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    assert written[0]["generated_text"].strip() == processor.decode(expected, skip_special_tokens=True).strip()


# Several processes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def processes(tmp_path_factory) -> Callable[[Case], Path]:
    """Runs `distributed/processes.py`, once for all workers of this session; gives the folder of a case."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    results = root / "processes"
    with FileLock(root / "processes.lock"):
        if not results.exists():
            results.mkdir()
            program = Path(__file__).parent / "distributed" / "processes.py"
            run = subprocess.run([sys.executable, program, results], cwd=results, capture_output=True, text=True)
            (results / "log.txt").write_text(run.stdout + run.stderr)

    def folder(case: Case) -> Path:
        error = results / str(case) / "error.txt"
        assert not error.exists(), error.read_text()
        assert (results / str(case) / "alone.pt").exists(), (results / "log.txt").read_text()
        return results / str(case)

    return folder


def one_and_two(folder: Path, part: str) -> tuple[Batch, list[Batch]]:
    """What one process measured, and what each of two did."""
    alone, *ranks = (torch.load(folder / f"{name}.pt")[part] for name in ("alone", "rank0", "rank1"))
    return alone, ranks


@every_loss
def test_ddp_equals_one_process(case, processes):
    """Gradients of two ranks, one without images and with fewer labels, are those of the whole batch."""
    alone, ranks = one_and_two(processes(case), "ddp")
    close((ranks[0].pop("loss") + ranks[1].pop("loss")) / 2, alone.pop("loss"))
    for rank in ranks:
        assert distance(rank, alone) < 1e-5


@every_model
def test_layers_that_are_not_split_are_there(case):
    """FSDP stops where a name of `_no_split_modules` is no layer of the model."""
    model = case.model()
    names = set(model._no_split_modules)
    assert names <= {type(module).__name__ for module in model.modules()}


@every_loss
def test_fully_shard_equals_one_process(case, processes):
    """Outputs, gradients, and the weights after a step, with every layer and the root sharded over two ranks."""
    alone, ranks = one_and_two(processes(case), "fully_shard")
    close((ranks[0].pop("loss") + ranks[1].pop("loss")) / 2, alone.pop("loss"))
    close(torch.cat([rank.pop("outputs") for rank in ranks]), alone.pop("outputs"))
    for rank in ranks:
        for kind in ("gradient.", "weight."):
            of_kind = {name: value for name, value in alone.items() if name.startswith(kind)}
            assert distance({name: rank[name] for name in of_kind}, of_kind) < 1e-5


@every_loss
@pytest.mark.parametrize("part", ["trainer", "accumulated"])
def test_trainer_moves_alike_on_two_processes(case, processes, part):
    """Two steps of SGD move the weights as far, and the same way; `Trainer` can multiply a loss by the world size."""
    alone, ranks = one_and_two(processes(case), part)
    losses = alone.pop("losses")
    for rank in ranks:
        close(rank.pop("losses"), losses)
        assert distance(rank, alone) < 1e-4


@every_loss
def test_accumulated_gradients_equal_a_large_batch(case, processes):
    whole, _ = one_and_two(processes(case), "trainer")
    accumulated, _ = one_and_two(processes(case), "accumulated")
    close(accumulated.pop("losses"), whole.pop("losses"))
    assert distance(accumulated, whole) < 1e-4


def losses_of(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@every_loss
@pytest.mark.parametrize("how", ["killed", "cut"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(case, processes, how):
    """Killed between two checkpoints, or while it saves the second: the losses are those of the whole run."""
    folder = processes(case)
    expected = losses_of(folder / "whole")
    assert len(expected) == 4 and losses_of(folder / how) == expected
    resumed, wrong = case.load(folder / how / "checkpoint-4")
    whole, _ = case.load(folder / "whole" / "checkpoint-4")
    assert wrong == [] and torch.equal(answers(resumed, case.batch()), answers(whole, case.batch()))


def test_a_checkpoint_without_its_last_file_is_not_the_last(tmp_path):
    assert last_complete_checkpoint(tmp_path / "not yet there") is None
    state = transformers.TrainerState()
    for step in (8, 16, 24, 100):
        state.global_step = step
        (tmp_path / f"checkpoint-{step}").mkdir()
        state.save_to_json(tmp_path / f"checkpoint-{step}" / "trainer_state.json")
    (tmp_path / "checkpoint-100" / "trainer_state.json").unlink()
    half = (tmp_path / "checkpoint-24" / "trainer_state.json").read_text()[:40]
    (tmp_path / "checkpoint-24" / "trainer_state.json").write_text(half)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-16")
