"""Training on mixtures of datasets, alone and on two processes, and what is trained how."""

import json
from pathlib import Path

import digit_parts
import numpy as np
import pytest
import torch
from accelerate import debug_launcher
from datasets import Dataset
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

from hf_mmunify.data import InterleavedCollator, load_digit_scenes
from hf_mmunify.training import (
    FLAMINGO_ARGUMENTS,
    FLAMINGO_LOSS_WEIGHTS,
    CollatorEpochCallback,
    ImageAugmentation,
    MixtureCollator,
    MixtureDataset,
    MixtureTrainer,
    StreamedMixture,
    cast_frozen_parts,
    decay_parameter_names,
    parameter_groups,
)


WEIGHTS = {"pages": 1.0, "pairs": 0.2, "videos": 0.03}


def digit_datasets(sizes=(12, 8, 4), streaming: bool = False) -> dict:
    """Pages, image-text pairs and video-text pairs of digit scenes."""
    return {
        "pages": load_digit_scenes("interleaved", size=sizes[0], shots=1, streaming=streaming),
        "pairs": load_digit_scenes("caption", size=sizes[1], streaming=streaming),
        "videos": load_digit_scenes("video", size=sizes[2], num_frames=4, streaming=streaming),
    }


def arguments(folder, **settings) -> TrainingArguments:
    defaults = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "max_steps": 2,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return TrainingArguments(folder, **{**defaults, **settings})


def collator() -> InterleavedCollator:
    return InterleavedCollator(digit_parts.processor(), num_frames=4)


def trainer(folder, mixture=None, model=None, loss_weights=WEIGHTS, accumulate=True, **settings) -> MixtureTrainer:
    return MixtureTrainer(
        digit_parts.flamingo() if model is None else model,
        arguments(folder, **settings),
        collator(),
        train_dataset=MixtureDataset(digit_datasets()) if mixture is None else mixture,
        loss_weights=loss_weights,
        accumulate=accumulate,
    )


def adapter_of(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def distance(one: dict, other: dict) -> float:
    """Greatest difference, relative to the greatest change that matters here (parameters are of order 1)."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# The order of a mixture --------------------------------------------------------------------------------------------


def turns(mixture) -> str:
    return "".join(mixture[place].source[0] for place in range(len(mixture)))


def test_datasets_take_turns():
    data = {"a": list("abcdef"), "b": list("uvw"), "c": list("xy")}
    mixture = MixtureDataset(data, shuffle=False)
    assert turns(mixture) == "abc" * 6
    mixture.arrange(items=2, turn=1)
    assert turns(mixture) == "aabbcc" * 3
    mixture.arrange(items=2, turn=3)
    assert turns(mixture) == "aaaaaabbbbbbcccccc"
    mixture.arrange(items=4, turn=1)  # 6 items are not whole micro-batches of 4: 8 of each
    assert turns(mixture) == "aaaabbbbcccc" * 2


def test_every_row_comes_once_a_pass_and_epochs_go_on():
    data = {"long": list(range(10)), "short": [100, 101, 102]}
    mixture = MixtureDataset(data, rows_per_item={"long": 2}, seed=3)
    mixture.arrange(items=5, turn=1)
    seen = {"long": [], "short": []}
    for epoch in range(6):
        mixture.set_epoch(epoch)
        items = [mixture[place] for place in range(len(mixture))]
        assert len(items) == 10
        assert {len(item.rows) for item in items if item.source == "long"} == {2}
        for item in items:
            seen[item.source] += item.rows
    laps = [tuple(seen["long"][start : start + 10]) for start in range(0, 60, 10)]
    assert all(sorted(lap) == list(range(10)) for lap in laps) and len(set(laps)) == 6  # anew each time
    shorts = [sorted(seen["short"][start : start + 3]) for start in range(0, 30, 3)]
    assert all(lap == [100, 101, 102] for lap in shorts)  # passes of the short one run across epochs
    with pytest.raises(IndexError, match="there is no item 10"):
        mixture[10]


def test_streams_take_turns_over_workers_and_begin_anew():
    data = {"a": [1, 2, 3], "b": [10, 20]}
    mixture = StreamedMixture(data, rows_per_item={"a": 2})
    mixture.arrange(items=2, turn=2)
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(
            mixture, batch_size=2, num_workers=workers, collate_fn=MixtureCollator(lambda rows: {"rows": rows})
        )
        batches = [batch for _, batch in zip(range(8), loader)]
        assert [batch["source"] for batch in batches] == ["a", "a", "b", "b"] * 2
        if workers == 0:
            assert [batch["rows"] for batch in batches[:4]] == [[1, 2, 3, 1], [2, 3, 1, 2], [10, 20], [10, 20]]
    with pytest.raises(ValueError, match="The stream 'b' of the mixture gave no row in pass 0"):
        list(zip(range(9), StreamedMixture({"a": [1], "b": []})))


@pytest.mark.parametrize("number, workers", [(1, 2), (2, 2), (3, 2)])
@pytest.mark.parametrize("form", ["rows", "table", "one shard", "four shards", "shuffled"])
def test_workers_of_a_stream_divide_each_pass(form, number, workers):
    """Also where a worker is always at the same dataset, or a stream has fewer shards than there are workers."""
    table = Dataset.from_dict({"row": list(range(8))})
    made = {
        "rows": lambda: [{"row": row} for row in range(8)],
        "table": lambda: table,
        "one shard": table.to_iterable_dataset,
        "four shards": lambda: table.to_iterable_dataset(num_shards=4),
        "shuffled": lambda: table.to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=2),
    }[form]
    mixture = StreamedMixture({f"part {place}": made() for place in range(number)})
    loader = torch.utils.data.DataLoader(
        mixture,
        batch_size=1,
        num_workers=workers,
        collate_fn=MixtureCollator(lambda rows, passes: {"row": rows[0]["row"], "pass": passes[0]}),
    )
    seen = {name: {0: [], 1: []} for name in mixture.datasets}
    for _, batch in zip(range(16 * number), loader):
        seen[batch["source"]][batch["pass"]].append(batch["row"])
    for passes in seen.values():
        assert [sorted(rows) for rows in passes.values()] == [list(range(8))] * 2


@pytest.mark.parametrize("streaming", [False, True])
def test_another_pass_draws_anew_within_an_epoch(streaming):
    """Short datasets and endless streams begin anew without `set_epoch`: their draws must not stay the same."""
    captions = [f"{color} seven" for color in ("red", "green", "blue", "yellow")]
    data = {
        "long": [{"text": "one"}] * 32,
        "short": [{"image": Image.new("RGB", (24, 24)), "caption": captions}],
    }
    mixture = StreamedMixture(data) if streaming else MixtureDataset(data, shuffle=False)
    collate = MixtureCollator(collator())
    drawn = []
    for _, item in zip(range(64), mixture if streaming else (mixture[place] for place in range(64))):
        if item.source == "short":
            drawn.append(tuple(collate([item])["input_ids"][0].tolist()))
    assert len(drawn) == 32 and len(set(drawn)) == 4
    # the first pass draws what the collator draws by itself
    assert drawn[0] == tuple(collator()(data["short"])["input_ids"][0].tolist())


# Gradients ---------------------------------------------------------------------------------------------------------


def by_hand(model, datasets, collate, rows, weights, rate: float) -> dict[str, torch.Tensor]:
    """One step of gradient descent on the sum of weighted mean losses, as the paper writes it."""
    model.train()
    total = 0.0
    for name, places in rows.items():
        batch = collate([datasets[name][place] for place in places])
        total = total + weights[name] * model(**batch).loss
    total.backward()
    return {
        name: (value - rate * value.grad).detach()
        for name, value in model.named_parameters()
        if value.requires_grad and value.grad is not None
    }


@pytest.mark.parametrize("steps", [3, 6])
def test_an_update_has_the_weighted_gradients_of_all_datasets(tmp_path, steps):
    data = digit_datasets()
    number = 2 * steps // 3  # rows of each in an update
    rows = dict.fromkeys(data, range(number))
    expected = by_hand(digit_parts.flamingo(), data, collator(), rows, WEIGHTS, rate=0.1)
    made = trainer(
        tmp_path, MixtureDataset(data, shuffle=False), max_steps=1, gradient_accumulation_steps=steps, logging_steps=1
    )
    made.train()
    moved = adapter_of(made.model)
    assert distance(expected, moved) < 2e-6
    assert distance(expected, adapter_of(digit_parts.flamingo())) > 1e-2
    # the log has the weighted sum, and each dataset's own loss
    log = made.state.log_history[0]
    parts = {name: log[f"loss_{name}"] for name in data}
    assert log["loss"] == pytest.approx(sum(WEIGHTS[name] * parts[name] for name in data), rel=1e-4)
    assert len({round(value, 3) for value in parts.values()}) == 3


def test_round_robin_updates_on_one_dataset_at_a_time(tmp_path):
    data = digit_datasets()
    made = trainer(
        tmp_path, MixtureDataset(data, shuffle=False), accumulate=False, max_steps=2, gradient_accumulation_steps=2
    )
    made.train()
    model, collate = digit_parts.flamingo(), collator()
    for name in ("pages", "pairs"):
        model.zero_grad()
        expected = by_hand(model, data, collate, {name: range(4)}, WEIGHTS, rate=0.1)
        model.load_state_dict({**model.state_dict(), **expected})
    assert distance(expected, adapter_of(made.model)) < 2e-6
    logs = [set(log) & {"loss_pages", "loss_pairs", "loss_videos"} for log in made.state.log_history[:2]]
    assert logs == [{"loss_pages"}, {"loss_pairs"}]


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, place, value):
        return {"loss": ((1 + self.weight[place[0]]) * value).mean()}


class Careless(Mean):
    """As BLIP's of transformers: it takes the number of labels, and its loss is a mean all the same."""

    def forward(self, place, value, labels, **kwargs):
        return super().forward(place, value)


@pytest.mark.parametrize("model", [Mean, Careless])
def test_datasets_of_a_mean_loss_are_averaged_over_their_micro_batches(tmp_path, model):
    """A model whose loss ignores `num_items_in_batch`: the mean over the dataset's micro-batches, once a weight."""

    def collate(rows):
        batch = {"place": torch.tensor([p for p, _ in rows]), "value": torch.tensor([v for _, v in rows])}
        return {**batch, "labels": batch["place"][:, None].expand(-1, 7)} if model is Careless else batch

    data = {"a": [(0, 1.0), (0, 3.0)], "b": [(1, 10.0), (1, 50.0)]}
    made = MixtureTrainer(
        model(),
        arguments(tmp_path, max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=4),
        collate,
        train_dataset=MixtureDataset(data, shuffle=False),
        loss_weights={"b": 0.5},
    )
    made.train()
    assert made.model.weight.tolist() == pytest.approx([-0.1 * 2.0, -0.1 * 0.5 * 30.0])


def _train_on_processes(folder: str, streaming: bool) -> None:
    """One of the processes of the test below; the first one writes what came out."""
    mixture = _mixture(streaming)
    made = trainer(
        folder,
        mixture,
        per_device_train_batch_size=1,
        accelerator_config={"dispatch_batches": False},
        ddp_backend="gloo",
    )
    assert made.args.world_size == 2
    made.train()
    if made.is_world_process_zero():
        torch.save(adapter_of(made.accelerator.unwrap_model(made.model)), Path(folder) / "together.pt")
        (Path(folder) / "log.json").write_text(json.dumps(made.state.log_history))


def _mixture(streaming: bool):
    data = digit_datasets(streaming=streaming)
    return StreamedMixture(data) if streaming else MixtureDataset(data, seed=1)


@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes_train_as_one(tmp_path, streaming):
    debug_launcher(_train_on_processes, args=(str(tmp_path), streaming), num_processes=2)
    alone = trainer(tmp_path, _mixture(streaming), per_device_train_batch_size=2)
    alone.train()
    together = torch.load(tmp_path / "together.pt")
    assert distance(together, adapter_of(alone.model)) < 5e-6
    logs = json.loads((tmp_path / "log.json").read_text())
    for one, other in zip(alone.state.log_history[:2], logs):
        for name in ("loss", "loss_pages", "loss_pairs", "loss_videos"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


class Stop(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize("accumulate, is_half", [(True, True), (False, False)])
def test_a_resumed_run_ends_where_a_whole_one_does(tmp_path, accumulate, is_half):
    """Stopped in the second epoch, after 3 of 5 updates; the collator draws too. Frozen parts in bfloat16, or not."""

    def run(folder, stop=None, resume=False):
        set_seed(0)
        made = trainer(
            folder,
            MixtureDataset(digit_datasets(sizes=(4, 4, 2))),
            cast_frozen_parts(digit_parts.flamingo()) if is_half else None,
            accumulate=accumulate,
            max_steps=5,
            bf16=is_half,
            save_strategy="steps",
            save_steps=3,
            optim="adamw_torch",
            learning_rate=1e-2,
        )
        made.add_callback(CollatorEpochCallback(made.data_collator.collator))
        if stop:
            made.add_callback(Stop(stop))
        made.train(resume_from_checkpoint=resume)
        return made

    whole = run(tmp_path / "whole")
    assert whole.state.epoch > 1 if accumulate else whole.state.epoch > 0.5
    run(tmp_path / "cut", stop=3)
    resumed = run(tmp_path / "cut", resume=True)
    assert distance(adapter_of(whole.model), adapter_of(resumed.model)) < 1e-6
    logs = [[log["loss"] for log in made.state.log_history if "loss" in log] for made in (whole, resumed)]
    assert len(logs[0]) == 5 and logs[0] == pytest.approx(logs[1], abs=1e-5)
    frozen = torch.bfloat16 if is_half else torch.float32
    assert {(value.requires_grad, value.dtype) for value in resumed.model.parameters()} == {
        (True, torch.float32),
        (False, frozen),
    }


def test_evaluation_of_a_mixture_trainer_is_the_plain_one(tmp_path):
    made = trainer(tmp_path)
    scenes = load_digit_scenes("caption", split="test", size=6)
    metrics = made.evaluate(scenes)
    made.model.eval()
    with torch.no_grad():
        expected = [float(made.model(**collator()([scenes[place] for place in range(6)])).loss)]
    assert metrics["eval_loss"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert not any(name.startswith("loss_") for log in made.state.log_history for name in log)
    again = made.evaluate(MixtureDataset({"pairs": scenes}, shuffle=False))
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-6)
    with pytest.raises(ValueError, match=r"here of \['pages', 'pairs'\].* give the datasets by name"):
        made.evaluate(MixtureDataset({"pages": [{"text": "one"}], "pairs": [{"text": "two"}]}))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"gradient_accumulation_steps": 2}, "must be a multiple of 3, got 2"),
        ({"loss_weights": {"web": 1.0}}, r"weights or collators for \['web'\], but the datasets are"),
        ({"mixture": [1, 2, 3]}, "a single dataset is for transformers.Trainer"),
        ({"remove_unused_columns": True}, "set remove_unused_columns=False"),
    ],
)
def test_settings_that_do_not_fit_a_mixture(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **settings)


def test_mixtures_that_cannot_be():
    with pytest.raises(ValueError, match="got none"):
        MixtureDataset({})
    with pytest.raises(ValueError, match=r"are empty: \['b'\]"):
        MixtureDataset({"a": [1], "b": []})
    with pytest.raises(ValueError, match=r"rows_per_item names \['c'\]"):
        StreamedMixture({"a": [1]}, rows_per_item={"c": 2})


# What is trained how -----------------------------------------------------------------------------------------------


def test_what_decays():
    """As published: all matrices of the gated blocks; no resampler, gate, norm, bias or token row."""
    model = digit_parts.flamingo()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    decayed = set(decay_parameter_names(model)) & trained
    layer = r"model.adapter.layers.{}."
    names = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"]
    names += ["feed_forward.up_proj", "feed_forward.down_proj"]
    assert decayed == {f"{layer.format(index)}{name}.weight" for index in (0, 1) for name in names}
    groups = parameter_groups(model, weight_decay=0.1)
    assert [len(group["params"]) for group in groups] == [len(decayed), len(trained) - len(decayed)]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="unfreeze what is to be trained"):
        parameter_groups(model)


def test_trainers_decay_as_published(tmp_path):
    """Through `MixtureTrainer`, and through a plain `Trainer` with the groups."""
    made = trainer(tmp_path, weight_decay=0.1, optim="adamw_torch")
    model = made.model
    plain = Trainer(
        model,
        arguments(tmp_path),
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": parameter_groups(model, 0.1), "lr": 1e-4}),
    )
    for optimizer in (made.create_optimizer(), plain.create_optimizer()):
        decay = {id(value): group["weight_decay"] for group in optimizer.param_groups for value in group["params"]}
        assert decay[id(model.model.adapter.resampler.latents)] == 0.0
        assert decay[id(model.model.adapter.layers["0"].attention_gate)] == 0.0
        assert decay[id(model.model.adapter.layers["0"].text_norm.weight)] == 0.0
        assert decay[id(model.model.adapter.token_rows.input_rows)] == 0.0
        assert decay[id(model.model.adapter.layers["0"].attention.q_proj.weight)] == 0.1
        assert len(decay) == sum(value.requires_grad for value in model.parameters())


def test_the_published_schedule(tmp_path):
    args = arguments(tmp_path, **{**FLAMINGO_ARGUMENTS, "max_grad_norm": 1.0})
    made = Trainer(nn.Linear(1, 1), args)
    made.create_optimizer_and_scheduler(args.max_steps)
    rates = {}
    for step in range(6001):
        if step in (0, 2500, 5000, 6000):
            rates[step] = made.lr_scheduler.get_last_lr()[0]
        made.optimizer.step()
        made.lr_scheduler.step()
    assert rates == pytest.approx({0: 0.0, 2500: 5e-5, 5000: 1e-4, 6000: 1e-4})
    assert args.weight_decay == 0.1 and args.max_steps == 500_000
    assert FLAMINGO_LOSS_WEIGHTS == {"m3w": 1.0, "align": 0.2, "ltip": 0.2, "vtp": 0.03}


def test_frozen_parts_in_half_precision(tmp_path):
    model = digit_parts.flamingo()
    batch = collator()([load_digit_scenes("caption", size=4)[place] for place in range(4)])
    with torch.no_grad():
        before = model(**batch).loss
    assert cast_frozen_parts(model) is model
    dtypes = {value.requires_grad: value.dtype for value in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert model.get_decoder().rotary_emb.inv_freq.dtype == torch.float32
    loss = model(**batch).loss
    assert loss.item() == pytest.approx(float(before), rel=0.03)
    loss.backward()
    assert all(value.grad.dtype == torch.float32 for value in model.parameters() if value.grad is not None)
    assert float(model.model.adapter.layers["0"].attention_gate.grad) != 0
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    for (name, value), (_, other) in zip(model.named_parameters(), loaded.named_parameters()):
        assert torch.equal(value.float(), other.float()), name


@pytest.mark.parametrize("family, is_tied", [("llama", False), ("opt", True)])
def test_only_new_token_rows_are_trained(tmp_path, family, is_tied):
    """And the optimizer holds a state of what is trained alone."""
    made = trainer(tmp_path, model=digit_parts.flamingo(family), max_steps=1, optim="adamw_torch")
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    made.train()
    changed = {name for name, value in made.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("model.adapter.")}
    rows = {name.rpartition(".")[2] for name in changed if ".token_rows." in name}
    assert rows == ({"input_rows"} if is_tied else {"input_rows", "output_rows"})
    held = {name for name, value in made.model.named_parameters() if value in made.optimizer.optimizer.state}
    assert held == changed


# Augmentation ------------------------------------------------------------------------------------------------------


def gradient_image(size: int = 16) -> Image.Image:
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    return Image.fromarray(
        np.stack([np.tile(ramp, (size, 1)), np.full((size, size), 90, np.uint8), ramp[:, None].repeat(size, 1)], -1)
    )


def test_flips_are_exact_and_half_of_the_time():
    image = gradient_image()
    flip = ImageAugmentation(flip=0.5, brightness=0, contrast=0, saturation=0, hue=0)
    generator = np.random.default_rng(0)
    mirrored = np.asarray(image)[:, ::-1]
    flipped = [np.array_equal(flip([image], generator)[0], mirrored) for _ in range(400)]
    assert abs(np.mean(flipped) - 0.5) < 0.08
    kept = flip([image], np.random.default_rng(int(not flipped[0])))[0]
    assert np.array_equal(kept, image) or np.array_equal(kept, mirrored)


def test_frames_of_a_video_change_together():
    frames = [np.asarray(gradient_image())] * 3
    changed = ImageAugmentation()(frames, np.random.default_rng(1))
    assert all(np.array_equal(changed[0], frame) for frame in changed)
    assert not np.array_equal(changed[0], frames[0])


@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation", "hue"])
def test_colours_change_within_their_limits(change):
    none = dict.fromkeys(("flip", "brightness", "contrast", "saturation", "hue"), 0.0)
    augment = ImageAugmentation(**{**none, change: 0.3})
    image = gradient_image()
    differences = [
        float(np.abs(np.asarray(augment([image], np.random.default_rng(seed))[0], float) - np.asarray(image)).mean())
        for seed in range(20)
    ]
    assert max(differences) > 3 * min(differences) and max(differences) < 90
    assert np.array_equal(ImageAugmentation(**none)([image], np.random.default_rng(0))[0], image)
