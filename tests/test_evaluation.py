"""Few-shot prompts as the paper writes them, answers by generation and by likelihood, metrics with known values."""

import math
import random
from functools import partial

import digit_parts
import pytest
import torch
from flamingo_parts import RECURRENT_MODELS
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_mmunify.data import DigitScenes
from hf_mmunify.evaluation import (
    CAPTION_TEMPLATE,
    QUESTION_TEMPLATE,
    FewShotEvaluator,
    accuracy,
    bleu,
    cider,
    class_accuracy,
    clip_accuracy,
    exact_match,
    normalize_vqa_answer,
    rouge_l,
    top_k_accuracy,
    vqa_accuracy,
)
from hf_mmunify.models.flamingo import FlamingoProcessor


TEMPLATE = "<image>question: {question} answer: {answer}<|endofchunk|>"
CANDIDATES = ["red", "blue", "a red seven", "a red seven and a blue one", "six"]


@pytest.fixture(scope="module")
def support():
    return DigitScenes("train").examples("vqa", 12)


@pytest.fixture(scope="module")
def queries():
    return DigitScenes("test").examples("vqa", 5)


def evaluator(support, family: str = "llama", template: str = TEMPLATE, **settings) -> FewShotEvaluator:
    settings = {"batch_size": 3, "max_new_tokens": 4, **settings}
    return FewShotEvaluator(digit_parts.flamingo(family), digit_parts.processor(), support, template, **settings)


# Prompts -----------------------------------------------------------------------------------------------------------


def test_prompts_are_written_as_in_the_paper(support):
    pictures = [Image.new("RGB", (24, 24)) for _ in range(4)]
    rows = [{"image": picture, "answer": word} for picture, word in zip(pictures, ["A dog.", "A cat.", "A bird."])]
    shown = evaluator(rows, template=CAPTION_TEMPLATE).prompt({"image": pictures[3]}, [1, 0])
    assert shown.text == ("<image>Output: A cat.<|endofchunk|><image>Output: A dog.<|endofchunk|><image>Output:")
    assert [id(image) for image in shown.images] == [id(pictures[place]) for place in (1, 0, 3)]
    asked = evaluator(support, template=QUESTION_TEMPLATE).prompt({"image": pictures[3], "question": "Who {x}?"}, [])
    assert asked.text == "<image>Question: Who {x}? Answer:"


def test_zero_shots_are_two_examples_without_images(support, queries):
    made = evaluator(support)
    for prompt, query in zip(made.prompts(queries, 0), queries):
        assert prompt.text.count("<image>") == len(prompt.images) == 1 and prompt.images[0] is query["image"]
        assert prompt.text.count("<|endofchunk|>") == len(prompt.examples) == 2
    assert evaluator(support, zero_shot_examples=0).prompts(queries, 0)[0].text.startswith("<image>")


def test_random_shots_are_nested_and_differ_by_query(support, queries):
    made = evaluator(support)
    few, many = made.select(queries, 2), made.select(queries, 8)
    assert all(long[-2:] == short and len(set(long)) == 8 for short, long in zip(few, many))
    assert len({tuple(chosen) for chosen in many}) == len(queries)
    assert made.select(queries, 8) == many and evaluator(support, seed=1).select(queries, 8) != many
    with pytest.raises(ValueError, match="from 0 to the size of the support set, 12; got 13"):
        made.select(queries, 13)


def test_similar_shots_come_in_order_of_increasing_similarity(support):
    """RICES: a query that is one of the support images finds itself, next to the query."""
    made = evaluator(support, selection="similar")
    chosen = made.select([support[4], support[9]], 3)
    assert [places[-1] for places in chosen] == [4, 9]
    vectors = {place: made._vectors([row])[0] for place, row in enumerate(support)}
    for query, places in zip((4, 9), chosen):
        similarity = [float(vectors[query] @ vectors[place]) for place in places]
        assert similarity == sorted(similarity) and similarity[-1] == pytest.approx(1.0)
        others = [float(vectors[query] @ vectors[place]) for place in set(range(12)) - set(places)]
        assert max(others) <= similarity[0]
    # any features will do: here, the number of bright pixels
    by_brightness = evaluator(
        support, selection="similar", embed_images=lambda images: torch.tensor([[1.0, i.mean()] for i in images])
    )
    assert by_brightness.select([support[4]], 1) == [[4]]


def test_shots_show_the_most_frequent_of_several_answers(support):
    rows = [{**support[0], "answer": ["red", "blue", "blue"]}]
    assert " blue<|endofchunk|>" in evaluator(rows).prompt(support[1], [0]).text


def test_settings_that_do_not_fit(support):
    with pytest.raises(ValueError, match=r"writes one <image> and one \{answer\}"):
        evaluator(support, template="<image> what is this?")
    with pytest.raises(ValueError, match="'random' or 'similar', got 'nearest'"):
        evaluator(support, selection="nearest")
    with pytest.raises(
        ValueError, match=r"no column 'picture', 'why', only \['answer', 'image', 'question', 'type'\]"
    ):
        evaluator(support, template="<image>{why.text} {answer}", image_column="picture")
    with pytest.raises(ValueError, match=r"no token '<end>': name the one that ends an answer"):
        evaluator(support, end_of_chunk_token="<end>")
    made = evaluator([{**row, "answer": answer} for row, answer in zip(support, (3, []))])
    for place, answer in enumerate(("3", r"\[\]")):
        with pytest.raises(ValueError, match=f"'answer' should hold a string, or a list of strings.* got {answer}.*"):
            made.prompt(support[0], [place])


def test_words_that_look_like_an_image(support, queries):
    """They would stand in the place of the next image, and every later one would move."""
    query = {**queries[0], "question": "what is <image> for?"}
    made = evaluator(support)
    for ask in (partial(made.generate, [query]), partial(made.rank, [query], CANDIDATES)):
        with pytest.raises(
            ValueError, match=r"prompt of 3 image\(s\) has 4 <image> in its text: only the template may"
        ):
            ask(shots=2)


def test_nothing_to_rank(support, queries):
    made = evaluator(support, selection="similar")
    assert made.rank([], CANDIDATES).shape == (0, len(CANDIDATES)) and made.generate([]) == []
    with pytest.raises(ValueError, match="got 0 candidates and permutations=1"):
        made.rank(queries, [])
    with pytest.raises(ValueError, match="got 5 candidates and permutations=0"):
        made.rank(queries, CANDIDATES, permutations=0)
    assert (made.rank(queries[:1], ["", "red"], 1) < -1).all()  # an empty answer is the end of the chunk alone
    with pytest.raises(ValueError, match="adds ' ' to the prompt and so no token, which has no likelihood"):
        evaluator(support, template="<image>question: {question} answer: {answer}").rank(queries, ["red", ""], 1)


# Answers -----------------------------------------------------------------------------------------------------------


def scored_in_full(made: FewShotEvaluator, query, prompt, normalize=False) -> list[float]:
    """Log-likelihood of each candidate by reading prompt and answer at once, with nothing cached or padded."""
    scores = []
    for answer in CANDIDATES:
        text = f"{prompt.text} {answer}<|endofchunk|>"
        inputs = made.processor(images=[prompt.images], text=[text], return_tensors="pt")
        start = len(made.processor.tokenizer(prompt.text).input_ids)
        ids = inputs["input_ids"][0]
        with torch.no_grad():
            told = made.model(**inputs, use_cache=False).logits[0].log_softmax(dim=-1)
        parts = [float(told[place - 1, ids[place]]) for place in range(start, len(ids))]
        scores.append(sum(parts) / (len(parts) if normalize else 1))
    return scores


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("shots", [0, 2])
def test_ranking_with_a_cached_prompt_equals_reading_it_anew(support, queries, family, shots):
    made = evaluator(support, family)
    expected = [scored_in_full(made, *pair) for pair in zip(queries, made.prompts(queries, shots))]
    for chunk in (64, 2):
        ranked = made.rank(queries, CANDIDATES, shots, candidate_batch_size=chunk)
        assert torch.allclose(ranked, torch.tensor(expected), atol=2e-5)
    mean = made.rank(queries, CANDIDATES, shots, normalize_length=True)
    lengths = torch.tensor([len(answer.split()) + 1 for answer in CANDIDATES])
    assert torch.allclose(mean * lengths, ranked, atol=1e-4)


def test_a_prompt_is_read_once_for_all_candidates(support, queries):
    """One pass over the prompts, one over the candidates on its cache; each image is encoded once."""
    made = evaluator(support, batch_size=5)
    passes, images = [], []
    forward, encode = made.model.forward, made.model.get_image_features

    def watched_forward(**inputs):
        passes.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    def watched_encode(pixel_values, **kwargs):
        images.append(len(pixel_values))
        return encode(pixel_values=pixel_values, **kwargs)

    made.model.forward, made.model.get_image_features = watched_forward, watched_encode
    made.rank(queries, CANDIDATES, shots=4)
    lengths = [len(answer.split()) + 1 for answer in CANDIDATES]
    assert len(passes) == 2 and passes[1] == (5 * len(CANDIDATES), max(lengths) - 1)
    shown = {place for places in made.select(queries, 4) for place in places}
    assert sum(images) == len(shown) + len(queries) < 5 * len(queries)


def test_ranking_needs_a_cache(support, queries):
    made = evaluator(support)
    forward = made.model.forward
    made.model.forward = lambda **inputs: forward(**{**inputs, "use_cache": False})
    with pytest.raises(ValueError, match="but FlamingoForConditionalGeneration gave none: generate the answers"):
        made.rank(queries, CANDIDATES, 1)


def test_encoding_support_images_once_changes_nothing(support, queries):
    made = evaluator(support)
    expected = made.rank(queries, CANDIDATES, 3), made.rank(queries, CANDIDATES, 3, blind=True)
    answers = made.generate(queries, 2)
    made._takes_embeds = False  # as for a model that reads pixels alone
    assert torch.allclose(made.rank(queries, CANDIDATES, 3), expected[0], atol=2e-5)
    assert torch.allclose(made.rank(queries, CANDIDATES, 3, blind=True), expected[1], atol=2e-5)
    assert made.generate(queries, 2) == answers


@pytest.mark.parametrize("family", ["mamba", "rwkv", "minimax", "lfm2"])
def test_ranking_over_a_recurrent_state(support, queries, family, monkeypatch):
    sizes = {name: x for name, x in RECURRENT_MODELS[family].items() if name != "max_position_embeddings"}
    monkeypatch.setitem(digit_parts.LANGUAGE_MODELS, family, sizes)
    made = evaluator(support, family)
    expected = torch.tensor([scored_in_full(made, *pair) for pair in zip(queries, made.prompts(queries, 2))])
    assert torch.allclose(made.rank(queries, CANDIDATES, 2), expected, atol=2e-5)
    lengths = torch.tensor([len(answer.split()) + 1 for answer in CANDIDATES])
    mean = made.rank(queries, CANDIDATES, 2, normalize_length=True)
    assert torch.allclose(mean * lengths, expected, atol=1e-4)


def test_permutations_average_the_orders_of_the_shots(support, queries):
    made = evaluator(support)
    one = made.rank(queries[:2], CANDIDATES, shots=3)
    six = made.rank(queries[:2], CANDIDATES, shots=3, permutations=6)
    assert (one - six).abs().max() > 1e-3
    # with a single shot there is one order
    assert torch.allclose(
        made.rank(queries[:2], CANDIDATES, 1), made.rank(queries[:2], CANDIDATES, 1, permutations=3), atol=1e-5
    )


def test_an_answer_may_share_a_token_with_its_prompt():
    """`label:` and `label:red` are different tokens of this tokenizer: the answer begins within the prompt."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "label:", "label:red", "label:blue", "sky"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    processor = FlamingoProcessor(digit_parts.image_processor(), tokenizer)
    model = digit_parts.flamingo()
    model.config.image_token_id = processor.image_token_id
    scenes = DigitScenes("train").examples("vqa", 3)
    rows = [{"image": scene["image"], "answer": "red"} for scene in scenes]
    made = FewShotEvaluator(model, processor, rows, "<image>label:{answer}<|endofchunk|>")
    ranked = made.rank(rows[:1], ["red", "blue", "blue sky"], shots=1)[0]
    prompt = made.prompts(rows[:1], 1)[0]
    inputs = processor(images=[prompt.images], text=[prompt.text + "red<|endofchunk|>"], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    red, end = ids[-2:]
    assert ids == [processor.image_token_id, red, end] * 2
    with torch.no_grad():
        told = model(**inputs).logits[0].log_softmax(dim=-1)
    assert float(ranked[0]) == pytest.approx(float(told[-3, red] + told[-2, end]), abs=1e-5)

    # In a batch with a query whose prompt ends otherwise, a score is the same
    rows = [{**row, "question": question} for row, question in zip(rows, ("label:", "sky "))]
    made = FewShotEvaluator(model, processor, rows, "<image>{question}{answer}<|endofchunk|>")
    made.select = lambda queries, shots: [[0]] * len(queries)
    alone = torch.cat([made.rank([row], ["red", "blue"], 1, normalize_length=True) for row in rows])
    assert torch.allclose(made.rank(rows, ["red", "blue"], 1, normalize_length=True), alone, atol=1e-5)


def test_blind_answers_do_not_depend_on_the_images(support, queries):
    made = evaluator(support)
    other = [{**query, "image": support[0]["image"]} for query in queries]
    seen = [made.rank(rows, CANDIDATES, 2) for rows in (queries, other)]
    blind = [made.rank(rows, CANDIDATES, 2, blind=True) for rows in (queries, other)]
    assert torch.equal(*blind) and (seen[0] - seen[1]).abs().max() > 1e-3


def test_generation_stops_at_the_end_of_the_chunk(support, queries):
    """The model is made to write "red blue<|endofchunk|>": nothing after it is part of the answer."""
    made = evaluator(support, num_beams=1, max_new_tokens=8)
    made.model.generation_config.eos_token_id = None  # as of a model that does not know where a chunk ends
    tokenizer = made.processor.tokenizer
    script = tokenizer.convert_tokens_to_ids(["red", "blue", "<|endofchunk|>", "green", "white"])
    prompts = made.prompts(queries, 2)
    longest = max(len(tokenizer(prompt.text).input_ids) for prompt in prompts)
    lengths = []

    def recite(ids, scores):
        lengths.append(ids.shape[1])
        forced = torch.full_like(scores, -math.inf)
        forced[:, script[(len(lengths) - 1) % 5]] = 0.0
        return forced

    made.batch_size = len(queries)
    answers = made.generate(queries, 2, logits_processor=[recite])
    assert answers == ["red blue"] * len(queries)
    assert lengths == [longest, longest + 1, longest + 2]  # and nothing is written after it


def test_beams_are_used_and_settings_win(support, queries):
    made = evaluator(support, num_beams=3, max_new_tokens=3)
    calls = []
    generate = made.model.generate
    made.model.generate = lambda **kwargs: calls.append(kwargs) or generate(**kwargs)
    made.generate(queries[:1], 1)
    made.generate(queries[:1], 1, num_beams=1, max_new_tokens=1)
    assert [(call["num_beams"], call["max_new_tokens"], call["do_sample"]) for call in calls] == [
        (3, 3, False),
        (1, 1, False),
    ]
    assert made.processor.end_of_chunk_token_id in calls[0]["eos_token_id"]


def test_evaluate_puts_the_blind_score_beside_every_score(support, queries):
    made = evaluator(support)
    results = made.evaluate(queries, accuracy, shots=(0, 2), candidates=CANDIDATES, permutations=2)
    assert set(results) == {0, 2} and all(set(scores) == {"score", "blind"} for scores in results.values())
    best = made.rank(queries, CANDIDATES, 2, permutations=2).argmax(dim=-1)
    expected = sum(CANDIDATES[place] == query["answer"] for place, query in zip(best, queries)) / len(queries)
    assert results[2]["score"] == expected
    written = made.evaluate(queries, lambda answers, references: {"words": len(answers)}, shots=(1,))
    assert written == {1: {"score": 5, "blind": 5}}


def test_videos_are_examples_too():
    rows = DigitScenes("train").examples("video", 4, num_frames=2)
    rows = [{"clip": list(row["video"]), "answer": row["caption"]} for row in rows]
    made = evaluator(rows, template="<image>output: {answer}<|endofchunk|>", image_column="clip", selection="similar")
    assert len(made.generate(rows[:2], 2)) == 2
    assert [places[-1] for places in made.select(rows, 1)] == [0, 1, 2, 3]


# Metrics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("The two Dogs.", "2 dogs"),
        ("a  man\nand\ta woman", "man and woman"),
        ("1,000.5 kg", "1000.5 kg"),
        ("dont know", "don't know"),
        ("its well-done!", "its well done"),
        ("ten o'clock", "10 o'clock"),
        ("none", "0"),
        ("u.s.a.", "usa"),
        ("9:30", "9:30"),
        ("co-op", "co op"),
        ("co-op - yes", "coop yes"),
        ("1,000 co-op", "1000 coop"),
        ("y'alld've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("twas him", "'twas him"),
        ("im here", "im here"),
        ("shes", "shes"),
        (".5", ".5"),
        ("5.", "5"),
        ("(None)", "0"),
    ],
)
def test_answers_are_compared_as_the_challenge_does(answer, expected):
    """Expected are the answers of the challenge's own program, GT-Vision-Lab/VQA@a013f00."""
    assert normalize_vqa_answer(answer) == expected


def test_vqa_accuracy_is_the_average_over_nine_of_ten_people():
    values = [0.0, 0.3, 0.6, 0.9, 1.0, 1.0]  # for 0 to 5 of 10 people who gave the answer
    for agreed, value in enumerate(values):
        people = ["Yes."] * agreed + ["no"] * (10 - agreed)
        assert vqa_accuracy(["yes"], [people])["vqa_accuracy"] == pytest.approx(value)
        others = [min(sum(a == "Yes." for j, a in enumerate(people) if j != i) / 3, 1) for i in range(10)]
        assert value == pytest.approx(sum(others) / 10)
    assert vqa_accuracy(["yes", "no"], ["Yes", "yes"]) == {"vqa_accuracy": 0.5}
    # of people who all wrote the same the challenge compares answers as they are written, others normalised
    assert vqa_accuracy(["Yes.", " yes\n"], [["yes"] * 10] * 2) == {"vqa_accuracy": 0.5}
    assert vqa_accuracy(["Yes."], [["yes"] * 9 + ["no"]]) == {"vqa_accuracy": 1.0}
    with pytest.raises(ValueError, match="Question 0 has no reference answer"):
        vqa_accuracy(["yes"], [[]])


def test_exact_match_and_accuracy():
    assert exact_match(["Red ", "blue", "one"], ["red", ["green", "Blue"], "two"]) == {"exact_match": 2 / 3}
    assert accuracy([1, 2, 3, 4], torch.tensor([1, 2, 0, 4])) == {"accuracy": 0.75}
    for metric in (exact_match, accuracy, vqa_accuracy, cider, bleu, rouge_l):
        with pytest.raises(ValueError, match=r"got 1 prediction\(s\) and 2 reference\(s\)"):
            metric(["a"], ["a", "b"])
        with pytest.raises(ValueError, match="at least one"):
            metric([], [])


def test_cider_by_hand():
    """Two images, one reference each, nothing in common: every n-gram weighs log 2."""
    right = ["a red dog runs", "the big blue cat"]
    assert cider(right, right)["cider"] == pytest.approx(10.0)
    assert cider(right[::-1], right)["cider"] == 0.0
    # "a red dog" for "a red dog runs": 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, none of the one quadruple, each
    # over the root of both counts; one bigram too short
    agreement = (3 / math.sqrt(12) + 2 / math.sqrt(6) + 1 / math.sqrt(2) + 0) / 4
    expected = 10 * agreement * math.exp(-1 / 72) / 2
    assert cider(["a red dog", "nothing here"], right)["cider"] == pytest.approx(expected)
    # repetition does not pay: counts are clipped to the reference's
    assert cider(["dog dog dog dog", "x"], right)["cider"] < cider(["a dog runs red", "x"], right)["cider"]
    # punctuation and case do not count; several references are averaged
    assert cider(["A red dog, runs!", "the big blue cat"], right)["cider"] == pytest.approx(10.0)
    several = cider(right, [[right[0], "unlike it in all"], right[1]])["cider"]
    assert several == pytest.approx(7.5)
    assert cider(["a dog"], ["a dog"]) == {"cider": 0.0}  # one image tells nothing about what is telling
    with pytest.raises(ValueError, match="Image 1 has no reference caption"):
        cider(right, [right[0], []])


CAPTIONS = {
    "a man rides a brown horse on the beach": [
        "a man riding a horse on the beach",
        "a man rides a horse along the sea",
    ],
    "two dogs play with a red ball in the grass": [
        "two dogs are playing with a ball",
        "dogs in the grass play with a red ball",
    ],
    "a plate of food with rice and beans": ["a plate with rice beans and meat"],
    "the cat sleeps": ["a black cat is sleeping on a couch", "the cat sleeps on the sofa", "a cat"],
    "a bus bus bus on the street": ["a red bus drives down the street", "a double decker bus on a city street"],
}


def test_captions_score_as_in_pycocoevalcap():
    """Values of pycocoevalcap 1.2; it adds 1e-9 to the counts of BLEU."""
    predictions, references = list(CAPTIONS), list(CAPTIONS.values())
    assert cider(predictions, references)["cider"] == pytest.approx(2.757517745294824, rel=1e-12)
    assert rouge_l(predictions, references)["rouge_l"] == pytest.approx(0.6739990692440083, rel=1e-12)
    expected = [0.8648648648414902, 0.7165985720635979, 0.5552350503507171, 0.4200171107593854]
    scores = bleu(predictions, references)
    assert next(iter(scores)) == "bleu4"  # which the evaluators take for the score
    assert [scores[f"bleu{n}"] for n in (1, 2, 3, 4)] == pytest.approx(expected, rel=1e-9)


def test_captions_that_have_nothing_to_count():
    assert bleu(["", "."], ["a dog", "a cat"]) == {"bleu4": 0.0, "bleu1": 0.0, "bleu2": 0.0, "bleu3": 0.0}
    assert rouge_l(["", "a"], ["a dog", ["", "a"]]) == {"rouge_l": 0.5}
    assert bleu(["a dog"], ["a dog"])["bleu4"] == 0.0  # it has no four words in a row
    with pytest.raises(ValueError, match="Image 1 has no reference caption"):
        rouge_l(["a", "b"], ["a", []])


@pytest.mark.slow
def test_cider_equals_pycocoevalcap():
    scorer = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    draw = random.Random(0)
    captions = [row["caption"] for row in DigitScenes("test").examples("caption", 200)]
    references = [[text, draw.choice(captions), f"{text} here"][: draw.randint(1, 3)] for text in captions]
    wrong = [text.replace("red", "blue red") for text in captions]
    predictions = [draw.choice([*pair, draw.choice(captions), "", "a a a"]) for pair in zip(captions, wrong)]
    expected, _ = scorer.compute_score(dict(enumerate(references)), {i: [text] for i, text in enumerate(predictions)})
    assert 1 < expected < 9
    assert cider(predictions, references)["cider"] == pytest.approx(expected, rel=1e-12)


# Classes -----------------------------------------------------------------------------------------------------------


def test_confusion_says_which_class_is_taken_for_which():
    result = class_accuracy([0, 1, 1, 2, 0, 0], torch.tensor([0, 1, 2, 2, 1, 0]), ["up", "down", "left", "right"])
    assert result["confusion"] == [[2, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert result["by_class"] == {"up": 1.0, "down": 0.5, "left": 0.5}  # nothing was to the right
    assert result["accuracy"] == pytest.approx(4 / 6) and result["mean_class_accuracy"] == pytest.approx(2 / 3)
    for labels, message in (([0, 4], "from 0 to 3; got"), ([0, -1], "from 0 to 3"), ([0.0, 1.0], "got torch.float32")):
        with pytest.raises(ValueError, match=message):
            class_accuracy(labels, [0, 1], ["up", "down", "left", "right"])


def test_top_k_counts_places():
    scores = torch.tensor([[0.1, 0.5, 0.4], [0.3, 0.2, 0.5], [0.2, 0.2, 0.2]])
    assert top_k_accuracy(scores, [1, 1, 0], ks=(1, 2, 3)) == {"top1": 1 / 3, "top2": 1 / 3, "top3": 1.0}
    assert top_k_accuracy(scores[:2], [2, 0]) == {"top1": 0.0, "top5": 1.0}
    for wrong, ks in ((scores[0], (1,)), (scores, (0,)), (scores * torch.nan, (1,))):
        with pytest.raises(ValueError, match=r"scores \[N, C\] without NaN and ks from 1 on; got"):
            top_k_accuracy(wrong, [1, 1, 1], ks)


def test_clips_of_a_video_are_averaged_after_the_softmax():
    """One very sure clip does not outvote two others, as it would if logits were averaged."""
    logits = torch.tensor([[50.0, 0.0], [0.0, 0.0], [0.0, 3.0], [0.0, 3.0], [0.0, 3.0], [9.0, 0.0]])
    videos, labels = ["a", "b", "a", "a", "b", "b"], [1, 1, 1, 1, 1, 1]
    assert clip_accuracy(logits, videos, labels, ks=(1, 2)) == {"top1": 0.5, "top2": 1.0}
    assert logits[[0, 2, 3]].mean(dim=0).argmax() == 0
    assert clip_accuracy(logits, torch.arange(6), labels) == {"top1": 0.5, "top5": 1.0}
    with pytest.raises(ValueError, match="Clips of video 'a' have different classes"):
        clip_accuracy(logits, videos, [1, 1, 0, 1, 1, 1])
    with pytest.raises(ValueError, match=r"got 2 prediction\(s\) and 6 reference"):
        clip_accuracy(logits, ["a", "b"], labels)
