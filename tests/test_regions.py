"""Regions of images: given in any format, or taken from detectors of transformers."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from hf_mmunify.data import Regions, detect_regions
from hf_mmunify.layers import pad_regions


BOXES = torch.tensor([[0.0, 0.0, 0.5, 0.25], [0.2, 0.1, 0.6, 0.9]])


def test_boxes_of_every_format_are_the_same():
    features, size = torch.randn(2, 3), (200, 400)  # height, width
    pixels = BOXES * torch.tensor([400, 200, 400, 200])
    wide = torch.cat([BOXES[:, :2], BOXES[:, 2:] - BOXES[:, :2]], dim=1)
    centred = torch.cat([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]], dim=1)
    for boxes, settings in (
        (BOXES, {}),
        (wide, {"box_format": "xywh"}),
        (centred, {"box_format": "cxcywh"}),
        (pixels, {"image_size": size}),
        (wide * torch.tensor([400, 200, 400, 200]), {"box_format": "xywh", "image_size": size}),
    ):
        torch.testing.assert_close(Regions.of_boxes(features, boxes, **settings).boxes, BOXES)


def test_regions_are_what_stands_for_them():
    features = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    for value in (features, {"features": features, "boxes": BOXES}, Regions(features, BOXES, [0.5, 0.9])):
        regions = Regions.of(value)
        assert len(regions) == 2 and torch.equal(regions.features, torch.from_numpy(features))
    assert regions.scores.tolist() == pytest.approx([0.5, 0.9]) and Regions.of(regions) is regions


def test_a_box_a_hair_beyond_its_image_is_cut():
    assert Regions(torch.randn(1, 3), [[-0.0005, 0.0, 1.0005, 1.0]]).boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Regions(torch.zeros(3)), r"\[regions, width\] of at least one region, got torch.float32 .*\[3\]"),
        (lambda: Regions(torch.zeros(0, 3)), "at least one region"),
        (lambda: Regions(torch.zeros(2, 3, dtype=torch.long)), "got torch.int64"),
        (lambda: Regions(torch.tensor([[1.0, float("nan")]])), "NaN or infinity"),
        (lambda: Regions(torch.zeros(2, 3), BOXES[:1]), r"a box of 4 numbers for each of 2 regions, got \[1, 4\]"),
        (lambda: Regions(torch.zeros(2, 3), BOXES[:, :3]), r"got \[2, 3\]"),
        (lambda: Regions(torch.zeros(2, 3), BOXES * 400), r"fractions of the image, but box 0 is \[0.0, 0.0, 200.0"),
        (lambda: Regions(torch.zeros(1, 3), [[0.5, 0.5, 0.2, 0.1]]), "ends before it starts.*width, height"),
        (lambda: Regions(torch.zeros(1, 3), [[0.0, 0.0, float("nan"), 0.1]]), "fractions of the image"),
        (lambda: Regions(torch.zeros(2, 3), BOXES, [0.5]), r"a score for each of 2 regions, got \[1\]"),
        (lambda: Regions.of_boxes(torch.zeros(2, 3), BOXES, "yxyx"), "one of xyxy, xywh, cxcywh; got 'yxyx'"),
        (lambda: Regions.of({"boxes": BOXES}), r"got the keys \['boxes'\]"),
        (
            lambda: Regions.of(Image.new("RGB", (8, 8))),
            "got Image: the model reads what a detector sees.*detect_regions",
        ),
        (lambda: Regions.of("cat.png"), "got str: the model reads what a detector sees"),
        (lambda: pad_regions([]), "The batch is empty"),
        (lambda: pad_regions([torch.zeros(2, 3), torch.zeros(2, 4)]), "of width 3, but those of image 1 have 4"),
        (lambda: pad_regions([torch.zeros(2, 3)], width=5), "of width 5, but those of image 0 have 3"),
        (
            lambda: pad_regions([Regions(torch.zeros(2, 3), BOXES), Regions(torch.zeros(2, 3))]),
            "image 1 has no boxes, but others do",
        ),
    ],
)
def test_bad_regions_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_batches_hold_images_of_any_number_of_regions():
    one, three = Regions(torch.randn(1, 4), BOXES[:1]), Regions(torch.randn(3, 4), BOXES[[0, 1, 0]])
    batch = pad_regions([one, three])
    assert batch["region_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert torch.equal(batch["region_features"][1], three.features) and not batch["region_features"][0, 1:].any()
    assert torch.equal(batch["region_boxes"][1], three.boxes) and not batch["region_boxes"][0, 1:].any()
    assert pad_regions([one.features]).keys() == {"region_features", "region_mask"}


def test_the_most_certain_regions_are_kept():
    features = torch.arange(4.0)[:, None]
    certain = pad_regions([Regions(features, scores=[0.1, 0.9, 0.2, 0.8])], max_regions=2)
    assert certain["region_features"].flatten().tolist() == [1, 3]
    assert pad_regions([features], max_regions=2)["region_features"].flatten().tolist() == [0, 1]
    assert pad_regions([features], max_regions=9)["region_mask"].sum() == 4


BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 8, 8],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage2", "stage3", "stage4"],
}
SIZE = {"height": 64, "width": 64}


def detr():
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config={**BACKBONE, "out_features": ["stage4"]},
        num_queries=7,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_labels=5,
    )
    return DetrForObjectDetection(config), DetrImageProcessorPil(size=SIZE)


def yolos():
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 64],
        patch_size=16,
        num_detection_tokens=7,
        num_labels=5,
    )
    return YolosForObjectDetection(config), YolosImageProcessorPil(size=SIZE)


def rt_detr():
    config = RTDetrConfig(
        backbone_config={**BACKBONE, "model_type": "rt_detr_resnet", "layer_type": "basic"},
        encoder_in_channels=[8, 8, 8],
        encoder_hidden_dim=16,
        d_model=16,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_layers=1,
        decoder_in_channels=[16, 16, 16],
        feat_strides=[8, 16, 32],
        num_queries=7,
        num_denoising=0,
        num_labels=5,
    )
    return RTDetrForObjectDetection(config), RTDetrImageProcessorPil(size=SIZE)


@pytest.mark.parametrize("make", [detr, yolos, rt_detr], ids=lambda make: make.__name__)
def test_regions_are_taken_from_any_detector(make):
    detector, image_processor = make()
    detector.eval()
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 80, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels) for pixels in noise]
    found = detect_regions(images, detector, image_processor, num_regions=4, batch_size=2)
    assert [regions.features.shape for regions in found] == [(4, 16)] * 3
    with torch.no_grad():
        outputs = detector(**image_processor(images=images[2:], return_tensors="pt"))
    logits = outputs.logits[0]
    certainty = (logits.softmax(-1)[:, :5] if logits.shape[-1] == 6 else logits.sigmoid()).amax(-1)
    order = certainty.argsort(descending=True)[:4]
    torch.testing.assert_close(found[2].scores, certainty[order])
    torch.testing.assert_close(found[2].features, outputs.last_hidden_state[0, -7:][order], atol=1e-5, rtol=1e-5)
    centres = (found[2].boxes[:, :2] + found[2].boxes[:, 2:]) / 2
    inside = (outputs.pred_boxes[0, order, :2] - outputs.pred_boxes[0, order, 2:] / 2 >= 0).all(1)
    inside &= (outputs.pred_boxes[0, order, :2] + outputs.pred_boxes[0, order, 2:] / 2 <= 1).all(1)
    torch.testing.assert_close(centres[inside], outputs.pred_boxes[0, order, :2][inside], atol=1e-5, rtol=1e-5)
    assert len(detect_regions(images[:1], detector, image_processor)[0]) == 7  # fewer than the 36 that are asked for


def test_a_model_that_detects_nothing_is_named():
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    with pytest.raises(ValueError, match="ViTModel gives no logits, pred_boxes: regions come from an object detector"):
        detect_regions(
            [Image.new("RGB", (32, 32))], ViTModel(config), ViTImageProcessorPil(size={"height": 32, "width": 32})
        )
