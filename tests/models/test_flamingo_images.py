"""Flamingo over many images and turns: who sees what, what the cache keeps, and how often an image is looked at."""

import copy
import threading
from collections import Counter

import pytest
import torch
from flamingo_parts import EOC, IMAGE, attach, flamingo, images, language_model, tokens
from transformers import DynamicCache, StaticCache

from hf_mmunify.models.flamingo import FlamingoMediaLayer
from hf_mmunify.models.flamingo import modeling_flamingo as modeling


FAMILIES = ["opt", "llama"]  # learned positions and rotary ones


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def moved(found: torch.Tensor, expected: torch.Tensor) -> list[bool]:
    """For each token of one row whether its logits changed."""
    return [bool(change > 1e-2) for change in (found - expected).abs().amax(dim=-1)[0]]


def greedy(model, prompt: dict, new: int = 6, **kwargs):
    """Logits of `new` greedy tokens, which tell more than the tokens, and the cache."""
    kwargs = {"do_sample": False, "suppress_tokens": None, "eos_token_id": None, **kwargs}
    result = model.generate(
        **prompt, max_new_tokens=new, output_logits=True, return_dict_in_generate=True, use_cache=True, **kwargs
    )
    return result.sequences, torch.stack(result.logits, dim=1), result.past_key_values


def grow(model, prompt: dict, new: int = 6) -> torch.Tensor:
    """The same logits without a cache: the whole text is read again for every token."""
    prompt, logits = dict(prompt), []
    for _ in range(new):
        logits.append(model(**prompt, use_cache=False).logits[:, -1])
        prompt["input_ids"] = torch.cat((prompt["input_ids"], logits[-1].argmax(-1, keepdim=True)), dim=1)
        ones = prompt["attention_mask"].new_ones(len(logits[-1]), 1)
        prompt["attention_mask"] = torch.cat((prompt["attention_mask"], ones), dim=1)
        if prompt.get("media_index") is not None:
            prompt["media_index"] = torch.cat((prompt["media_index"], prompt["media_index"][:, -1:]), dim=1)
    return torch.stack(logits, dim=1)


class Calls(Counter):
    """How often modules ran, and over how many rows."""

    def watch(self, name: str, module: torch.nn.Module):
        def hook(module, args, kwargs, output):
            self[name] += 1
            self[name + " rows"] += len(args[0] if args else next(iter(kwargs.values())))

        self.handles = [*getattr(self, "handles", []), module.register_forward_hook(hook, with_kwargs=True)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def watched(model) -> Calls:
    calls = Calls()
    calls.watch("tower", model.model.vision_model)
    calls.watch("resampler", model.model.adapter.resampler)
    for block in model.model.adapter.layers.values():
        calls.watch("k_proj", block.attention.k_proj)
    return calls


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_sees_the_image_before_it_alone(family):
    model, text, pixels = flamingo(family), tokens("ab*cd*ef"), images(1, 2)
    expected = model(**text, pixel_values=pixels).logits
    other = images(1, 2, seed=9)
    first = model(**text, pixel_values=torch.cat((other[:, :1], pixels[:, 1:]), dim=1)).logits
    second = model(**text, pixel_values=torch.cat((pixels[:, :1], other[:, 1:]), dim=1)).logits
    # Later tokens change through the language model, which reads the earlier ones: block by block they do not
    assert moved(first, expected)[:5] == [False, False, True, True, True]
    assert moved(second, expected) == [False] * 5 + [True] * 3
    media = model.model._view_media(text["input_ids"], torch.zeros(1, 2, 3, 16), None, None, None)
    assert media.numbers.tolist() == [[0, 0, 1, 1, 1, 2, 2, 2]]


@torch.no_grad()
def test_tokens_without_an_image_take_the_feed_forward_alone():
    model, text = flamingo("opt"), tokens("abc")
    block = model.model.adapter.layers["0"]
    states = torch.randn(1, 3, 32)
    dense = states + block.feed_forward_gate.tanh() * block.feed_forward(states)
    for pixels in (None, images(1, 1)):  # an image that no token stands for is seen by none
        embeds = None if pixels is None else model.get_image_features(pixels).pooler_output
        media = model.model._view_media(text["input_ids"], embeds, None, None, None)
        close(model.model.look(0, states, media), dense, atol=0)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_reading_by_image_equals_reading_by_mask(backend, monkeypatch):
    """32 images: every image is attended by its own tokens only, and nothing else changes."""
    model = attach(language_model("llama"))
    model.set_attn_implementation({"": backend})
    rows = "a" + "".join("*" + "bcde"[: 1 + i % 4] for i in range(32)), "*abc" * 20 + "xyz"
    text, pixels = tokens(*rows), images(2, 32)
    mask = torch.ones(2, 32, dtype=torch.long)
    mask[1, 20:] = 0
    view, seen = model.model._view_media, []
    monkeypatch.setattr(model.model, "_view_media", lambda *args: seen.append(view(*args)) or seen[-1])

    def run():
        model.zero_grad()
        output = model(**text, pixel_values=pixels, image_mask=mask, labels=text["input_ids"])
        output.loss.backward()
        return output.logits, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    by_image, gradients = run()
    group = modeling.group_by_slot

    def too_large(slot, *args):
        groups = group(slot, *args)
        return groups._replace(tokens=groups.tokens.repeat(1, slot.shape[1]))

    monkeypatch.setattr(modeling, "group_by_slot", too_large)
    by_mask, expected = run()
    assert seen[0].groups is not None and seen[0].mask is None
    assert seen[1].groups is None and seen[1].mask is not None
    real = text["attention_mask"].bool()
    close(by_image[real], by_mask[real], atol=4e-6)  # logits of size 5
    assert gradients.keys() == expected.keys() and len(gradients) > 50
    for name, gradient in expected.items():
        close(gradients[name], gradient, atol=1e-6)


@torch.no_grad()
def test_attention_to_many_images_is_shown():
    """Also where each image would be read by its own tokens alone."""
    model, text, pixels = attach(language_model("llama")), tokens("a*bc*de*fg*hi"), images(1, 4)
    model.set_attn_implementation("eager")
    output = model(**text, pixel_values=pixels, output_attentions=True)
    close(output.logits, model(**text, pixel_values=pixels).logits)
    assert len(output.cross_attentions) == 3
    looked = output.cross_attentions[0].unflatten(-1, (4, 3)).sum(dim=-1)  # [1, H, T, M]
    seen = (text["input_ids"] == IMAGE).cumsum(dim=1)[0]
    close(looked[0, :, 1:], torch.eye(4)[seen[1:] - 1].expand(2, -1, -1))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("again", [False, True], ids=["new images", "all images again"])
def test_a_later_turn_extends_the_cache(family, again):
    model, pixels = flamingo(family), images(2, 3)
    rows = "ab*cd*e", "f*ghi*j"
    turn = "xy*zuv", "*xyzuv"
    whole = tokens(*(a + b for a, b in zip(rows, turn)))
    expected = model(**whole, pixel_values=pixels).logits
    first = tokens(*rows)
    output = model(**first, pixel_values=pixels[:, :2], use_cache=True)
    close(output.logits, expected[:, :7])
    shown = pixels if again else pixels[:, 2:]
    second = {"input_ids": whole["input_ids"][:, 7:], "attention_mask": whole["attention_mask"]}
    output = model(**second, pixel_values=shown, past_key_values=output.past_key_values)
    close(output.logits, expected[:, 7:])
    # And a turn of text: it still sees the last image
    more = tokens(*(a + b + "klm" for a, b in zip(rows, turn)))
    third = {"input_ids": more["input_ids"][:, 13:], "attention_mask": more["attention_mask"]}
    output = model(**third, past_key_values=output.past_key_values)
    close(output.logits, model(**more, pixel_values=pixels).logits[:, 13:])


@torch.no_grad()
@pytest.mark.parametrize("again", [False, True], ids=["new images", "all images again"])
def test_generation_goes_on_from_a_cache(again):
    model, pixels = flamingo("llama"), images(1, 3)
    sequences, _, cache = greedy(model, {**tokens("ab*cd*e"), "pixel_values": pixels[:, :2]})
    turn = torch.cat((sequences, tokens("x*y")["input_ids"]), dim=1)
    prompt = {"input_ids": turn, "attention_mask": torch.ones_like(turn)}
    _, found, _ = greedy(model, {**prompt, "pixel_values": pixels if again else pixels[:, 2:]}, past_key_values=cache)
    close(found, grow(model, {**prompt, "pixel_values": pixels}))


@torch.no_grad()
def test_turns_before_the_first_image():
    model, pixels = flamingo("llama"), images(1, 1)
    expected = model(**tokens("abcd*ef"), pixel_values=pixels).logits
    output = model(**tokens("abc"), use_cache=True)
    rest = tokens("abcd*ef")
    rest["input_ids"] = rest["input_ids"][:, 3:]
    output = model(**rest, pixel_values=pixels, past_key_values=output.past_key_values)
    close(output.logits, expected[:, 3:])


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_with_different_numbers_of_images(family):
    """Every row of the batch says what it says alone, though its neighbours have more images and more text."""
    model, pixels = flamingo(family), images(4, 3)
    rows, numbers = ["ab*cd*ef*g", "*xyz", "hello", "x**y"], [3, 1, 0, 2]
    batch = tokens(*rows, side="left")
    mask = torch.tensor([[int(i < number) for i in range(3)] for number in numbers])
    _, found, _ = greedy(model, {**batch, "pixel_values": pixels, "image_mask": mask})
    for i, (row, number) in enumerate(zip(rows, numbers)):
        shown = {"pixel_values": pixels[i : i + 1, :number]} if number else {}
        _, expected, _ = greedy(model, {**tokens(row), **shown})
        close(found[i : i + 1], expected)
    with watched(model) as calls:
        model(**batch, pixel_values=pixels, image_mask=mask)
    assert calls["tower rows"] == sum(numbers)  # padding is never encoded


@torch.no_grad()
def test_a_batch_without_any_image():
    model, batch = flamingo("opt"), tokens("abc", "defgh", side="left")
    expected = model(**batch).logits
    found = model(**batch, pixel_values=images(2, 1), image_mask=torch.zeros(2, 1, dtype=torch.long)).logits
    real = batch["attention_mask"].bool()
    close(found[real], expected[real], atol=0)


@torch.no_grad()
def test_logits_to_keep():
    model, prompt = flamingo("llama"), {**tokens("ab*cd*ef"), "pixel_values": images(1, 2)}
    expected = model(**prompt).logits
    close(model(**prompt, logits_to_keep=2).logits, expected[:, -2:], atol=1e-6)
    chosen = torch.tensor([1, 5])
    close(model(**prompt, logits_to_keep=chosen).logits, expected[:, chosen], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
def test_assisted_decoding_writes_the_greedy_text(family):
    model, prompt = flamingo(family), {**tokens("abcab*cdabcdab"), "pixel_values": images(1, 1)}
    settings = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [IMAGE]}
    expected = model.generate(**prompt, **settings)
    assert torch.equal(model.generate(**prompt, **settings, prompt_lookup_num_tokens=3), expected)
    sibling = attach(language_model(family), only_attend_immediate_media=True)
    assert torch.equal(model.generate(**prompt, **settings, assistant_model=sibling), expected)
    alone = language_model(family)  # a language model that sees nothing can draft as well
    assert torch.equal(model.generate(**prompt, **settings, assistant_model=alone), expected)


@torch.no_grad()
def test_a_prefix_is_read_once_and_used_often():
    """Few-shot prompting: the shots are in the cache, each query goes on from a copy of it."""
    model, pixels = flamingo("llama"), images(1, 4)
    shots = "ab*cd*ef"
    prefix = model(**tokens(shots), pixel_values=pixels[:, :2], use_cache=True).past_key_values
    for number, query in ((2, "*xy"), (3, "z*x")):
        whole = tokens(shots + query)
        shown = torch.cat((pixels[:, :2], pixels[:, number : number + 1]), dim=1)
        expected = model(**whole, pixel_values=shown).logits[:, 8:]
        rest = {**whole, "input_ids": whole["input_ids"][:, 8:]}
        output = model(**rest, pixel_values=shown[:, 2:], past_key_values=copy.deepcopy(prefix))
        close(output.logits, expected)
    assert prefix.get_seq_length() == FlamingoMediaLayer.of(prefix).get_seq_length() == 8


@torch.no_grad()
def test_a_cache_is_cropped_together_with_its_images():
    model, pixels = flamingo("llama"), images(1, 2)
    whole = tokens("ab*cdefg")
    output = model(**whole, pixel_values=pixels[:, :1], use_cache=True)
    cache = output.past_key_values
    cache.crop(-3)
    assert FlamingoMediaLayer.of(cache).get_seq_length() == cache.get_seq_length() == 5
    rest = {**whole, "input_ids": whole["input_ids"][:, 5:]}
    output_again = model(**rest, past_key_values=cache)
    close(output_again.logits, output.logits[:, 5:])

    # Up to the new image of a turn, and to before all images, is no harm; an older image is no longer there
    turn = tokens("ab*cdefg*h")
    model(**{**turn, "input_ids": turn["input_ids"][:, 8:]}, pixel_values=pixels[:, 1:], past_key_values=cache)
    early, late = copy.deepcopy(cache), copy.deepcopy(cache)
    late.crop(-1)
    rest = {**turn, "input_ids": turn["input_ids"][:, 9:]}
    expected = model(**turn, pixel_values=pixels).logits
    close(model(**rest, past_key_values=late).logits, expected[:, 9:])
    early.crop(-8)
    rest = {**turn, "input_ids": turn["input_ids"][:, 2:]}
    close(model(**rest, pixel_values=pixels, past_key_values=early).logits, expected[:, 2:])
    with pytest.raises(ValueError, match=r"last image only.*deep-copy the cache"):
        cache.crop(-3)


@torch.no_grad()
def test_the_media_layer_follows_its_cache():
    model, pixels = flamingo("llama"), images(2, 1)
    cache = model(**tokens("a*bc", "*def"), pixel_values=pixels, use_cache=True).past_key_values
    layer = FlamingoMediaLayer.of(cache)
    assert layer.numbers.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]] and layer.get_max_length() == -1
    key = layer.blocks[0][0]
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
    cache.batch_select_indices(torch.tensor([0, 1]))
    assert torch.equal(layer.blocks[0][0], key[[1, 0]]) and layer.numbers.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    with pytest.raises(TypeError, match="holds images, not text"):
        layer.update(key, key)
    cache.crop(-4)
    assert layer.numbers is None and layer.blocks == {}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_image_tokens_that_the_model_writes(family):
    """There is no image to go with them: they and what follows see none, with a cache and without."""
    model, pixels = flamingo(family), images(1, 1)
    written = tokens("ab*cd*e*fg")
    expected = model(**written, pixel_values=pixels).logits
    output = model(**tokens("ab*cd"), pixel_values=pixels, use_cache=True)
    found = [output.logits]
    for i in range(5, 10):
        step = {
            "input_ids": written["input_ids"][:, i : i + 1],
            "attention_mask": written["attention_mask"][:, : i + 1],
        }
        output = model(**step, past_key_values=output.past_key_values)
        found.append(output.logits)
    close(torch.cat(found, dim=1), expected)
    processor_made = model.generation_config.suppress_tokens
    assert processor_made == [IMAGE], "generation never writes <image> of its own accord"
    assert EOC in model.generation_config.eos_token_id


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_media_index_says_who_sees_what(family):
    """The paper's p_next: text that stands before its image looks at the next one."""
    model, pixels = flamingo(family), images(1, 2)
    text, index = tokens("abcd*efg*hi"), torch.tensor([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0]])
    expected = model(**text, pixel_values=pixels, media_index=index).logits
    other = torch.cat((images(1, 1, seed=9), pixels[:, 1:]), dim=1)
    assert moved(model(**text, pixel_values=other, media_index=index).logits, expected)[:5] == [True] * 5
    other = torch.cat((pixels[:, :1], images(1, 1, seed=9)), dim=1)
    assert moved(model(**text, pixel_values=other, media_index=index).logits, expected)[:9] == [False] * 5 + [True] * 4
    counted = (text["input_ids"] == IMAGE).cumsum(dim=1)
    close(
        model(**text, pixel_values=pixels, media_index=counted).logits,
        model(**text, pixel_values=pixels).logits,
        atol=0,
    )


@torch.no_grad()
@pytest.mark.parametrize("last", [0, 1, 2])
def test_generation_with_media_index_looks_where_the_last_token_looked(last):
    model = flamingo("llama")
    index = torch.tensor([[1, 1, 2, 2, last, last]])
    prompt = {**tokens("abcdef"), "pixel_values": images(1, 2), "media_index": index}
    _, found, _ = greedy(model, prompt)
    close(found, grow(model, prompt))
    beams = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**prompt, **beams), model.generate(**prompt, **beams, use_cache=False))


@torch.no_grad()
@pytest.mark.parametrize("family", [*FAMILIES, "mpt", "mamba"])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_from_embeddings(family, settings):
    model, text, pixels = flamingo(family), tokens("ab*cd*e", "x*yz", side="left"), images(2, 2)
    shown = {"pixel_values": pixels, "image_mask": torch.tensor([[1, 1], [1, 0]])}
    settings = {**settings, "max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    expected = model.generate(**text, **shown, **settings)[:, 7:]
    index = (text["input_ids"] == IMAGE).cumsum(dim=1)
    embeds = model.get_input_embeddings()(text["input_ids"])
    mask = text["attention_mask"]
    found = model.generate(inputs_embeds=embeds, attention_mask=mask, media_index=index, **shown, **settings)
    assert torch.equal(found, expected)


@torch.no_grad()
def test_media_index_in_a_later_turn_counts_on():
    model, pixels = flamingo("llama"), images(1, 3)
    index = torch.tensor([[0, 1, 1, 2, 2, 2, 3, 3]])
    text = tokens("abcdefgh")
    expected = model(**text, pixel_values=pixels, media_index=index).logits
    embeds = model.get_input_embeddings()(text["input_ids"])  # no token stands for an image
    output = model(inputs_embeds=embeds[:, :5], pixel_values=pixels[:, :2], media_index=index[:, :5], use_cache=True)
    close(output.logits, expected[:, :5])
    output = model(
        inputs_embeds=embeds[:, 5:],
        pixel_values=pixels[:, 2:],
        media_index=index[:, 5:],
        past_key_values=output.past_key_values,
    )
    close(output.logits, expected[:, 5:])


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_all_earlier_images(family):
    """The ablation of the paper: `only_attend_immediate_media=False`."""
    model, pixels = attach(language_model(family), only_attend_immediate_media=False), images(1, 3)
    text = tokens("ab*cd*e*fg")
    expected = model(**text, pixel_values=pixels).logits
    other = torch.cat((images(1, 1, seed=9), pixels[:, 1:]), dim=1)
    block = model.model.adapter.layers["0"]
    states = torch.randn(1, 10, 32)
    looked = []
    for shown in (pixels, other):
        embeds = model.get_image_features(shown).pooler_output
        media = model.model._view_media(text["input_ids"], embeds, None, None, None)
        looked.append(model.model.look(0, states, media))
    assert moved(*looked) == [False] * 2 + [True] * 8 and block.attention_gate.item() > 0
    # In turns, and while generating
    output = model(**tokens("ab*cd"), pixel_values=pixels[:, :1], use_cache=True)
    rest = {**text, "input_ids": text["input_ids"][:, 5:]}
    close(model(**rest, pixel_values=pixels[:, 1:], past_key_values=output.past_key_values).logits, expected[:, 5:])
    prompt = {**text, "pixel_values": pixels}
    _, found, _ = greedy(model, prompt)
    close(found, grow(model, prompt))
    beams = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**prompt, **beams), model.generate(**prompt, **beams, use_cache=False))


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_an_image_is_encoded_and_projected_once(settings):
    model, prompt = flamingo("llama"), {**tokens("a*b*c", "de*fg"), "pixel_values": images(2, 2)}
    prompt["image_mask"] = torch.tensor([[1, 1], [1, 0]])
    with watched(model) as calls:
        sequences = model.generate(**prompt, max_new_tokens=7, eos_token_id=None, **{"do_sample": False, **settings})
    assert sequences.shape[1] == 12
    assert calls["tower"] == calls["resampler"] == 1 and calls["tower rows"] == 3
    assert calls["k_proj"] == 3  # once in each block, never for a decoded token


@torch.no_grad()
def test_static_caches_hold_images_too():
    model, prompt = flamingo("llama"), {**tokens("a*b*c"), "pixel_values": images(1, 2)}
    cache = StaticCache(config=model.config.text_config, max_cache_len=16)
    output = model(**prompt, past_key_values=cache)
    step = {"input_ids": tokens("x")["input_ids"], "position_ids": torch.tensor([[5]])}
    whole = {**tokens("a*b*cx"), "pixel_values": images(1, 2)}
    close(model(**step, past_key_values=output.past_key_values).logits, model(**whole).logits[:, 5:])
    assert FlamingoMediaLayer.of(cache).get_seq_length() == 6


@torch.no_grad()
def test_a_cache_that_was_made_without_a_config():
    model, prompt = flamingo("llama"), {**tokens("a*b*c"), "pixel_values": images(1, 2)}
    cache = model(**prompt, past_key_values=DynamicCache(), use_cache=True).past_key_values
    assert isinstance(cache.layers[-1], FlamingoMediaLayer) and len(cache.layers) == 4
    whole = {**tokens("a*b*cx"), "pixel_values": images(1, 2)}
    step = {**tokens("a*b*cx"), "input_ids": tokens("x")["input_ids"]}
    close(model(**step, past_key_values=cache).logits, model(**whole).logits[:, 5:])
    _, found, _ = greedy(model, prompt, past_key_values=DynamicCache())
    close(found, grow(model, prompt))


@torch.no_grad()
def test_nothing_is_left_behind_by_a_failure():
    model, prompt = flamingo("llama"), {**tokens("a*b*c"), "pixel_values": images(1, 2)}
    text = {name: prompt[name] for name in ("input_ids", "attention_mask")}
    expected, alone = model(**prompt).logits, model.model.text_model(**text).logits

    def fail(module, args):
        raise RuntimeError("a layer fails")

    handle = model.model.text_model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a layer fails"):
        model(**prompt)
    handle.remove()
    assert model.model.media is None
    close(model.model.text_model(**text).logits, alone, atol=0)
    close(model(**prompt).logits, expected, atol=0)


@torch.no_grad()
def test_two_threads_do_not_mix_their_images():
    model = flamingo("llama")
    prompts = [{**tokens("a*b*c"), "pixel_values": images(1, 2, seed=seed)} for seed in (3, 4)]
    expected = [greedy(model, prompt)[1] for prompt in prompts]
    assert (expected[0] - expected[1]).abs().max() > 0.1
    found, start = [[], []], threading.Barrier(2)

    @torch.no_grad()
    def work(i: int):
        start.wait()
        for _ in range(5):
            found[i].append(greedy(model, prompts[i])[1])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, logits in zip(found, expected):
        assert len(results) == 5
        for result in results:
            close(result, logits, atol=1e-6)


@torch.no_grad()
def test_two_flamingos_on_one_language_model():
    text_model, prompt = language_model("llama"), {**tokens("a*b*c"), "pixel_values": images(1, 2)}
    alone = text_model(**tokens("abc")).logits
    one = attach(text_model, trained_token_ids=[IMAGE])
    expected = one(**prompt).logits
    other = attach(text_model, cross_attention_interval=2, trained_token_ids=[IMAGE])
    other.model.adapter.token_rows.input_rows.add_(1)
    assert (other(**prompt).logits - expected).abs().max() > 0.1
    close(one(**prompt).logits, expected, atol=0)
    text = tokens("a*b*c")
    other_reads = []
    for shift in (0, 1):
        other.model.adapter.token_rows.input_rows.add_(shift)
        other_reads.append(other(**text).logits)
    assert moved(*other_reads) == [False] + [True] * 4  # by its own rows
    close(text_model(**tokens("abc")).logits, alone, atol=0)


@torch.no_grad()
def test_copies_are_independent():
    model, prompt = flamingo("opt"), {**tokens("a*b*c"), "pixel_values": images(1, 2)}
    expected = model(**prompt).logits
    twin = copy.deepcopy(model)
    for block in twin.model.adapter.layers.values():
        block.attention_gate.zero_()
    assert (twin(**prompt).logits - expected).abs().max() > 0.1
    close(model(**prompt).logits, expected, atol=0)


@pytest.mark.parametrize(
    "counts, size",
    [
        ([[0, 86, 85, 85], [1, 85, 85, 85]], 86),  # alike: a block an image
        ([[3, 200, 1, 0], [0, 5, 0, 90]], 128),
        ([[0, 40, 40, 40], [300, 0, 0, 0]], 40),
        ([[6, 0, 0, 0], [6, 0, 0, 0]], 1),  # nothing is seen
    ],
)
def test_tokens_are_grouped_by_the_image_they_see(counts, size):
    length = max(map(sum, counts))
    counts = torch.tensor([[row[0] + length - sum(row), *row[1:]] for row in counts])
    order = torch.rand(2, length, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    slot = torch.stack([torch.arange(4).repeat_interleave(row) for row in counts]).gather(1, order)  # [B, T]
    groups = modeling.group_by_slot(slot, 3, num_latents=64)
    assert groups.tokens.shape == (len(groups.images), size)
    number, place = (groups.tokens < 2 * length).nonzero(as_tuple=True)
    tokens = groups.tokens[number, place]
    assert sorted(tokens.tolist()) == slot.flatten().nonzero().flatten().tolist()  # each token that sees one, once
    seen = groups.images[number]
    assert torch.equal(seen % 3 + 1, slot.flatten()[tokens]) and torch.equal(seen // 3, tokens // length)


def test_images_that_no_token_sees_are_not_projected():
    """As padding, or behind the last token: only what is read has keys and values, where nothing is remembered."""
    model, projected = flamingo("opt"), []
    block = next(iter(model.model.adapter.layers.values()))
    block.attention.k_proj.register_forward_hook(lambda module, args, output: projected.append(output.shape[:-1]))
    text, pixels = tokens("a*bc*de*fg" * 3, "a*bcdefghi" * 3), images(2, 12)
    mask = torch.zeros(2, 12, dtype=torch.long)
    mask[0, :9], mask[1, :3] = 1, 1
    latents = model.config.resampler_num_latents
    with torch.no_grad():
        model(**text, pixel_values=pixels, image_mask=mask, use_cache=False)
        model(**text, pixel_values=pixels, image_mask=mask, use_cache=True)
    assert projected == [(1, 12 * latents), (2, 12 * latents)]
