"""ALBEF's names of inputs and outputs -> ours."""

import torch
from torch import nn

from hf_mmunify.models.albef.modeling_albef import first_token


HEADS = {
    "pretrain": "pretraining",
    "retrieval": "retrieval",
    "grounding": "retrieval",
    "vqa": "vqa",
    "NLVR2": "nlvr2",
    "NLVR_TA": "text_assignment",
    "VE": "visual_entailment",
}
CONTRASTIVE = ("pretrain", "retrieval")


def head(case: dict) -> str:
    return HEADS[case["config"]["head"]]


def outputs(model, inputs: dict, case: dict) -> dict[str, torch.Tensor]:
    """Every output of the case. Copies and queue move in training alone, so it trains, with nothing dropped out."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if type(module).__name__ == "AlbefAttention":
            module.dropout = 0.0
    before = {key: value.clone() for key, value in model.state_dict().items() if "_m." in key or "queue." in key}
    name = case["config"]["head"]
    if "model_m.vision_model.embeddings.cls_token" in model.state_dict() and name != "grounding":
        model.train()
    shown = {"pixel_values": inputs["pixel_values"], "input_ids": inputs["input_ids"]}
    shown["attention_mask"] = inputs["attention_mask"]
    if name in CONTRASTIVE:
        found = contrastive(model, inputs, shown, name == "pretrain")
    elif name == "grounding":
        found = grounding(model, shown, case["config"])
    elif name == "vqa":
        found = answering(model, inputs, shown, case["config"]["k_test"])
    elif name == "NLVR_TA":
        indices = torch.stack([inputs["image0_index"], inputs["image1_index"]], dim=1)
        result = model(**shown, image_indices=indices, labels=inputs["ta_labels"])
        found = {"loss": result.loss, "ta_logits": result.logits}
    else:
        found = classifying(model, inputs, shown, name == "NLVR2")
    found |= {f"after.{key}": value for key, value in moved(model).items()}
    model.load_state_dict(before, strict=False)  # what is exported is what was converted
    return found


def moved(model) -> dict[str, torch.Tensor]:
    """What a training step changes beside the weights, by the original's names."""
    places = {
        "image_queue": "queue.image_features",
        "text_queue": "queue.text_features",
        "idx_queue": "queue.ids",
        "queue_ptr": "queue.pointer",
        "visual_encoder_m.pos_embed": "model_m.vision_model.embeddings.position_embeddings",
        "text_proj_m.weight": "text_proj_m.weight",
        "cls_head_m.2.weight": "classifier_m.out_proj.weight",
        "text_decoder_m.cls.predictions.bias": "text_decoder_m.lm_head.decoder.bias",
    }
    state = model.state_dict()
    return {theirs: state[ours].clone() for theirs, ours in places.items() if ours in state}


def contrastive(model, inputs: dict, shown: dict, is_pretraining: bool) -> dict[str, torch.Tensor]:
    chosen = iter((inputs["neg_image_for_text"], inputs["neg_text_for_image"]))
    model.choose_negatives = lambda weights: next(chosen)
    mask = shown["attention_mask"]
    found = {}
    if is_pretraining:
        masked = {"masked_input_ids": inputs["mlm_input_ids"], "labels": inputs["mlm_labels"]}
        result = model(**shown, **masked)
        base = model.model(**shown)
        found |= {
            "loss_mlm": result.loss_mlm,
            "mlm_logits": model(**shown, masked_input_ids=masked["masked_input_ids"]).mlm_logits,
            "itm_logits": result.itm_logits,
            "image_embeds": base.image_hidden_state,
            "text_embeds": base.text_hidden_state,
            "fusion_embeds": base.last_hidden_state,
            "image_feat": result.image_features,
            "text_feat": result.text_features,
        }
        images_m = model.model_m.read_images(shown["pixel_values"]).last_hidden_state
        words_m = model.model_m.text_model(inputs["mlm_input_ids"], mask, encoder_hidden_states=images_m)
        found["mlm_logits_m"] = model.lm_head_m(words_m.last_hidden_state)
    else:
        result = model(**shown, image_ids=inputs["idx"])
        found |= reranked(model, inputs, k=3)
    return found | {
        "loss_ita": result.loss_itc,
        "loss_itm": result.loss_itm,
        "itm_logits_all": result.itm_logits_all,
        "loss": result.loss,
    }


@torch.no_grad()
def reranked(model, inputs: dict, k: int) -> dict[str, torch.Tensor]:
    """The evaluation protocol: the `k` nearest of each are matched, the others get -100."""
    images = model.encode_images(inputs["pixel_values"])
    texts = model.encode_texts(inputs["eval.input_ids"], inputs["eval.attention_mask"])
    sims = model.similarities(images["features"], texts["features"])  # [I, T]
    scores = []
    for rows, is_image in ((sims, True), (sims.t(), False)):
        score = torch.full_like(rows, -100.0)
        for row, near in enumerate(rows.topk(k, dim=1).indices):
            one = near.new_full((k,), row)
            chosen = (one, near) if is_image else (near, one)
            pairs = (
                {key: value[index] for key, value in side.items()} for side, index in zip((images, texts), chosen)
            )
            score[row, near] = model.match(*pairs, similarities=rows[row, near])
        scores.append(score)
    return {"eval.sims": sims, "eval.score_i2t": scores[0], "eval.score_t2i": scores[1]}


def grounding(model, shown: dict, config: dict) -> dict[str, torch.Tensor]:
    question = tuple(shown.values())
    attention, _, _ = model.attention_and_gradient(*question, config["itm_block"], "itm")
    result = model(**shown)
    sims = result.image_features @ result.text_features.t() / model.temperature
    return {
        "itm_logits": result.itm_logits,
        "itm_gradcam": model.ground(*question, layer=config["itm_block"]),
        "cross_attention_map": attention,
        "itc_sim": sims,
        "itc_gradcam": model.ground(*question, layer=config["itc_block"], by="itc"),
        "loss": sims.diagonal().sum(),
    }


def answering(model, inputs: dict, shown: dict, k: int) -> dict[str, torch.Tensor]:
    labels = inputs["answer_ids"].masked_fill(inputs["answer_mask"] == 0, -100)
    answers = {"labels": labels, "answer_counts": inputs["k"], "answer_weights": inputs["answer_weights"]}
    result = model(**shown, **answers)
    states = model.model_m(**shown).last_hidden_state
    states, mask = model.for_each_answer(states, labels, inputs["k"], shown["attention_mask"])
    read = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    logits_m = model.text_decoder_m(inputs["answer_ids"], attention_mask=inputs["answer_mask"], **read).logits
    chosen, scores = model.rank_answers(
        *shown.values(), inputs["rank.answer_ids"], inputs["rank.answer_mask"], num_candidates=k
    )
    return {
        "loss": result.loss,
        "question_states": result.question_hidden_state,
        "answer_logits": result.logits,
        "answer_logits_m": logits_m,
        "rank.topk_ids": chosen,
        "rank.topk_probs": scores,
    }


def classifying(model, inputs: dict, shown: dict, has_pairs: bool) -> dict[str, torch.Tensor]:
    if has_pairs:  # theirs: the first images of all pairs, then the second
        shown["pixel_values"] = shown["pixel_values"].unflatten(0, (2, -1)).transpose(0, 1)  # [B, 2, 3, H, W]
    result = model(**shown, labels=inputs["labels"])
    result_m = model.model_m(**shown, **model.pair_layers_of("_m"))
    images = model.model(**shown, **model.pair_layers_of("")).image_hidden_state
    return {
        "loss": result.loss,
        "logits": result.logits,
        "logits_m": model.classifier_m(first_token(result_m.last_hidden_state, shown["attention_mask"])),
        "image_embeds": images.transpose(0, 1).flatten(0, 1) if has_pairs else images,
    }
