"""Layer-wise rates, freezing, several losses, dropped patches: each against an independent computation."""

import math

import contrastive_parts as parts
import pytest
import torch
import transformers
from torch import nn

from hf_mmunify.training import (
    MultiTaskWeights,
    PatchDropout,
    TaskTrainer,
    TaskTrainingArguments,
    freeze_layers,
    layer_decay_parameter_groups,
    layer_depths,
)


BERT = {**parts.TEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def vit(**changes) -> transformers.ViTForImageClassification:
    transformers.set_seed(0)
    config = {**parts.VISION, "num_labels": 3, "initializer_range": 0.2, **changes}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**config))


def arguments(folder, **settings) -> TaskTrainingArguments:
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "learning_rate": 0.5,
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
    return TaskTrainingArguments(str(folder), **{**defaults, **settings})


def pictures(number: int = 4, size: int = 16) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        {"pixel_values": torch.randn(3, size, size, generator=draw), "labels": torch.tensor(row % 3)}
        for row in range(number)
    ]


# Layers ------------------------------------------------------------------------------------------------------------


def by_original(name: str, layers: int) -> int:
    """Depth as BEiT's code assigns it (microsoft/unilm, beit/optim_factory.py, `get_num_layer_for_vit`)."""
    if "embeddings" in name:
        return 0
    if ".layers." in name or ".layer." in name:
        return int(name.replace(".layers.", ".layer.").split(".layer.")[1].split(".")[0]) + 1
    return layers + 1


def test_rates_fall_from_the_head_to_the_embeddings():
    model = vit(num_hidden_layers=3)
    groups = layer_decay_parameter_groups(model, learning_rate=1.0, layer_decay=0.5, weight_decay=0.05)
    found = {id(value): group for group in groups for value in group["params"]}
    names = dict(model.named_parameters())
    assert len(found) == len(names) == sum(len(group["params"]) for group in groups)
    for name, value in names.items():
        group = found[id(value)]
        assert group["lr"] == 0.5 ** (4 - by_original(name, 3)), name
        assert (group["weight_decay"] == 0.0) == (value.ndim == 1 or "layernorm" in name), name
    assert {group["lr"] for group in groups} == {1.0, 0.5, 0.25, 0.125, 0.0625}


def test_each_tower_of_a_composed_model_has_its_own_depth():
    depths = layer_depths(parts.clip())
    assert depths["vision_model.embeddings.class_embedding"] == ("vision_model", 0, 2)
    assert depths["vision_model.pre_layrnorm.weight"] == ("vision_model", 0, 2)
    assert depths["text_model.encoder.layers.1.mlp.fc1.weight"] == ("text_model", 2, 2)
    assert depths["text_model.final_layer_norm.weight"] == ("text_model", 3, 2)
    for name in ("logit_scale", "visual_projection.weight", "text_projection.weight"):
        assert depths[name] == (None, 1, 0)
    groups = layer_decay_parameter_groups(parts.clip(), 1.0, 0.1)
    assert {round(group["lr"], 6) for group in groups} == {1.0, 0.1, 0.01, 0.001}


@pytest.mark.parametrize("name", ["bert", "swin", "beit", "vilt", "timesformer", "blip"])
def test_layers_of_other_architectures_are_found(name):
    swin = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2]}
    vision = parts.VISION
    models = {
        "bert": (transformers.BertForMaskedLM, transformers.BertConfig(**BERT), {"": 2}),
        "swin": (transformers.SwinForImageClassification, transformers.SwinConfig(**swin), {"": 3}),
        "beit": (transformers.BeitForImageClassification, transformers.BeitConfig(**vision), {"": 2}),
        "vilt": (transformers.ViltForQuestionAnswering, transformers.ViltConfig(**vision), {"": 2}),
        "timesformer": (transformers.TimesformerModel, transformers.TimesformerConfig(**vision), {"": 2}),
        "blip": (
            transformers.BlipForQuestionAnswering,
            transformers.BlipConfig(vision_config=vision, text_config=BERT | parts.SPECIAL),
            {"vision_model": 2, "text_encoder": 2, "text_decoder": 2},
        ),
    }
    model_class, config, towers = models[name]
    model = model_class(config)
    depths = layer_depths(model)
    assert {depth.tower: depth.layers for depth in depths.values()} == towers
    for tower, number in towers.items():
        assert {depth.depth for depth in depths.values() if depth.tower == tower} >= set(range(number + 1))
    if name == "swin":  # the layer that merges patches belongs to the block before it
        assert depths["swin.encoder.layers.0.downsample.reduction.weight"].depth == 1
        assert depths["swin.encoder.layers.1.blocks.1.layernorm_before.weight"].depth == 3
        assert depths["classifier.weight"].depth == 4


def test_trainer_applies_the_rates(tmp_path):
    model, rows = vit(), pictures()
    expected = {name: value.detach().clone() for name, value in model.named_parameters()}
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    model.train()(**batch).loss.backward()
    for name, value in model.named_parameters():
        expected[name] -= 0.5 * 0.7 ** (3 - by_original(name, 2)) * value.grad
    model = vit()
    TaskTrainer(model, arguments(tmp_path, layer_decay=0.7), train_dataset=rows).train()
    plain = vit()
    TaskTrainer(plain, arguments(tmp_path), train_dataset=rows).train()
    for name, value in model.named_parameters():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    assert not torch.allclose(plain.vit.embeddings.cls_token, model.vit.embeddings.cls_token, atol=1e-4)


def test_frozen_layers_stay_and_the_others_move(tmp_path):
    model = vit()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    TaskTrainer(model, arguments(tmp_path, frozen_layers=1), train_dataset=pictures()).train()
    for name, value in model.named_parameters():
        is_frozen = "embeddings" in name or ".layers.0." in name
        assert value.requires_grad is not is_frozen, name
        if is_frozen:
            assert torch.equal(value, before[name]), name
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])
    assert not torch.equal(model.vit.layers[1].layernorm_before.weight, before["vit.layers.1.layernorm_before.weight"])


def test_towers_are_frozen_by_name():
    model = parts.clip()
    frozen = freeze_layers(model, towers="vision")
    assert set(frozen) == {name for name, value in model.named_parameters() if not value.requires_grad}
    assert all(name.startswith("vision_model") for name in frozen)
    left = {name for name, value in model.named_parameters() if value.requires_grad and name.startswith("vision")}
    assert left == {"vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias"}
    with pytest.raises(ValueError, match=r"No tower is called 'audio', only \['text_model', 'vision_model'\]"):
        freeze_layers(model, towers="audio")
    with pytest.raises(ValueError, match=r"from 0 to 2 .* got 3"):
        freeze_layers(model, 3)
    with pytest.raises(ValueError, match="Linear has no stack of layers"):
        layer_depths(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"above 0 and up to 1, got 1\.5"):
        layer_decay_parameter_groups(model, 1.0, 1.5)


# Several losses ----------------------------------------------------------------------------------------------------


class TwoLosses(nn.Module):
    """A regression onto two targets, each with a loss of its own."""

    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.zeros(2))

    def forward(self, targets):
        errors = (self.places - targets).square().mean(0)
        return {"loss": errors.sum(), "loss_a": errors[0], "loss_b": errors[1]}


def two_losses(folder, weights, **settings) -> TaskTrainer:
    rows = [{"targets": torch.tensor([1.0, 3.0])}, {"targets": torch.tensor([2.0, -1.0])}]
    args = arguments(folder, per_device_train_batch_size=2, **settings)
    return TaskTrainer(TwoLosses(), args, train_dataset=rows, multi_task_weights=weights)


def test_fixed_weights_of_several_losses(tmp_path):
    made = two_losses(tmp_path, MultiTaskWeights({"loss_a": 2.0, "loss_b": 0.5}))
    made.train()
    assert made.model.places.tolist() == pytest.approx([0.5 * 2.0 * 2 * 1.5, 0.5 * 0.5 * 2 * 1.0])


def test_learned_weights_settle_at_the_inverse_of_twice_the_loss(tmp_path):
    """exp(-s) L + s / 2 is least at s = log 2 L, where the weight is 1 / 2 L; checkpoints carry the weights."""
    weights = MultiTaskWeights(["loss_a", "loss_b"])
    made = two_losses(tmp_path, weights, max_steps=200, learning_rate=0.3, save_strategy="steps", save_steps=200)
    made.train()
    assert made.model.places.tolist() == pytest.approx([1.5, 1.0], abs=1e-3)
    assert weights.current() == pytest.approx({"loss_a": 1 / (2 * 0.25), "loss_b": 1 / (2 * 4.0)}, rel=1e-3)
    resumed = two_losses(tmp_path, MultiTaskWeights(["loss_a", "loss_b"]), max_steps=201, learning_rate=0.3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-200"))
    assert resumed.multi_task_weights.current() == pytest.approx(weights.current(), rel=1e-2)
    assert [group["weight_decay"] for group in made.optimizer.param_groups][-1] == 0.0


def test_learned_weights_by_hand():
    weights = MultiTaskWeights(["loss_a", "loss_b"])
    with torch.no_grad():
        weights.log_variances.copy_(torch.tensor([0.3, -0.7]))
    loss = weights({"loss_a": torch.tensor(2.0), "loss_b": torch.tensor(0.5), "logits": torch.zeros(3)})
    assert float(loss) == pytest.approx(2 * math.exp(-0.3) + 0.15 + 0.5 * math.exp(0.7) - 0.35)
    with pytest.raises(ValueError, match=r"returned no \['loss_b'\], only \['loss', 'loss_a'\]"):
        weights({"loss": torch.tensor(1.0), "loss_a": torch.tensor(1.0), "loss_b": None, "logits": None})
    with pytest.raises(ValueError, match="got none"):
        MultiTaskWeights([])


# Dropped patches ---------------------------------------------------------------------------------------------------


def towers() -> dict[str, tuple[nn.Module, dict[str, torch.Tensor], int]]:
    """By name: a model, its batch, and the tokens that stand before the patches."""
    vision = {**parts.VISION, "image_size": 32, "initializer_range": 0.2}
    draw = torch.Generator().manual_seed(0)
    image = {"pixel_values": torch.randn(2, 3, 32, 32, generator=draw)}
    relative = {"drop_path_rate": 0.0, "use_relative_position_bias": True, "use_absolute_position_embeddings": False}
    return {
        "vit": (transformers.ViTModel(transformers.ViTConfig(**vision)), image, 1),
        "deit": (transformers.DeiTModel(transformers.DeiTConfig(**vision)), image, 2),
        "clip": (transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision)), image, 1),
        "siglip": (transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision)), image, 0),
        "blip": (transformers.BlipVisionModel(transformers.BlipVisionConfig(**vision)), image, 1),
        "dinov2": (transformers.Dinov2Model(transformers.Dinov2Config(**vision)), image, 1),
        "registers": (
            transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**vision)),
            image,
            5,
        ),
        "beit": (transformers.BeitModel(transformers.BeitConfig(**vision)), image, 1),
        "beit_relative": (transformers.BeitModel(transformers.BeitConfig(**vision, **relative)), image, 1),
    }


def numbers_of_tokens(model: nn.Module) -> tuple[list[int], list]:
    """What each layer of a model computes, as its hooks see it."""
    seen: list[int] = []
    layers = [module for module in model.modules() if type(module).__name__.endswith("Layer")]
    norms = [next(m for m in layer.modules() if isinstance(m, nn.LayerNorm)) for layer in layers]
    hooks = [norm.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1])) for norm in norms]
    return seen, hooks


@pytest.mark.parametrize("name", list(towers()))
def test_layers_compute_fewer_patches(name):
    transformers.set_seed(0)
    model, batch, prefix = towers()[name]
    model.eval()
    whole = model(**batch).last_hidden_state
    with PatchDropout(model, 0.75):
        assert torch.equal(model(**batch).last_hidden_state, whole)  # evaluation sees everything
        model.train()
        seen, hooks = numbers_of_tokens(model)
        outputs = model(**batch).last_hidden_state
        assert outputs.shape[1] == prefix + 4 and set(seen) == {prefix + 4}
        outputs.square().sum().backward()
        assert all(
            value.grad is not None
            for key, value in model.named_parameters()
            if "embeddings" in key and "mask_token" not in key
        )
        for hook in hooks:
            hook.remove()
    assert model(**batch).last_hidden_state.shape == whole.shape
    with PatchDropout(model, 0.0):
        model.eval()
        assert torch.equal(model(**batch).last_hidden_state, whole)
        assert model.train()(**batch).last_hidden_state.shape == whole.shape


@pytest.mark.parametrize("name", ["clip", "siglip", "beit_relative"])
def test_the_patches_that_stay_see_what_they_would_without_the_others(name, monkeypatch):
    """Against attention in which the patches left out are masked, layer by layer."""
    from hf_mmunify.training import patch_dropout as module

    transformers.set_seed(0)
    model, batch, prefix = towers()[name]
    for key, value in model.named_parameters():
        if key.endswith("relative_position_bias_table"):
            nn.init.normal_(value)  # zero at first
    model.train()
    places = torch.tensor([[3, 9, 4, 12], [0, 1, 15, 7]])
    monkeypatch.setattr(
        module,
        "keep_patches",
        lambda states, keep: (states.gather(1, places[:, :, None].expand(-1, -1, states.shape[2])), places),
    )
    with PatchDropout(model, 0.75):
        got = model(**batch).last_hidden_state
    first = torch.arange(prefix).expand(2, -1)
    kept = torch.cat([first, places + prefix], dim=1)  # [B, S + K]
    mask = torch.full((2, 1, 1, 16 + prefix), float("-inf"))
    mask.scatter_(3, kept[:, None, None], 0.0)

    def masked(layer, args, kwargs):
        return args[:1], {**kwargs, "attention_mask": mask}

    layers = [m for m in model.modules() if type(m).__name__.endswith("Layer")]
    hooks = [layer.register_forward_pre_hook(masked, with_kwargs=True) for layer in layers]
    expected = model(**batch).last_hidden_state.gather(1, kept[:, :, None].expand(-1, -1, 32))
    assert torch.allclose(got, expected, atol=1e-5) and len(hooks) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_dropping_patches_repeats_itself_in_a_checkpointed_tower(reentrant):
    transformers.set_seed(0)
    model, batch, _ = towers()["vit"]
    gradients = []
    with PatchDropout(model, 0.5):
        for is_checkpointed in (False, True):
            if is_checkpointed:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.train().zero_grad()
            torch.manual_seed(3)
            model(**batch).pooler_output.square().sum().backward()
            gradients.append({key: value.grad.clone() for key, value in model.named_parameters()})
    for key, gradient in gradients[0].items():
        if not (reentrant and "embeddings" in key):  # reentrant checkpoints need inputs with a gradient
            assert torch.allclose(gradient, gradients[1][key], atol=1e-6), key


def test_another_choice_each_step_and_each_image():
    transformers.set_seed(0)
    model, batch, _ = towers()["vit"]
    batch = {"pixel_values": batch["pixel_values"][:1].expand(2, -1, -1, -1)}
    model.train()
    with PatchDropout(model, 0.5):
        one, other = (model(**batch).pooler_output for _ in range(2))
    assert not torch.allclose(one, other, atol=1e-4) and not torch.allclose(one[0], one[1], atol=1e-4)


def test_trainers_drop_patches_of_any_tower_in_a_model(tmp_path):
    model = parts.clip()
    args = {"patch_dropout": 0.5, "gradient_cache_chunk_size": 3}
    seen, _ = numbers_of_tokens(model.vision_model)
    made = parts.trainer(model, parts.pairs(), tmp_path, **args)
    made.train()
    assert set(seen[-4:]) == {1 + 2}  # 2 of 4 patches, in every layer
    seen.clear()
    made.evaluate()
    assert set(seen) == {1 + 4}


def test_towers_that_need_all_their_patches_are_refused():
    vision = parts.VISION
    swin = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
    for model in (
        transformers.TimesformerModel(transformers.TimesformerConfig(**vision)),
        transformers.SwinModel(transformers.SwinConfig(**swin)),
    ):
        with pytest.raises(ValueError, match="do not take their tokens as a set"):
            PatchDropout(model, 0.5)
    for model in (
        transformers.ViltModel(transformers.ViltConfig(**vision)),
        transformers.BertModel(transformers.BertConfig(**BERT)),
    ):
        with pytest.raises(ValueError, match="has no vision tower with patches of its own"):
            PatchDropout(model, 0.5)
    shared = transformers.BeitModel(transformers.BeitConfig(**vision, use_shared_relative_position_bias=True))
    with PatchDropout(shared, 0.5), pytest.raises(ValueError, match="take a mask or positions beside the tokens"):
        shared.train()(torch.randn(1, 3, 16, 16))
    with pytest.raises(ValueError, match="not including 1, got 1"):
        PatchDropout(vit(), 1.0)
