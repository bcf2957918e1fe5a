"""Few-shot evaluation: solved examples stand before a question, and the model goes on as they do.

    support examples -> selected (at random, or most similar) -> prompt -> generate             -> answers [Q]
    queries ----------------------------------------------------'      '-> rank by likelihood   -> scores [Q, C]

    <image>Output: a dog.<|endofchunk|><image>Output: a cat.<|endofchunk|><image>Output:

Paper: Flamingo: a Visual Language Model for Few-Shot Learning (Alayrac et al., 2022), section 2.5, appendix A.2 and
B.1.5. RICES, the selection of similar examples: Yang et al., 2021 (PICa).
"""

import copy
import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import ProcessorMixin
from transformers.utils import logging


CAPTION_TEMPLATE = "<image>Output: {answer}<|endofchunk|>"
QUESTION_TEMPLATE = "<image>Question: {question} Answer: {answer}<|endofchunk|>"


@dataclass
class FewShotPrompt:
    """What a model reads for one query.

    Args:
        text (`str`): Solved examples, and the query up to where its answer is due.
        images (`list`): One for each image token of `text`, the query's last.
        examples (`list[int]`): Which examples of the support set these are, the nearest to the query last.
    """

    text: str
    images: list
    examples: list[int]


class FewShotEvaluator:
    """Asks a model queries after `shots` solved examples, by generation or by ranking given answers.

    A template writes one example: `{answer}` stands for its answer, other fields for columns of its row, and
    `<image>` for its image. A query is the template up to `{answer}`.

    Args:
        model (`PreTrainedModel`):
            Reads interleaved text and images, and generates: `FlamingoForConditionalGeneration` or the like.
        processor (`ProcessorMixin`):
            Its processor: `processor(images=[[...], ...], text=[...])`, with an `image_token` and a `tokenizer`.
        support (`Sequence[Mapping]`):
            Solved examples to choose shots from, as rows (a list, or a `datasets.Dataset`).
        template (`str`, defaults to `CAPTION_TEMPLATE`):
            How an example is written.
        image_column (`str`, defaults to `"image"`), answer_column (`str`, defaults to `"answer"`):
            Columns of a row. A list of frames in the place of an image is a video. Of a list of answers, shots show
            the most frequent one; metrics get them all.
        selection (`str`, defaults to `"random"`):
            "random", or "similar": the shots whose images have the greatest cosine similarity to the query's, in
            order of increasing similarity (RICES).
        zero_shot_examples (`int`, defaults to 2):
            With 0 shots, this many examples are shown without their images, so that the form of an answer is known.
        embed_images (`Callable`, *optional*):
            Turns a list of images into vectors `[N, D]` for "similar"; by default the mean of the frozen vision
            tower's tokens (`last_hidden_state` of `model.get_image_features`).
        end_of_chunk_token (`str`, *optional*, defaults to `"<|endofchunk|>"`):
            Ends a generated answer; `None` leaves it to the model's own end-of-sequence tokens.
        batch_size (`int`, defaults to 8):
            Prompts in a batch.
        max_cached_images (`int`, defaults to 2048):
            Of models that read `image_embeds` (Flamingo), so many support images are encoded once a call; others
            encode the images of every prompt.
        max_new_tokens (`int`, defaults to 20), num_beams (`int`, defaults to 3):
            For `generate`.
        seed (`int`, defaults to 0):
            Draws random shots. The shots of a shorter prompt are the last ones of a longer prompt, so that numbers of
            shots compare query by query.

    Raises:
        ValueError: the template has no `{answer}` or not exactly one image token; the support set lacks a column that
            is named; the tokenizer has no `end_of_chunk_token`; or `selection` is unknown.

    Example:

    ```python
    evaluator = FewShotEvaluator(model, processor, support, template=QUESTION_TEMPLATE)
    evaluator.evaluate(queries, exact_match, shots=(0, 4, 8))  # {0: {"score": 0.31, "blind": 0.12}, 4: ...}
    ```
    """

    def __init__(
        self,
        model: nn.Module,
        processor: ProcessorMixin,
        support: Sequence[Mapping[str, Any]],
        template: str = CAPTION_TEMPLATE,
        *,
        image_column: str = "image",
        answer_column: str = "answer",
        selection: Literal["random", "similar"] = "random",
        zero_shot_examples: int = 2,
        embed_images: Callable[[list], torch.Tensor] | None = None,
        end_of_chunk_token: str | None = "<|endofchunk|>",
        batch_size: int = 8,
        max_cached_images: int = 2048,
        max_new_tokens: int = 20,
        num_beams: int = 3,
        seed: int = 0,
    ):
        if template.count("{answer}") != 1 or template.count(processor.image_token) != 1:
            raise ValueError(
                f"A template writes one {processor.image_token} and one {{answer}}, as in {CAPTION_TEMPLATE!r}; got "
                f"{template!r}."
            )
        if selection not in ("random", "similar"):
            raise ValueError(f"selection is 'random' or 'similar', got {selection!r}.")
        fields = {re.split(r"[.\[]", field)[0] for _, field, _, _ in Formatter().parse(template) if field}
        columns = (fields - {"answer"}) | {image_column, answer_column}
        if len(support) and (missing := sorted(columns - set(support[0]))):
            raise ValueError(
                f"The support set has no column {', '.join(map(repr, missing))}, only {sorted(support[0])}: name its "
                "columns in the template, image_column and answer_column."
            )
        known = {*processor.tokenizer.all_special_tokens, *processor.tokenizer.get_vocab()}
        if end_of_chunk_token is not None and end_of_chunk_token not in known:
            raise ValueError(
                f"The tokenizer has no token {end_of_chunk_token!r}: name the one that ends an answer in "
                "end_of_chunk_token, or None to go by the model's own end of sequence."
            )
        self.model = model
        self.processor = processor
        self.support = support
        self.template = template
        self.image_column = image_column
        self.answer_column = answer_column
        self.selection = selection
        self.zero_shot_examples = zero_shot_examples
        self.embed_images = embed_images or self._embed_by_model
        self.end_of_chunk_token = end_of_chunk_token
        self.batch_size = batch_size
        self.max_cached_images = max_cached_images
        self.max_new_tokens = max_new_tokens
        self.num_beams = num_beams
        self.seed = seed
        self._support_vectors: torch.Tensor | None = None
        self._takes_embeds = "image_embeds" in inspect.signature(model.forward).parameters
        self._embeds: dict[int | str, torch.Tensor] = {}  # of support examples, and of the zeroed image

    # Selecting and writing ------------------------------------------------------------------------------------------

    def _pixels(self, images: list) -> torch.Tensor:
        return self.processor(images=[images], return_tensors="pt")["pixel_values"][0]  # [N, (F,) C, H, W]

    @torch.no_grad()
    def _embed_by_model(self, images: list) -> torch.Tensor:
        pixels = self._pixels(images)[:, None].to(self.model.device)
        tokens = self.model.get_image_features(pixel_values=pixels).last_hidden_state  # [N * F, V, D]
        return tokens.unflatten(0, (len(images), -1)).flatten(1, 2).float().mean(dim=1).cpu()  # [N, D]

    def _vectors(self, rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Unit vectors `[N, D]` of the rows' images."""
        batches = range(0, len(rows), self.batch_size)
        vectors = [
            self.embed_images(
                [rows[place][self.image_column] for place in range(start, min(start + self.batch_size, len(rows)))]
            )
            for start in batches
        ]
        return nn.functional.normalize(torch.cat(vectors), dim=-1)

    def select(self, queries: Sequence[Mapping[str, Any]], shots: int) -> list[list[int]]:
        """For each query the indices of its `shots` support examples, the nearest to the query last.

        Raises:
            ValueError: when the support set has fewer examples.
        """
        if len(queries) == 0:
            return []
        if not 0 <= shots <= len(self.support):
            raise ValueError(
                f"shots goes from 0 to the size of the support set, {len(self.support)}; got {shots}. Give a larger "
                "support set."
            )
        if self.selection == "random":
            orders = [np.random.default_rng([self.seed, number]) for number in range(len(queries))]
            return [order.permutation(len(self.support))[:shots][::-1].tolist() for order in orders]
        if self._support_vectors is None:
            self._support_vectors = self._vectors(self.support)
        similarity = self._vectors(queries) @ self._support_vectors.T  # [Q, S]
        return similarity.topk(shots, dim=-1).indices.flip(-1).tolist()

    def _answer(self, row: Mapping[str, Any]) -> str:
        answer = row[self.answer_column]
        answers = [answer] if isinstance(answer, str) else answer
        if not isinstance(answers, list | tuple) or not answers or not isinstance(answers[0], str):
            raise ValueError(
                f"The column {self.answer_column!r} should hold a string, or a list of strings with at least one; got "
                f"{answer!r}. Write numbers of classes as their names."
            )
        return Counter(answers).most_common(1)[0][0]

    def _write(self, row: Mapping[str, Any], answer: str) -> str:
        return self.template.format(**{**row, "answer": answer})

    def prompt(self, query: Mapping[str, Any], examples: Sequence[int], with_images: bool = True) -> FewShotPrompt:
        """The prompt of a query after these examples of the support set, whose images may be left out.

        Raises:
            ValueError: when words of a row look like an image.
        """
        rows = [self.support[place] for place in examples]
        solved = "".join(self._write(row, self._answer(row)) for row in rows)
        if not with_images:
            solved = solved.replace(self.processor.image_token, "")
        asked = self.template.split("{answer}")[0].format(**{**query, "answer": None}).rstrip()
        images = [*(row[self.image_column] for row in rows if with_images), query[self.image_column]]
        text = solved + asked
        if text.count(self.processor.image_token) != len(images):
            raise ValueError(
                f"A prompt of {len(images)} image(s) has {text.count(self.processor.image_token)} "
                f"{self.processor.image_token} in its text: only the template may write them, not the columns of a "
                f"row. The text is {text!r}."
            )
        return FewShotPrompt(text, images, list(examples))

    def prompts(self, queries: Sequence[Mapping[str, Any]], shots: int) -> list[FewShotPrompt]:
        """A prompt for each query; with 0 shots, `zero_shot_examples` without images."""
        chosen = self.select(queries, shots or self.zero_shot_examples)
        return [self.prompt(query, examples, shots > 0) for query, examples in zip(queries, chosen)]

    def _inputs(self, prompts: Sequence[FewShotPrompt], blind: bool) -> dict[str, torch.Tensor]:
        settings = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        texts = [prompt.text for prompt in prompts]
        if self._takes_embeds:
            inputs = self.processor(text=texts, **settings).to(self.model.device)
            return {**inputs, **self._image_embeds(prompts, blind)}
        inputs = self.processor(images=[prompt.images for prompt in prompts], text=texts, **settings)
        inputs = inputs.to(self.model.device)
        if blind:
            inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
        return inputs

    def _encode(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """What the language model sees of each of the images `[N, (F,) C, H, W]`."""
        encoded = self.model.get_image_features(pixel_values=pixels[:, None].to(self.model.device)).pooler_output
        return list(encoded.squeeze(1).unbind())

    def _image_embeds(self, prompts: Sequence[FewShotPrompt], blind: bool) -> dict[str, torch.Tensor]:
        """Embeddings of the prompts' images, each support image encoded when it is first needed."""
        lengths = [len(prompt.images) for prompt in prompts]
        mask = torch.tensor([[1] * length + [0] * (max(lengths) - length) for length in lengths])
        if blind:
            if "zeroed" not in self._embeds:
                pixels = self._pixels(prompts[0].images[-1:])
                self._embeds["zeroed"] = self._encode(torch.zeros_like(pixels))[0]
            embeds = self._embeds["zeroed"].expand(*mask.shape, -1, -1)  # [B, M, R, D]
        else:
            if len(self._embeds) > self.max_cached_images:
                self._embeds.clear()
            shown = [prompt.examples if length > 1 else [] for prompt, length in zip(prompts, lengths)]
            needed = sorted({place for row in shown for place in row} - set(self._embeds))
            for start in range(0, len(needed), self.batch_size):
                places = needed[start : start + self.batch_size]
                pixels = self._pixels([self.support[place][self.image_column] for place in places])
                self._embeds.update(zip(places, self._encode(pixels)))
            queries = self._encode(self._pixels([prompt.images[-1] for prompt in prompts]))
            rows = [
                torch.stack([*(self._embeds[place] for place in row), query]) for row, query in zip(shown, queries)
            ]
            embeds = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [B, M, R, D]
        embeds = {"image_embeds": embeds}
        return embeds if mask.all() else {**embeds, "image_mask": mask.to(self.model.device)}

    def _batches(self, prompts: Sequence[FewShotPrompt], what: str) -> list[Sequence[FewShotPrompt]]:
        starts = range(0, len(prompts), self.batch_size)
        return logging.tqdm([prompts[start : start + self.batch_size] for start in starts], desc=what, leave=False)

    # Answering ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self, queries: Sequence[Mapping[str, Any]], shots: int = 0, blind: bool = False, **generate_kwargs
    ) -> list[str]:
        """The answer that the model writes to each query, up to the end of the chunk.

        Args:
            queries (`Sequence[Mapping]`): Rows with an image and the columns of the template; no answer is needed.
            shots (`int`, defaults to 0): Solved examples before each query.
            blind (`bool`, defaults to `False`): Whether all images, of the shots as well, are zeroed.
            generate_kwargs: For `model.generate`; they win over the evaluator's own settings.
        """
        settings = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams, "do_sample": False}
        stops = self.model.generation_config.eos_token_id
        stops = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
        if self.end_of_chunk_token is not None:
            stops.append(self.processor.tokenizer.convert_tokens_to_ids(self.end_of_chunk_token))
        settings["eos_token_id"] = sorted(set(stops)) or None
        settings["pad_token_id"] = self.processor.tokenizer.pad_token_id
        answers = []
        self.model.eval()
        self._embeds.clear()  # the model may have been trained since
        for batch in self._batches(self.prompts(queries, shots), f"{shots}-shot"):
            inputs = self._inputs(batch, blind)
            written = self.model.generate(**inputs, **{**settings, **generate_kwargs})
            written = written[:, inputs["input_ids"].shape[1] :]
            answers += self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    @torch.no_grad()
    def rank(
        self,
        queries: Sequence[Mapping[str, Any]],
        candidates: Sequence[str],
        shots: int = 0,
        blind: bool = False,
        permutations: int = 1,
        normalize_length: bool = False,
        candidate_batch_size: int = 64,
    ) -> torch.Tensor:
        """Log-likelihood of each candidate answer, with its end of chunk, after each query.

        A prompt is read once, and its cache copied for the candidates. A language model with a recurrent state, which
        goes on by single tokens only or not at all (Mamba, RWKV), reads the prompt anew with every candidate.

        Args:
            queries, shots, blind: As in `generate`.
            candidates (`Sequence[str]`): The possible answers, the same for all queries.
            permutations (`int`, defaults to 1): Orders of the shots whose log-likelihoods are averaged: the selected
                one, and random ones (the paper ensembles 6).
            normalize_length (`bool`, defaults to `False`): Whether to divide by a candidate's number of tokens.
            candidate_batch_size (`int`, defaults to 64): Candidates a prompt that are scored at once.

        Returns:
            `torch.Tensor` `[Q, C]`, on the CPU in float32; the best answer is its argmax.

        Raises:
            ValueError: when there is no candidate, no order of the shots, or a candidate that writes nothing.
        """
        if len(candidates) == 0 or permutations < 1:
            raise ValueError(
                f"Ranking needs candidates and at least one order of the shots; got {len(candidates)} candidates and "
                f"permutations={permutations}."
            )
        self.model.eval()
        self._embeds.clear()
        chosen = self.select(queries, shots or self.zero_shot_examples)
        total = torch.zeros(len(queries), len(candidates))
        if len(queries) == 0:
            return total
        for order in range(permutations):
            prompts, endings = [], []
            for number, (query, examples) in enumerate(zip(queries, chosen)):
                if order > 0:
                    examples = np.random.default_rng([self.seed, number, order]).permutation(examples).tolist()
                prompts.append(self.prompt(query, examples, shots > 0))
                asked = self.template.split("{answer}")[0].format(**{**query, "answer": None}).rstrip()
                endings.append([self._write(query, answer).removeprefix(asked) for answer in candidates])
            scores, start = [], 0
            for batch in self._batches(prompts, f"{shots}-shot"):
                tails = endings[start : start + len(batch)]
                scores.append(self._score(batch, tails, blind, normalize_length, candidate_batch_size))
                start += len(batch)
            total += torch.cat(scores)
        return total / permutations

    def _score(
        self,
        prompts: Sequence[FewShotPrompt],
        endings: list[list[str]],
        blind: bool,
        normalize_length: bool,
        candidate_batch_size: int,
    ) -> torch.Tensor:
        """Log-likelihoods `[Q, C]` of each prompt's endings."""
        tokenizer = self.processor.tokenizer
        inputs = self._inputs(prompts, blind)
        tails, shared = [], []
        for prompt, texts in zip(prompts, endings):
            read = tokenizer(prompt.text).input_ids
            whole = [_without_eos(tokenizer, tokenizer(prompt.text + text).input_ids) for text in texts]
            read = _without_eos(tokenizer, read)
            if (shortest := min(whole, key=len)) == read:
                raise ValueError(
                    f"A candidate adds {texts[whole.index(shortest)]!r} to the prompt and so no token, which has no "
                    "likelihood: end the template with a token that comes after every answer."
                )
            # A tokenizer may join the end of the prompt with the beginning of an answer
            shared.append(min(_common_prefix(read, ids) for ids in whole) - len(read))
            tails.append((len(read), whole))
        if self.model._is_stateful:
            scores, lengths = self._read_anew(inputs, tails, shared)
            return (scores / lengths if normalize_length else scores).cpu()
        cut = -min(shared)
        if cut:
            inputs["input_ids"] = inputs["input_ids"][:, :-cut]
            inputs["attention_mask"] = inputs["attention_mask"][:, :-cut]
        ids = [[row[length - cut :] for row in whole] for length, whole in tails]
        longest = max(len(row) for rows in ids for row in rows)
        pad = tokenizer.pad_token_id
        device = self.model.device
        tail = torch.tensor([[row + [pad] * (longest - len(row)) for row in rows] for rows in ids], device=device)
        real = torch.tensor(
            [[[1] * len(row) + [0] * (longest - len(row)) for row in rows] for rows in ids], device=device
        )  # [Q, C, L]
        told = real.clone()
        for row, place in zip(told, shared):
            row[:, : cut + place] = 0  # of the prompt, cut off for the sake of another one of the batch

        mask = inputs["attention_mask"]
        positions = mask.cumsum(dim=-1) - 1  # [Q, T]
        outputs = self.model(
            **inputs, position_ids=positions.clamp(min=0), use_cache=True, logits_to_keep=1, return_dict=True
        )
        first = outputs.logits[:, -1].float().log_softmax(dim=-1)  # [Q, V]
        scores = first.gather(1, tail[:, :, 0])[..., None]  # [Q, C, 1]
        if longest > 1:
            if outputs.past_key_values is None:
                raise ValueError(
                    "Ranking reads a prompt once and goes on from its cache, but "
                    f"{type(self.model).__name__} gave none: generate the answers "
                    "(`candidates=None`), or use a language model with a cache."
                )
            parts = [
                self._continue(outputs.past_key_values, mask, positions[:, -1], *chunk)
                for chunk in zip(tail.split(candidate_batch_size, dim=1), real.split(candidate_batch_size, dim=1))
            ]
            scores = torch.cat((scores, torch.cat(parts, dim=1)), dim=2)  # [Q, C, L]
        scores = (scores * told).sum(dim=-1)
        return (scores / told.sum(dim=-1) if normalize_length else scores).cpu()

    def _read_anew(
        self, inputs: dict[str, torch.Tensor], tails: list[tuple[int, list[list[int]]]], shared: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-likelihoods `[Q, C]` by reading every prompt with every ending, and how many tokens they are of."""
        shown = {name: x for name, x in inputs.items() if name not in ("input_ids", "attention_mask")}
        starts = torch.tensor([length + place for (length, _), place in zip(tails, shared)], device=self.model.device)
        scores, lengths = [], []
        for candidate in zip(*(whole for _, whole in tails)):
            # Padding on the right comes after all that is told; on the left it would enter some states
            text = self.processor.tokenizer.pad(
                {"input_ids": list(candidate)}, padding_side="right", return_attention_mask=True, return_tensors="pt"
            ).to(self.model.device)
            logits = self.model(**text, **shown, return_dict=True).logits[:, :-1].float().log_softmax(dim=-1)
            read = logits.gather(2, text["input_ids"][:, 1:, None]).squeeze(-1)  # [Q, T - 1]
            places = torch.arange(1, read.shape[1] + 1, device=read.device)
            told = text["attention_mask"][:, 1:] * (places >= starts[:, None])
            scores.append((read * told).sum(dim=-1))
            lengths.append(told.sum(dim=-1))
        return torch.stack(scores, dim=1), torch.stack(lengths, dim=1)

    def _continue(
        self, cache, mask: torch.Tensor, last: torch.Tensor, tail: torch.Tensor, real: torch.Tensor
    ) -> torch.Tensor:
        """Log-likelihoods `[Q, C, L - 1]` of the tokens of `tail` `[Q, C, L]` but the first, on copies of `cache`."""
        num = tail.shape[1]
        cache = copy.deepcopy(cache)
        cache.reorder_cache(torch.arange(len(last), device=last.device).repeat_interleave(num))  # every kind can
        read = tail[..., :-1].flatten(0, 1)  # [Q * C, L - 1]
        positions = last.repeat_interleave(num)[:, None] + 1 + torch.arange(read.shape[1], device=read.device)
        whole = torch.cat((mask.repeat_interleave(num, dim=0), real[..., :-1].flatten(0, 1)), dim=1)
        logits = self.model(
            input_ids=read,
            attention_mask=whole,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        ).logits
        told = logits.float().log_softmax(dim=-1).gather(2, tail[..., 1:].flatten(0, 1)[..., None])
        return told.squeeze(-1).unflatten(0, tail.shape[:2])

    # Scoring --------------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        queries: Sequence[Mapping[str, Any]],
        metric: Callable[[list[str], list], dict[str, float]],
        shots: Sequence[int] = (0, 4, 8, 16, 32),
        candidates: Sequence[str] | None = None,
        permutations: int = 1,
    ) -> dict[int, dict[str, float]]:
        """Score and blind score of every number of shots.

        Args:
            queries (`Sequence[Mapping]`): Rows with an image, the columns of the template, and the answer.
            metric (`Callable`): Of predictions and references, a `dict` whose first value is the score, as in
                `hf_mmunify.evaluation`.
            shots (`Sequence[int]`, defaults to the paper's 0 to 32): Numbers of solved examples.
            candidates (`Sequence[str]`, *optional*): Possible answers to rank; without them answers are generated.
            permutations (`int`, defaults to 1): For `rank`.

        Returns:
            `{shots: {"score": ..., "blind": ...}}`: "blind" is the score with all images zeroed, what the words alone
            are worth.
        """
        references = [row[self.answer_column] for row in queries]
        results = {}
        for number in shots:
            results[number] = {}
            for name, blind in (("score", False), ("blind", True)):
                if candidates is None:
                    answers = self.generate(queries, number, blind)
                else:
                    best = self.rank(queries, candidates, number, blind, permutations).argmax(dim=-1)
                    answers = [candidates[place] for place in best]
                results[number][name] = next(iter(metric(answers, references).values()))
        return results


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _without_eos(tokenizer, ids: list[int]) -> list[int]:
    """Ids without the end of sequence that some tokenizers put after every text."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


__all__ = ["CAPTION_TEMPLATE", "QUESTION_TEMPLATE", "FewShotEvaluator", "FewShotPrompt"]
