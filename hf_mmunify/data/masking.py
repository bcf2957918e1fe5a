"""Which tokens of a text are hidden."""

import torch
from transformers import PreTrainedTokenizerBase


HIDDEN, RANDOM = 0.8, 0.1  # of the chosen tokens; the others stay what they are


def mask_tokens(
    input_ids: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    probability: float = 0.15,
    whole_words: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose tokens for a model to guess, as BERT does (Devlin et al. 2019, section 3.1, task 1).

    Of the chosen tokens 80 % become the mask token, 10 % a random token, and 10 % stay. Special tokens, padding
    included, are never chosen.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, sequence)`):
            The texts; not changed.
        tokenizer (`PreTrainedTokenizerBase`):
            The one that made them; it has a mask token.
        probability (`float`, *optional*, defaults to 0.15):
            Of a token, or a word, to be chosen.
        whole_words (`bool`, *optional*, defaults to `False`):
            Whether the tokens of a word are chosen together (ViLT). Needs a tokenizer that marks those that continue a
            word, as BERT's does with `##`.
        generator (`torch.Generator`, *optional*):
            Source of chance, on the device of `input_ids`.

    Returns:
        Two `torch.LongTensor` of shape `(batch, sequence)`: the texts with tokens hidden (`masked_input_ids`), and the
        tokens chosen, -100 elsewhere (`labels`).

    Raises:
        ValueError: when the tokenizer has no mask token, `probability` is none, or words cannot be told.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no mask token: masked language modeling needs one such as BERT's [MASK]."
        )
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is a number from 0 to 1, got {probability}.")

    def chance() -> torch.Tensor:
        return torch.rand(input_ids.shape, generator=generator, device=input_ids.device)

    is_special = torch.isin(input_ids, torch.tensor(tokenizer.all_special_ids, device=input_ids.device))
    draws = chance()
    if whole_words:
        # The tokens of a word take the draw of its first.
        starts = is_special | ~_continues_word(input_ids, tokenizer)
        starts[:, 0] = True
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        draws = draws.gather(1, (starts * positions).cummax(dim=1).values)
    chosen = (draws < probability) & ~is_special  # [B, T]
    fates = chance()
    random_ids = torch.randint(len(tokenizer), input_ids.shape, generator=generator, device=input_ids.device)
    masked = input_ids.masked_fill(chosen & (fates < HIDDEN), tokenizer.mask_token_id)
    masked = torch.where(chosen & (fates >= 1 - RANDOM), random_ids, masked)
    return masked, input_ids.masked_fill(~chosen, -100)


def _continues_word(input_ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Which tokens go on with the word of the token before them, [B, T]."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    prefix = getattr(getattr(backend, "model", None), "continuing_subword_prefix", None)
    if not prefix:
        raise ValueError(
            f"{type(tokenizer).__name__} does not mark the tokens that continue a word, as BERT's does with `##`: "
            "pass whole_words=False."
        )
    used, places = input_ids.unique(return_inverse=True)
    tokens = tokenizer.convert_ids_to_tokens(used.tolist())
    return torch.tensor([token.startswith(prefix) for token in tokens], device=input_ids.device)[places]
