"""BLIP: what it repairs and adds, beyond the promises that every architecture keeps and the authors' numbers."""

import copy

import pytest
import torch
import transformers
from golden_case import GOLDEN, GoldenCase
from tiny import TINY
from transformers import BlipConfig

from hf_mmunify.conversion import engine
from hf_mmunify.models.blip import (
    BlipForConditionalGeneration,
    BlipForImagesAndTextClassification,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
)


ROW = TINY["blip"]
NATIVE = {
    "AutoModelForImageTextToText": "BlipForConditionalGeneration",
    "AutoModelForVisualQuestionAnswering": "BlipForQuestionAnswering",
    "AutoModelForImageTextRetrieval": "BlipForImageTextRetrieval",
}


def golden(name: str):
    """The converted model of a golden case, and the case."""
    case = GoldenCase(GOLDEN / "blip" / f"{name}.json")
    return engine.convert("blip", case.state_dict(), case.info["config"]), case


def eager(config: BlipConfig) -> BlipConfig:
    """A copy for the native classes, which know eager attention alone."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    return config


def retrieval(**settings) -> BlipForImageTextRetrieval:
    transformers.set_seed(0)
    return BlipForImageTextRetrieval(ROW.config("AutoModelForImageTextRetrieval", **settings))


# Native checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto_name", NATIVE)
def test_native_checkpoints_go_both_ways(auto_name, tmp_path):
    native_class = getattr(transformers, NATIVE[auto_name])
    transformers.set_seed(0)
    config = BlipConfig(
        **{key: ROW.settings[key] for key in ("text_config", "vision_config", "image_text_hidden_size")}
    )
    native = native_class(config).eval()
    native.save_pretrained(tmp_path / "native")
    ours, report = type(ROW.model(auto_name)).from_pretrained(tmp_path / "native", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert ours.state_dict().keys() == native.state_dict().keys()
    ours.save_pretrained(tmp_path / "ours")
    back, report = native_class.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in native.state_dict().items())


def test_captions_and_matches_are_the_native_ones():
    """Where the native classes are right: they read [DEC] and an image without padding."""
    caption, case = golden("caption")
    inputs = case.of_kind("inputs")
    native = transformers.BlipForConditionalGeneration(eager(caption.config)).eval()
    native.load_state_dict(caption.state_dict())
    batch = {"pixel_values": inputs["pixel_values"], "input_ids": inputs["input_ids"].clone()}
    batch["input_ids"][:, 0] = caption.config.text_config.bos_token_id
    with torch.no_grad():
        torch.testing.assert_close(caption(**batch).logits, native(**batch).logits, atol=2e-5, rtol=0)
    written = native.generate(pixel_values=inputs["pixel_values"], max_new_tokens=6)
    assert torch.equal(caption.generate(pixel_values=inputs["pixel_values"], max_new_tokens=6), written)


def test_the_loss_of_vqa_is_the_authors_where_the_native_one_is_not():
    """The native layer loses the mask over the question, so that answers look at its padding."""
    model, case = golden("vqa")
    inputs = case.of_kind("inputs")
    native = transformers.BlipForQuestionAnswering(eager(model.config)).eval()
    native.load_state_dict(model.state_dict())
    answers = inputs["answer_ids"].masked_fill(inputs["answer_mask"] == 0, -100)
    images = {"pixel_values": inputs["pixel_values"], "attention_mask": inputs["attention_mask"]}
    weights, counts = inputs["answer_weights"], inputs["n"]
    with torch.no_grad():
        ours = model(
            input_ids=inputs["input_ids"], labels=answers, answer_counts=counts, answer_weights=weights, **images
        ).loss

        question_ids, answer_ids = inputs["input_ids"].clone(), inputs["answer_ids"].clone()
        question_ids[:, 0], answer_ids[:, 0] = model.config.encoder_token_id, model.config.text_config.bos_token_id
        question = native.text_encoder(
            input_ids=question_ids,
            attention_mask=inputs["attention_mask"],
            encoder_hidden_states=native.vision_model(inputs["pixel_values"]).last_hidden_state,
        ).last_hidden_state
        losses = native.text_decoder(
            input_ids=answer_ids,
            attention_mask=inputs["answer_mask"],
            encoder_hidden_states=question.repeat_interleave(counts, dim=0),
            encoder_attention_mask=inputs["attention_mask"].repeat_interleave(counts, dim=0),
            labels=answers,
            reduction="none",
        ).loss
    theirs = case.tensors["outputs/loss"]
    assert abs(ours - theirs) < 1e-4
    assert abs((losses * weights).sum() / len(counts) - theirs) > 0.01


# Question answering ------------------------------------------------------------------------------------------------


def questions() -> tuple[BlipForQuestionAnswering, dict]:
    return ROW.model("AutoModelForVisualQuestionAnswering"), ROW.training_batch("AutoModelForVisualQuestionAnswering")


def test_answers_are_weighted_and_shared_out():
    model, batch = questions()
    labels = batch.pop("labels")
    singly = [
        model(**{k: v[i : i + 1] for k, v in batch.items()}, labels=labels[j : j + 1]).loss
        for i, j in ((0, 0), (0, 1), (3, 2))
    ]
    weights = torch.tensor([0.3, 0.7, 1.0])
    loss = model(**batch, labels=labels[:3], answer_counts=torch.tensor([2, 0, 0, 1]), answer_weights=weights).loss
    torch.testing.assert_close(loss, (torch.stack(singly) * weights).sum() / 4)


def test_answers_are_ranked_by_their_likelihood():
    model, batch = questions()
    labels = batch.pop("labels")
    mask = (labels != -100).long()
    answers = labels.masked_fill(mask == 0, 1)
    indices, scores = model.rank_answers(**batch, answer_ids=answers, answer_attention_mask=mask)
    assert indices.shape == scores.shape == (4, 4) and (scores.diff(dim=1) <= 0).all()
    for question in range(4):
        one = {key: value[question : question + 1] for key, value in batch.items()}
        expected = [-model(**one, labels=labels[i : i + 1]).loss.item() for i in indices[question]]
        assert scores[question].tolist() == pytest.approx(expected, abs=1e-4)
    best, _ = model.rank_answers(**batch, answer_ids=answers, answer_attention_mask=mask, num_candidates=2)
    assert best.shape == (4, 2)


def test_written_answers_do_not_depend_on_padding():
    model, batch = questions()
    batch.pop("labels")
    together = model.generate(**batch, max_new_tokens=5, min_new_tokens=5)
    assert (together[:, 0] == model.config.text_config.bos_token_id).all()
    for index, length in enumerate(batch["attention_mask"].sum(dim=1)):
        alone = {key: value[index : index + 1] for key, value in batch.items()}
        alone |= {key: alone[key][:, :length] for key in ("input_ids", "attention_mask")}
        assert torch.equal(model.generate(**alone, max_new_tokens=5, min_new_tokens=5)[0], together[index])
    assert torch.equal(model.generate(**batch, max_new_tokens=5, min_new_tokens=5, use_cache=False), together)


def test_cross_attention_reads_the_image_once():
    """Its keys and values are projected for the first token alone, however many are written."""
    model = ROW.model("AutoModelForImageTextToText")
    calls = []
    model.text_decoder.bert.encoder.layer[0].crossattention.self.key.register_forward_hook(lambda *_: calls.append(1))
    images = ROW.batch(auto_name="AutoModelForImageTextToText")["pixel_values"]
    model.generate(pixel_values=images, max_new_tokens=6, min_new_tokens=6)
    assert len(calls) == 1


def test_prompts_lose_their_separator_and_may_be_of_any_length():
    model = ROW.model("AutoModelForImageTextToText")
    sep, dec = model.config.text_config.sep_token_id, model.config.text_config.bos_token_id
    images = ROW.batch(auto_name="AutoModelForImageTextToText")["pixel_values"][:2]
    prompts = torch.tensor([[5, 7, 8, sep], [5, 9, sep, 1]])
    mask = (prompts != 1).long()
    written = model.generate(
        pixel_values=images, input_ids=prompts, attention_mask=mask, max_new_tokens=3, min_new_tokens=3
    )
    assert written[:, :3].tolist() == [[dec, 7, 8], [1, dec, 9]]
    alone = model.generate(
        pixel_values=images[1:], input_ids=torch.tensor([[5, 9]]), max_new_tokens=3, min_new_tokens=3
    )
    assert torch.equal(alone[0], written[1, 1:])


# Retrieval and pre-training ----------------------------------------------------------------------------------------


def test_a_teacher_can_be_added_saved_and_trained(tmp_path):
    model = retrieval()
    assert model.queue is None and model.temp is None
    model.add_momentum_teacher(queue_size=6)
    assert torch.equal(model.vision_proj_m.weight, model.vision_proj.weight)
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.split(".")[0].endswith("_m"))
    batch = ROW.training_batch("AutoModelForImageTextRetrieval")
    model.train()(**batch).loss.backward()
    assert model.queue.pointer.item() == 4 and model.queue.ids[0, :4].tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        model.vision_proj.weight.add_(1.0)
    before = model.vision_proj_m.weight.clone()
    model(**batch)
    torch.testing.assert_close(model.vision_proj_m.weight, 0.995 * before + 0.005 * model.vision_proj.weight)
    assert model.queue.pointer.item() == 2
    model.save_pretrained(tmp_path)
    again = BlipForImageTextRetrieval.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="a model without a teacher"):
        again.add_momentum_teacher(6)


@pytest.mark.parametrize("name", ["AutoModelForVisualQuestionAnswering", "AutoModelForImageTextRetrieval"])
def test_tokens_can_be_added(name, tmp_path):
    """To questions and to answers; and the teacher's table follows."""
    model, words = ROW.model(name), ROW.config().text_config.vocab_size
    teacher = None
    if name == "AutoModelForImageTextRetrieval":
        model.add_momentum_teacher(queue_size=6)
        teacher = model.text_encoder_m.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(words + 3)
    batch = ROW.training_batch(name)
    for key in {"input_ids", "labels"} & batch.keys():
        batch[key] = torch.where(batch[key] == batch["input_ids"][0, 1], words + 1, batch[key])
    loss = model.train()(**batch).loss
    loss.backward()
    tables = [
        module for module in model.modules() if isinstance(module, torch.nn.Embedding) and len(module.weight) > words
    ]
    assert len(tables) == 2 and all(table.num_embeddings == words + 3 for table in tables)
    if teacher is not None:
        assert torch.equal(model.text_encoder_m.get_input_embeddings().weight[:words], teacher)
    assert loss.isfinite() and all(t.weight.grad[words + 1].abs().max() > 0 for t in tables if t.weight.requires_grad)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again.pop(key), value) for key, value in model.state_dict().items()) and not again


@pytest.mark.parametrize("name", ["AutoModelForImageTextToText", "AutoModelForVisualQuestionAnswering"])
def test_joint_pretraining_leaves_a_whole_decoder(name, tmp_path):
    """Its file has once what encoder and decoder share; captions and answers begin with all of it."""
    pretrained = ROW.model("AutoModelForPreTraining")
    pretrained.save_pretrained(tmp_path)
    auto_class = getattr(transformers, name)
    for load in (auto_class, type(ROW.model(name))):
        model, report = load.from_pretrained(tmp_path, output_loading_info=True)
        theirs = {key: value for key, value in pretrained.state_dict().items() if key.startswith("text_decoder.")}
        ours = {key: value for key, value in model.state_dict().items() if key.startswith("text_decoder.")}
        assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert name == "AutoModelForVisualQuestionAnswering" or not report["missing_keys"]
    model.save_pretrained(tmp_path / "again")
    again, report = type(model).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_without_a_teacher_gets_one(tmp_path):
    model = retrieval()
    model.config.queue_size = 8
    model.save_pretrained(tmp_path)
    taught, report = BlipForImageTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and taught.queue.queue_size == 8
    assert torch.equal(taught.text_proj_m.weight, model.text_proj.weight)
    assert taught.temp.item() == pytest.approx(ROW.settings["contrastive_temperature"])


def test_pairs_are_scored_by_matching_and_similarity():
    model, batch = ROW.model("AutoModelForImageTextRetrieval"), ROW.batch(auto_name="AutoModelForImageTextRetrieval")
    images = model.encode_images(batch["pixel_values"])
    texts = model.encode_texts(batch["input_ids"], batch["attention_mask"])
    similarities = model.similarities(images["features"], texts["features"])
    torch.testing.assert_close(similarities, model(**batch, use_itm_head=False).itm_score)
    read = {**batch, "input_ids": batch["input_ids"].clone()}
    read["input_ids"][:, 0] = model.config.text_config.bos_token_id + 1  # [ENC]
    expected = model(**read).itm_score[:, 1] + similarities.diagonal()
    torch.testing.assert_close(model.match(images, texts, similarities.diagonal()), expected)


def test_negatives_show_other_images():
    model = ROW.model("AutoModelForImageTextRetrieval").train()
    seen = []

    def choose(weights):
        seen.append(weights)
        return weights.argmax(dim=1)

    model.choose_negatives = choose
    model(**ROW.batch(auto_name="AutoModelForImageTextRetrieval"), image_ids=torch.tensor([4, 4, 7, 9]))
    for weights in seen:
        assert (weights > 0).int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]


def test_retrieval_learns_its_batch_by_heart():
    """In evaluation mode the negatives are the hardest of the batch: they too are told apart after a while."""
    model = ROW.model("AutoModelForImageTextRetrieval")
    batch = ROW.training_batch("AutoModelForImageTextRetrieval")
    with torch.no_grad():
        before = model(**batch).loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(40):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = model.eval()(**batch).loss
    assert after < 0.5 * before


def test_encoder_and_decoder_share_all_but_self_attention():
    model = ROW.model("AutoModelForPreTraining")
    assert isinstance(model, BlipForPreTraining)
    encoder, decoder = (dict(tower.named_parameters()) for tower in (model.text_encoder, model.text_decoder.bert))
    shared = {name for name in encoder if encoder[name] is decoder[name]}
    assert {name for name in encoder if name not in shared} == {name for name in encoder if ".attention." in name}
    assert model.text_decoder.cls.predictions.decoder.weight is model.text_encoder.embeddings.word_embeddings.weight


# Two images --------------------------------------------------------------------------------------------------------


def test_reasoning_starts_from_a_model_that_reads_one_image():
    """Both branches get its cross-attention, so that two equal images are read as one, before the classifier."""
    reader = retrieval()
    pairs = BlipForImagesAndTextClassification(ROW.config("AutoModelForImageTextRetrieval"))
    pairs.start_from(reader)
    batch = ROW.batch(auto_name="AutoModelForImageTextRetrieval")
    with torch.no_grad():
        states = reader.vision_model(batch["pixel_values"]).last_hidden_state
        one = reader.text_encoder(batch["input_ids"], encoder_hidden_states=states).last_hidden_state
        both = pairs.text_encoder(
            batch["input_ids"], encoder_hidden_states=torch.stack([states, states], dim=1)
        ).last_hidden_state
    torch.testing.assert_close(both, one, atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match="expected a BLIP with a vision tower and a text encoder"):
        pairs.start_from(ROW.model("AutoModelForImageTextToText"))


# Bad input ---------------------------------------------------------------------------------------------------------


def bad(auto_name: str, **changes) -> None:
    ROW.model(auto_name)(**{**ROW.training_batch(auto_name), **changes})


@pytest.mark.parametrize(
    "auto_name, changes, message",
    [
        ("AutoModelForImageTextToText", {"pixel_values": torch.zeros(4, 3, 40, 40)}, "expected images of 32 x 32"),
        ("AutoModelForImageTextToText", {"pixel_values": torch.zeros(4, 1, 32, 32)}, r"\[batch, 3, height, width\]"),
        ("AutoModelForImageTextToText", {"input_ids": None}, "to have them written, call `generate`"),
        ("AutoModelForImageTextToText", {"input_ids": torch.ones(3, 8).long()}, "one text for each row of images"),
        ("AutoModelForImageTextToText", {"input_ids": torch.ones(4, 30).long()}, "positions for 24"),
        ("AutoModelForImageTextToText", {"labels": torch.full((4, 8), 999)}, "labels are token ids"),
        ("AutoModelForVisualQuestionAnswering", {"labels": torch.full((4, 8), 999)}, "labels are token ids"),
        ("AutoModelForVisualQuestionAnswering", {"labels": torch.ones(5, 8).long()}, "pass `answer_counts`"),
        ("AutoModelForVisualQuestionAnswering", {"answer_counts": torch.tensor([1, 1, 1, 2])}, "to be shared out"),
        ("AutoModelForVisualReasoning", {"pixel_values": torch.zeros(4, 3, 3, 32, 32)}, "two images a statement"),
        ("AutoModelForVisualReasoning", {"labels": torch.tensor([0, 1, 2, 0])}, "classes from 0 to 1"),
        ("AutoModelForImageTextRetrieval", {"image_ids": torch.arange(3)}, "an id for each of 4 images"),
    ],
)
def test_bad_input_is_named(auto_name, changes, message):
    with pytest.raises(ValueError, match=message):
        bad(auto_name, **changes)


def test_a_pair_alone_has_no_negative():
    model = retrieval().train()
    batch = {key: value[:1] for key, value in ROW.training_batch("AutoModelForImageTextRetrieval").items()}
    with pytest.raises(ValueError, match="a hard negative needs a second pair"):
        model(**batch)


def test_images_of_another_size_are_read_if_asked():
    model, batch = ROW.model("AutoModelForImageTextToText"), ROW.batch(auto_name="AutoModelForImageTextToText")
    batch["pixel_values"] = torch.randn(4, 3, 48, 48)
    assert isinstance(model, BlipForConditionalGeneration)
    assert model(**batch, interpolate_pos_encoding=True).image_embeds.shape == (4, 37, 64)


# Conversion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["retrieval", "pretrain"])
def test_stripped_checkpoints_become_models_without_a_teacher(name):
    _, case = golden(name)
    parts = ("visual_encoder_m.", "vision_proj_m.", "text_encoder_m.", "text_proj_m.", "image_queue", "text_queue")
    stripped = {key: t for key, t in case.state_dict().items() if not key.startswith((*parts, "idx_queue"))}
    if name == "retrieval":
        stripped.pop("temp")
    model = engine.convert("blip", stripped, case.info["config"])
    assert model.queue is None
    exported = engine.export(model)
    assert exported.keys() == stripped.keys() - {"queue_ptr", "ptr_queue"}
    assert all(torch.equal(exported[key], stripped[key]) for key in exported)


def test_a_vit_that_nobody_published_is_refused():
    _, case = golden("caption")
    with pytest.raises(engine.WrongConfigError, match="vit is 'huge'; expected one of base, large"):
        engine.convert("blip", case.state_dict(), {**case.info["config"], "vit": "huge"})
