"""ALBEF at its smallest: a ViT, a text encoder that reads text and then its image, a queue as long as the batch."""

import torch
from transformers import BlipProcessor, PreTrainedModel

from .row import WORDS, Tiny, image_processor, word_tokenizer


SIZE, PAD, END, MASK = 32, 1, 2, 0
LENGTHS = (9, 7, 6, 4)


def inputs(auto_name: str, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    rows, longest = len(LENGTHS), max(LENGTHS)
    input_ids = torch.randint(3, len(WORDS) + 3, (rows, longest), generator=draw)
    attention_mask = (torch.arange(longest) < torch.tensor(LENGTHS)[:, None]).long()
    pair = (2,) if auto_name == "AutoModelForVisualReasoning" else ()
    return {
        "input_ids": input_ids.masked_fill(attention_mask == 0, PAD),  # [B, T]
        "attention_mask": attention_mask,
        "pixel_values": torch.randn(rows, *pair, 3, SIZE, SIZE, generator=draw),  # [B, (2,) 3, H, W]
    }


def labels(auto_name: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ids, rows = batch["input_ids"], len(batch["input_ids"])
    match auto_name:
        case "AutoModelForPreTraining":
            hidden = torch.zeros_like(ids, dtype=torch.bool)
            hidden[:, 1:3] = True
            return {"masked_input_ids": ids.masked_fill(hidden, MASK), "labels": ids.where(hidden, -100)}
        case "AutoModelForImageTextRetrieval":
            return {"image_ids": ids.cumsum(dim=1).sum(dim=1)}  # another for each text
        case "AutoModelForVisualQuestionAnswering":
            return {"labels": ids.where(batch["attention_mask"] == 1, -100)}
        case "AutoModelForVisualReasoning":
            return {"labels": torch.arange(rows) % 2}
        case "AutoModelForVisualEntailment":
            return {"labels": torch.arange(rows) % 3}
    return {}


def next_pair(weights: torch.Tensor) -> torch.Tensor:
    """The pair after a row's own, which alone has no weight: neither by chance nor by what rounding decides."""
    return (weights.argmin(dim=1) + 1) % weights.shape[1]


WAKE = {"self_attn": 9, "cross_attn": 4, "attention": 2}  # factors of the weights that mix tokens


def wake(model: PreTrainedModel) -> None:
    """Every word and patch acts; nothing is left to chance; the queue holds what this batch leaves there.

    With that, the same steps give the same losses, in this process and in others.
    """
    fresh = {n: p for n, p in model.named_parameters() if not vars(p).get("_is_hf_initialized")}  # not from a file
    for name, weight in fresh.items():
        if name.endswith(("v_proj.weight", "o_proj.weight")):
            weight.mul_(WAKE[name.split(".")[-3]])
        if name.endswith(("word_embeddings.weight", "out_proj.weight")):
            weight.mul_(3 if "word" in name else 2)
    if hasattr(model, "reset_momentum") and fresh:
        model.reset_momentum()
    if hasattr(model, "queue"):
        model.choose_negatives = next_pair
    if hasattr(model, "queue") and "itm_head.bias" in fresh and model.device.type != "meta":
        model.itm_head.bias[1] = 0.5
        name = "AutoModelForPreTraining" if hasattr(model, "lm_head") else "AutoModelForImageTextRetrieval"
        batch = inputs(name, 0)
        model.train()(**batch, **labels(name, batch))


ROW = Tiny(
    model_type="albef",
    settings={
        "vision_config": {
            "model_type": "vit",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": 8,
            "initializer_range": 0.035,
        },
        "text_config": {
            "vocab_size": len(WORDS) + 3,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "fusion_layer": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 24,
            "hidden_dropout_prob": 0.0,  # so that one process draws what two draw
            "attention_probs_dropout_prob": 0.0,
            "pad_token_id": PAD,
            "bos_token_id": MASK,
            "eos_token_id": END,
            "initializer_range": 0.035,
        },
        "projection_dim": 64,
        "temperature": 0.5,
        "queue_size": len(LENGTHS),
        "momentum": 1.0,  # the copies stay: what moves is what is trained
        "initializer_range": 0.035,
    },
    inputs=inputs,
    labels=labels,
    processor=lambda: BlipProcessor(image_processor(), word_tokenizer()),
    lora=r"model\..*\.(q_proj|v_proj)",
    wake=wake,
    exceptions={
        **{
            f"accumulated_gradients_equal_a_large_batch[{name}]": "the other pairs of a batch are its negatives"
            for name in ("AutoModelForImageTextRetrieval", "AutoModelForPreTraining")
        },
        "loss_survives_nothing_to_learn[AutoModelForPreTraining]": "contrast and match need no labels",
        **dict.fromkeys(
            (
                "bfloat16_runs_and_stays_close[AutoModelForImageTextRetrieval]",
                "bfloat16_runs_and_stays_close[AutoModelForPreTraining]",
            ),
            "a model loaded anew draws its hard negatives by chance: tests/models/test_albef.py has the same test",
        ),
    },
)
