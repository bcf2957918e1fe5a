"""Collating documents: which token looks at which image, what is learned, and that no cut parts text from images."""

import copy
import inspect
import io
from itertools import pairwise

import digit_parts
import flamingo_parts
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from tokenizers import pre_tokenizers
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from hf_mmunify.data import READ_PACKED_AS_ONE, DigitScenes, InterleavedCollator, load_digit_scenes
from hf_mmunify.training import ImageAugmentation


IMAGE, END = "<image>", "<|endofchunk|>"


@pytest.fixture(scope="module")
def processor():
    return digit_parts.processor()


def picture(value: int = 0, size: tuple[int, int] = (24, 24)) -> PILImage.Image:
    """A grey picture, recognisable by its brightness."""
    return PILImage.new("RGB", size, (value, value, value))


def brightness(processor, pixels: torch.Tensor) -> list[int]:
    """What `picture` was called with, read back from processed pixels `[..., 3, H, W]`."""
    mean, std = (torch.tensor(values)[:, None, None] for values in _statistics(processor))
    return ((pixels * std + mean) * 255).flatten(-3).mean(-1).round().long().flatten().tolist()


def _statistics(processor):
    return processor.image_processor.image_mean, processor.image_processor.image_std


def read(processor, batch, row: int = 0) -> str:
    ids = batch["input_ids"][row][batch["attention_mask"][row] == 1]
    return " ".join(processor.tokenizer.convert_ids_to_tokens(ids))


DOG_AND_CAT = {"text": f"the red seven. {IMAGE} the blue three. {IMAGE}", "images": [picture(10), picture(20)]}


@pytest.mark.parametrize(
    "probability, expected",
    [
        # the paper's page of a dog and a cat: text looks back ("the blue three" at the red seven) ...
        (0.0, {"red": 0, "seven": 0, IMAGE: 1, "blue": 1, "three": 1}),
        # ... or ahead, where on this page its own image is
        (1.0, {"red": 1, "seven": 1, IMAGE: 1, "blue": 2, "three": 2}),
    ],
)
def test_text_looks_at_the_image_before_or_after_it(processor, probability, expected):
    batch = InterleavedCollator(processor, next_image_probability=probability)([DOG_AND_CAT])
    words = read(processor, batch).split()
    assert words.count(IMAGE) == 2
    index = dict(reversed(list(zip(words, batch["media_index"][0].tolist()))))  # the first of equal words
    assert {word: index[word] for word in expected} == expected
    assert batch["media_index"][0, -1] == 2  # the second image's own token, either way


def test_text_after_the_last_image_sees_none_when_text_looks_ahead(processor):
    row = {"text": f"red {IMAGE} blue", "images": [picture()]}
    ahead = InterleavedCollator(processor, next_image_probability=1.0)([row])
    assert read(processor, ahead) == f"red {END} {IMAGE} blue {END}"
    assert ahead["media_index"].tolist() == [[1, 1, 1, 0, 0]]


def test_half_of_the_documents_look_ahead_each_as_a_whole(processor):
    words = ["red", "green", "blue", "yellow", "white", "one", "two", "three", "four", "five"]
    rows = [
        {"text": f"{a} {b} {IMAGE} {c} {IMAGE}", "images": [picture()] * 2}
        for a in words
        for b in words
        for c in words
    ]
    index = InterleavedCollator(processor, next_image_probability=0.5)
    batches = [index.tokenize(index.document(row)).media_index for row in rows]
    ahead = [values == [1, 1, 1, 1, 2, 2, 2] for values in batches]
    back = [values == [0, 0, 0, 1, 1, 1, 2] for values in batches]
    assert all(a != b for a, b in zip(ahead, back))
    assert abs(np.mean(ahead) - 0.5) < 0.05  # 1,000 draws: three standard deviations


def test_marks_of_documents_and_pairs():
    """`<bos>text<eoc><image>text<eoc>` and `<bos><image>text<eoc><eos>`, whatever marks the text had."""
    processor = digit_parts.processor(bos=True)
    collator = InterleavedCollator(processor)
    document = {"text": f"a red seven{END}{IMAGE}output: a blue one {END}", "images": [picture()]}
    assert read(processor, collator([document])) == f"<s> a red seven {END} {IMAGE} output : a blue one {END}"
    assert read(processor, collator([{"image": picture(), "text": "a one"}])) == f"<s> {IMAGE} a one {END} </s>"
    assert read(processor, collator([{"text": "a one"}])) == f"<s> a one {END}"
    # two images in a row: there is no text whose chunk could end between them
    pair = {"text": f"{IMAGE}{IMAGE}both", "images": [picture()] * 2}
    assert read(processor, collator([pair])) == f"<s> {IMAGE} {IMAGE} both {END}"


def test_bos_is_the_tokenizers_own_unless_said_otherwise():
    row = {"image": picture(), "text": "one"}
    for bos, add_bos, expected in ((False, None, 0), (True, None, 1), (False, True, 1), (True, False, 0)):
        processor = digit_parts.processor(bos)
        ids = InterleavedCollator(processor, add_bos=add_bos)([row])["input_ids"][0].tolist()
        assert ids.count(processor.tokenizer.bos_token_id) == expected
        # by default a prompt has what a training text has
        if add_bos is None:
            prompt = processor(text=f"{IMAGE}one", images=[row["image"]]).input_ids[0]
            assert ids[: len(prompt)] == prompt


def test_labels_leave_out_padding_images_and_the_first_token(processor):
    rows = [{"image": picture(), "text": "a red seven"}, {"text": f"one {IMAGE} two", "images": [picture()]}]
    batch = InterleavedCollator(processor)(rows)
    ids, labels = batch["input_ids"], batch["labels"]
    ignored = (ids == processor.image_token_id) | (batch["attention_mask"] == 0)
    ignored[:, 0] = True
    assert torch.equal(labels, ids.masked_fill(ignored, -100))
    assert ids.shape[1] == 6 and batch["attention_mask"].sum(dim=1).tolist() == [6, 5]


def test_openflamingo_learns_no_text_that_sees_no_image(processor):
    row = {"text": f"one two {IMAGE} three", "images": [picture()]}
    for learn, expected in ((True, ["two", END, "three", END]), (False, ["three", END])):
        collator = InterleavedCollator(processor, next_image_probability=0.0, learn_text_without_image=learn)
        labels = collator([row])["labels"][0]
        assert processor.tokenizer.convert_ids_to_tokens(labels[labels >= 0]) == expected


def test_a_window_of_a_long_document_keeps_tokens_and_images_together(processor):
    number = 12
    text = "".join(f"{IMAGE}a red {word} and a blue one" for word in ["seven", "three"] * (number // 2))
    images = [picture(10 * place) for place in range(number)]
    starts = set()
    for probability in (0.0, 1.0):
        collator = InterleavedCollator(
            processor, max_images=3, max_length=29, next_image_probability=probability, seed=int(probability)
        )
        for epoch in range(20):
            collator.set_epoch(epoch)
            batch = collator([{"text": text, "images": images}])
            ids = batch["input_ids"][0]
            is_image = ids == processor.image_token_id
            shown = brightness(processor, batch["pixel_values"])
            starts.add(shown[0])
            assert len(ids) <= 29 and int(is_image.sum()) == len(shown) <= 3
            assert shown == sorted(shown) and {b - a for a, b in pairwise(shown)} == {10}
            index = batch["media_index"][0]
            assert index[is_image].tolist() == list(range(1, len(shown) + 1))  # every token of an image sees it
            assert int(index.max()) == len(shown)
            # text whose image lies outside of the window, or beyond the first three, sees none
            if probability == 0.0:
                first = int(is_image.nonzero()[0])
                assert (index[:first] == 0).all()
            else:
                assert (index[int(is_image.nonzero()[-1]) + 1 :] == 0).all()
    assert len(starts) > 3  # the windows differ


def test_a_window_begins_with_bos_as_prompts_do():
    collator = InterleavedCollator(digit_parts.processor(bos=True), max_length=4, next_image_probability=0.0)
    row = {"text": f"one two {IMAGE} three four five", "images": [picture()]}
    windows = set()
    for epoch in range(40):
        collator.set_epoch(epoch)
        batch = collator([row])
        windows.add((read(collator.processor, batch), *batch["media_index"][0].tolist()))
    assert windows == {
        (f"<s> one two {END}", 0, 0, 0, 0),
        (f"<s> two {END} {IMAGE}", 0, 0, 0, 1),
        (f"<s> {END} {IMAGE} three", 0, 0, 1, 1),
        (f"<s> {IMAGE} three four", 0, 1, 1, 1),
        ("<s> three four five", 0, 0, 0, 0),
        (f"<s> four five {END}", 0, 0, 0, 0),
    }


def test_a_long_pair_keeps_its_image(processor):
    collator = InterleavedCollator(processor, max_length=4)
    batch = collator([{"image": picture(), "text": "a red seven and a blue one"}])
    assert read(processor, batch) == f"{IMAGE} a red seven"
    assert batch["pixel_values"].shape == (1, 1, 3, 24, 24)


def test_images_beyond_the_first_five_are_left_out_and_their_text_sees_none(processor):
    row = {"text": f"{IMAGE}red" * 7, "images": [picture(place) for place in range(7)]}
    batch = InterleavedCollator(processor, next_image_probability=0.0)([row])
    assert brightness(processor, batch["pixel_values"]) == [0, 1, 2, 3, 4]
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == 5
    assert batch["media_index"][0].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 0, 0, 0, 0]


def test_small_and_narrow_images_are_left_out(processor):
    collator = InterleavedCollator(processor, min_image_side=64, max_aspect_ratio=3.0, next_image_probability=0.0)
    sizes = [(64, 64), (63, 200), (64, 193), (192, 64)]
    row = {"text": f"{IMAGE} one" * 4, "images": [picture(i, size) for i, size in enumerate(sizes)]}
    batch = collator([row])
    assert brightness(processor, batch["pixel_values"]) == [0, 3]
    assert read(processor, batch) == f"{IMAGE} one one one {END} {IMAGE} one {END}"
    # arrays count as images do, and a pair without its image teaches nothing
    array = np.zeros((200, 63, 3), np.uint8)
    lone = collator([{"image": array, "text": "one"}])
    assert not lone["image_mask"].any() and (lone["labels"] == -100).all()


def test_pairs_begin_with_a_space_half_of_the_time():
    processor = digit_parts.processor()
    processor.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), pre_tokenizers.Split("Ġ", "isolated")]
    )  # words as before, and unknown spaces between them
    collator = InterleavedCollator(processor)
    space = processor.tokenizer.unk_token_id
    captions = [row["caption"] for row in DigitScenes("train").examples("caption", 400)]
    spaced = [collator.tokenize(collator.document({"image": picture(), "text": text})).ids[1] for text in captions]
    assert abs(np.mean(np.array(spaced) == space) - 0.5) < 0.08
    assert set(spaced) == {space, processor.tokenizer.convert_tokens_to_ids("a")}
    # a document keeps its text as it is
    for text in captions[:20]:
        assert collator.tokenize(collator.document({"images": [picture()], "text": f"{IMAGE}{text}"})).ids[1] != space


def test_forms_of_documents(processor):
    """MMC4's matched sentences, OBELICS' two lists, captions to choose from, videos: all become one form."""
    collator = InterleavedCollator(processor, next_image_probability=0.0, leading_space_probability=0.0)
    mmc4 = {"text_list": ["one", "two", "three"], "matched_text_index": [0, 2], "images": [picture(1), picture(2)]}
    assert read(processor, collator([mmc4])) == f"{IMAGE} one two {END} {IMAGE} three {END}"
    obelics = {"texts": [None, "one", None, "two"], "images": [picture(3), None, picture(4), None]}
    batch = collator([obelics])
    assert read(processor, batch) == f"{IMAGE} one {END} {IMAGE} two {END}"
    assert brightness(processor, batch["pixel_values"]) == [3, 4]
    chosen = {"image": picture(), "caption": ["one", "two", "three"]}
    drawn = set()
    for epoch in range(30):
        collator.set_epoch(epoch)
        drawn.add(read(processor, collator([chosen])).split()[1])
    assert drawn == {"one", "two", "three"}


def test_videos_become_evenly_spaced_frames(processor):
    video = np.stack([np.full((24, 24, 3), value, np.uint8) for value in range(15)])
    for num_frames, expected in ((8, [0, 2, 4, 6, 8, 10, 12, 14]), (2, [0, 14]), (None, list(range(15)))):
        batch = InterleavedCollator(processor, num_frames=num_frames)([{"video": video, "text": "one"}])
        assert batch["pixel_values"].shape == (1, 1, len(expected), 3, 24, 24)
        assert brightness(processor, batch["pixel_values"]) == expected
    short = InterleavedCollator(processor)([{"video": list(video[:3]), "text": "one"}])
    assert brightness(processor, short["pixel_values"]) == [0, 0, 1, 1, 1, 1, 2, 2]


def test_rows_with_different_numbers_of_images(processor):
    rows = [{"text": f"{IMAGE}one" * number, "images": [picture(number)] * number} for number in (2, 0, 3)]
    batch = InterleavedCollator(processor)(rows)
    assert batch["image_mask"].tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert brightness(processor, batch["pixel_values"][batch["image_mask"].bool()]) == [2, 2, 3, 3, 3]
    assert batch["pixel_values"][batch["image_mask"] == 0].abs().sum() == 0
    blind = InterleavedCollator(processor)([{"text": "one"}, {"text": "two"}])  # a blank slot, so that DDP sees no gap
    assert blind["pixel_values"].shape[:2] == (2, 1) and blind["image_mask"].tolist() == [[0], [0]]
    assert not blind["media_index"].any()


@pytest.mark.parametrize("family", flamingo_parts.LANGUAGE_MODELS)
def test_language_models_that_keep_packed_documents_apart(processor, family):
    """All but those that the collator names, whose masks do not follow the positions."""
    rows = [{"text": "a red seven and a blue three"}, {"text": "how many objects are there"}]
    alone, packed = (InterleavedCollator(processor, packing=packing)(rows) for packing in (False, True))
    config = flamingo_parts.text_config(family, vocab_size=len(processor.tokenizer), pad_token_id=0)
    model = flamingo_parts.draw(AutoModelForCausalLM.from_config(config))
    shown = {name: {**batch, "use_cache": False} for name, batch in (("alone", alone), ("packed", packed))}
    for batch in shown.values():
        for name in ("labels", "media_index", "pixel_values", "image_mask"):
            del batch[name]
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        del shown["packed"]["position_ids"]
    with torch.no_grad():
        second = model(**shown["alone"]).logits[1, : alone["attention_mask"][1].sum()]
        last = model(**shown["packed"]).logits[0, -len(second) :]
    leaks = not torch.allclose(second, last, atol=1e-5)
    assert leaks is (family in READ_PACKED_AS_ONE)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_packed_row_is_worth_its_documents_alone(processor, family):
    """Packing is exact: the summed loss of four documents in one row is that of the four rows."""
    model = digit_parts.flamingo(family)
    documents = DigitScenes("train").examples("interleaved", 4, shots=1, kind="caption")
    documents[1] = {"text": "a red seven and a blue three"}  # its text must not look at the images of the one before
    alone = InterleavedCollator(processor, packing=False)(documents)
    packed = InterleavedCollator(processor, packing=True, max_length=128)(documents)
    assert len(packed["input_ids"]) == 1 and len(alone["input_ids"]) == 4
    assert packed["media_index"].max() == 6 and packed["pixel_values"].shape[:2] == (1, 6)
    assert int((packed["labels"] >= 0).sum()) == int((alone["labels"] >= 0).sum())
    with torch.no_grad():
        losses = [float(model(**batch, num_items_in_batch=1).loss) for batch in (alone, packed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # the isolation is what makes them equal
    with torch.no_grad():
        del packed["position_ids"]
        assert abs(float(model(**packed, num_items_in_batch=1).loss) - losses[0]) > 1e-2


def test_rows_are_packed_where_there_is_room(processor):
    rows = [{"text": " ".join(["one"] * (length - 1))} for length in (60, 50, 40, 30, 10)]
    batch = InterleavedCollator(processor, packing=True, max_length=100, pad_to_multiple_of=8)(rows)
    lengths = (batch["input_ids"] != processor.tokenizer.pad_token_id).sum(dim=1)
    assert lengths.tolist() == [100, 90] and batch["input_ids"].shape == (2, 104)


def test_draws_depend_on_document_seed_and_epoch_alone(processor):
    rows = [{**row, "text": row["text"] * 3, "images": list(row["images"]) * 3} for row in _documents(6)]

    def collated(rows, seed=0, epoch=0):
        collator = InterleavedCollator(processor, max_length=40, seed=seed)
        collator.set_epoch(epoch)
        return [collator([row])["input_ids"].tolist() for row in rows]

    first = collated(rows)
    assert collated(rows[::-1])[::-1] == first  # not on what came before
    assert collated(rows, seed=1) != first and collated(rows, epoch=1) != first
    # not on the worker
    loaders = [
        DataLoader(rows, batch_size=2, num_workers=workers, collate_fn=InterleavedCollator(processor, max_length=40))
        for workers in (0, 2)
    ]
    for one, other in zip(*loaders):
        assert all(torch.equal(one[name], other[name]) for name in one)


def _documents(number: int) -> list[dict]:
    return DigitScenes("train").examples("interleaved", number, shots=2)


@pytest.mark.parametrize("streaming", [False, True])
def test_trainer_takes_datasets_of_documents(processor, tmp_path, streaming):
    dataset = load_digit_scenes("interleaved", size=8, shots=1, streaming=streaming)
    model = digit_parts.flamingo("opt", awake=False)
    args = TrainingArguments(
        tmp_path, per_device_train_batch_size=4, max_steps=2, remove_unused_columns=False, learning_rate=1e-2
    )
    before = copy.deepcopy(model.model.adapter.state_dict())
    trainer = Trainer(model, args, InterleavedCollator(processor), train_dataset=dataset)
    result = trainer.train()
    assert result.global_step == 2 and 2 < result.training_loss < 6
    changed = [
        name for name, value in model.model.adapter.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert any("gate" in name for name in changed)


def test_rows_of_a_datasets_dataset_with_empty_columns(processor):
    """A table of mixed forms has `None` where a row has no such column."""
    features = Features({"images": List(Image()), "text": Value("string"), "image": Image()})
    rows = {"images": [[picture(1)], None], "text": [f"{IMAGE}one", "two"], "image": [None, picture(2)]}
    dataset = Dataset.from_dict(rows, features=features)
    batch = InterleavedCollator(processor)([dataset[0], dataset[1]])
    assert brightness(processor, batch["pixel_values"]) == [1, 2]
    assert read(processor, batch, 1) == f"{IMAGE} two {END} </s>"


def test_a_transform_sees_all_frames_at_once(processor):
    calls = []

    def transform(frames, generator):
        calls.append((len(frames), generator.random()))
        return [picture(7)] * len(frames)

    collator = InterleavedCollator(processor, transform=transform, num_frames=4)
    still = collator([{"image": picture(), "text": "one"}])
    moving = collator([{"video": [picture()] * 4, "text": "two"}])
    assert [number for number, _ in calls] == [1, 4]
    assert brightness(processor, still["pixel_values"]) + brightness(processor, moving["pixel_values"]) == [7] * 5


def encoded(image: PILImage.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def images_of_all_forms() -> dict[str, object]:
    """The same dark grey, one of the web's palette, in every form that a dataset may keep it in."""
    grey = picture(51)
    return {
        **{mode: grey.convert(mode) for mode in ("L", "P", "RGBA", "CMYK")},
        "16 bits": PILImage.fromarray(np.full((24, 24), 51 * 257, np.uint16)),
        "one channel": np.full((24, 24, 1), 51, np.uint8),
        "channels first": np.full((3, 24, 24), 51, np.uint8),
        "floats": np.full((24, 24, 3), 51 / 255, np.float32),
        "tensor": torch.full((3, 24, 24), 51, dtype=torch.uint8),
        "bytes": encoded(grey),
        "not decoded": {"bytes": encoded(grey), "path": None},
    }


@pytest.mark.parametrize("settings", [{}, {"transform": ImageAugmentation(0.5, 0, 0, 0, 0)}, {"min_image_side": 8}])
def test_images_of_all_forms(processor, settings, tmp_path):
    (tmp_path / "grey.png").write_bytes(encoded(picture(51)))
    forms = {**images_of_all_forms(), "path": tmp_path / "grey.png", "name": str(tmp_path / "grey.png")}
    collator = InterleavedCollator(processor, max_images=99, **settings)
    batch = collator([{"text": f"{IMAGE}one" * len(forms), "images": list(forms.values())}])
    assert dict(zip(forms, brightness(processor, batch["pixel_values"]))) == dict.fromkeys(forms, 51)
    moving = collator([{"video": list(images_of_all_forms().values()), "text": "one"}])
    assert brightness(processor, moving["pixel_values"]) == [51] * 8


def test_rows_that_hold_nothing_teach_nothing(processor):
    """Empty texts are common; a batch of nothing else is one that a model still reads, with a loss of zero."""
    batch = InterleavedCollator(processor)([{"text": " "}])
    assert read(processor, batch) == "<pad>"
    model = digit_parts.flamingo()
    loss = model(**batch).loss
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert float(model.model.adapter.resampler.latents.grad.abs().sum()) == 0.0
    # a pair without its text: to stop at once is nothing that its image says
    for caption in ("", " \n", END):
        assert (InterleavedCollator(processor)([{"image": picture(), "text": caption}])["labels"] == -100).all()
    packed = InterleavedCollator(processor, packing=True)([{"text": ""}, {"text": "one two"}])
    labels = packed["labels"][0]
    assert processor.tokenizer.convert_ids_to_tokens(labels[labels >= 0]) == ["two", END]


def animated() -> PILImage.Image:
    return PILImage.open(io.BytesIO(encoded(picture(1), "GIF", save_all=True, append_images=[picture(99)])))


def truncated() -> PILImage.Image:
    noise = PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = encoded(noise, "JPEG")
    return PILImage.open(io.BytesIO(data[: len(data) // 2]))


@pytest.mark.parametrize("settings", [{}, {"transform": ImageAugmentation()}, {"min_image_side": 0}])
@pytest.mark.parametrize(
    "image, message",
    [
        (truncated, "cannot be read: image file is truncated"),
        (animated, r"animated \(2 frames\)"),
        (lambda: np.zeros((0, 9, 3), np.uint8), r"has shape \(0, 9, 3\)"),
        (lambda: np.full((9, 9, 3), np.nan), "has pixels from nan to nan"),
        (lambda: "no/such/file.jpg", "An image cannot be fetched: .*no/such/file.jpg"),
    ],
)
def test_an_image_that_cannot_be_used_is_named_by_its_row(processor, image, message, settings):
    collator = InterleavedCollator(processor, **settings)
    for form in ({"image": image(), "text": "one"}, {"video": [picture(), image()], "text": "one"}):
        with pytest.raises(ValueError, match=f"^Row 1 of the batch: .*{message}"):
            collator([{"text": "fine"}, form])


def test_images_and_videos_are_batches_apart(processor):
    rows = [{"text": "fine"}, {"image": picture(), "text": "one"}, {"video": [picture()] * 3, "text": "two"}]
    for packing in (False, True):
        with pytest.raises(ValueError, match="but row 1 has 1 and row 2 has 8: take num_frames of each video"):
            InterleavedCollator(processor, packing=packing)(rows)
    with pytest.raises(ValueError, match="but row 0 has 3 and row 1 has 2"):
        InterleavedCollator(processor, num_frames=None)([rows[2], {"video": [picture()] * 2, "text": "two"}])
    alike = InterleavedCollator(processor, num_frames=1)(rows)
    assert alike["pixel_values"].shape == (3, 1, 1, 3, 24, 24)


def test_a_column_that_holds_none_is_as_good_as_none(processor):
    row = {"image": picture(), "text": None, "caption": "one", "images": None, "video": None, "texts": None}
    assert read(processor, InterleavedCollator(processor)([row])) == f"{IMAGE} one {END} </s>"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"images": [picture()], "text": "no place"}, r"Row 1 of the batch: The text has 0 <image> token\(s\), but 1"),
        ({"image": picture()}, "needs a `text` or `caption`"),
        ({"image": picture(), "caption": []}, r"Row 1 of the batch: A caption is a text, or a list .* got \[\]"),
        ({"image": picture(), "caption": ["a", None]}, r"Row 1 of the batch: A caption is .* got \['a', None\]"),
        ({"image": picture(), "text": float("nan")}, "Row 1 of the batch: A caption is a text, .* got nan"),
        ({"image": picture(), "text": f"red {IMAGE}"}, f"Row 1 of the batch: .* it has a {IMAGE}: 'red {IMAGE}'"),
        ({"image": PILImage.new("RGB", (0, 9)), "text": "a"}, "Row 1 of the batch: An image is empty: 0 x 9 pixels"),
        ({"video": [], "text": "red"}, "Row 1 of the batch: A video has no frames"),
        ({"images": [picture(), None], "texts": [None, None]}, "Row 1 of the batch: Expected an image .* NoneType"),
        ({"images": picture(), "text": IMAGE}, "Row 1 of the batch: 'Image' object is not iterable"),
        ({"pixels": 3}, r"Rename the columns"),
        ({"texts": ["a"], "images": []}, "take turns and are equally long; got 1 and 0"),
        ({"text_list": ["a", "b"], "images": [picture()]}, "names, for each of the `images`"),
        ({"text_list": ["a"], "images": [picture()], "matched_text_index": [1]}, "counts the 1 sentences"),
    ],
)
def test_a_row_that_fits_no_form_is_named(processor, row, message):
    with pytest.raises(ValueError, match=message):
        InterleavedCollator(processor)([{"text": "fine"}, row])


def test_settings_that_do_not_fit(processor):
    with pytest.raises(ValueError, match="has no token '<eoc>'"):
        InterleavedCollator(processor, end_of_chunk_token="<eoc>")
    with pytest.raises(ValueError, match="speak to the model through media_index"):
        InterleavedCollator(processor, return_media_index=False)
    unpadded = digit_parts.processor()
    unpadded.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="has no padding token"):
        InterleavedCollator(unpadded)
    with pytest.raises(ValueError, match="The batch has no rows"):
        InterleavedCollator(processor)([])
    plain = InterleavedCollator(processor, return_media_index=False, next_image_probability=0.0)
    assert "media_index" not in plain([DOG_AND_CAT])
    bare = InterleavedCollator(processor, end_of_chunk_token=None)
    assert read(processor, bare([{"text": f"one {IMAGE} two", "images": [picture()]}])) == f"one {IMAGE} two"
