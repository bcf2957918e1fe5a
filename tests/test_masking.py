"""Which tokens are hidden: how many, what becomes of them, and whole words."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_mmunify.data import mask_tokens


PIECES = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "un", "##believ", "##able", "a", "dog", "run", "##s"]
SPECIAL = {
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "unk_token": "[UNK]",
}
SENTENCE = [1, 5, 6, 7, 8, 9, 10, 11, 2, 0]  # [CLS] unbelievable a dog runs [SEP] [PAD]
WORDS = [(1, 2, 3), (4,), (5,), (6, 7)]  # positions


@pytest.fixture
def tokenizer():
    model = models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **SPECIAL)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_shares_are_berts(tokenizer):
    input_ids = torch.tensor([SENTENCE]).repeat(5000, 1)
    before = input_ids.clone()
    masked, labels = mask_tokens(input_ids, tokenizer, generator=generator())
    assert torch.equal(input_ids, before)
    chosen = labels != -100
    may_be = torch.tensor([0, 1, 1, 1, 1, 1, 1, 1, 0, 0], dtype=torch.bool).expand_as(chosen)
    assert not chosen[~may_be].any()
    assert torch.equal(labels[chosen], input_ids[chosen]) and torch.equal(masked[~chosen], input_ids[~chosen])
    shares = {
        "chosen": chosen[may_be],
        "hidden": masked[chosen] == tokenizer.mask_token_id,
        "kept": masked[chosen] == input_ids[chosen],
    }
    # A random token is the mask, or the same, by chance once in twelve
    expected = {"chosen": 0.15, "hidden": 0.8 + 0.1 / len(PIECES), "kept": 0.1 + 0.1 / len(PIECES)}
    for name, share in shares.items():
        assert abs(share.float().mean() - expected[name]) < 0.015, name
    other = masked[chosen & (masked != tokenizer.mask_token_id) & (masked != input_ids)]
    assert set(other.tolist()) == set(range(len(PIECES))) - {tokenizer.mask_token_id}


def test_words_are_hidden_whole(tokenizer):
    input_ids = torch.tensor([SENTENCE]).repeat(2000, 1)
    _, labels = mask_tokens(input_ids, tokenizer, probability=0.3, whole_words=True, generator=generator())
    chosen = labels != -100
    for word in WORDS:
        together = chosen[:, list(word)]
        assert torch.equal(together.all(1), together.any(1)), "a part of a word was hidden"
        assert abs(together.all(1).float().mean() - 0.3) < 0.04
    assert not chosen[:, [0, 8, 9]].any()
    _, labels = mask_tokens(input_ids, tokenizer, probability=0.3, generator=generator())
    parts = (labels != -100)[:, list(WORDS[0])]
    assert not torch.equal(parts.all(1), parts.any(1))


def test_equal_seeds_hide_the_same(tokenizer):
    input_ids = torch.tensor([SENTENCE]).repeat(50, 1)
    first, again, other = (mask_tokens(input_ids, tokenizer, generator=generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("probability, chosen", [(0.0, 0), (1.0, 7)])
def test_nothing_and_everything(tokenizer, probability, chosen):
    _, labels = mask_tokens(torch.tensor([SENTENCE]), tokenizer, probability)
    assert (labels != -100).sum() == chosen
    masked, labels = mask_tokens(torch.zeros(0, 5, dtype=torch.long), tokenizer, probability)
    assert masked.shape == labels.shape == (0, 5)


def test_a_continuation_alone_is_a_word(tokenizer):
    """A text cut off on the left starts in the middle of a word."""
    _, labels = mask_tokens(torch.tensor([[7, 8]]), tokenizer, 1.0, whole_words=True)
    assert labels.tolist() == [[7, 8]]


def test_a_tokenizer_that_cannot_is_named(tokenizer):
    input_ids = torch.tensor([SENTENCE])
    with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.5"):
        mask_tokens(input_ids, tokenizer, 1.5)
    letters = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    of_letters = PreTrainedTokenizerFast(tokenizer_object=letters, **SPECIAL)
    mask_tokens(input_ids, of_letters)
    with pytest.raises(ValueError, match=r"does not mark the tokens that continue a word.*whole_words=False"):
        mask_tokens(input_ids, of_letters, whole_words=True)
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="has no mask token"):
        mask_tokens(input_ids, tokenizer)
