"""The authors' names of BLIP's inputs and outputs -> ours."""

import torch
from torch import nn


def head(case: dict) -> str:
    """The bare matching model has the keys of a retrieval model that was stripped."""
    name = case["config"]["head"]
    return "retrieval" if name == "itm" else name


def outputs(model, inputs: dict, case: dict) -> dict[str, torch.Tensor]:
    return HEADS[case["config"]["head"]](model, inputs, case["config"])


def loss(found: dict, case: dict) -> torch.Tensor:
    terms = [found[name] for name in ("loss", "loss_ita", "loss_itm", "loss_lm") if name in found]
    return sum(terms[1:], terms[0])


def _texts(inputs: dict) -> dict[str, torch.Tensor]:
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}


def _greedy(decoder, ids: torch.Tensor, steps: int, **states) -> dict[str, torch.Tensor]:
    """What the decoder writes without stopping, by `generate` with its cache, and its scores."""
    written = decoder.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=steps,
        do_sample=False,
        eos_token_id=-1,
        output_logits=True,
        return_dict_in_generate=True,
        **states,
    )
    return {"greedy.ids": written.sequences, "greedy.logits": torch.stack(written.logits, dim=1)}


def _caption(model, inputs: dict, config: dict) -> dict[str, torch.Tensor]:
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, : len(config["prompt_ids"]) - 1] = -100
    found = model(pixel_values=inputs["pixel_values"], labels=labels, **_texts(inputs))
    prompt = torch.tensor(config["prompt_ids"]).expand(len(labels), -1)
    written = model.generate(
        pixel_values=inputs["pixel_values"],
        input_ids=prompt,
        max_new_tokens=config["greedy_steps"],
        eos_token_id=-1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return {
        "loss": found.loss,
        "logits": found.logits,
        "image_embeds": found.image_embeds,
        "greedy.ids": written.sequences,
        "greedy.logits": torch.stack(written.logits, dim=1),
    }


def _vqa(model, inputs: dict, config: dict) -> dict[str, torch.Tensor]:
    questions = {"pixel_values": inputs["pixel_values"], **_texts(inputs)}
    labels = inputs["answer_ids"].masked_fill(inputs["answer_mask"] == 0, -100)
    found = model(**questions, labels=labels, answer_counts=inputs["n"], answer_weights=inputs["answer_weights"])
    ranked, _ = model.rank_answers(
        **questions,
        answer_ids=inputs["rank.answer_ids"],
        answer_attention_mask=inputs["rank.answer_mask"],
        num_candidates=config["k_test"],
    )
    # The original looks at the padding of questions when it writes; ours does not, so that the decoder is asked here.
    everything = torch.ones_like(inputs["attention_mask"])
    start = torch.full((len(everything), 1), config["tokenizer"]["bos_token_id"])
    states = {"encoder_hidden_states": found.question_embeds.detach(), "encoder_attention_mask": everything}
    return {
        "loss": found.loss,
        "question_states": found.question_embeds,
        "answer_logits": found.logits,
        "rank.max_ids": ranked[:, 0],
        **_greedy(model.text_decoder, start, config["greedy_steps"], **states),
    }


def _itm(model, inputs: dict, config: dict) -> dict[str, torch.Tensor]:
    batch = {"pixel_values": inputs["pixel_values"], **_texts(inputs)}
    matched = model(**batch)
    return {
        "itm_logits": matched.itm_score,
        "itc_sim": model(**batch, use_itm_head=False).itm_score,
        "image_embeds": matched.last_hidden_state,
    }


def _nlvr2(model, inputs: dict, config: dict) -> dict[str, torch.Tensor]:
    """The original has all first images before all second ones."""
    pixel_values = torch.stack(inputs["pixel_values"].chunk(2), dim=1)
    found = model(pixel_values=pixel_values, labels=inputs["labels"], **_texts(inputs))
    return {
        "loss": found.loss,
        "logits": found.logits,
        "image_embeds": found.image_embeds.transpose(0, 1).flatten(0, 1),
    }


def _training(model) -> None:
    """Training mode, in which the teacher and the queue take their step, without dropout, as the cases were made."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _teacher(model) -> dict[str, torch.Tensor]:
    return {
        "after.image_queue": model.queue.image_features,
        "after.text_queue": model.queue.text_features,
        "after.visual_encoder_m.pos_embed": model.vision_model_m.embeddings.position_embedding,
        "after.text_proj_m.weight": model.text_proj_m.weight,
    }


def _contrast(model, inputs: dict, config: dict, **more) -> tuple:
    """The step, on a copy of the model's state: what it changes must not reach the way back to the original."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoded = {
        "image_feat": model.encode_images(inputs["pixel_values"])["features"],
        "text_feat": model.encode_texts(**_texts(inputs))["features"],
        "text_embeds": model.text_encoder(**_texts(inputs)).last_hidden_state,
    }
    _training(model)
    chosen = []

    def choose(weights: torch.Tensor) -> torch.Tensor:
        """The likeliest, as the cases were made."""
        chosen.append(weights.argmax(dim=1))
        return chosen[-1]

    model.choose_negatives = choose
    found = model(pixel_values=inputs["pixel_values"], alpha=config["alpha"], **_texts(inputs), **more)
    expected = [inputs["neg_image_for_text"], inputs["neg_text_for_image"]]
    if not all(torch.equal(ours, theirs) for ours, theirs in zip(chosen, expected, strict=True)):
        raise AssertionError(f"hard negatives are {chosen}, expected {expected}")
    after = {name: tensor.clone() for name, tensor in _teacher(model).items()}
    pointer, ids = model.queue.pointer.clone(), None if model.queue.ids is None else model.queue.ids.clone()
    return found, {**encoded, **after}, pointer, ids, before


def _restore(model, before: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.startswith(("queue.", "vision_model_m.", "vision_proj_m.", "text_encoder_m.", "text_proj_m.")):
                tensor.copy_(before[name])


def _retrieval(model, inputs: dict, config: dict) -> dict[str, torch.Tensor]:
    found, encoded, pointer, ids, before = _contrast(
        model, inputs, config, image_ids=inputs["idx"].flatten(), return_loss=True
    )
    _restore(model, before)
    return {
        "loss_ita": found.loss_itc,
        "loss_itm": found.loss_itm,
        "itm_logits_all": found.itm_logits,
        "image_embeds": found.last_hidden_state,
        "after.ptr_queue": pointer,
        "after.idx_queue": ids,
        **encoded,
    }


def _pretrain(model, inputs: dict, config: dict) -> dict[str, torch.Tensor]:
    found, encoded, pointer, _, before = _contrast(model, inputs, config)
    _restore(model, before)
    return {
        "loss_ita": found.loss_itc,
        "loss_itm": found.loss_itm,
        "loss_lm": found.loss_lm,
        "itm_logits_all": found.itm_logits,
        "lm_logits": found.logits,
        "image_embeds": found.image_embeds,
        "after.queue_ptr": pointer,
        **encoded,
    }


HEADS = {
    "caption": _caption,
    "vqa": _vqa,
    "itm": _itm,
    "nlvr2": _nlvr2,
    "retrieval": _retrieval,
    "pretrain": _pretrain,
}
