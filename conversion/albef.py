"""ALBEF checkpoints (`{"model": state dict}`, or the state dict alone) -> our models, and back.

Whole, or stripped of the momentum copies and queues: a stripped one becomes a model with `distill=False` (load that
with `distill=True` to go on training). Those of LAVIS have the same names. The head is read off the keys, sizes are
read off the shapes; the resolution is the checkpoint's own, whatever a config says (`resize_images` changes it).
"""

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, BlipImageProcessorPil, BlipProcessor

from hf_mmunify.conversion.engine import MissingKeysError, Rename, Reshape, Rule, Source, Split, Variant, bind
from hf_mmunify.models.albef import AlbefConfig


MODEL_TYPE = "albef"

SOURCE = Source(
    repository="salesforce/ALBEF",
    commit="b9727e43c3040491774d1b22cc27718aa7772fac",
    code_license="BSD-3-Clause",
    weights_license="BSD-3-Clause",
)

HEADS = {
    "pretraining": "AlbefForPreTraining",
    "retrieval": "AlbefForImageTextRetrieval",
    "vqa": "AlbefForQuestionAnswering",
    "nlvr2": "AlbefForImagesAndTextClassification",
    "text_assignment": "AlbefForTextAssignment",
    "visual_entailment": "AlbefForVisualEntailment",
}

PAIRED = ("AlbefForImagesAndTextClassification", "AlbefForTextAssignment")
"""The models whose original has two layers where the base model has one with cross-attention."""

COPIES = ("", "_m")
"""Suffixes of the parts that are trained, and of their momentum copies."""


def head_from_state_dict(state_dict: dict[str, torch.Tensor], original_config: dict | None) -> str:
    """The task of a checkpoint, by the keys that it alone has."""
    for key, head in (
        ("text_encoder.cls.predictions.bias", "pretraining"),
        ("text_decoder.cls.predictions.bias", "vqa"),
        ("ta_head.weight", "text_assignment"),
        ("itm_head.weight", "retrieval"),
    ):
        if key in state_dict:
            return head
    return "nlvr2" if len(state_dict["cls_head.2.bias"]) == 2 else "visual_entailment"


def key_map(config: AlbefConfig) -> list[Rule]:
    """Their blocks of ViT and layers of BERT, with q, k and v of ViT in one; once more for the momentum copies."""
    (model,) = config.architectures
    rules = [
        Reshape("temp", "temperature", (1,), ()),
        Rename("image_queue", "queue.image_features"),
        Rename("text_queue", "queue.text_features"),
        Rename("idx_queue", "queue.ids"),
        Rename("queue_ptr", "queue.pointer"),
        Rename("itm_head.{*}", "itm_head.{*}"),
        Rename("ta_head.weight", "classifier.weight"),
        Rename("ta_head.bias", "classifier.bias"),
    ]
    for copy in COPIES:
        encoder = f"text_encoder{copy}" + (".bert" if model == "AlbefForPreTraining" else "")
        ours, decoder = f"model{copy}.text_model", f"text_decoder{copy}"
        fusion, layers = config.text_config.fusion_layer, config.text_config.num_hidden_layers
        rules += _vision(f"visual_encoder{copy}", f"model{copy}.vision_model")
        rules += _embeddings(encoder, ours)
        if model in PAIRED:
            for index in range(fusion, layers):
                first = 2 * index - fusion
                rules += _layer(f"{encoder}.encoder.layer.{first}", f"{ours}.layers.{index}")
                rules += _layer(
                    f"{encoder}.encoder.layer.{first + 1}", f"pair_layers{copy}.{index - fusion}", is_second=True
                )
            for index in range(fusion):
                rules += _layer(f"{encoder}.encoder.layer.{index}", f"{ours}.layers.{index}", is_fusion=False)
        else:
            rules += _layer(encoder + ".encoder.layer.{}", ours + ".layers.{}")
        rules += _embeddings(f"{decoder}.bert", f"{decoder}.model")
        rules += _layer(f"{decoder}.bert.encoder.layer.{{}}", f"{decoder}.model.layers.{{}}")
        rules += _words(f"{decoder}.cls.predictions", f"{decoder}.lm_head")
        rules += _words(f"text_encoder{copy}.cls.predictions", f"lm_head{copy}")
        rules += [
            Rename(f"vision_proj{copy}.{{*}}", f"vision_proj{copy}.{{*}}"),
            Rename(f"text_proj{copy}.{{*}}", f"text_proj{copy}.{{*}}"),
            Rename(f"cls_head{copy}.0.{{*}}", f"classifier{copy}.dense.{{*}}"),
            Rename(f"cls_head{copy}.2.{{*}}", f"classifier{copy}.out_proj.{{*}}"),
        ]
    return rules


def _vision(theirs: str, ours: str) -> list[Rule]:
    block, layer = theirs + ".blocks.{}", ours + ".layers.{}"
    return [
        Rename(f"{theirs}.cls_token", f"{ours}.embeddings.cls_token"),
        Rename(f"{theirs}.pos_embed", f"{ours}.embeddings.position_embeddings"),
        Rename(f"{theirs}.patch_embed.proj.{{*}}", f"{ours}.embeddings.patch_embeddings.projection.{{*}}"),
        Rename(f"{theirs}.norm.{{*}}", f"{ours}.layernorm.{{*}}"),
        Rename(f"{block}.norm1.{{*}}", f"{layer}.layernorm_before.{{*}}"),
        Rename(f"{block}.norm2.{{*}}", f"{layer}.layernorm_after.{{*}}"),
        Split(f"{block}.attn.qkv.{{*}}", [f"{layer}.attention.{x}_proj.{{*}}" for x in "qkv"]),
        Rename(f"{block}.attn.proj.{{*}}", f"{layer}.attention.o_proj.{{*}}"),
        Rename(f"{block}.mlp.{{*}}", f"{layer}.mlp.{{*}}"),
    ]


def _embeddings(theirs: str, ours: str) -> list[Rule]:
    return [
        Rename(f"{theirs}.embeddings.LayerNorm.{{*}}", f"{ours}.embeddings.norm.{{*}}"),
        *(
            Rename(f"{theirs}.embeddings.{table}_embeddings.weight", f"{ours}.embeddings.{table}_embeddings.weight")
            for table in ("word", "position", "token_type")
        ),
    ]


def _layer(theirs: str, ours: str, is_second: bool = False, is_fusion: bool = True) -> list[Rule]:
    """A layer of BERT, with cross-attention; the second of a pair has keys and values of the first."""
    rules = [
        Rename(f"{theirs}.intermediate.dense.{{*}}", f"{ours}.fc1.{{*}}"),
        Rename(f"{theirs}.output.dense.{{*}}", f"{ours}.fc2.{{*}}"),
        Rename(f"{theirs}.output.LayerNorm.{{*}}", f"{ours}.final_norm.{{*}}"),
    ]
    parts = {"attention": "self_attn", **({"crossattention": "cross_attn"} if is_fusion else {})}
    for part, name in parts.items():
        for theirs_of, ours_of in (("query", "q"), ("key", "k"), ("value", "v")):
            if not (is_second and part == "crossattention" and ours_of != "q"):
                rules.append(Rename(f"{theirs}.{part}.self.{theirs_of}.{{*}}", f"{ours}.{name}.{ours_of}_proj.{{*}}"))
        rules.append(Rename(f"{theirs}.{part}.output.dense.{{*}}", f"{ours}.{name}.o_proj.{{*}}"))
        rules.append(Rename(f"{theirs}.{part}.output.LayerNorm.{{*}}", f"{ours}.{name}_norm.{{*}}"))
    return rules


def _words(theirs: str, ours: str) -> list[Rule]:
    return [
        Rename(f"{theirs}.bias", f"{ours}.decoder.bias"),
        Rename(f"{theirs}.transform.dense.{{*}}", f"{ours}.dense.{{*}}"),
        Rename(f"{theirs}.transform.LayerNorm.{{*}}", f"{ours}.norm.{{*}}"),
    ]


def aliases(config: AlbefConfig) -> dict[str, str]:
    """Scores of words are those of the embeddings; the layers of a pair share the keys and values of the images."""
    (model,) = config.architectures
    found = {}
    for copy in COPIES:
        for part in (f"text_encoder{copy}", f"text_decoder{copy}"):
            words = f"{part}.cls.predictions"
            found[f"{words}.decoder.bias"] = f"{words}.bias"
            if part.startswith("text_decoder") or model == "AlbefForPreTraining":
                found[f"{words}.decoder.weight"] = f"{part}.bert.embeddings.word_embeddings.weight"
        if model in PAIRED:
            fusion = config.text_config.fusion_layer
            for index in range(fusion, config.text_config.num_hidden_layers):
                layer = f"text_encoder{copy}.encoder.layer"
                for name in ("key", "value"):
                    first, second = (f"{layer}.{2 * index - fusion + k}.crossattention.self.{name}" for k in (0, 1))
                    found[f"{second}.{{*}}"] = f"{first}.{{*}}"
    return found


def derived(config: AlbefConfig, originals: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The numbers of the positions, which BERT of 2021 kept as a buffer."""
    table = ".embeddings.position_embeddings.weight"
    return {
        key.removesuffix(table) + ".embeddings.position_ids": torch.arange(len(originals[key]))[None]
        for key in originals
        if key.endswith(table)
    }


def config_from_original(original_config: dict | None, state_dict: dict[str, torch.Tensor]) -> AlbefConfig:
    """Sizes off the tensors; of the authors' yaml and `config_bert.json` (`bert`) what tensors do not show.

    Without a config, heads are 64 wide, as everywhere in published models.
    """
    given = original_config or {}
    bert, vision, training = given.get("bert", {}), given.get("vit", {}), given.get("config", given)
    prefix = "text_encoder.bert" if "text_encoder.cls.predictions.bias" in state_dict else "text_encoder"
    words = state_dict[f"{prefix}.embeddings.word_embeddings.weight"]
    patches = state_dict["visual_encoder.patch_embed.proj.weight"]  # [D_v, 3, p, p]
    grid = round((state_dict["visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
    layers = _count(state_dict, f"{prefix}.encoder.layer.")
    fused = [k for k in range(layers) if f"{prefix}.encoder.layer.{k}.crossattention.self.query.bias" in state_dict]
    if not fused:
        raise MissingKeysError(
            f"No layer under {prefix}.encoder has cross-attention: this is a BERT, not the text encoder of ALBEF."
        )
    is_paired = "ta_head.weight" in state_dict or (
        "cls_head.2.bias" in state_dict and len(state_dict["cls_head.2.bias"]) == 2
    )
    decoder_layers = _count(state_dict, "text_decoder.bert.encoder.layer.")
    return AlbefConfig(
        vision_config={
            "model_type": "vit",
            "hidden_size": len(patches),
            "num_hidden_layers": _count(state_dict, "visual_encoder.blocks."),
            "num_attention_heads": vision.get("num_heads", len(patches) // 64),
            "intermediate_size": len(state_dict["visual_encoder.blocks.0.mlp.fc1.bias"]),
            "patch_size": patches.shape[-1],
            "image_size": grid * patches.shape[-1],
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "vocab_size": len(words),
            "hidden_size": words.shape[1],
            "num_hidden_layers": fused[0] + len(fused) // 2 if is_paired else layers,
            "fusion_layer": fused[0],
            "num_attention_heads": bert.get("num_attention_heads", words.shape[1] // 64),
            "intermediate_size": len(state_dict[f"{prefix}.encoder.layer.0.intermediate.dense.bias"]),
            "max_position_embeddings": len(state_dict[f"{prefix}.embeddings.position_embeddings.weight"]),
            "type_vocab_size": len(state_dict[f"{prefix}.embeddings.token_type_embeddings.weight"]),
            **{name: bert[name] for name in BERT_FIELDS if name in bert},
        },
        projection_dim=len(state_dict["vision_proj.bias"]) if "vision_proj.bias" in state_dict else 256,
        queue_size=state_dict["image_queue"].shape[1] if "image_queue" in state_dict else 0,
        distill="visual_encoder_m.cls_token" in state_dict,
        momentum=training.get("momentum", 0.995),
        alpha=training.get("alpha", 0.4),
        num_decoder_layers=decoder_layers or None,
    )


BERT_FIELDS = (
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "layer_norm_eps",
    "initializer_range",
    "pad_token_id",
)
"""Fields of `config_bert.json` that have the same name in ours, and that tensors do not show."""


def _count(state_dict: dict[str, torch.Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state_dict if key.startswith(prefix)})


def processor(original_config: dict | None) -> BlipProcessor | None:
    """Their test transform, and BERT's tokenizer, in whose texts nothing follows the last word (`[CLS] words`).

    None where the config names no tokenizer (`text_encoder`, for the published ones "bert-base-uncased").
    """
    given = original_config or {}
    if "text_encoder" not in given:
        return None
    size = {"height": given["image_res"], "width": given["image_res"]}
    tokenizer = AutoTokenizer.from_pretrained(given["text_encoder"])
    cls = tokenizer.cls_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A", special_tokens=[(cls, tokenizer.cls_token_id)]
    )
    return BlipProcessor(BlipImageProcessorPil(size=size), tokenizer)


def _published(file: str, head: str, image_res: int, parameters: int, manifest: str | None = None) -> Variant:
    config = {"text_encoder": "bert-base-uncased", "image_res": image_res}
    return Variant(config=config, parameters=parameters, file=file, head=head, manifest=manifest)


VARIANTS = {
    "ALBEF": _published("ALBEF.pth", "pretraining", 256, 419_873_911),
    "ALBEF_4M": _published("ALBEF_4M.pth", "pretraining", 256, 419_873_911, "ALBEF"),
    "mscoco": _published("mscoco.pth", "retrieval", 384, 209_560_835),
    "flickr30k": _published("flickr30k.pth", "retrieval", 384, 209_560_835, "mscoco"),
    "refcoco": _published("refcoco.pth", "retrieval", 384, 209_560_835, "mscoco"),
    "vqa": _published("vqa.pth", "vqa", 384, 580_672_116),
    "pretrain_model_nlvr": _published("pretrain_model_nlvr.pth", "text_assignment", 256, 258_939_396),
    "albef_nlvr_lavis": _published("albef_nlvr_lavis.pt", "nlvr2", 384, 518_762_500),
    "albef_snli_ve_lavis": _published("albef_snli_ve_lavis.pt", "visual_entailment", 384, 419_516_934),
}
"""Keys and shapes are those that the authors' classes write at published sizes: whole, but for retrieval, whose file
of COCO was found to be as large as without copies and queue. A file in the other form is read as well."""


convert, export = bind(__name__)
