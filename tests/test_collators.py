"""Collators: what is in a batch, to the last number, and what is said when a row is wrong."""

import io

import numpy as np
import pytest
import torch
from digit_parts import image_processor, word_tokenizer
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPProcessor, VideoMAEImageProcessorPil, ViltImageProcessorPil

from hf_mmunify.data import (
    CaptioningCollator,
    DigitSceneRows,
    PreTrainingCollator,
    QuestionAnsweringCollator,
    RetrievalCollator,
    VideoClassificationCollator,
    VisualEntailmentCollator,
    VisualReasoningCollator,
    answer_vocabulary,
    as_frames,
    as_picture,
    human_answers,
    load_rows,
)


PAD, BOS, EOS = 0, 1, 2
RED = np.full((24, 24, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def tokenizer():
    tokenizer = word_tokenizer(bos=True)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    return tokenizer


@pytest.fixture
def processor(tokenizer):
    return CLIPProcessor(image_processor(), tokenizer)


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


# Pictures ------------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RED),
        Image.fromarray(RED).convert("CMYK"),
        Image.fromarray(RED).convert("P"),
        Image.fromarray(RED).convert("RGBA"),
        RED,
        RED.transpose(2, 0, 1),
        np.concatenate((RED, RED[..., :1]), axis=2),
        RED.astype(np.uint16) << 8,
        RED / 255,
        RED.astype(np.float32),
        RED > 0,
        torch.from_numpy(RED),
        torch.from_numpy(RED).permute(2, 0, 1).bfloat16() / 255,
        encoded(Image.fromarray(RED)),
        {"bytes": encoded(Image.fromarray(RED)), "path": None},
    ],
    ids=range(15),
)
def test_pictures_of_every_form_are_the_same(image):
    picture = as_picture(image)
    assert picture.mode == "RGB" and np.abs(np.asarray(picture).astype(int) - RED).max() <= 1


def test_pictures_of_grey_and_from_files(tmp_path):
    grey = np.full((4, 6), 100, np.uint8)
    for image in (grey, grey[..., None], Image.fromarray(grey), grey.astype(np.uint16) << 8):
        assert np.asarray(as_picture(image)).tolist() == np.full((4, 6, 3), 100).tolist()
    Image.fromarray(RED).save(tmp_path / "red.png")
    for image in (tmp_path / "red.png", str(tmp_path / "red.png"), {"bytes": None, "path": str(tmp_path / "red.png")}):
        assert np.asarray(as_picture(image)).tolist() == RED.tolist()


@pytest.mark.parametrize(
    "image, message",
    [
        (encoded(Image.fromarray(RED))[:60], "cannot be read"),
        (b"no image", "cannot be read"),
        ("nowhere.png", "cannot be read"),
        (np.zeros((0, 4, 3)), r"shape \(0, 4, 3\)"),
        (np.zeros((5, 5, 2)), r"shape \(5, 5, 2\)"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (np.full((4, 4, 3), -1.0), "from -1 to -1"),
        (None, "got NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_pictures(image, message):
    with pytest.raises(ValueError, match=message):
        as_picture(image)


def test_an_animated_picture_is_refused(tmp_path):
    frames = [Image.fromarray(RED), Image.fromarray(RED[..., ::-1].copy())]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="animated"):
        as_picture(tmp_path / "two.gif")


def test_frames_are_evenly_spaced():
    video = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((10, 4, 4, 3), np.uint8)
    assert [np.asarray(frame)[0, 0, 0] for frame in as_frames(video, 4)] == [0, 3, 6, 9]
    assert [np.asarray(frame)[0, 0, 0] for frame in as_frames(list(video[:2]), 4)] == [0, 0, 1, 1]
    assert len(as_frames(video)) == 10
    clips = [[np.asarray(frame)[0, 0, 0] for frame in as_frames(video, 3, 2, start)] for start in (0, 0.5, 1)]
    assert clips == [[0, 2, 4], [2, 4, 6], [5, 7, 9]]
    assert [np.asarray(frame)[0, 0, 0] for frame in as_frames(video, 3, 8, 1.0)] == [0, 8, 9]
    with pytest.raises(ValueError, match="frames of a video"):
        as_frames([])


# Retrieval and pre-training ------------------------------------------------------------------------------------------


def test_retrieval(processor):
    rows = [
        {"image": RED, "caption": "a red seven", "id": 5},
        {"image": Image.fromarray(RED), "caption": ["a blue one and a red seven", "a"], "id": "seven"},
        {"image": RED, "caption": "a", "id": "seven"},
    ]
    batch = RetrievalCollator(processor, id_column="id")(rows)
    assert batch["pixel_values"].shape == (3, 3, 24, 24) and batch["return_loss"] is True
    assert batch["input_ids"][0].tolist() == [BOS, *ids(processor.tokenizer, "a red seven"), PAD, PAD, PAD, PAD]
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 8, 2]
    assert batch["image_ids"][0] == 5 and batch["image_ids"][1] == batch["image_ids"][2] > 2**32
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])
    assert set(RetrievalCollator(processor).inputs(rows)) == {"input_ids", "attention_mask", "pixel_values"}


def test_texts_are_cut_at_the_length_of_the_tokenizer(processor):
    rows = [{"image": RED, "caption": "a red seven and a blue one"}]
    processor.tokenizer.model_max_length = 5
    assert RetrievalCollator(processor)(rows)["input_ids"].shape == (1, 5)
    assert RetrievalCollator(processor, max_length=3)(rows)["input_ids"].shape == (1, 3)


def test_a_pair_of_parts_serves_as_well(processor):
    rows = [{"image": RED, "caption": "a red seven"}]
    whole = RetrievalCollator(processor)(rows)
    parts = RetrievalCollator((processor.image_processor, processor.tokenizer))(rows)
    assert all(torch.equal(whole[name], parts[name]) for name in ("input_ids", "pixel_values"))
    with pytest.raises(ValueError, match="has no tokenizer"):
        RetrievalCollator(processor.image_processor)(rows)


def test_masks_of_padded_images_come_along(tokenizer):
    processor = (ViltImageProcessorPil(size={"shortest_edge": 24}, size_divisor=8), tokenizer)
    rows = [{"image": RED, "caption": "a"}, {"image": np.zeros((24, 32, 3), np.uint8), "caption": "a"}]
    batch = RetrievalCollator(processor)(rows)
    assert batch["pixel_values"].shape == (2, 3, 24, 32) and batch["pixel_mask"].shape == (2, 24, 32)
    assert batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [24 * 24, 24 * 32]


def test_pre_training_hides_tokens(processor):
    rows = [{"image": RED, "caption": "a red seven and a blue one"}] * 50
    batch = PreTrainingCollator(processor, mask_probability=0.5, generator=torch.Generator().manual_seed(0))(rows)
    chosen = batch["labels"] != -100
    assert 0.4 < chosen[:, 1:].float().mean() < 0.6 and not chosen[:, 0].any()
    assert torch.equal(batch["labels"][chosen], batch["input_ids"][chosen])
    assert torch.equal(batch["masked_input_ids"][~chosen], batch["input_ids"][~chosen])
    assert (batch["masked_input_ids"][chosen] == processor.tokenizer.mask_token_id).float().mean() > 0.7
    assert "return_loss" not in batch
    assert "labels" not in PreTrainingCollator(processor, mask_probability=0)(rows)


# Captions ------------------------------------------------------------------------------------------------------------


def test_captioning(processor):
    rows = [{"image": RED, "caption": "a red seven"}, {"image": RED, "caption": "a one"}]
    collator = CaptioningCollator(processor)
    batch = collator(rows)
    seven, one = (ids(processor.tokenizer, row["caption"]) for row in rows)
    assert batch["input_ids"].tolist() == [[BOS, *seven, EOS], [BOS, *one, EOS, PAD]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, *seven, EOS], [-100, *one, EOS, -100]]
    assert set(collator.inputs(rows)) == {"pixel_values"}


def test_captioning_after_a_prompt(processor):
    rows = [
        {"image": RED, "question": "what digit is red?", "answer": "seven"},
        {"image": RED, "question": "", "answer": "one"},
    ]
    collator = CaptioningCollator(
        processor, text_column="answer", prompt="question: {question} answer:", start_token_id=9
    )
    batch = collator(rows)
    asked = ids(processor.tokenizer, "question: what digit is red? answer:")
    answer = ids(processor.tokenizer, "seven")
    assert batch["input_ids"][0].tolist() == [9, *asked, *answer, EOS]
    assert batch["labels"][0].tolist() == [-100] * (1 + len(asked)) + [*answer, EOS]
    prompts = collator.inputs(rows)
    assert prompts["input_ids"][0].tolist() == [BOS, *asked]
    padding = len(asked) - len(ids(processor.tokenizer, "question: answer:"))
    assert prompts["attention_mask"][1].tolist() == [0] * padding + [1] * (1 + len(asked) - padding)
    written = torch.tensor([[BOS, *asked, *answer, EOS], [BOS, *answer, EOS, *[PAD] * len(asked)]])
    repeated = {"input_ids": torch.tensor([[BOS, *asked], [BOS, *asked]])}
    assert collator.decode(written, repeated) == ["seven", "seven"]


def test_captioning_for_an_encoder_and_a_decoder(processor):
    rows = [{"image": RED, "caption": "a red seven"}]
    batch = CaptioningCollator(processor, prompt="output:", separate_labels=True)(rows)
    assert batch["input_ids"].tolist() == [[BOS, *ids(processor.tokenizer, "output:")]]
    assert batch["labels"].tolist() == [[*ids(processor.tokenizer, "a red seven"), EOS]]


def test_one_of_several_captions_is_drawn(processor):
    torch.manual_seed(0)
    rows = [{"image": RED, "caption": ["a one", "a two", "a red"]}] * 30
    assert len({tuple(row) for row in CaptioningCollator(processor)(rows)["input_ids"].tolist()}) == 3


# Questions -----------------------------------------------------------------------------------------------------------

PEOPLE = [{"answer": "yes"}] * 2 + [{"answer": "Yes."}] * 2 + [{"answer": "no"}] * 2 + [{"answer": "maybe"}] * 4


def test_vocabulary():
    answers = ["two", "2", ["red"] * 3 + ["blue"] * 7, [{"answer": "blue"}], "red", "green"]
    assert answer_vocabulary(answers) == {"2": 0, "blue": 1, "green": 2, "red": 3}
    assert answer_vocabulary(answers, min_occurrences=2) == {"2": 0, "blue": 1}
    assert answer_vocabulary(answers, size=1) == {"2": 0}
    assert answer_vocabulary(answers, normalize=str.upper)["TWO"] == 4
    with pytest.raises(ValueError, match="lower `min_occurrences`"):
        answer_vocabulary(answers, min_occurrences=9)
    assert human_answers(PEOPLE)[2:5] == ["Yes.", "Yes.", "no"]


def test_answers_to_choose_have_soft_scores(processor):
    rows = [
        {"image": RED, "question": "what is there?", "answer": PEOPLE},
        {"image": RED, "question": "is it red?", "answer": "Yes"},
        {"image": RED, "question": "is it red?", "answer": "perhaps"},
    ]
    collator = QuestionAnsweringCollator(processor, vocabulary={"no": 0, "yes": 1, "seven": 2})
    batch = collator(rows)
    assert batch["labels"].tolist() == [[pytest.approx(2 / 3), 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert batch["input_ids"].shape[0] == 3 and set(collator.inputs(rows)) == set(batch) - {"labels"}


def test_answers_to_write(processor):
    rows = [{"image": RED, "question": "what?", "answer": ["a seven", "red", "red", "red"]}]
    rows.append({"image": RED, "question": "what?", "answer": "blue"})
    batch = QuestionAnsweringCollator(processor, start_token_id=7)(rows)
    (a, seven), (red,), (blue,) = (ids(processor.tokenizer, text) for text in ("a seven", "red", "blue"))
    assert batch["labels"].tolist() == [[7, a, seven, EOS], [7, red, EOS, -100], [7, blue, EOS, -100]]
    assert batch["answer_counts"].tolist() == [2, 1] and batch["answer_weights"].tolist() == [0.25, 0.75, 1.0]
    assert "answer_counts" not in QuestionAnsweringCollator(processor)(rows[1:])
    with pytest.raises(ValueError, match="Row 0 of the batch has no answer"):
        QuestionAnsweringCollator(processor)([{"image": RED, "question": "what?", "answer": []}])


# Classes -------------------------------------------------------------------------------------------------------------


def test_reasoning(processor):
    blue = RED[..., ::-1].copy()
    rows = [
        {"images": np.stack((RED, blue)), "left": RED, "right": blue, "statement": "both red", "label": "True"},
        {"images": [RED, RED], "left": RED, "right": RED, "statement": "both", "label": False},
    ]
    batch = VisualReasoningCollator(processor)(rows)
    assert batch["pixel_values"].shape == (2, 2, 3, 24, 24) and batch["labels"].tolist() == [1, 0]
    assert torch.equal(batch["pixel_values"][0, 0], batch["pixel_values"][1, 1])
    two = VisualReasoningCollator(processor, image_columns=("left", "right"))(rows)
    assert torch.equal(two["pixel_values"], batch["pixel_values"])
    with pytest.raises(ValueError, match="as many images each"):
        VisualReasoningCollator(processor)([rows[0], {**rows[1], "images": [RED]}])


def test_entailment(processor):
    rows = [{"image": RED, "hypothesis": "red", "label": label} for label in ("neutral", 2, np.int64(0))]
    batch = VisualEntailmentCollator(processor)(rows)
    assert batch["labels"].tolist() == [1, 2, 0] and batch["pixel_values"].shape == (3, 3, 24, 24)
    for wrong, message in (("perhaps", "'perhaps': expected one of"), (3, "expected 0 to 2"), (0.5, "0.5")):
        with pytest.raises(ValueError, match=message):
            VisualEntailmentCollator(processor)([{"image": RED, "hypothesis": "red", "label": wrong}])
    with pytest.raises(ValueError, match="or a word of `label_names`"):
        VisualEntailmentCollator(processor, label_names=None)(rows)


@pytest.mark.parametrize("kind", [CLIPImageProcessorPil, VideoMAEImageProcessorPil])
def test_video(kind):
    videos = [np.stack([np.full((24, 24, 3), 20 * frame + row, np.uint8) for frame in range(6)]) for row in range(2)]
    plain = kind(size={"height": 24, "width": 24}, do_center_crop=False)
    rows = [{"video": list(video), "label": number} for number, video in enumerate(videos)]
    batch = VideoClassificationCollator(plain, num_frames=3)(rows)
    assert batch["pixel_values"].shape == (2, 3, 3, 24, 24) and batch["labels"].tolist() == [0, 1]
    levels = (batch["pixel_values"][:, :, 0, 0, 0] * plain.image_std[0] + plain.image_mean[0]) * 255
    assert levels.round().tolist() == [[0, 40, 100], [1, 41, 101]]  # frames 0, 2 (of 2.5) and 5


def test_clips_of_a_video():
    video = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((20, 24, 24, 3), np.uint8)
    plain = CLIPImageProcessorPil(size={"height": 24, "width": 24}, do_center_crop=False, do_normalize=False)
    collator = VideoClassificationCollator(plain, num_frames=2, frame_stride=4)

    def places(batch):
        return (batch["pixel_values"][:, :, 0, 0, 0] * 255).round().int().tolist()

    rows = [{"video": video, "label": 0, "clip_start": start} for start in (0, 0.2, 1)]
    assert places(collator.inputs(rows)) == [[0, 4], [3, 7], [15, 19]]
    assert places(collator.inputs([{"video": video}])) == [[8, 12]]  # in the middle; round half to even
    torch.manual_seed(0)
    drawn = places(collator([{"video": video, "label": 0}] * 20))
    assert len({first for first, _ in drawn}) > 8 and all(last - first == 4 for first, last in drawn)


# Rows that are wrong -------------------------------------------------------------------------------------------------


def test_wrong_rows_are_named(processor):
    with pytest.raises(ValueError, match="no rows"):
        RetrievalCollator(processor)([])
    with pytest.raises(ValueError, match=r"Row 1 has no column 'caption', only \['image', 'text'\]"):
        RetrievalCollator(processor)([{"image": RED, "caption": "a"}, {"image": RED, "text": "a"}])
    with pytest.raises(ValueError, match=r"Row 1 of the batch: .* got NoneType"):
        RetrievalCollator(processor)([{"image": RED, "caption": "a"}, {"image": None, "caption": "a"}])
    processor.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="padding token"):
        CaptioningCollator(processor)([{"image": RED, "caption": "a"}])


def test_scenes_that_are_drawn_are_those_that_are_stored():
    stored, drawn = load_rows("digit-scenes", "vqa", "test", 5), DigitSceneRows("vqa", 5, "test")
    assert len(drawn) == 5 and [row["question"] for row in drawn] == stored["question"][:]
    assert np.array_equal(drawn[3]["image"], np.asarray(stored[3]["image"]))
    with pytest.raises(IndexError, match="no row 5"):
        drawn[5]
