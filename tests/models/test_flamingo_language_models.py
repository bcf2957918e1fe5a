"""Flamingo on language models of every family: attaching leaves them as they are, and everything they can do stays."""

import copy
import json
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from flamingo_parts import (
    ADAPTER,
    EOC,
    IMAGE,
    LANGUAGE_MODELS,
    RECURRENT_MODELS,
    VOCAB,
    attach,
    flamingo,
    images,
    language_model,
    tokens,
    vision_model,
)
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hf_mmunify.models.flamingo import FlamingoConfig, FlamingoForConditionalGeneration
from hf_mmunify.models.flamingo.modeling_flamingo import find_decoder_layers
from hf_mmunify.models.flamingo.survey import as_table, survey_language_models


EVERY_FAMILY = pytest.mark.parametrize("family", LANGUAGE_MODELS)
EVERY_RECURRENT = pytest.mark.parametrize("family", RECURRENT_MODELS)
A_FEW_FAMILIES = pytest.mark.parametrize("family", ["opt", "mpt", "llama", "gemma3_text"])

ROWS = "ab*cdef*ghij", "*xyz"
TEXT, BATCH = tokens(ROWS[0]), tokens(*ROWS)
PIXELS = images(2, 2)
MASK = torch.tensor([[1, 1], [1, 0]])
PROMPT = {**TEXT, "pixel_values": PIXELS[:1]}
MIXTURES = ("mixtral", "jamba", "qwen3_next", "minimax")  # of experts, whose kernels round by where they are in memory


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def write(model, prompt: dict = PROMPT, new: int = 6, **settings) -> SimpleNamespace:
    settings = {"do_sample": False, "eos_token_id": None, **settings}
    result = model.generate(
        **prompt, max_new_tokens=new, output_logits=True, output_scores=True, return_dict_in_generate=True, **settings
    )
    length = prompt["input_ids"].shape[1]
    return SimpleNamespace(
        text=result.sequences[:, length:],
        logits=torch.stack(result.logits, dim=1),
        score=result.get("sequences_scores"),
    )


def assert_same_writing(found: SimpleNamespace, expected: SimpleNamespace) -> None:
    assert torch.equal(found.text, expected.text)
    close(found.logits, expected.logits)
    if expected.score is not None:
        close(found.score, expected.score)


def one_by_one(model, with_mask: bool = True) -> torch.Tensor:
    """Logits of `PROMPT` read token by token, each image handed over with its token."""
    cache, logits, shown = None, [], 0
    for i, token in enumerate(TEXT["input_ids"][0]):
        more = {"attention_mask": TEXT["attention_mask"][:, : i + 1]} if with_mask else {}
        if token == IMAGE:
            more["pixel_values"], shown = PIXELS[:1, shown : shown + 1], shown + 1
        output = model(token[None, None], past_key_values=cache, use_cache=True, **more)
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def gradients(model, **settings) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # the same dropout
    model.zero_grad()
    model(**BATCH, pixel_values=PIXELS, image_mask=MASK, labels=BATCH["input_ids"]).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_images_are_seen(model, atol: float) -> None:
    expected = model(**PROMPT).logits[0]
    for number, (first, next_one) in enumerate([(2, 7), (7, 12)]):
        pixels = PIXELS[:1].clone()
        pixels[:, number] = images(1, 1, seed=9)[:, 0]
        change = (model(**TEXT, pixel_values=pixels).logits[0] - expected).abs().amax(dim=-1)
        close(change[:first], torch.zeros(first), atol=atol)  # what stands before an image does not see it
        assert (change[first:next_one] > 0.1).all()


@EVERY_FAMILY
@torch.no_grad()
def test_images_show_from_their_token_on(family):
    assert_images_are_seen(flamingo(family), atol=1e-6 if family in MIXTURES else 0)


@EVERY_FAMILY
@torch.no_grad()
def test_closed_gates_leave_the_language_model_bit_by_bit(family):
    alone = language_model(family)
    expected = alone(**TEXT).logits
    model = FlamingoForConditionalGeneration.from_vision_text_pretrained(
        vision_model(), alone, image_token_id=IMAGE, **ADAPTER
    )
    close(model(**PROMPT).logits, expected, atol=0)


@EVERY_FAMILY
@torch.no_grad()
def test_attaching_leaves_the_language_model_as_it_was(family, tmp_path):
    alone, inside = language_model(family), flamingo(family).model.text_model
    expected = alone(**TEXT).logits
    assert type(alone) is type(inside)
    assert {n: type(m) for n, m in alone.named_modules()} == {n: type(m) for n, m in inside.named_modules()}
    before, after = alone.state_dict(), inside.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    is_tied = [m.get_input_embeddings().weight is m.get_output_embeddings().weight for m in (alone, inside)]
    assert is_tied[0] == is_tied[1] == alone.config.tie_word_embeddings
    for name in ("_attn_implementation", "_experts_implementation", "dtype"):
        assert getattr(inside.config, name) == getattr(alone.config, name)
    close(inside(**TEXT).logits, expected, atol=0)  # used on its own, it sees nothing
    inside.save_pretrained(tmp_path)
    close(AutoModelForCausalLM.from_pretrained(tmp_path)(**TEXT).logits, expected, atol=1e-6)


@EVERY_FAMILY
@torch.no_grad()
def test_reading_token_by_token_equals_reading_at_once(family):
    model = flamingo(family)
    close(one_by_one(model), model(**PROMPT).logits)


@EVERY_FAMILY
@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beams", "sampling"])
def test_every_cache_writes_the_same(family, settings):
    model, written = flamingo(family), []
    for cache in ({"use_cache": False}, {}, {"cache_implementation": "static"}):
        torch.manual_seed(0)
        written.append(write(model, **settings, **cache))
    assert_same_writing(written[1], written[0])
    assert_same_writing(written[2], written[0])


@EVERY_FAMILY
@torch.no_grad()
def test_padding_changes_nothing(family):
    model = flamingo(family)
    alone = [write(model), write(model, {**tokens(ROWS[1]), "pixel_values": PIXELS[1:, :1]})]
    batch = {**tokens(*ROWS, side="left"), "pixel_values": PIXELS, "image_mask": MASK}
    together = write(model, batch)
    for i, row in enumerate(alone):
        close(together.logits[i : i + 1], row.logits)
    logits = model(**BATCH, pixel_values=PIXELS, image_mask=MASK).logits  # padded on the right, as in training
    close(logits[:1], model(**PROMPT).logits)
    close(logits[1:, :4], model(**tokens(ROWS[1]), pixel_values=PIXELS[1:, :1]).logits)


@EVERY_FAMILY
def test_gradient_checkpointing(family):
    model = attach(language_model(family)).train()
    expected = gradients(model)
    assert expected.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("adapter" in name and gradient.abs().max() > 0 for name, gradient in expected.items())
    block, calls = model.model.adapter.layers["0"].feed_forward.up_proj, []
    block.register_forward_hook(lambda *_: calls.append(1))
    for use_reentrant in (True, False):
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        calls.clear()
        found = gradients(model)
        assert len(calls) == 2 and found.keys() == expected.keys()  # once more in the backward pass
        for name, gradient in expected.items():
            close(found[name], gradient, atol=1e-6)


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
def test_checkpointing_by_wrappers(family):
    """FSDP's activation checkpointing, in accelerate, wraps whole layers: the blocks are then inside."""
    expected = gradients(attach(language_model(family)).train())
    model = attach(language_model(family)).train()
    layers = find_decoder_layers(model.model.text_model, model.config)
    wrap = partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT)
    apply_activation_checkpointing(model, wrap, check_fn=lambda module: isinstance(module, type(layers[0])))
    found = {name.replace("_checkpoint_wrapped_module.", ""): x for name, x in gradients(model).items()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        close(found[name], gradient, atol=1e-6)
    # The states that a caller embedded himself show nothing to the language model alone
    embeds = model.get_input_embeddings()(TEXT["input_ids"])
    alone = model.eval().model.text_model(inputs_embeds=embeds).logits
    index = (TEXT["input_ids"] == IMAGE).cumsum(dim=1)
    model(inputs_embeds=embeds, pixel_values=PIXELS[:1], media_index=index)
    close(model.model.text_model(inputs_embeds=embeds).logits, alone, atol=0)


@EVERY_FAMILY
@torch.no_grad()
def test_saving_and_loading(family, tmp_path):
    model = flamingo(family)
    model.save_pretrained(tmp_path)
    again, report = FlamingoForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_equal_tensors(again, model)
    close(again(**PROMPT).logits, model(**PROMPT).logits, atol=1e-6 if family in MIXTURES else 0)
    assert [name for name, p in again.named_parameters() if p.requires_grad] == [
        name for name, p in model.named_parameters() if p.requires_grad
    ]


def assert_equal_tensors(found, expected) -> None:
    """Parameters and buffers, also those that are not saved."""
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(found, kind)()), dict(getattr(expected, kind)())
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name


@EVERY_FAMILY
@torch.no_grad()
def test_saving_the_adapter_alone(family, tmp_path):
    text, vision = tmp_path / "text", tmp_path / "vision"
    language_model(family).save_pretrained(text)
    vision_model().save_pretrained(vision)
    model = attach(str(text), str(vision), trained_token_ids=[EOC, IMAGE])
    expected = model(**PROMPT).logits
    model.save_flamingo_adapter(tmp_path / "adapter")
    files = {path.name: path.stat().st_size for path in (tmp_path / "adapter").iterdir()}
    assert files.keys() == {"flamingo_adapter.safetensors", "flamingo_adapter.json"}
    adapter = sum(p.numel() for p in model.model.adapter.parameters())
    assert files["flamingo_adapter.safetensors"] < 4 * adapter + 20_000  # nothing of the frozen parts
    description = json.loads((tmp_path / "adapter" / "flamingo_adapter.json").read_text())
    assert description["text_model"] == str(text) and description["vision_model"] == str(vision)

    again = FlamingoForConditionalGeneration.from_flamingo_adapter(tmp_path / "adapter")
    close(again(**PROMPT).logits, expected, atol=1e-6 if family in MIXTURES else 0)
    given = FlamingoForConditionalGeneration.from_flamingo_adapter(
        tmp_path / "adapter", vision_model=vision_model(), text_model=language_model(family)
    )
    close(given(**PROMPT).logits, expected, atol=1e-6 if family in MIXTURES else 0)
    fresh = attach(language_model(family), trained_token_ids=[EOC, IMAGE])
    fresh.model.adapter.resampler.latents.zero_()
    fresh.load_flamingo_adapter(tmp_path / "adapter")
    assert_equal_tensors(fresh.model.adapter, model.model.adapter)
    with pytest.raises(ValueError, match=r"other parts or another config.*cross_attention|up_proj"):
        attach(language_model(family), cross_attention_intermediate_size=20).load_flamingo_adapter(
            tmp_path / "adapter"
        )


@pytest.mark.parametrize("family", ["opt", "mpt", "llama"])
def test_compiling_whole(family):
    """`fullgraph=True`: no graph break, neither with a cache nor in training."""
    model, inputs = flamingo(family), {**BATCH, "pixel_values": PIXELS}
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        close(compiled(**inputs, use_cache=True).logits, model(**inputs).logits, atol=0)
    loss = compiled(**inputs, labels=BATCH["input_ids"], use_cache=False).loss
    close(loss, model(**inputs, labels=BATCH["input_ids"]).loss, atol=1e-6)


@A_FEW_FAMILIES
@torch.no_grad()
def test_exporting(family):
    model, inputs = flamingo(family), {**BATCH, "pixel_values": PIXELS, "use_cache": False}
    program = torch.export.export(model, (), inputs)
    close(program.module()(**inputs).logits, model(**inputs).logits, atol=0)


@A_FEW_FAMILIES
@torch.no_grad()
def test_eager_and_fused_attention_agree(family):
    model, real = attach(language_model(family)), BATCH["attention_mask"].bool()
    expected = model(**BATCH, pixel_values=PIXELS, image_mask=MASK).logits[real]
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert model.model.adapter.resampler.layers[0].attention.config._attn_implementation == "eager"
    assert model.model.vision_model.config._attn_implementation == "eager"
    output = model(**BATCH, pixel_values=PIXELS, image_mask=MASK, output_attentions=True)
    close(output.logits[real], expected)
    assert len(output.attentions) == len(output.cross_attentions) == 3


@pytest.mark.slow  # it compiles for the machine
@pytest.mark.skipif(shutil.which("g++") is None, reason="flex attention on a CPU needs a C++ compiler")
@torch.no_grad()
def test_flex_attention():
    model = attach(language_model("llama"))
    expected = model(**PROMPT).logits
    model.set_attn_implementation({"": "flex_attention"})
    assert model.config._attn_implementation == "flex_attention"
    close(model(**PROMPT).logits, expected)


@A_FEW_FAMILIES
def test_frozen_parts_in_bfloat16_around_an_adapter_in_float32(family):
    """As the paper trains, and without autocast."""
    expected = flamingo(family)(**PROMPT).logits
    model = attach(language_model(family).bfloat16(), vision_model().bfloat16())
    assert {p.dtype for p in model.model.adapter.parameters()} == {torch.float32}
    output = model(**PROMPT, labels=TEXT["input_ids"])
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    close(output.logits.float(), expected, atol=0.2)  # logits of size 5 with 8 bits
    losses = []
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(**PROMPT, labels=TEXT["input_ids"]).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert write(model).text.shape == (1, 6)


# ---------------------------------------------------------------------------------------------- recurrent states


@EVERY_RECURRENT
@torch.no_grad()
def test_recurrent_models_see_images_too(family):
    assert_images_are_seen(flamingo(family), atol=5e-6 if family in MIXTURES else 0)


@EVERY_RECURRENT
@torch.no_grad()
def test_recurrent_models_stay_as_they_are(family, tmp_path):
    alone, model = language_model(family), flamingo(family)
    atol = 5e-6 if family in MIXTURES else 0
    close(model.model.text_model(**TEXT).logits, alone(**TEXT).logits, atol=atol)
    model.save_pretrained(tmp_path)
    again = FlamingoForConditionalGeneration.from_pretrained(tmp_path)
    assert_equal_tensors(again, model)
    close(again(**PROMPT).logits, model(**PROMPT).logits, atol=atol)


@EVERY_RECURRENT
def test_recurrent_models_train(family):
    model = attach(language_model(family)).train()
    expected = gradients(model)
    assert expected.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients(model).items():
        close(gradient, expected[name], atol=2e-6)


@EVERY_RECURRENT
@torch.no_grad()
def test_recurrent_models_write_from_their_state(family):
    """Those whose state is one of transformers' caches; the others read the whole text again for every token."""
    model = flamingo(family)
    in_modules = family == "recurrent_gemma"  # its state: beams part from it, with Flamingo or without
    for settings in [{}] if in_modules else [{}, {"num_beams": 3}]:
        assert_same_writing(write(model, **settings), write(model, use_cache=False, **settings))
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful"):
        if not model.model.text_model._is_stateful:
            raise ValueError("assisted generation is not supported with stateful models, which this is not")
        write(model, prompt_lookup_num_tokens=2)
    reads_whole_text = family in ("rwkv", "minimax")
    assert (model.model.cache_name is None) == reads_whole_text
    if reads_whole_text:
        with pytest.raises(ValueError, match=r"state of its own kind.*pass the whole text"):
            model(**PROMPT, use_cache=True)
        assert model(**PROMPT).past_key_values is None
    elif not in_modules:
        close(one_by_one(model, with_mask=family not in ("mamba", "jamba")), model(**PROMPT).logits)


@EVERY_RECURRENT
@torch.no_grad()
def test_recurrent_models_and_padding(family):
    model = flamingo(family)
    logits = model(**BATCH, pixel_values=PIXELS, image_mask=MASK).logits
    close(logits[1:, :4], model(**tokens(ROWS[1]), pixel_values=PIXELS[1:, :1]).logits)
    if family in ("rwkv", "recurrent_gemma"):  # no different without Flamingo: padding on the left enters their state
        return
    batch = {**tokens(*ROWS, side="left"), "pixel_values": PIXELS, "image_mask": MASK}
    alone = write(model, {**tokens(ROWS[1]), "pixel_values": PIXELS[1:, :1]})
    close(write(model, batch).logits[1:], alone.logits)


# ----------------------------------------------------------------------------------------------- where layers are


@pytest.mark.parametrize(
    "family, path",
    [
        ("opt", "model.decoder.layers"),
        ("gpt_neox", "gpt_neox.layers"),
        ("mpt", "transformer.blocks"),
        ("llama", "model.layers"),
        ("gpt2", "transformer.h"),
        ("mamba", "backbone.layers"),
        ("rwkv", "rwkv.blocks"),
    ],
)
def test_decoder_layers_are_found(family, path):
    model = flamingo(family)
    text_model = model.model.text_model
    assert find_decoder_layers(text_model, model.config) is text_model.get_submodule(path)
    named = attach(language_model(family), decoder_layers_path=path)
    close(named(**PROMPT).logits, model(**PROMPT).logits, atol=1e-6)


def test_layers_that_are_not_where_they_should_be():
    with pytest.raises(ValueError, match=r"decoder_layers_path='model.blocks' leads nowhere in LlamaForCausalLM"):
        attach(language_model("llama"), decoder_layers_path="model.blocks")
    text_model = language_model("llama")
    text_model.model.twins = torch.nn.ModuleList(torch.nn.Identity() for _ in range(3))
    with pytest.raises(ValueError, match=r"candidates are \['model.layers', 'model.twins'\].*decoder_layers_path"):
        attach(text_model)
    attach(text_model, decoder_layers_path="model.layers")


def test_interval_and_offset():
    """The paper counts from the first layer, OpenFlamingo takes the last of every interval."""
    paper = attach(language_model("jamba"), cross_attention_interval=2)
    original = attach(language_model("jamba"), cross_attention_interval=2, cross_attention_offset=1)
    assert list(paper.model.adapter.layers) == ["0", "2"] and list(original.model.adapter.layers) == ["1", "3"]
    sizes = {80: (7, 12), 40: (4, 10), 24: (1, 24)}  # the paper's three language models
    for layers, (interval, blocks) in sizes.items():
        text_config = {"model_type": "llama", "num_hidden_layers": layers}
        config = FlamingoConfig(text_config=text_config, vision_hidden_size=8, cross_attention_interval=interval)
        assert len(config.cross_attention_layers) == blocks and config.cross_attention_layers[0] == 0


# Types whose default config makes a language model on which Flamingo cannot sit, and what says so
REFUSED = {
    "blenderbot": "only list of 2 modules",  # num_hidden_layers counts its encoder
    "blt": "num_hidden_layers",  # bytes and patches, three stacks
    "cpmant": "one state a token",  # puts 32 tokens of its own before the text
    "deepseek_v4": "one state a token",  # hyper-connections: four streams a token
    "gemma3n_text": "one state a token",  # four streams a token
    "hrm_text": "only list of 128 modules",  # runs a few layers again and again
    "hy_v4": "one state a token",  # hyper-connections
    "longcat_flash": "only list of 56 modules",  # a layer of it counts twice
    "prophetnet": "one state a token",  # predicts several tokens at once
    "xlm": "candidates are",  # attentions and feed-forwards in separate lists
    "xlnet": "one state a token",  # time comes first
    "xmod": "set_default_language",  # asks for a language first, with Flamingo or without
}


def test_a_survey_of_some_language_models():
    found = survey_language_models(["llama", "mamba", "rwkv", "xlm"])
    assert [x.model_type for x in found if x.problem is None] == ["llama", "mamba", "rwkv"]
    table = as_table(found).splitlines()
    assert table[2] == "| `llama` | `model.layers` | `past_key_values` |  |"
    assert table[3] == "| `mamba` | `backbone.layers` | `cache_params` |  |"
    assert table[4] == "| `rwkv` | `rwkv.blocks` |  |  |"
    assert table[5].startswith("| `xlm` |  |  | ValueError: The decoder layers of XLMWithLMHeadModel")


@pytest.mark.slow
def test_a_survey_of_all_language_models():
    """transformers 5.23: of 188 types, 160 carry a Flamingo, 12 do not, 16 cannot be made from their default config.

    `python -m hf_mmunify.models.flamingo.survey` prints where the layers of each are.
    """
    found = survey_language_models()
    built = [x for x in found if x.is_built]
    assert len(found) == 188 and len(built) >= 172  # one or two more where timm is installed
    refused = {x.model_type: x.problem for x in built if x.problem is not None}
    assert refused.keys() == REFUSED.keys()
    for name, reason in REFUSED.items():
        assert reason in refused[name]
    assert all(x.layers for x in built if x.problem is None)


# ------------------------------------------------------------------------------------------- trained token rows

TRAINED = [EOC, IMAGE, int(tokens("g")["input_ids"][0, 0])]


@pytest.mark.parametrize(
    "family, fields",
    [
        ("opt", {}),
        ("opt", {"word_embed_proj_dim": 16}),  # as OPT-350M: embeddings narrower than the layers
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("gemma3_text", {}),  # scales its embeddings
        ("phi", {}),  # a bias in its head
        ("gptj", {}),
        ("mamba", {}),
    ],
    ids=str,
)
def test_trained_rows_stand_in_for_those_of_the_tables(family, fields):
    model = attach(language_model(family, **fields), trained_token_ids=TRAINED)
    text_model, rows = model.model.text_model, model.model.adapter.token_rows
    is_tied = text_model.config.tie_word_embeddings
    assert (rows.output_rows is None) == is_tied
    table = text_model.get_input_embeddings().weight.detach().clone()
    model(**PROMPT, labels=TEXT["input_ids"]).loss.backward()
    assert text_model.get_input_embeddings().weight.grad is None
    assert rows.input_rows.grad[1:].abs().amax(dim=1).min() > 1e-3  # <image> and g were read
    if not is_tied:
        assert rows.input_rows.grad[0].abs().max() == 0  # the end of a chunk was not
        assert rows.output_rows.grad.abs().amax(dim=1).min() > 1e-3
    assert torch.equal(text_model.get_input_embeddings().weight, table)

    # The same as a language model that has these rows in its tables
    same = language_model(family, **fields)
    with torch.no_grad():
        same.get_input_embeddings().weight[TRAINED] = rows.input_rows
        if not is_tied:
            same.get_output_embeddings().weight[TRAINED] = rows.output_rows
    plain = attach(same)
    adapter = {name: x for name, x in model.model.adapter.state_dict().items() if "token_rows" not in name}
    plain.model.adapter.load_state_dict(adapter)
    with torch.no_grad():
        close(model(**PROMPT).logits, plain(**PROMPT).logits)
        assert (plain(**PROMPT).logits - attach(language_model(family, **fields))(**PROMPT).logits).abs().max() > 0.1
        assert_same_writing(write(model), write(plain))


@torch.no_grad()
def test_new_tokens_start_from_the_tables():
    text_model = language_model("llama")
    processor = SimpleNamespace(tokenizer=range(VOCAB + 2), image_token_id=VOCAB + 1, end_of_chunk_token_id=VOCAB)
    before = text_model.get_input_embeddings().weight.clone()
    writing = text_model.generation_config.to_dict()
    model = FlamingoForConditionalGeneration.from_vision_text_pretrained(
        vision_model(), text_model, processor, **ADAPTER
    )
    table = model.get_input_embeddings().weight
    assert table.shape[0] == VOCAB + 2 and torch.equal(table[:VOCAB], before)
    rows = model.model.adapter.token_rows
    assert model.config.trained_token_ids == [VOCAB, VOCAB + 1]
    assert torch.equal(rows.input_rows, table[VOCAB:])
    assert torch.equal(rows.output_rows, model.get_output_embeddings().weight[VOCAB:])
    assert model.generation_config.suppress_tokens == [VOCAB + 1]
    assert model.generation_config.eos_token_id == [VOCAB]
    assert text_model.generation_config.to_dict() == writing


@torch.no_grad()
def test_the_rows_stay_when_the_tables_are_exchanged():
    model = attach(language_model("llama"), trained_token_ids=TRAINED)
    before = model(**PROMPT).logits
    for table, exchange in (
        (model.get_input_embeddings(), model.set_input_embeddings),
        (model.get_output_embeddings(), model.set_output_embeddings),
    ):
        twin = copy.deepcopy(table)
        twin._forward_hooks.clear()
        exchange(twin)
        exchange(twin)
        assert len(twin._forward_hooks) == 1
    assert torch.equal(model(**PROMPT).logits, before)


@torch.no_grad()
def test_what_was_done_to_a_loaded_part_stays():
    """LoRA of the language model, say: attaching draws nothing anew."""
    from peft import LoraConfig

    text_model = language_model("llama")
    text_model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    before = {name: x.clone() for name, x in text_model.state_dict().items()}
    attach(text_model)
    assert all(torch.equal(x, before[name]) for name, x in text_model.state_dict().items())


@torch.no_grad()
def test_the_language_model_may_lie_on_disk(tmp_path):
    """accelerate moves each layer in when it runs; the adapter's blocks before it stay where they are."""
    from accelerate import disk_offload

    model = attach(language_model("llama"))
    expected, written = model(**PROMPT).logits, write(model)
    disk_offload(model.model.text_model, tmp_path, execution_device="cpu")
    assert all(parameter.is_meta for parameter in model.model.text_model.parameters())
    assert any(tmp_path.iterdir())
    assert torch.equal(model(**PROMPT).logits, expected)
    assert_same_writing(write(model), written)


@torch.no_grad()
def test_a_device_map_may_put_everything_on_disk(tmp_path):
    """Phi's head has a bias, which has left again when the trained rows' scores want it."""
    model = attach(language_model("phi"), trained_token_ids=TRAINED)
    model.save_pretrained(tmp_path / "whole")
    load = partial(FlamingoForConditionalGeneration.from_pretrained, tmp_path / "whole")
    offloaded = load(device_map={"": "disk"}, offload_folder=tmp_path / "offload")
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert torch.equal(offloaded(**PROMPT).logits, model(**PROMPT).logits)
    assert_same_writing(write(offloaded), write(model))
    offloaded.save_flamingo_adapter(tmp_path / "adapter")
    fresh = attach(language_model("phi"), trained_token_ids=TRAINED)
    fresh.model.adapter.resampler.latents.zero_()
    fresh.load_flamingo_adapter(tmp_path / "adapter")
    assert_equal_tensors(fresh.model.adapter, model.model.adapter)
    with pytest.raises(ValueError, match=r"adapter is offloaded.*keep it on a device"):
        offloaded.load_flamingo_adapter(tmp_path / "adapter")
    in_bfloat16 = load(
        dtype=torch.bfloat16,
        device_map={"model.vision_model": "cpu", "model.adapter": "cpu", "model.text_model": "disk"},
        offload_folder=tmp_path / "halves",
    )
    assert torch.equal(in_bfloat16(**PROMPT).logits, load(dtype=torch.bfloat16)(**PROMPT).logits)


@torch.no_grad()
@pytest.mark.parametrize("parts", [("text",), ("vision",), ("text", "vision")], ids="+".join)
def test_saved_with_parts_in_4_bits_it_loads_so(parts, tmp_path):
    """What was in 4 bits before it was attached is so again; the adapter, and the head that was left out, never."""
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 128, "intermediate_size": 128}
    language_model("llama", num_hidden_layers=2, **sizes).save_pretrained(tmp_path / "text")
    vision_model(**sizes).save_pretrained(tmp_path / "vision")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    settings = {f"{part}_kwargs": {"quantization_config": quantization, "device_map": "cpu"} for part in parts}
    model = attach(str(tmp_path / "text"), str(tmp_path / "vision"), trained_token_ids=TRAINED, **settings)
    model.save_pretrained(tmp_path / "whole")  # before it answers: a CPU may pack the weights anew then
    again = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "whole", device_map="cpu")
    kinds = [{name: type(module) for name, module in x.named_modules()} for x in (model, again)]
    assert kinds[0] == kinds[1]
    quantized = {name.split(".")[1] for name, kind in kinds[0].items() if kind.__name__ == "Linear4bit"}
    assert quantized == {f"{part}_model" for part in parts}
    assert_equal_tensors(again, model)
    assert_same_writing(write(again), write(model))


def test_rows_are_trained_on_a_language_model_in_4_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    language_model("llama", **sizes).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    text_model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, device_map="cpu")
    model = attach(text_model, trained_token_ids=TRAINED)
    assert type(model.model.text_model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    output = model(**PROMPT, labels=TEXT["input_ids"])
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("adapter" in name), name
    assert model.model.adapter.token_rows.input_rows.grad[1:].abs().amax(dim=1).min() > 1e-4
    assert_same_writing(write(model), write(model, use_cache=False))
