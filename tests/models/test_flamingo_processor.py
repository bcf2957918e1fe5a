"""FlamingoProcessor: every layout of text, images and videos, every kind of picture, and what it says to bad input."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import IMAGE_SIZE, TINY, WORDS, image_processor, word_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoProcessor, PreTrainedTokenizerFast

from hf_mmunify.models.flamingo import FlamingoProcessor


PICTURE, OTHER, THIRD = TINY["flamingo"].images(3)
GREY = np.asarray(PICTURE.convert("L"))
RGB = np.asarray(PICTURE)


@pytest.fixture(scope="module")
def processor():
    return TINY["flamingo"].processor()


def pixels(processor, image, **kwargs):
    return processor(images=image, text="<image>", return_tensors="pt", **kwargs)["pixel_values"][0, 0]


def file_of(picture, **kwargs):
    """The picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, **kwargs)
    return buffer.getvalue()


def animated():
    return Image.open(io.BytesIO(file_of(PICTURE, format="GIF", save_all=True, append_images=[OTHER, THIRD])))


# Layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images, text",
    [
        (PICTURE, "<image> a red three"),
        ([PICTURE], "<image> a red three"),
        ([[PICTURE]], ["<image> a red three"]),
        ((PICTURE,), ["<image> a red three"]),
        ([PICTURE, OTHER], "<image> a red <image> three"),
        ([[PICTURE, OTHER]], "<image> a red <image> three"),
        ([PICTURE, OTHER], ["<image> a", "<image> red three"]),
        ([PICTURE, [OTHER]], ["<image> a", "<image> red three"]),
        ([[PICTURE], [OTHER]], ["<image> a", "<image> red three"]),
        ([PICTURE, OTHER, THIRD], ["<image> a", "a red three", "<image> <image>"]),
        ([[PICTURE], [], [OTHER, THIRD]], ["<image> a", "a red three", "<image> <image>"]),
    ],
    ids=lambda value: re.sub(r"<PIL[^>]*>", "i", str(value)),
)
def test_images_go_with_their_texts(processor, images, text):
    batch = processor(images=images, text=text, return_tensors="pt")
    texts = [text] if isinstance(text, str) else text
    counts = [one.count("<image>") for one in texts]
    expected = iter([PICTURE, OTHER, THIRD])
    assert batch["pixel_values"].shape == (len(texts), max(counts), 3, *IMAGE_SIZE.values())
    mask = batch.get("image_mask", torch.ones(len(texts), max(counts)))
    assert ("image_mask" in batch) == (len(set(counts)) > 1)
    assert mask.sum(dim=1).tolist() == counts
    for row, place in mask.nonzero().tolist():
        assert torch.equal(batch["pixel_values"][row, place], pixels(processor, next(expected)))
    assert not batch["pixel_values"][mask == 0].any()
    found = (batch["input_ids"] == processor.image_token_id).sum(dim=1)
    assert found.tolist() == counts
    assert set(batch) <= set(processor.model_input_names)


@pytest.mark.parametrize(
    "images, text",
    [
        ([[[PICTURE, OTHER]]], "<image> is what ?"),
        ([[[PICTURE, OTHER], [OTHER, THIRD]]], "<image> is <image> what ?"),
        ([[PICTURE, OTHER], [OTHER, THIRD]], "<image> is <image> what ?"),
        ([[[PICTURE, OTHER]], [[OTHER, THIRD]]], ["<image> a", "<image> red three"]),
        ([[np.stack([PICTURE, OTHER])], [torch.tensor(np.stack([OTHER, THIRD]))]], ["<image> a", "<image> red three"]),
        (np.stack([PICTURE, OTHER]), "<image> is what ?"),
        ([[[PICTURE, OTHER], [OTHER, THIRD]], []], ["<image> <image>", "a red three"]),
    ],
    ids=lambda value: re.sub(r"<PIL[^>]*>", "i", str(value))[:60],
)
def test_videos_are_lists_of_frames(processor, images, text):
    batch = processor(images=images, text=text, return_tensors="pt")
    texts = [text] if isinstance(text, str) else text
    most = max(one.count("<image>") for one in texts)
    assert batch["pixel_values"].shape == (len(texts), most, 2, 3, *IMAGE_SIZE.values())
    frames = batch["pixel_values"].flatten(0, 1)
    for frame, picture in zip(frames[0], (PICTURE, OTHER)):
        assert torch.equal(frame, pixels(processor, picture))
    if "image_mask" not in batch and len(frames) == 2:
        assert torch.equal(frames[1, 1], pixels(processor, THIRD))


def test_text_alone_and_images_alone(processor):
    text = processor(text=["a red three", "a"], return_tensors="pt")
    assert set(text) == {"input_ids", "attention_mask"}
    assert set(processor(images=[[], []], text=["a red three", "a"])) == set(text)
    assert set(processor(images=[], text="a")) == set(text)
    images = processor(images=[[PICTURE, OTHER], [THIRD]], return_tensors="pt")
    assert set(images) == {"pixel_values", "image_mask"} and images["pixel_values"].shape[:2] == (2, 2)
    assert processor(images=[PICTURE, OTHER])["pixel_values"].shape[:2] == (1, 2)


@pytest.mark.parametrize("side", ["left", "right", None])
def test_padding_stands_where_it_is_wanted(processor, side):
    """On the left unless told otherwise, ready for `generate`."""
    chosen = {} if side is None else {"padding_side": side}
    batch = processor(text=["a", "a red three"], return_tensors="pt", **chosen)
    pad, a = processor.tokenizer.pad_token_id, processor.tokenizer.convert_tokens_to_ids("a")
    assert batch["input_ids"][0].tolist() == ([a, pad, pad] if side == "right" else [pad, pad, a])
    assert batch["attention_mask"][0].tolist() == ([1, 0, 0] if side == "right" else [0, 0, 1])


def test_options_reach_tokenizer_and_image_processor(processor):
    batch = processor(
        images=PICTURE,
        text="<image> a red three",
        return_tensors="np",
        do_normalize=False,
        padding="max_length",
        max_length=9,
        add_special_tokens=False,
    )
    assert isinstance(batch["pixel_values"], np.ndarray) and batch["input_ids"].shape == (1, 9)
    assert batch["pixel_values"].min() >= 0 and batch["pixel_values"].max() <= 1
    np.testing.assert_allclose(batch["pixel_values"][0, 0], RGB.transpose(2, 0, 1) / 255, atol=1e-6)
    assert isinstance(processor(text="a")["input_ids"][0], list)


# Pictures ----------------------------------------------------------------------------------------------------------


def describe(image):
    """A short name of a picture, for the name of its test."""
    if isinstance(image, Image.Image):
        return f"{image.format or 'picture'} {image.mode}"
    return f"{type(image).__name__} {str(image.dtype).removeprefix('torch.')} {'x'.join(map(str, image.shape))}"


def with_orientation(picture):
    """The picture lying on its side, with the note that a viewer shall turn it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = picture.transpose(Image.Transpose.ROTATE_90)
    return Image.open(io.BytesIO(file_of(lying, format="PNG", exif=exif)))


def with_thumbnail(picture):
    """As phones save photos: a file of two images, the second one for other uses."""
    small = [picture.resize((8, 8))]
    photo = Image.open(io.BytesIO(file_of(picture, format="MPO", save_all=True, append_images=small, quality=95)))
    assert photo.format == "MPO" and photo.is_animated
    return photo


@pytest.mark.parametrize(
    "image, expected, tolerance",
    [
        (RGB, RGB, 0),
        (RGB.transpose(2, 0, 1), RGB, 0),
        (torch.tensor(RGB), RGB, 0),
        (RGB / 255, RGB, 0),
        (torch.tensor(RGB).permute(2, 0, 1) / 255, RGB, 0),
        ((torch.tensor(RGB) / 255).to(torch.bfloat16), RGB, 1),
        (RGB.astype(np.float32), RGB, 0),
        (RGB.astype(np.int64), RGB, 0),
        (RGB.astype(np.uint16) * 257, RGB, 0),
        (np.dstack([RGB, GREY]), RGB, 0),
        (GREY, GREY, 0),
        (GREY[..., None], GREY, 0),
        (GREY[None], GREY, 0),
        (GREY > 127, np.where(GREY > 127, 255, 0), 0),
        (PICTURE.convert("RGBA"), RGB, 0),
        (PICTURE.convert("CMYK"), RGB, 0),
        (PICTURE.convert("YCbCr"), RGB, 3),
        (PICTURE.convert("LA"), GREY, 0),
        (PICTURE.convert("1"), 255 * np.asarray(PICTURE.convert("1")).astype(int), 0),
        (PICTURE.quantize(256), PICTURE.quantize(256).convert("RGB"), 0),
        (Image.fromarray(GREY.astype(np.uint16) * 257), GREY, 0),
        (Image.open(io.BytesIO(file_of(Image.fromarray(GREY.astype(np.uint16) * 257), format="PNG"))), GREY, 0),
        (Image.fromarray(GREY.astype(np.int32)), GREY, 0),
        (Image.fromarray(GREY.astype(np.float32)), GREY, 0),
        (Image.fromarray(GREY.astype(np.float32) / 255), GREY, 0),
        (with_orientation(PICTURE), RGB, 0),
        (with_thumbnail(PICTURE), with_thumbnail(PICTURE).convert("RGB"), 0),
    ],
    ids=lambda value: None if isinstance(value, int) else describe(value),
)
def test_every_kind_of_picture_becomes_the_same_pixels(processor, image, expected, tolerance):
    expected = np.asarray(expected)
    expected = np.repeat(expected[..., None], 3, axis=-1) if expected.ndim == 2 else expected
    raw = pixels(processor, image, do_normalize=False) * 255
    np.testing.assert_allclose(raw.permute(1, 2, 0).numpy(), expected, atol=tolerance + 1e-3)


def test_pixels_that_were_scaled_before_stay_as_they_are(processor):
    scaled = (RGB / 255).astype(np.float32)
    kept = pixels(processor, scaled, do_rescale=False, do_normalize=False, do_resize=False, do_center_crop=False)
    np.testing.assert_array_equal(kept.permute(1, 2, 0).numpy(), scaled)


def test_paths_are_opened(processor, tmp_path):
    path = tmp_path / "picture.png"
    PICTURE.save(path)
    assert torch.equal(pixels(processor, path), pixels(processor, PICTURE))
    assert torch.equal(pixels(processor, str(path)), pixels(processor, PICTURE))


def test_pictures_of_all_sizes_share_a_batch(processor):
    sizes = [(1, 1), (3, 200), (200, 3), (33, 31)]
    batch = processor(images=[PICTURE.resize(size) for size in sizes], text="<image>" * 4, return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 4, 3, *IMAGE_SIZE.values())
    assert batch["pixel_values"].isfinite().all()


# Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images, text, message",
    [
        (None, None, r"Nothing to process: give text, images, or both"),
        (None, [], r"The batch is empty: give at least one text"),
        ([], [], r"The batch is empty"),
        (None, ["a", 3], r"text is a string or a list of strings, but text 1 is int"),
        (None, [["a", "red"]], r"but text 0 is list"),
        (PICTURE, "a red three", r"Text 0 has 0 <image> token\(s\), but 1 image\(s\) came with it: write one <image>"),
        ([], "<image>", r"Text 0 has 1 <image> token\(s\), but 0 image\(s\)"),
        ([PICTURE], "<image><image>", r"Text 0 has 2 <image> token\(s\), but 1 image\(s\)"),
        ([[PICTURE], [OTHER, THIRD]], ["<image>", "<image> a"], r"Text 1 has 1 <image> token\(s\), but 2 image\(s\)"),
        ([[PICTURE]], ["<image>", "<image>"], r"There are 2 text\(s\), but images for 1: give one list of images a"),
        ([PICTURE, OTHER, THIRD], ["<image>", "<image>"], r"The texts have 2 <image> token\(s\), but 3 image\(s\)"),
        (
            [[[PICTURE], [OTHER, THIRD]]],
            "<image><image>",
            r"Videos of one call have one number of frames, got \[1, 2\]",
        ),
        ([[[]]], "<image>", r"one number of frames, got \[0\]"),
    ],
)
def test_text_and_images_that_do_not_fit(processor, images, text, message):
    with pytest.raises(ValueError, match=message):
        processor(images=images, text=text)


def test_videos_go_among_the_images(processor):
    with pytest.raises(ValueError, match=r"Videos go among the images, each as a list of its frames"):
        processor(videos=[[PICTURE, OTHER]], text="<image> a")


@pytest.mark.parametrize(
    "image, message",
    [
        (7, r"Image 1 of text 0 is a int: expected a PIL image, an array or tensor of pixels, a path or an address"),
        ({"image": PICTURE}, r"is a dict"),
        (b"abc", r"is a bytes"),
        ("no/such/file.png", r"Image 1 of text 0 cannot be opened: .*no/such/file.png"),
        (Image.new("RGB", (0, 5)), r"Image 1 of text 0 is empty: 0x5 pixels"),
        (
            animated(),
            r"Image 1 of text 0 is animated \(3 frames\): pass a list of its frames as a video, or one of th",
        ),
        (np.zeros((0, 4, 3), np.uint8), r"has shape \(0, 4, 3\): expected \(height, width\)"),
        (np.zeros((5, 5, 2), np.uint8), r"has shape \(5, 5, 2\): .* with 1, 3 or 4 channels"),
        (np.zeros(12, np.uint8), r"has shape \(12,\)"),
        (np.full((4, 4, 3), np.nan), r"Image 1 of text 0 holds NaN or infinite pixels"),
        (torch.full((3, 4, 4), torch.inf), r"holds NaN or infinite pixels"),
        (
            RGB.astype(np.float32) - 128,
            r"has pixels from -1.* to 1.*: expected 0 to 255, or 0 to 1 .*do_rescale=False",
        ),
        (RGB.astype(np.int32) * 257, r"has pixels from .* to 6.*: expected 0 to 255"),
        (Image.fromarray(GREY.astype(np.float32) * 9), r"has pixels from .* to 2.*: expected 0 to 255"),
        ([PICTURE, 7], r"Frame 1 of Image 1 of text 0 is a int"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_an_image_that_is_none_is_named(processor, image, message):
    first = [PICTURE, OTHER] if isinstance(image, list) else PICTURE
    with pytest.raises(ValueError, match=message):
        processor(images=[[first, image]], text="<image><image>")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("kind", ["opened", "path"])
def test_a_truncated_file_is_named(processor, form, kind, tmp_path):
    path = tmp_path / "cut"
    content = file_of(PICTURE, format=form)
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(ValueError, match=r"Image 0 of text 0 cannot be read: .*Is the file complete\?"):
        processor(images=Image.open(path) if kind == "opened" else path, text="<image>")


def test_a_file_that_is_no_image_is_named(processor, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no image")
    with pytest.raises(
        ValueError, match=r"Image 0 of text 0 cannot be opened: cannot identify image file .*notes.txt"
    ):
        processor(images=path, text="<image>")


def test_damaged_files_never_pass_as_something_else(processor):
    """Whatever is broken in a file: an image comes out, or a ValueError that names it."""
    draw = np.random.default_rng(0)
    refused = 0
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        for _ in range(20):
            content = bytearray(file_of(PICTURE, format=form))
            for place in draw.integers(0, len(content), 8):
                content[place] = draw.integers(0, 256)
            try:
                image = Image.open(io.BytesIO(bytes(content)))
            except Exception:
                continue  # the caller's to handle: nothing came to the processor
            try:
                assert pixels(processor, image).isfinite().all()
            except ValueError as error:
                refused += str(error).startswith("Image 0 of text 0 ")
    assert refused > 20


def test_text_beyond_the_language_model_is_refused(processor):
    longest = processor.tokenizer.model_max_length
    fits = " ".join(["red"] * longest)
    assert len(processor(text=fits)["input_ids"][0]) == longest
    assert np.shape(processor(text=[fits, "a"], pad_to_multiple_of=longest - 1)["input_ids"])[1] > longest
    with pytest.raises(ValueError, match=rf"Text 1 has {longest + 1} tokens, but the language model holds {longest}:"):
        processor(text=["a", fits + " red"], return_tensors="pt")


def test_truncation_that_cuts_an_image_is_refused(processor):
    given = {"images": [PICTURE, OTHER], "text": "<image> a red <image> three", "truncation": True}
    kept = processor(**given, max_length=4)
    assert kept["input_ids"][0][-1] == processor.image_token_id
    with pytest.raises(ValueError, match=r"Truncation cut <image> tokens off text 0, .*raise max_length, or drop"):
        processor(**given, max_length=3)


# Tokenizers --------------------------------------------------------------------------------------------------------


def bare_tokenizer(words=WORDS, **special):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?!", *words])}, unk_token="?!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?!", **special)


def test_tokens_are_added_once_behind_the_vocabulary():
    tokenizer = word_tokenizer()
    size = len(tokenizer)
    processor = FlamingoProcessor(image_processor(), tokenizer)
    assert (processor.end_of_chunk_token_id, processor.image_token_id, len(tokenizer)) == (size, size + 1, size + 2)
    again = FlamingoProcessor(image_processor(), tokenizer)
    assert (again.image_token_id, len(tokenizer)) == (size + 1, size + 2)
    assert tokenizer.decode([processor.image_token_id, 7, size], skip_special_tokens=True) == tokenizer.decode([7])


@pytest.mark.parametrize("pad, eos, expected", [("<p>", None, "<p>"), (None, "</s>", "</s>"), (None, None, None)])
def test_a_tokenizer_without_padding_gets_some(pad, eos, expected):
    tokenizer = bare_tokenizer(**{key: value for key, value in (("pad_token", pad), ("eos_token", eos)) if value})
    processor = FlamingoProcessor(image_processor(), tokenizer)
    assert tokenizer.pad_token == (expected or processor.end_of_chunk_token)
    batch = processor(images=PICTURE, text=["<image> a red three", "a"], return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]
    assert (batch["input_ids"] == processor.image_token_id).sum() == 1


def test_a_word_of_the_vocabulary_becomes_the_token():
    """`<image>` may be in the vocabulary without being special; it would fall apart at its brackets."""
    tokenizer = bare_tokenizer([*WORDS, "<image>"], pad_token="?!")
    place = tokenizer.convert_tokens_to_ids("<image>")
    processor = FlamingoProcessor(image_processor(), tokenizer)
    assert processor.image_token_id == place
    batch = processor(images=PICTURE, text="a<image>red")
    assert batch["input_ids"][0][1] == place and len(batch["input_ids"][0]) == 3


def test_a_tokenizer_that_has_other_special_tokens_keeps_them():
    tokenizer = bare_tokenizer(pad_token="?!", extra_special_tokens=["<fake>", "<|endofchunk|>"])
    place = tokenizer.convert_tokens_to_ids("<|endofchunk|>")
    processor = FlamingoProcessor(image_processor(), tokenizer)
    assert processor.end_of_chunk_token_id == place
    assert {"<fake>", "<|endofchunk|>", "<image>"} <= set(tokenizer.all_special_tokens)


# Conversations, and coming back --------------------------------------------------------------------------------------


def conversation(*images, answer=" a red three"):
    question, turns = {"type": "text", "text": "what is there ?"}, []
    for image in images:
        turns += [
            {"role": "user", "content": [{"type": "image", "image": image}, question]},
            {"role": "assistant", "content": answer},
        ]
    return turns


def test_a_conversation_becomes_a_few_shot_prompt(processor):
    prompt = conversation(PICTURE, OTHER)[:-1]
    text = processor.apply_chat_template(prompt)
    assert text == "<image>what is there ?  a red three<|endofchunk|><image>what is there ?"
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    batch = processor.apply_chat_template(prompt, **options)
    expected = processor(images=[PICTURE, OTHER], text=text, return_tensors="pt")
    assert batch.keys() == expected.keys() and all(torch.equal(batch[key], expected[key]) for key in expected)
    both = processor.apply_chat_template([prompt, conversation(THIRD)[:1]], **options)
    assert both["pixel_values"].shape[:2] == (2, 2) and both["image_mask"].tolist() == [[1, 1], [1, 0]]
    assert torch.equal(both["pixel_values"][1, 0], pixels(processor, THIRD))


def test_what_the_assistant_says_is_what_is_learned(processor):
    batch = processor.apply_chat_template(
        conversation(PICTURE, OTHER),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
    )
    learned = batch["input_ids"][batch["assistant_masks"].bool()]
    assert processor.decode(learned).split() == ["a", "red", "three", "<|endofchunk|>"] * 2


def test_a_conversation_with_something_else_is_refused(processor):
    with pytest.raises(Exception, match="A message consists of text and images, got video"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])


def test_saved_and_loaded_it_is_the_same(tmp_path):
    processor = FlamingoProcessor(
        image_processor(), bare_tokenizer(eos_token="."), image_token="<img>", end_of_chunk_token="<eoc>"
    )
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is FlamingoProcessor
    assert (again.image_token, again.end_of_chunk_token) == ("<img>", "<eoc>")
    assert (again.image_token_id, again.end_of_chunk_token_id) == (
        processor.image_token_id,
        processor.end_of_chunk_token_id,
    )
    assert len(again.tokenizer) == len(processor.tokenizer) and again.chat_template == processor.chat_template
    assert again.apply_chat_template(conversation(PICTURE)) == "<img>what is there ?  a red three<eoc>"
    given = {"images": [[PICTURE, OTHER], [THIRD]], "text": ["<img> a <img>", "<img> red three<eoc>"]}
    first, second = processor(**given, return_tensors="pt"), again(**given, return_tensors="pt")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    written = again.batch_decode(second["input_ids"], skip_special_tokens=True)
    assert [text.split() for text in written] == [["a"], ["red", "three"]]
