"""The conversion engine on toy architectures, and the published sizes of every real one.

The toys are native classes of transformers under invented original names, so that what is tested is the engine alone.
The manifests list the keys and shapes of published checkpoints; they are mapped on the meta device, without weights.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_case import cases
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hf_mmunify.conversion import engine
from hf_mmunify.conversion.declarations import (
    Variant,
    declared,
    key_map_of,
    manifest_path,
    read_manifest,
    variant_of,
    write_manifest,
)
from hf_mmunify.conversion.engine import Merge, Permute, Rename, Reshape, Rule, Split, Transpose, convert, export
from hf_mmunify.conversion.errors import (
    ConversionError,
    InconsistentWeightsError,
    KeyMapError,
    MissingKeysError,
    NonFiniteWeightsError,
    NotACheckpointError,
    ShapeMismatchError,
    UnknownArchitectureError,
    UnknownHeadError,
    UnmappedKeysError,
    WrongConfigError,
    listing,
)
from hf_mmunify.conversion.rules import Cut, KeyMap, Template, Turn, View


VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}

VIT_KEY_MAP = [
    Rename("cls_token", "vit.embeddings.cls_token"),
    Rename("pos_embed", "vit.embeddings.position_embeddings"),
    Rename("patch_embed.proj.{*}", "vit.embeddings.patch_embeddings.projection.{*}"),
    Split("blocks.{}.attn.qkv.{*}", [f"vit.layers.{{}}.attention.{x}_proj.{{*}}" for x in "qkv"]),
    Rename("blocks.{}.attn.proj.{*}", "vit.layers.{}.attention.o_proj.{*}"),
    Rename("blocks.{}.norm1.{*}", "vit.layers.{}.layernorm_before.{*}"),
    Rename("blocks.{}.norm2.{*}", "vit.layers.{}.layernorm_after.{*}"),
    Rename("blocks.{}.mlp.{*}", "vit.layers.{}.mlp.{*}"),
    Rename("norm.{*}", "vit.layernorm.{*}"),
    Rename("fc.{*}", "vit.pooler.dense.{*}"),
    Rename("head.{*}", "classifier.{*}"),
]


def vit_config(original_config, state_dict):
    """The authors say `dim` and `depth`; the number of classes is read off the head."""
    sizes = {**VIT, "hidden_size": original_config["dim"], "num_hidden_layers": original_config["depth"]}
    return ViTConfig(**sizes, num_labels=state_dict["head.weight"].shape[0] if "head.weight" in state_dict else 2)


def vit_module(**changes):
    return SimpleNamespace(
        **{
            "MODEL_TYPE": "vit",
            "HEADS": {None: "ViTModel", "classifier": ViTForImageClassification},
            "KEY_MAP": VIT_KEY_MAP,
            "IGNORE": {"queue": "negatives of the training run"},
            "VARIANTS": {"tiny": Variant({"dim": 16, "depth": 2}, 0, "tiny.pth")},
            "config_from_original": vit_config,
            "head_from_state_dict": lambda state, _: "classifier" if "head.weight" in state else None,
            **changes,
        }
    )


ORIGINAL = {"dim": 16, "depth": 2}


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**VIT, num_labels=3)).eval()


@pytest.fixture
def original(vit):
    """A checkpoint in the authors' names, written out by hand."""
    ours, theirs = vit.state_dict(), {}
    for name, tensor in ours.items():
        name = name.removeprefix("vit.").replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        name = name.replace("embeddings.position_embeddings", "pos_embed").replace("embeddings.", "")
        name = name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        name = name.replace("layernorm.", "norm.").replace("layers.", "blocks.").replace("classifier", "head")
        theirs[name.replace("attention.o_proj", "attn.proj")] = tensor.clone()
    for i in range(2):
        for kind in ("weight", "bias"):
            parts = [theirs.pop(f"blocks.{i}.attention.{x}_proj.{kind}") for x in "qkv"]
            theirs[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    return theirs


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype and torch.equal(left[key], right[key]) for key in left
    )


# --- rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, key, captures",
    [
        ("blocks.{}.mlp.{*}", "blocks.12.mlp.fc1.weight", (("12",), ("fc1.weight",))),
        ("blocks.{}.mlp.{*}", "blocks.x.mlp.fc1.weight", None),
        ("blocks.{}.mlp.{*}", "blocks.1.mlp.", None),
        ("blocks.{}.mlp.{*}", "encoder.blocks.1.mlp.a", None),
        ("a.{*}.{}.b", "a.x.y.3.b", (("3",), ("x.y",))),
        ("temp", "temp", ((), ())),
        ("temp", "tempo", None),
        ("a.b", "axb", None),
        ("Transformer/block_{}/kernel", "Transformer/block_0/kernel", (("0",), ())),
    ],
)
def test_templates(text, key, captures):
    template = Template(text)
    assert template.match(key) == captures
    if captures is not None:
        assert template.fill(captures) == key


@pytest.mark.parametrize("text", ["a.{b}", "a.{", "a.{}}"])
def test_a_template_with_a_stray_brace_is_refused(text):
    with pytest.raises(KeyMapError, match="stray brace"):
        Template(text)


def test_a_rule_that_cannot_be_reversed_is_refused():
    with pytest.raises(KeyMapError, match="same number of each hole"):
        Rename("blocks.{}.weight", "weight")
    with pytest.raises(KeyMapError, match="same number of each hole"):
        Split("qkv.{*}", ["q.{*}", "k.{}"])


@pytest.mark.parametrize(
    "rule, originals, ours",
    [
        (Rename("a", "b"), [(2, 3)], [(2, 3)]),
        (Split("qkv", ["q", "k", "v"]), [(6, 4)], [(2, 4)] * 3),
        (Split("kv", ["k", "v"], dim=1, sizes=[1, 3]), [(2, 4)], [(2, 1), (2, 3)]),
        (Merge(["q", "k"], "qk", dim=-1), [(2, 3), (2, 3)], [(2, 6)]),
        (Merge(["a", "b"], "c", sizes=[1, 2]), [(1, 3), (2, 3)], [(3, 3)]),
        (Transpose("kernel", "weight"), [(2, 3)], [(3, 2)]),
        (Permute("kernel", "weight", (3, 2, 0, 1)), [(5, 6, 7, 8)], [(8, 7, 5, 6)]),
        (Permute("kernel", "weight", (2, 0, 1)), [(5, 6, 7)], [(7, 5, 6)]),
        (Reshape("temp", "logit_scale", (1,), ()), [()], [(1,)]),
        (Reshape("kernel", "weight", (-1, 6), (-1, 2, 3)), [(4, 2, 3)], [(4, 6)]),
        # flax's fused projection (in, heads, 3, head size), to three torch weights (out, in)
        (
            Rule("qkv", ["q", "k", "v"], Cut(3, dim=2), View((5, 8), (5, 2, 1, 4)), Turn((1, 0))),
            [(5, 2, 3, 4)],
            [(8, 5)] * 3,
        ),
    ],
    ids=repr,
)
def test_every_rule_comes_back_bit_by_bit(rule, originals, ours):
    tensors = [torch.randn(shape) for shape in originals]
    there = rule.forward(tensors)
    assert [tuple(tensor.shape) for tensor in there] == ours
    back = rule.backward(there)
    assert all(torch.equal(a, b) for a, b in zip(tensors, back, strict=True))


def test_permutations_say_where_our_axes_come_from():
    (ours,) = Permute("a", "b", (2, 0, 1)).forward([torch.arange(24).view(2, 3, 4)])
    assert ours[3, 1, 2] == 1 * 12 + 2 * 4 + 3


def test_the_first_rule_that_matches_has_the_key_and_the_way_back_knows():
    key_map = KeyMap([Rename("a.b.{*}", "x.{*}"), Rename("a.{*}", "y.{*}"), Rename("{*}", "y.a.{*}")], {"c.d": "why"})
    tensors = {key: torch.randn(2) for key in ("a.b.1", "a.c", "z")}
    there = {t: x for step in key_map.forward(tensors) for t, x in zip(step.targets, step.tensors)}
    assert there.keys() == {"x.1", "y.c", "y.a.z"}
    # `y.b.1` would be `a.b.1`, but that key belongs to the first rule; nothing leads there
    assert key_map.origin("y.b.1") is None
    # `y.a.c.d` would be `a.a.c.d` by the second rule; the third leads to `c.d`, which is ignored
    assert key_map.origin("y.a.c.d")[0] == 1


# --- there and back -----------------------------------------------------------------------------------------------


def test_a_checkpoint_becomes_a_model_and_comes_back_bit_by_bit(vit, original):
    model = convert(vit_module(), original, ORIGINAL)
    assert isinstance(model, ViTForImageClassification) and not model.training
    assert same(model.state_dict(), vit.state_dict())
    assert model.config.dtype == torch.float32
    pixels = torch.randn(1, 3, 16, 16)
    assert torch.equal(model(pixels).logits, vit(pixels).logits)
    assert same(export(model, vit_module()), original)


def test_the_model_owns_its_memory(original, tmp_path):
    kept = {key: tensor.clone() for key, tensor in original.items()}
    model = convert(vit_module(), original, ORIGINAL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert same(original, kept)
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert len(storages) == len(list(model.parameters()))
    assert all(p.is_contiguous() and p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())
    model.save_pretrained(tmp_path)
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] - {"pooler.dense.weight", "pooler.dense.bias"}
    assert torch.equal(again.layers[1].attention.q_proj.weight, model.vit.layers[1].attention.q_proj.weight)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3, "args": object()},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "best": 0.5},
        lambda state: {"model": {"module": {f"module._orig_mod.{k}": v for k, v in state.items()}}},
        lambda state: {k: v.numpy() for k, v in state.items()},
        lambda state: {**state, "queue": "not even a tensor"},
        lambda state: {k: torch.nn.Parameter(v) for k, v in state.items()},
    ],
    ids=["container", "ddp", "compiled", "numpy", "ignored", "parameters"],
)
def test_the_wrappings_of_training_scripts_come_off(vit, original, wrap):
    assert same(convert(vit_module(), wrap(original), ORIGINAL).state_dict(), vit.state_dict())


@pytest.mark.parametrize("name", ["checkpoint.pth", ""])
def test_files_and_folders(vit, original, tmp_path, name):
    torch.save({"model": original}, tmp_path / "checkpoint.pth")
    assert same(convert(vit_module(), tmp_path / name, ORIGINAL).state_dict(), vit.state_dict())
    assert same(convert(vit_module(), str(tmp_path / name), ORIGINAL).state_dict(), vit.state_dict())


def test_trees_are_joined_with_slashes_and_lists_with_dots():
    module = vit_module(CONTAINERS=("params",), PREFIXES=("net/",))
    one = torch.ones(1)
    assert engine.read_originals(module, {"params": {"net": {"a": {"b": one}, "c": one}}}).keys() == {"a/b", "c"}
    assert engine.read_originals(vit_module(), {"model": [{"w": one}, {"w": one}], "opt": 1}).keys() == {"0.w", "1.w"}


def test_bfloat16_arrays_of_jax():
    class BFloat16Array(np.ndarray):
        """What ml_dtypes makes, as far as the engine asks: two-byte items under the name bfloat16."""

    values = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = values.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    assert torch.equal(engine.read_originals(vit_module(), {"w": array})["w"], values)


def test_dtypes(original):
    half = {key: tensor.half() for key, tensor in original.items()}
    assert convert(vit_module(), half, ORIGINAL).dtype == torch.float16
    mixed = {**half, "head.bias": original["head.bias"]}
    model = convert(vit_module(), mixed, ORIGINAL)
    assert model.classifier.bias.dtype == torch.float32 and model.classifier.weight.dtype == torch.float16
    assert same(export(model, vit_module()), mixed)
    for dtype in ("bfloat16", torch.bfloat16):
        model = convert(vit_module(), mixed, ORIGINAL, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model.config.dtype == torch.bfloat16
    for dtype in ("int8", "half precision", 16):
        with pytest.raises(WrongConfigError, match="expected a floating-point one"):
            convert(vit_module(), original, ORIGINAL, dtype=dtype)


def test_a_base_model_takes_the_same_key_map_without_its_prefix(original):
    torch.manual_seed(0)
    base = {k: v for k, v in original.items() if not k.startswith("head.")}
    base |= {"fc.weight": torch.randn(16, 16), "fc.bias": torch.randn(16)}
    model = convert(vit_module(), base, ORIGINAL)
    assert isinstance(model, ViTModel)
    assert torch.equal(model.pooler.dense.weight, base["fc.weight"])
    assert same(export(model, vit_module()), base)


def test_buffers_outside_the_state_dict_are_right():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=8, rope_theta=77.0
    )
    llama = LlamaForCausalLM(config).eval()
    module = SimpleNamespace(
        MODEL_TYPE="llama",
        HEADS={None: "LlamaForCausalLM"},
        KEY_MAP=[Rename("{*}", "{*}")],
        config_from_original=lambda *_: config,
    )
    model = convert(module, llama.state_dict())
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.model.rotary_emb.inv_freq, llama.model.rotary_emb.inv_freq)
    assert torch.equal(model(ids).logits, llama(ids).logits)


# --- tied, derived, completed -------------------------------------------------------------------------------------


def opt_module(tie=True, **changes):
    config = OPTConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        ffn_dim=16,
        num_attention_heads=2,
        max_position_embeddings=16,
        word_embed_proj_dim=16,
        tie_word_embeddings=tie,
    )
    return SimpleNamespace(
        **{
            "MODEL_TYPE": "opt",
            "HEADS": {None: OPTForCausalLM},
            "KEY_MAP": [Rename("lm.{*}", "{*}")],
            "ALIASES": {"lm.lm_head.weight": "lm.model.decoder.embed_tokens.weight"} if tie else {},
            "config_from_original": lambda *_: OPTConfig.from_dict(config.to_dict()),
            **changes,
        }
    )


def opt_checkpoint(tie=True):
    torch.manual_seed(0)
    return {
        f"lm.{k}": v.clone() for k, v in OPTForCausalLM(opt_module(tie).config_from_original()).state_dict().items()
    }


def test_tied_weights_are_one_and_their_aliases_come_back():
    state = opt_checkpoint()
    for given in (state, {k: v for k, v in state.items() if k != "lm.lm_head.weight"}):
        model = convert(opt_module(), given)
        assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
        assert same(export(model, opt_module()), state)


def test_an_alias_without_a_place_of_its_own_is_checked_and_comes_back():
    key_map = [Rename("lm.model.{*}", "model.{*}")]
    model = convert(opt_module(KEY_MAP=key_map), opt_checkpoint())
    assert same(export(model, opt_module(KEY_MAP=key_map)), opt_checkpoint())


def test_only_the_tied_name_may_lead_to_an_original():
    """The original keeps the shared table under the name of the head."""
    key_map = [Rename("table", "lm_head.weight"), Rename("lm.model.decoder.layers.{*}", "model.decoder.layers.{*}")]
    key_map += [Rename(f"lm.model.decoder.{x}.{{*}}", f"model.decoder.{x}.{{*}}") for x in ("embed_positions",)]
    key_map += [Rename("lm.model.decoder.final_layer_norm.{*}", "model.decoder.final_layer_norm.{*}")]
    state = {k: v for k, v in opt_checkpoint().items() if "embed_tokens" not in k}
    state["table"] = state.pop("lm.lm_head.weight")
    module = opt_module(KEY_MAP=key_map, ALIASES={})
    model = convert(module, state)
    assert torch.equal(model.model.decoder.embed_tokens.weight, state["table"])
    assert same(export(model, module), state)


def test_weights_that_should_be_tied_but_differ():
    state = opt_checkpoint()
    state["lm.lm_head.weight"] = state["lm.lm_head.weight"] + 1
    with pytest.raises(InconsistentWeightsError, match=r"`lm.lm_head.weight` .* differs from .*embed_tokens"):
        convert(opt_module(), state)
    with pytest.raises(InconsistentWeightsError, match="tie_word_embeddings"):
        convert(opt_module(ALIASES={}), state)
    model = convert(opt_module(tie=False), state)
    assert torch.equal(model.lm_head.weight, state["lm.lm_head.weight"])
    assert same(export(model, opt_module(tie=False)), state)


def bert_module(**changes):
    config = BertConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=6,
    )  # fmt: skip
    return SimpleNamespace(
        **{
            "MODEL_TYPE": "bert",
            "HEADS": {None: "BertModel", "mlm": "BertForMaskedLM"},
            "key_map": lambda config: [
                *[Rename(f"layer{i}.{{*}}", f"bert.encoder.layer.{i}.{{*}}") for i in range(config.num_hidden_layers)],
                Rename("embeddings.{*}", "bert.embeddings.{*}"),
                Rename("pooler.{*}", "bert.pooler.{*}"),
                Rename("cls.{*}", "cls.{*}"),
            ],
            "derived": lambda config, originals: {
                "embeddings.position_ids": torch.arange(config.max_position_embeddings)[None],
                "scale": originals["pooler.dense.bias"].sum(),
            },
            "ignore": lambda config: {"layer{}.drop": "a counter"} if config.num_hidden_layers else {},
            "config_from_original": lambda *_: config,
            **changes,
        }
    )


@pytest.fixture
def bert_checkpoint():
    torch.manual_seed(0)
    model = BertModel(bert_module().config_from_original())
    state = {k.replace("encoder.layer.0", "layer0"): v.clone() for k, v in model.state_dict().items()}
    state["embeddings.position_ids"] = torch.arange(6)[None]
    state["scale"] = state["pooler.dense.bias"].sum()
    return state


def test_what_the_original_computes_is_checked_supplied_and_exported(bert_checkpoint):
    model = convert(bert_module(), {**bert_checkpoint, "layer0.drop": torch.tensor(1)})
    assert same(export(model, bert_module()), bert_checkpoint)
    without = {k: v for k, v in bert_checkpoint.items() if k not in ("embeddings.position_ids", "scale")}
    assert same(export(convert(bert_module(), without), bert_module()), bert_checkpoint)
    for wrong in (torch.arange(6)[None] + 1, torch.arange(7)[None]):
        with pytest.raises(InconsistentWeightsError, match=r"position_ids.* differs from what the original computes"):
            convert(bert_module(), {**bert_checkpoint, "embeddings.position_ids": wrong})
    del without["pooler.dense.bias"]
    with pytest.raises(MissingKeysError, match=r"no `pooler\.dense\.bias`"):
        convert(bert_module(), without)


def test_derived_keys_can_fill_the_model(original):
    table = original.pop("pos_embed")
    module = vit_module(derived=lambda config, originals: {"pos_embed": table})
    model = convert(module, original, ORIGINAL)
    assert torch.equal(model.vit.embeddings.position_embeddings, table)
    assert same(export(model, module), {**original, "pos_embed": table})


def test_what_a_checkpoint_does_not_publish_comes_from_elsewhere(original):
    tower = {k: v for k, v in original.items() if k.startswith("blocks.1.")}
    partial = {k: v for k, v in original.items() if k not in tower}
    asked = {}

    def complete(config, missing, original_config):
        asked.update(missing=missing, config=original_config)
        whole = convert(vit_module(), original, ORIGINAL).state_dict()
        return {name: whole[name] for name in missing}

    declared = {"COMPLETE": {"vit.layers.1.{*}": "the tower of owner/tower"}, "complete": complete}
    model = convert(vit_module(**declared), partial, {**ORIGINAL, "tower": "owner/tower"})
    assert same(export(model, vit_module()), original)
    assert len(asked["missing"]) == 16 and asked["config"]["tower"] == "owner/tower"

    with pytest.raises(MissingKeysError, match=r"the tower of owner/tower\), where these were not found: 16: vit"):
        convert(vit_module(COMPLETE=declared["COMPLETE"]), partial, ORIGINAL)
    for change, error, match in (
        (lambda found: found | {"other": torch.ones(1)}, MissingKeysError, "superfluous: 1: other"),
        (lambda found: dict(list(found.items())[1:]), MissingKeysError, "not found: 1: vit.layers.1"),
        (lambda found: {k: v[:1] for k, v in found.items()}, ShapeMismatchError, r"\[1.* in the tower of owner/tower"),
    ):
        wrong = {**declared, "complete": lambda *arguments, change=change: change(complete(*arguments))}
        with pytest.raises(error, match=match):
            convert(vit_module(**wrong), partial, ORIGINAL)
    # what is in nobody's hands stays an error
    del partial["norm.weight"]
    with pytest.raises(MissingKeysError, match=r"1: vit\.layernorm\.weight"):
        convert(vit_module(**declared), partial, ORIGINAL)


# --- gradients ----------------------------------------------------------------------------------------------------


def test_gradients_travel_by_the_same_rules(vit, original):
    model = convert(vit_module(), original, ORIGINAL)
    model(torch.randn(2, 3, 16, 16)).logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    theirs = engine.export_tensors(model, gradients, vit_module())
    assert theirs.keys() == original.keys()
    attention = model.vit.layers[1].attention
    expected = torch.cat([x.weight.grad for x in (attention.q_proj, attention.k_proj, attention.v_proj)])
    assert torch.equal(theirs["blocks.1.attn.qkv.weight"], expected)
    # a rule applies only if all that it reads is there
    del gradients["vit.layers.1.attention.k_proj.weight"]
    partial = engine.export_tensors(model, gradients, vit_module())
    assert theirs.keys() - partial.keys() == {"blocks.1.attn.qkv.weight"}


def test_gradients_of_tied_weights_go_by_any_of_their_names():
    model = convert(opt_module(), opt_checkpoint())
    for name in ("lm_head.weight", "model.decoder.embed_tokens.weight"):
        exported = engine.export_tensors(model, {name: torch.ones(20, 16)}, opt_module())
        assert exported.keys() == {"lm.model.decoder.embed_tokens.weight"}


# --- errors -------------------------------------------------------------------------------------------------------


def test_keys_without_a_place_are_listed_beside_those_that_lack(original):
    original["extra.weight"] = original.pop("norm.weight")
    original["iteration"] = 7
    with pytest.raises(UnmappedKeysError) as caught:
        convert(vit_module(), original, ORIGINAL)
    message = str(caught.value)
    assert f"A checkpoint of {len(original)} keys does not fill ViTForImageClassification with its 40" in message
    assert "no place in the model, 2: iteration (a int, not a tensor), extra.weight" in message
    assert "not in the checkpoint, 1: vit.layernorm.weight" in message
    assert isinstance(caught.value, ConversionError) and isinstance(caught.value, ValueError)


def test_missing_keys_are_listed(original):
    for i in (0, 1):
        del original[f"blocks.{i}.attn.qkv.bias"]
    with pytest.raises(MissingKeysError, match=r"in the checkpoint, 6: vit\.layers\.0\.attention\.q_proj\.bias, "):
        convert(vit_module(), original, ORIGINAL)


def test_keys_that_are_read_together_are_missed_together(vit, original):
    key_map = [rule for rule in VIT_KEY_MAP if "cls_token" not in repr(rule)]
    key_map.append(Merge(["cls_a", "cls_b"], "vit.embeddings.cls_token", dim=2))
    original["cls_a"], original["cls_b"] = original.pop("cls_token").chunk(2, 2)
    module = vit_module(KEY_MAP=key_map)
    model = convert(module, original, ORIGINAL)
    assert same(model.state_dict(), vit.state_dict()) and same(export(model, module), original)
    del original["cls_b"]
    with pytest.raises(MissingKeysError, match=r"1: cls_b \(to be read together with cls_a\)"):
        convert(module, original, ORIGINAL)


def test_shapes_that_differ_are_listed(original):
    original["head.bias"] = torch.zeros(4)
    original["blocks.0.attn.qkv.weight"] = torch.zeros(47, 16)
    with pytest.raises(ShapeMismatchError) as caught:
        convert(vit_module(), original, ORIGINAL)
    assert "shapes differ, 2: " in str(caught.value)
    assert "head.bias [4] for classifier.bias [3]" in str(caught.value)
    assert "blocks.0.attn.qkv.weight [47, 16]: dimension 0 of [47, 16] does not divide into 3" in str(caught.value)


def test_a_checkpoint_of_another_size(original):
    with pytest.raises(UnmappedKeysError, match=r"would be vit\.layers\.1"):
        convert(vit_module(), original, {"dim": 16, "depth": 1})
    with pytest.raises(MissingKeysError, match=r"vit\.layers\.2"):
        convert(vit_module(), original, {"dim": 16, "depth": 3})
    with pytest.raises(ShapeMismatchError, match="for vit"):
        convert(vit_module(), original, {"dim": 32, "depth": 2})


@pytest.mark.parametrize(
    "config, match",
    [
        ({"dim": 16}, r"lacks 'depth'; it has 1: dim\. Pass .* name of a published variant \(1: tiny\)"),
        (None, "none was given"),
        ({"dim": 16, "depth": "two"}, r"makes no model .*expected int, got str"),
        ({"dim": -16, "depth": 2}, "ViTForImageClassification cannot be built from this configuration"),
        ("huge", "no published variant `huge`; it has 1: tiny"),
        (16, "is a int; expected a dict"),
    ],
)
def test_wrong_configurations(original, config, match):
    with pytest.raises(WrongConfigError, match=match):
        convert(vit_module(), original, config)


def test_a_published_variant_brings_its_configuration(vit, original):
    assert same(convert(vit_module(), original, "tiny").state_dict(), vit.state_dict())


def test_heads(original):
    with pytest.raises(UnknownHeadError, match="no head 'vqa'; it has 2: None, classifier"):
        convert(vit_module(), original, ORIGINAL, head="vqa")
    with pytest.raises(UnmappedKeysError, match=r"head\.weight \(its place would be classifier\.weight\)"):
        convert(vit_module(head_from_state_dict=lambda *_: None), original, ORIGINAL)
    with pytest.raises(UnknownHeadError, match="no head None; it has 1: mlm"):
        convert(bert_module(HEADS={"mlm": BertForMaskedLM}), {"w": torch.ones(1)})


def test_unknown_architectures(vit):
    with pytest.raises(UnknownArchitectureError, match="No conversion for architecture `resnet`"):
        convert("resnet", {})
    with pytest.raises(UnknownArchitectureError, match="`vit`"):
        export(vit)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(original, bad):
    original["norm.bias"][3] = bad
    with pytest.raises(NonFiniteWeightsError, match=r"1: vit\.layernorm\.bias"):
        convert(vit_module(), original, ORIGINAL)


@pytest.mark.parametrize("checkpoint", [{}, {"epoch": 3}, {"model": {}}, {"model": {"name": "x"}}])
def test_what_holds_no_tensors(checkpoint):
    with pytest.raises(NotACheckpointError, match="No tensors"):
        convert(vit_module(), checkpoint, ORIGINAL)


def test_two_keys_for_one_place_are_a_fault_of_the_key_map(original):
    module = vit_module(KEY_MAP=[*VIT_KEY_MAP, Rename("also.{*}", "classifier.{*}")])
    with pytest.raises(KeyMapError, match=r"fills `classifier\.bias` twice"):
        convert(module, {**original, "also.bias": original["head.bias"]}, ORIGINAL)


def test_a_changed_model_is_not_exported(vit):
    vit.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(KeyMapError, match=r"2: adapter\.weight, adapter\.bias.*adapters"):
        export(vit, vit_module())


def test_lists_of_names_are_cut():
    assert listing(range(3)) == "3: 0, 1, 2"
    assert listing(range(9), 2) == "9: 0, 1, ... (7 more)"


def test_bound_functions(original, monkeypatch):
    module = vit_module()
    monkeypatch.setitem(engine.sys.modules, "toy_conversion", module)
    bound_convert, bound_export = engine.bind("toy_conversion")
    model = bound_convert(original, ORIGINAL, head="classifier", dtype="float16")
    assert model.dtype == torch.float16
    assert bound_export(model).keys() == original.keys()


# --- published sizes ----------------------------------------------------------------------------------------------


VARIANTS = [
    (name, variant)
    for name in engine.conversion_names()
    for variant in declared(engine.conversion_module(name), "VARIANTS")
]


def test_manifests_are_read_and_written(tmp_path):
    shapes = {"a.weight": (2, 3), "scalar": ()}
    write_manifest(tmp_path / "x.txt", shapes)
    assert (tmp_path / "x.txt").read_text() == "a.weight\t2,3\nscalar\t\n"
    assert read_manifest(tmp_path / "x.txt") == shapes
    for line in ("a.weight 2,3\n", "a\t2,x\n", "a\t2\na\t2\n"):
        (tmp_path / "x.txt").write_text(line)
        with pytest.raises(NotACheckpointError, match="expected a new key"):
            read_manifest(tmp_path / "x.txt")


def published(module, name):
    """The manifest of a variant as tensors on the meta device, the model they should fill, and what they fill."""
    variant, path = variant_of(module, name), manifest_path(module, name)
    assert path.is_file(), f"{path.name} is missing in conversion/manifests/{path.parent.name}: see `write_manifest`"
    originals = {key: torch.empty(shape, device="meta") for key, shape in read_manifest(path).items()}
    config = dict(variant.config)
    model_class = engine.head_class(module, variant.head, originals, config)
    model = engine.skeleton(model_class, engine.our_config(module, config, originals))
    return originals, model, engine.map_originals(module, model, originals, config)


@pytest.mark.parametrize("name, variant", VARIANTS, ids=lambda text: text)
def test_a_manifest_fills_the_model_and_comes_back(name, variant):
    module = engine.conversion_module(name)
    originals, model, mapped = published(module, variant)
    assert sum(p.numel() for p in model.parameters()) == variant_of(module, variant).parameters

    key_map = key_map_of(module, model.config)
    back = engine.export_tensors(model, mapped.tensors, module)
    assert {n: t.shape for n, t in engine.map_originals(module, model, back).tensors.items()} == {
        n: t.shape for n, t in mapped.tensors.items()
    }
    copies = engine._copies(module, model.config, back)
    for key, tensor in originals.items():
        if key in back:
            assert back[key].shape == tensor.shape
        elif key not in mapped.ignored and key not in copies:
            (step,) = key_map.forward({key: tensor})
            assert key_map.origin(step.targets[0])[0] != step.rule, f"{key} does not come back, nor its later name"
    assert len(back) <= len(originals)


@pytest.mark.parametrize("name", engine.conversion_names())
def test_every_rule_is_used(name):
    """By a manifest, or by a golden case, which has what published files leave out."""
    module = engine.conversion_module(name)
    known, used, unpublished = set(), set(), declared(module, "UNPUBLISHED")
    models = [published(module, variant)[1:] for variant in declared(module, "VARIANTS")]
    for case in cases():
        if case.system == name:
            originals = {key: torch.empty(w["shape"], device="meta") for key, w in case.info["weights"].items()}
            config = case.info["config"]
            model = engine.skeleton(
                engine.head_class(module, None, originals, config), engine.our_config(module, config, originals)
            )
            models.append((model, engine.map_originals(module, model, originals, config)))
    for model, mapped in models:
        rules = key_map_of(module, model.config).rules
        known |= {repr(rule) for rule in rules if not {t.text for t in rule.originals} <= unpublished.keys()}
        used |= {repr(rules[index]) for index in mapped.rules_used}
    assert known <= used, f"rules that no manifest and no golden case needs: {sorted(known - used)}"
