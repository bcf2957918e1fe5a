"""Layers that models share: the queue of features, momentum copies, dropped patches."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel, PreTrainedConfig, PreTrainedModel
from two_processes import on_two_processes, share

from hf_mmunify.layers import FeatureQueue, MomentumMixin, keep_patches


WIDTH, QUEUE = 4, 6


# -- The queue --------------------------------------------------------------------------------------------------------


def pairs(first: int, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs that can be told from each other: image features n, text features -n, id n, for n from `first`."""
    ids = torch.arange(first, first + number)
    return ids[:, None].expand(-1, WIDTH).float(), -ids[:, None].expand(-1, WIDTH).float(), ids


def test_the_queue_starts_with_directions_at_random():
    queue = FeatureQueue(WIDTH, QUEUE, with_ids=True)
    for features in (queue.image_features, queue.text_features):
        assert features.shape == (WIDTH, QUEUE)
        torch.testing.assert_close(features.norm(dim=0), torch.ones(QUEUE))
    assert queue.ids.tolist() == [[-100] * QUEUE] and queue.pointer.tolist() == [0]
    assert sorted(queue.state_dict()) == ["ids", "image_features", "pointer", "text_features"]
    assert sorted(FeatureQueue(WIDTH, QUEUE).state_dict()) == ["image_features", "pointer", "text_features"]
    queue.reset(torch.Generator().manual_seed(1))
    first = queue.image_features.clone()
    queue.reset(torch.Generator().manual_seed(1))
    assert torch.equal(queue.image_features, first)


@pytest.mark.parametrize(
    "sizes, places, pointer",
    [
        ([4], [0, 1, 2, 3, -100, -100], 4),
        ([4, 4], [6, 7, 2, 3, 4, 5], 2),
        ([3, 3, 3], [6, 7, 8, 3, 4, 5], 3),
        ([6], [0, 1, 2, 3, 4, 5], 0),
        ([2, 15], [12, 13, 14, 15, 16, 11], 5),  # more than it holds: the last stay
    ],
)
def test_the_queue_goes_round(sizes, places, pointer):
    queue, first = FeatureQueue(WIDTH, QUEUE, with_ids=True), 0
    for size in sizes:
        queue.enqueue(*pairs(first, size))
        first += size
    assert queue.ids[0].tolist() == places and queue.pointer.tolist() == [pointer]
    filled = queue.ids[0] >= 0
    assert torch.equal(queue.image_features[:, filled], queue.ids[:, filled].expand(WIDTH, -1).float())
    assert torch.equal(queue.text_features, torch.where(filled, -queue.image_features, queue.text_features))


def test_the_queue_takes_the_pairs_of_all_processes(tmp_path):
    def fill() -> dict[str, torch.Tensor]:
        queue = FeatureQueue(WIDTH, QUEUE, with_ids=True)
        queue.reset(torch.Generator().manual_seed(0))
        for first in (0, 4):
            queue.enqueue(*(share(part) for part in pairs(first, 4)))
        return queue.state_dict()

    ranks = on_two_processes(fill, tmp_path)
    for name, buffer in fill().items():
        for measured in ranks:
            assert torch.equal(measured[name], buffer), name
    assert ranks[0]["ids"].tolist() == [[6, 7, 2, 3, 4, 5]]


def test_the_queue_refuses_what_does_not_fit():
    images, texts, ids = pairs(0, 2)
    with pytest.raises(ValueError, match=r"width 4: expected \[batch, 4\], got \[2, 3\]"):
        FeatureQueue(WIDTH, QUEUE).enqueue(images[:, :3], texts)
    with pytest.raises(ValueError, match="with_ids=False, but ids came"):
        FeatureQueue(WIDTH, QUEUE).enqueue(images, texts, ids)
    with pytest.raises(ValueError, match="with_ids=True, but no ids came"):
        FeatureQueue(WIDTH, QUEUE, with_ids=True).enqueue(images, texts)


# -- Momentum ---------------------------------------------------------------------------------------------------------


class StudentConfig(PreTrainedConfig):
    model_type = "mmunify-test-student"


class Student(MomentumMixin, PreTrainedModel):
    """A BERT (a part with buffers and composed of other modules) and a projection, with copies, and a queue."""

    config_class = StudentConfig
    base_model_prefix = "student"
    _momentum_pairs = {"encoder": "encoder_m", "proj": "proj_m"}

    def __init__(self, config):
        super().__init__(config)
        tower = BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        self.encoder, self.encoder_m = (BertModel(tower, add_pooling_layer=False) for _ in range(2))
        self.proj, self.proj_m = nn.Linear(8, WIDTH), nn.Linear(8, WIDTH)
        self.queue = FeatureQueue(WIDTH, QUEUE)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, FeatureQueue):
            module.reset()

    @classmethod
    def is_custom_code(cls):
        return False

    def forward(self, inputs):
        self.update_momentum(0.9)
        with torch.no_grad():
            taught = self.proj_m(self.encoder_m(inputs).last_hidden_state)
        return (self.proj(self.encoder(inputs).last_hidden_state) - taught).square().sum()


def copies(model: Student, part: str = "") -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if "_m." in name and name.startswith(part)}


def online(model: Student, name: str) -> torch.Tensor:
    return model.get_parameter(name.replace("_m.", "."))


def test_copies_start_equal_and_are_not_trained():
    model = Student(StudentConfig())
    assert len(copies(model)) > 20
    for name, copy in copies(model).items():
        assert torch.equal(copy, online(model, name)) and not copy.requires_grad, name
        assert copy.data_ptr() != online(model, name).data_ptr() and online(model, name).requires_grad


def test_copies_follow():
    model = Student(StudentConfig())
    before = {name: copy.clone() for name, copy in copies(model).items()}
    for parameter in (*model.encoder.parameters(), *model.proj.parameters()):
        parameter.data += torch.randn_like(parameter)
    model.update_momentum(0.75)
    for name, copy in copies(model).items():
        torch.testing.assert_close(copy, 0.75 * before[name] + 0.25 * online(model, name))
        assert not torch.equal(copy, before[name])
    model.reset_momentum()
    assert all(torch.equal(copy, online(model, name)) for name, copy in copies(model).items())


def test_a_whole_checkpoint_keeps_its_copies(tmp_path):
    model = Student(StudentConfig())
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter)
    model.queue.enqueue(*pairs(0, 2)[:2])
    model.save_pretrained(tmp_path)
    again = Student.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not any(copy.requires_grad for copy in copies(again).values())


@pytest.mark.parametrize("stripped", ["_m.", "queue.", "proj_m."])
def test_a_stripped_checkpoint_loads_without_a_word(tmp_path, stripped, caplog):
    model = Student(StudentConfig())
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if stripped not in name}
    assert len(kept) < len(model.state_dict())
    save_file(kept, file, metadata={"format": "pt"})
    with caplog.at_level("WARNING"):
        again, info = Student.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not caplog.records
    for name, copy in copies(again).items():
        source = online(model, name) if stripped in name else model.get_parameter(name)
        assert torch.equal(copy, source) and not copy.requires_grad, name
    torch.testing.assert_close(again.queue.image_features.norm(dim=0), torch.ones(QUEUE))
    assert torch.equal(again.queue.image_features, model.queue.image_features) is (stripped != "queue.")


def test_another_missing_key_is_still_reported(tmp_path):
    Student(StudentConfig()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != "proj.weight"}, file, metadata={"format": "pt"})
    _, info = Student.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"proj.weight"}


def test_copies_follow_what_lora_adds():
    model = Student(StudentConfig())
    before = {name: copy.clone() for name, copy in copies(model).items()}
    settings = LoraConfig(target_modules=r"encoder\..*(query|value)", modules_to_save=["proj"], r=2)
    adapted = get_peft_model(model, settings)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    model.update_momentum(0.5)
    after = {name: copy.clone() for name, copy in copies(model).items()}
    assert not any("lora" in name for name in after)
    merged = adapted.merge_and_unload()
    for name, copy in after.items():
        expected = 0.5 * before[name] + 0.5 * online(merged, name)
        torch.testing.assert_close(copy, expected, rtol=1e-5, atol=1e-6)
    changed = [name for name in after if not torch.allclose(after[name], before[name])]
    assert len(changed) == 4, changed  # query, value, and the projection's weight and bias


def two_steps() -> dict[str, torch.Tensor]:
    """Two steps of SGD with an update of the copies in each forward: sharded, or one process alone."""
    torch.manual_seed(0)
    model = Student(StudentConfig())
    for copy in copies(model).values():
        copy.data += torch.randn_like(copy)
    if distributed.is_initialized():
        mesh = init_device_mesh("cpu", (2,))
        for layer in (model.encoder.encoder.layer[0], model.encoder_m.encoder.layer[0]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        model(torch.tensor([[1, 2, 3]])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.full_tensor() if distributed.is_initialized() else p for name, p in model.named_parameters()}


def test_copies_follow_where_weights_are_sharded(tmp_path):
    ranks = on_two_processes(two_steps, tmp_path)
    for name, expected in two_steps().items():
        torch.testing.assert_close(ranks[0][name], expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


# -- Patches ----------------------------------------------------------------------------------------------------------


def test_patches_are_kept_by_chance_or_choice():
    patches = torch.arange(2 * 9 * 3).view(2, 9, 3).float()
    kept, indices = keep_patches(patches, 4, torch.Generator().manual_seed(0))
    again, chosen = keep_patches(patches, 4, indices=indices)
    assert torch.equal(kept, again) and torch.equal(chosen, indices)
    assert all(len(set(row)) == 4 for row in indices.tolist()) and indices[0].tolist() != indices[1].tolist()
    for row in range(2):
        assert torch.equal(kept[row], patches[row, indices[row]])
    _, all_of_them = keep_patches(patches, 9)
    assert sorted(all_of_them[0].tolist()) == list(range(9))
    counts = torch.stack([keep_patches(patches[:1], 3)[1][0] for _ in range(600)]).flatten().bincount(minlength=9)
    assert counts.min() > 140 and counts.max() < 260  # 200 each


@pytest.mark.parametrize("keep", [0, 10])
def test_more_patches_than_there_are_cannot_be_kept(keep):
    with pytest.raises(ValueError, match=rf"how many of the 9 patches stay, from 1 to 9; got {keep}"):
        keep_patches(torch.zeros(1, 9, 3), keep)


def test_queues_hold_unit_vectors_after_reset_of_a_part():
    """What a checkpoint has is kept, and only the rest drawn."""
    queue = FeatureQueue(WIDTH, QUEUE)
    kept = queue.image_features.clone()
    queue.image_features._is_hf_initialized = True
    text = queue.text_features.clone()
    queue.reset()
    assert torch.equal(queue.image_features, kept) and not torch.equal(queue.text_features, text)
    torch.testing.assert_close(queue.text_features, normalize(queue.text_features, dim=0))
