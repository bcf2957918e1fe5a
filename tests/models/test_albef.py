"""ALBEF beyond what every architecture promises: its heads, its teacher, its queue, its answers, its heat maps."""

from pathlib import Path

import pytest
import torch
from golden_case import GoldenCase
from tiny.albef import LENGTHS, PAD, ROW, SIZE, inputs, labels, next_pair
from torch import nn
from transformers import BitsAndBytesConfig, set_seed

from hf_mmunify.conversion.albef import convert, export
from hf_mmunify.conversion.errors import ConversionError
from hf_mmunify.models.albef import (
    AlbefConfig,
    AlbefForImagesAndTextClassification,
    AlbefForImageTextRetrieval,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefModel,
)
from hf_mmunify.training import qlora_config


RETRIEVAL, PRETRAINING = "AutoModelForImageTextRetrieval", "AutoModelForPreTraining"
ANSWERING, REASONING = "AutoModelForVisualQuestionAnswering", "AutoModelForVisualReasoning"
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "albef"


def batch_of(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    batch = inputs(name, seed)
    return {**batch, **labels(name, batch)}


def original(case: str) -> tuple[dict[str, torch.Tensor], dict]:
    """State dict and configuration of a golden case."""
    golden = GoldenCase(GOLDEN / f"{case}.json")
    return golden.state_dict(), golden.info["config"]


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    return all(torch.equal(p, theirs.get_parameter(name)) for name, p in ours.named_parameters())


# Heads from a pre-trained model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> tuple[AlbefForPreTraining, Path]:
    """A pre-trained model whose momentum copies are not what they copy, and its folder."""
    folder = tmp_path_factory.mktemp("pretrained")
    model = ROW.model(PRETRAINING)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(0.01 if "_m." in name else 0.02)
    model.save_pretrained(folder)
    return model, folder


def test_answers_begin_with_the_layers_that_fuse(pretrained):
    model, folder = pretrained
    answering = AlbefForQuestionAnswering.from_pretrained(folder)
    decoder, encoder = answering.text_decoder.model, model.model.text_model
    assert same(answering.model, model.model) and same(answering.model_m, model.model_m)
    assert same(decoder.embeddings, encoder.embeddings)
    assert len(decoder.layers) == 1 and same(decoder.layers[0], encoder.layers[1])
    assert same(answering.text_decoder.lm_head, model.lm_head)
    assert answering.text_decoder.lm_head.decoder.weight is decoder.embeddings.word_embeddings.weight
    assert same(answering.text_decoder_m.lm_head.dense, model.lm_head_m.dense)


def packed(module: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What 4 bits hold of each weight of a module: the numbers, and the scales of its blocks."""
    in_4_bits = {name: p for name, p in module.named_parameters() if type(p).__name__ == "Params4bit"}
    return {name: (p.data, p.quant_state.absmax) for name, p in in_4_bits.items()}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("head", "name"), [(AlbefForQuestionAnswering, ANSWERING), (AlbefForImagesAndTextClassification, REASONING)]
)
def test_in_4_bits_too_heads_begin_as_copies_of_a_base(tmp_path, head, name, stored):
    """Of one in full precision, or stored in 4 bits."""
    settings = {"quantization_config": qlora_config(ROW.config(), bnb_4bit_compute_dtype=torch.float32)}
    ROW.model("AutoModel").save_pretrained(tmp_path)
    if stored:
        AlbefModel.from_pretrained(tmp_path, **settings).save_pretrained(tmp_path)
        settings = {}
    set_seed(0)
    model = head.from_pretrained(tmp_path, **settings)
    copies = {"model": "model_m", "model.text_model.layers.1": "text_decoder.model.layers.0"}
    copies |= {"text_decoder": "text_decoder_m"}
    if head is AlbefForImagesAndTextClassification:
        copies = {"model": "model_m", "model.text_model.layers.1": "pair_layers.0", "pair_layers": "pair_layers_m"}
    for part, copy in copies.items():
        expected, got = packed(model.get_submodule(part)), packed(model.get_submodule(copy))
        assert len(got) >= 8 and got.keys() <= expected.keys()  # pairs have one projection of keys and values
        assert all(torch.equal(x, y) for key in got for x, y in zip(expected[key], got[key]))
    before = {key: data.clone() for key, (data, _) in packed(model).items()}
    model.train()(**batch_of(name)).loss.backward()
    assert all(torch.equal(before[key], data) for key, (data, _) in packed(model).items())
    model.save_pretrained(tmp_path / "again")
    again = head.from_pretrained(tmp_path / "again")
    assert all(torch.equal(before.pop(key), data) for key, (data, _) in packed(again).items()) and not before
    if not stored:
        set_seed(0)
        exact = head.from_pretrained(tmp_path)(**batch_of(name)).loss
        assert 0 < (model.eval()(**batch_of(name)).loss / exact - 1).abs() < 0.01


def test_parts_that_are_new_cannot_be_in_4_bits(tmp_path):
    ROW.model("AutoModel").save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    with pytest.raises(
        ValueError,
        match=r"got one without 4 parts of AlbefForVisualEntailment: classifier.dense, classifier.out_proj, "
        r"classifier_m.dense, \.\.\.\. They are new .* name them in `llm_int8_skip_modules`",
    ):
        AlbefForVisualEntailment.from_pretrained(tmp_path, quantization_config=quantization)
    quantization.llm_int8_skip_modules = ["classifier", "classifier_m", "model_m"]
    with pytest.raises(ValueError, match=r"expected model_m\S+ in 4 or 8 bits, as what it is a copy of"):
        AlbefForVisualEntailment.from_pretrained(tmp_path, quantization_config=quantization)


def test_the_second_image_is_read_as_the_first(pretrained):
    model, folder = pretrained
    for head in (AlbefForImagesAndTextClassification, AlbefForTextAssignment):
        loaded = head.from_pretrained(folder)
        assert same(loaded.pair_layers[0], model.model.text_model.layers[1])
    assert loaded.temperature == model.temperature and same(loaded.vision_proj, model.vision_proj)
    assert not loaded.vision_proj.weight.requires_grad


def test_retrieval_goes_on_where_pretraining_ended(pretrained):
    model, folder = pretrained
    retrieval = AlbefForImageTextRetrieval.from_pretrained(folder)
    assert all(
        same(getattr(retrieval, part), getattr(model, part)) for part in ("vision_proj_m", "itm_head", "model_m")
    )
    assert torch.equal(retrieval.queue.image_features, model.queue.image_features)
    assert (retrieval.queue.ids == -100).all()


def test_without_copies_a_model_is_half_as_large(pretrained, tmp_path):
    model, folder = pretrained
    light = AlbefForVisualEntailment.from_pretrained(folder, distill=False)
    assert same(light.model, model.model) and not any("_m." in name for name, _ in light.named_parameters())
    batch = batch_of("AutoModelForVisualEntailment")
    expected = nn.functional.cross_entropy(light(**inputs("", 0)).logits, batch["labels"])
    assert torch.allclose(light.train()(**batch).loss, expected)
    with pytest.raises(ValueError, match="distill=True"):
        light(**batch, alpha=0.4)
    light.save_pretrained(tmp_path)
    again = AlbefForVisualEntailment.from_pretrained(tmp_path, distill=True)
    assert same(again.model_m, light.model) and not any(p.requires_grad for p in again.model_m.parameters())


HEADS = {
    RETRIEVAL: AlbefForImageTextRetrieval,
    PRETRAINING: AlbefForPreTraining,
    ANSWERING: AlbefForQuestionAnswering,
    REASONING: AlbefForImagesAndTextClassification,
    "AutoModelForVisualEntailment": AlbefForVisualEntailment,
}


@pytest.mark.parametrize("name", HEADS)
def test_tokens_can_be_added(name, tmp_path):
    model, words = ROW.model(name), ROW.config().text_config.vocab_size
    model.model_m.get_input_embeddings().weight.add_(1.0)
    copy = model.model_m.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(words + 3)
    online, slow = model.get_input_embeddings().weight, model.model_m.get_input_embeddings().weight
    assert len(online) == len(slow) == words + 3 and not slow.requires_grad
    assert torch.equal(slow[:words], copy) and torch.equal(slow[words:], online[words:])
    batch = batch_of(name)
    for key in {"input_ids", "labels"} & batch.keys():
        batch[key] = torch.where(batch[key] == batch["input_ids"][0, 1], words + 1, batch[key])
    loss = model.train()(**batch).loss
    loss.backward()
    assert loss.isfinite() and online.grad[words + 1].abs().max() > 0
    model.save_pretrained(tmp_path)
    again = HEADS[name].from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again.pop(key), value) for key, value in model.state_dict().items()) and not again


# Original checkpoints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["pretrain", "retrieval", "vqa", "nlvr2", "ve"])
def test_stripped_checkpoints_come_and_go(case):
    """Without copies and queue, as some are published; the head is found by the keys."""
    whole, config = original(case)
    stripped = {key: tensor for key, tensor in whole.items() if "_m." not in key and "queue" not in key}
    model = convert({"model": stripped}, config)
    assert not model.config.distill and model.config.queue_size == 0
    found = export(model)
    assert found.keys() == stripped.keys() and all(torch.equal(found[key], stripped[key]) for key in stripped)


@pytest.mark.parametrize("case, head", [("retrieval", "vqa"), ("vqa", "retrieval"), ("ve", "nlvr2"), ("nlvr2", "vqa")])
def test_a_checkpoint_of_another_head_is_refused(case, head):
    with pytest.raises(ConversionError, match=r"of this head|of this checkpoint"):
        convert(*original(case), head=head)


def test_a_bert_is_no_albef():
    state, config = original("ve")
    state = {key: tensor for key, tensor in state.items() if "crossattention" not in key}
    with pytest.raises(ConversionError, match="cross-attention"):
        convert(state, config)


def test_images_of_another_size(pretrained):
    """Positions are interpolated once, as the tower does for each image; the copies' too."""
    model, folder = pretrained
    model = model.eval()
    pixels = torch.randn(2, 3, 2 * SIZE, 2 * SIZE)
    expected = model.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
    with pytest.raises(ValueError, match="doesn't match"):
        model.get_image_features(pixels)
    larger = AlbefForPreTraining.from_pretrained(folder, image_size=2 * SIZE)
    assert torch.allclose(larger.get_image_features(pixels).pooler_output, expected, atol=1e-5)
    assert larger.model_m.vision_model.embeddings.position_embeddings.shape[1] == 65
    assert larger.config.patch_grid == (8, 8)
    with pytest.raises(ValueError, match="whole patches"):
        larger.resize_images(30)


def test_any_tower_serves():
    settings = {**ROW.settings, "vision_config": {**ROW.settings["vision_config"], "model_type": "clip_vision_model"}}
    model = AlbefForVisualEntailment(AlbefConfig(**settings))
    model(**batch_of("AutoModelForVisualEntailment")).loss.backward()
    # What CLIP normalises for its own pooling reaches no token
    silent = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert silent == {f"model.vision_model.post_layernorm.{x}" for x in ("weight", "bias")}


# Teacher and queue -------------------------------------------------------------------------------------------------


def test_copies_follow_in_training_alone():
    model = ROW.model(RETRIEVAL)
    model.config.momentum = 0.75
    with torch.no_grad():
        model.vision_proj.weight.add_(1.0)
        model.temperature.fill_(7.0)
    before, batch = model.vision_proj_m.weight.clone(), batch_of(RETRIEVAL)
    pointer, queue = model.queue.pointer.clone(), model.queue.image_features.clone()
    model(**batch)
    assert torch.equal(model.vision_proj_m.weight, before) and torch.equal(model.queue.image_features, queue)
    model.train()(**batch)
    assert torch.allclose(model.vision_proj_m.weight - before, torch.full_like(before, 0.25))
    assert model.temperature == 0.5  # as published, it stays between its bounds
    assert not torch.equal(model.queue.image_features, queue) and model.queue.pointer == pointer


@pytest.mark.parametrize("size", [3, 5, 6, 0])
def test_a_batch_need_not_divide_the_queue(size):
    model = AlbefForImageTextRetrieval(ROW.config(queue_size=size)).train()
    for seed in (0, 1):
        model(**batch_of(RETRIEVAL, seed)).loss.backward()
    if size:
        assert model.queue.pointer == 8 % size
        last = batch_of(RETRIEVAL, 1)["image_ids"][-min(size, 3) :]
        assert set(last.tolist()) <= set(model.queue.ids[0].tolist())


def test_pairs_of_one_image_are_right_alike():
    """Two texts of an image: neither is the other's negative, and the loss is lower where they are known."""
    model, batch = ROW.model(RETRIEVAL), batch_of(RETRIEVAL)
    seen = []
    model.choose_negatives = lambda weights: seen.append(weights) or next_pair(weights)
    batch["image_ids"] = torch.tensor([5, 6, 5, 7])
    model(**batch)
    for weights in seen:
        assert weights[0, 2] == weights[2, 0] == 0 and ((weights[1] > 0) == torch.tensor([1, 0, 1, 1]).bool()).all()
    with pytest.raises(ValueError, match="all 4 pairs of this batch show one image"):
        model(**{**batch, "image_ids": torch.ones(4, dtype=torch.long)})
    assert model(**inputs(RETRIEVAL, 0)).loss is None
    unknown = model.train()(**inputs(RETRIEVAL, 0), return_loss=True)
    assert unknown.loss.isfinite() and (model.queue.ids == -100).all()


def test_negatives_are_drawn_in_training_and_the_hardest_in_evaluation():
    model, batch = ROW.model(RETRIEVAL), batch_of(RETRIEVAL)
    model.choose_negatives = None
    assert len({model(**batch).loss_itm.item() for _ in range(3)}) == 1
    model.train()
    drawn = [model(**batch, generator=torch.Generator().manual_seed(k)).loss_itm.item() for k in (1, 2, 3, 4, 1)]
    assert drawn[0] == drawn[4] and len(set(drawn)) > 1


def test_bfloat16_trains_nearly_the_same(tmp_path):
    for name in (RETRIEVAL, PRETRAINING):
        model, batch = ROW.model(name), batch_of(name)
        model.save_pretrained(tmp_path / name)
        half = type(model).from_pretrained(tmp_path / name, dtype=torch.bfloat16)
        half.choose_negatives = next_pair
        for one in (model, half):
            one.train()(**batch).loss.backward()
        pairs = [(p.grad, half.get_parameter(n).grad.float()) for n, p in model.named_parameters() if p.requires_grad]
        apart = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
        assert (apart / torch.stack([a.square().sum() for a, _ in pairs]).sum()).sqrt() < 0.2


def test_losses_survive_nothing_to_learn():
    model, batch = ROW.model(PRETRAINING).train(), batch_of(PRETRAINING)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    result = model(**batch)
    assert result.loss_mlm == 0 and result.loss == result.loss_itc + result.loss_itm
    result.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_text_assignment_shows_the_right_images():
    model = AlbefForTextAssignment(ROW.config()).train()
    images = torch.randn(4, 17, 64)
    counts = torch.zeros(3)
    for seed in range(50):
        chosen, answers = model.draw(images, 4, torch.Generator().manual_seed(seed))
        own = torch.arange(4)
        assert (chosen[:, 0] != chosen[:, 1]).all()
        assert torch.equal(answers == 0, chosen[:, 0] == own) and torch.equal(answers == 1, chosen[:, 1] == own)
        counts += answers.bincount(minlength=3)
    assert (counts / counts.sum() - 1 / 3).abs().max() < 0.1
    result = model(**inputs("", 0), generator=torch.Generator().manual_seed(0))
    result.loss.backward()
    assert result.logits.shape == (4, 3)
    with pytest.raises(ValueError, match="at least 3 images"):
        model.draw(images[:2], 2, None)


# Answers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answering() -> AlbefForQuestionAnswering:
    return ROW.model(ANSWERING)


def written_anew(model: AlbefForQuestionAnswering, question: dict, length: int) -> torch.Tensor:
    """A greedy answer, reading everything again for each token."""
    states = model.model(**question).last_hidden_state
    answer = torch.full((len(states), 1), model.text_decoder.config.bos_token_id)
    for _ in range(length):
        read = {"encoder_hidden_states": states, "encoder_attention_mask": question["attention_mask"]}
        logits = model.text_decoder(answer, **read, use_cache=False).logits[:, -1]
        logits[:, model.text_decoder.config.eos_token_id] = -torch.inf
        answer = torch.cat([answer, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return answer


@torch.no_grad()
def test_answers_are_written_the_same_however_they_are_asked(answering):
    question, settings = inputs(ANSWERING, 0), {"max_new_tokens": 5, "min_new_tokens": 5}
    projected = []
    hook = answering.text_decoder.model.layers[0].cross_attn.k_proj.register_forward_hook(
        lambda *_: projected.append(1)
    )
    written = answering.generate(**question, **settings)
    hook.remove()
    assert len(projected) == 1  # keys of the question, once for the whole answer
    assert torch.equal(written, written_anew(answering, question, 5))
    assert torch.equal(written, answering.generate(**question, **settings, use_cache=False))
    static = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(written, answering.generate(**question, **settings, **static))
    beams = answering.generate(**question, **settings, num_beams=3)
    assert torch.equal(beams, answering.generate(**question, **settings, num_beams=3, use_cache=False))
    for row, length in enumerate(LENGTHS):
        alone = {key: value[row : row + 1] for key, value in question.items()}
        alone |= {key: alone[key][:, :length] for key in ("input_ids", "attention_mask")}
        assert torch.equal(answering.generate(**alone, **settings)[0], written[row])


@torch.no_grad()
def test_ranking_scores_each_candidate_as_if_it_were_alone(answering):
    question = inputs(ANSWERING, 0)
    answers = torch.randint(3, 40, (6, 4), generator=torch.Generator().manual_seed(3))
    answers[:, 0], answers[:3, 3] = answering.text_decoder.config.bos_token_id, PAD
    mask = (answers != PAD).long()
    chosen, scores = answering.rank_answers(**question, answer_ids=answers, answer_attention_mask=mask)
    assert chosen.shape == (4, 6) and torch.allclose(scores.sum(dim=1), torch.ones(4))
    states = answering.model(**question).last_hidden_state
    expected = torch.zeros(4, 6)
    for row in range(4):
        for number, answer in enumerate(answers):
            answer = answer[mask[number] == 1][None]
            read = {"encoder_hidden_states": states[row : row + 1]}
            read["encoder_attention_mask"] = question["attention_mask"][row : row + 1]
            likelihood = answering.text_decoder(answer, **read).logits[:, :-1].log_softmax(dim=-1)
            likelihood = likelihood.gather(2, answer[:, 1:, None])[0, :, 0]
            expected[row, number] = likelihood.sum() + likelihood[0]
    assert torch.allclose(expected.softmax(dim=1).gather(1, chosen), scores, atol=1e-5)
    best, _ = answering.rank_answers(**question, answer_ids=answers, answer_attention_mask=mask, num_candidates=2)
    assert best.shape == (4, 2)


@torch.no_grad()
def test_answers_count_by_their_weights(answering):
    question, weights = inputs(ANSWERING, 0), torch.tensor([0.2, 0.5, 1.0, 0.3, 0.7])
    answers = labels(ANSWERING, question)["labels"][[0, 1, 2, 3, 0]]
    whole = {"labels": answers, "answer_counts": torch.tensor([2, 0, 2, 1]), "answer_weights": weights}
    total = torch.zeros(())
    for place, row in enumerate((0, 0, 2, 2, 3)):
        alone = {key: value[row : row + 1] for key, value in question.items()}
        total += weights[place] * answering(**alone, labels=answers[place : place + 1]).loss
    assert torch.allclose(answering(**question, **whole).loss, total / 4, rtol=1e-5)
    whole["labels"] = torch.full_like(answers, -100)
    assert answering(**question, **whole).loss == 0


# Where in the image ------------------------------------------------------------------------------------------------


def test_heat_maps_show_what_the_score_rests_on():
    """Frozen and fast models are looked into as well, and are left as they were."""
    model = ROW.model(RETRIEVAL, attn_implementation="sdpa").requires_grad_(False)
    question = inputs(RETRIEVAL, 0)
    for by in ("itm", "itc"):
        heat = model.ground(**question, by=by)
        assert heat.shape == (4, 4, 4) and (heat >= 0).all() and (heat.flatten(1).std(dim=1) > 0).all()
        attention, gradient, scores = model.attention_and_gradient(*map(question.get, ORDER), None, by)
        assert attention.shape == gradient.shape and scores.shape == (4,)
    assert torch.allclose(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))
    assert {part.config._attn_implementation for part in (model, model.model.text_model)} == {"sdpa"}
    alone = {key: value[3:, : LENGTHS[3]] if value.dim() == 2 else value[3:] for key, value in question.items()}
    assert torch.allclose(model.ground(**alone, by="itc"), model.ground(**question, by="itc")[3:], atol=1e-6)
    for wrong in ({"layer": 0}, {"layer": 2}, {"by": "mlm"}):
        with pytest.raises(ValueError, match=r"expected a layer|by is"):
            model.ground(**question, **wrong)


ORDER = ("pixel_values", "input_ids", "attention_mask")


# Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, change, told",
    [
        (RETRIEVAL, {"pixel_values": None}, r"expected pixel_values of at least one image.*got none"),
        (RETRIEVAL, {"pixel_values": torch.zeros(0, 3, SIZE, SIZE)}, r"at least one image.*\[0, 3"),
        (RETRIEVAL, {"pixel_values": torch.zeros(3, 3, SIZE, SIZE)}, "got 3 images and 4 texts"),
        (REASONING, {"pixel_values": torch.zeros(4, 3, SIZE, SIZE)}, r"expected two images.*\[4, 3, 32, 32\]"),
        (RETRIEVAL, {"input_ids": torch.ones(4, 25, dtype=torch.long)}, "25 tokens is longer than the 24 positions"),
        (REASONING, {"labels": torch.tensor([0, 1, 2, 0])}, "from 0 to 1"),
        (ANSWERING, {"labels": torch.full((4, 9), 10_000)}, "token ids from 0 to"),
        (ANSWERING, {"labels": torch.full((5, 9), 4)}, "expected 4, one for each question answers"),
        (PRETRAINING, {"masked_input_ids": None}, "mask_tokens"),
    ],
)
def test_bad_input_is_named(name, change, told):
    batch = {**batch_of(name), **change}
    if "input_ids" in change:
        batch["attention_mask"] = torch.ones_like(change["input_ids"])
    with pytest.raises(ValueError, match=told):
        ROW.model(name)(**batch)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"queue_size": -1}, "queue_size is a number of pairs"),
        ({"momentum": 1.5}, "momentum is a share"),
        ({"text_config": {"fusion_layer": 13}}, "fusion_layer is the number of layers"),
        ({"text_config": {"num_attention_heads": 5}}, "a multiple of num_attention_heads=5"),
        ({"text_config": {"encoder_hidden_size": 3}}, "leave encoder_hidden_size out"),
    ],
)
def test_configs_that_make_no_model_are_refused(settings, told):
    with pytest.raises(Exception, match=told):
        AlbefConfig(**settings)
