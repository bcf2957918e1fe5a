"""An embedding index: what it finds, what it loads to find it, what it refuses, and that it survives a kill."""

import json
import os
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import retrieval_parts
import torch
import transformers
from datasets import Dataset
from PIL import Image
from test_retrieval import Counting, Matcher
from torch import nn
from transformers import AutoProcessor

from hf_mmunify import embedding_index
from hf_mmunify.data import DigitScenes
from hf_mmunify.embedding_index import EmbeddingIndex, EmbeddingIndexError, ModelFingerprint, read_images


@pytest.fixture(scope="module")
def pictures():
    rows = DigitScenes("test").examples("retrieval", 14)
    return [(f"scene {place}", row["image"]) for place, row in enumerate(rows)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Models as a user has them: in folders."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("clip", "metaclip_2", "siglip", "altclip"):
        retrieval_parts.model(family).save_pretrained(folder / family)
        retrieval_parts.processor(family).save_pretrained(folder / family)
    return folder


def load(saved, family="clip"):
    model = embedding_index.load_retrieval_model(str(saved / family))
    return model, AutoProcessor.from_pretrained(saved / family)


@pytest.fixture
def index(saved, pictures):
    return EmbeddingIndex.build(*load(saved), pictures, batch_size=4)


def fingerprint(*shape: int) -> ModelFingerprint:
    return ModelFingerprint("", None, "CLIPModel", "float32", "", "", "", "", "", list(shape))


def random_index(entries: int, *shape: int, seed: int = 0) -> EmbeddingIndex:
    draw = torch.Generator().manual_seed(seed)
    features = nn.functional.normalize(torch.randn(entries, *shape, generator=draw), dim=-1)
    return EmbeddingIndex(features, [f"e{number}" for number in range(entries)], fingerprint(*shape))


def fake_faiss(monkeypatch):
    """The part of faiss that is used, by its documented behaviour; the real one is compared in a test below."""

    class IndexFlatIP:
        def __init__(self, size):
            self.vectors = np.zeros((0, size), dtype=np.float32)

        def add(self, vectors):
            self.vectors = np.concatenate((self.vectors, vectors))

        def search(self, queries, k):
            scores = queries @ self.vectors.T
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            missing = k - order.shape[1]
            found = np.take_along_axis(scores, order, axis=1)
            return np.pad(found, ((0, 0), (0, missing))), np.pad(order, ((0, 0), (0, missing)), constant_values=-1)

    module = SimpleNamespace(IndexFlatIP=IndexFlatIP, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "faiss", module)


# Finding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16,), (3, 16)])
def test_blocks_find_what_one_sorted_matrix_finds(shape, monkeypatch):
    monkeypatch.setattr(embedding_index, "_ENTRIES", 7)
    monkeypatch.setattr(embedding_index, "_QUERIES", 3)
    index = random_index(50, *shape)
    queries = random_index(8, 16, seed=1).features
    whole = torch.einsum("md,nqd->mnq", queries, index.features.view(50, -1, 16)).amax(dim=-1)
    for k in (1, 4, 20, 50, 99):
        scores, places = index.search(queries, k, "exact")
        expected = whole.sort(dim=1, descending=True)
        assert torch.equal(places, expected.indices[:, :k])
        assert torch.allclose(scores, expected.values[:, :k], atol=1e-6)


@pytest.mark.parametrize("shape", [(16,), (3, 16)])
@pytest.mark.parametrize("is_real", [True, False])
def test_faiss_finds_the_same(shape, is_real, monkeypatch):
    if is_real:
        pytest.importorskip("faiss")
    else:
        fake_faiss(monkeypatch)
        monkeypatch.setattr(embedding_index.importlib.util, "find_spec", lambda name: object())
    index = random_index(50, *shape)
    queries = random_index(8, 16, seed=1).features
    for k in (1, 5, 50):
        exact, found = index.search(queries, k, "exact"), index.search(queries, k, "faiss")
        assert torch.equal(exact[1], found[1]) and torch.allclose(exact[0], found[0], atol=1e-6)
    index.remove(["e3"])  # faiss's own index is made anew
    assert torch.equal(index.search(queries, 9, "faiss")[1], index.search(queries, 9, "exact")[1])
    assert torch.equal(index.search(queries, 9)[1], index.search(queries, 9, "exact")[1])


def test_without_faiss_it_is_not_needed(monkeypatch):
    monkeypatch.setattr(embedding_index.importlib.util, "find_spec", lambda name: None)
    index = random_index(5, 4)
    assert index.search(index.features, 1)[1].flatten().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(EmbeddingIndexError, match="pip install faiss-cpu"):
        index.search(index.features, 1, "faiss")


@pytest.mark.parametrize(
    "queries, settings, message",
    [
        (torch.zeros(2, 5), {}, r"Queries are \[M, 4\] and k is at least 1; got \(2, 5\) and 10"),
        (torch.zeros(4), {}, r"got \(4,\)"),
        (torch.zeros(2, 4), {"k": 0}, "and 0"),
        (torch.zeros(2, 4), {"backend": "annoy"}, "got 'annoy'"),
    ],
)
def test_searches_that_do_not_fit(queries, settings, message):
    with pytest.raises(EmbeddingIndexError, match=message):
        random_index(5, 4).search(queries, **settings)


def test_queries_by_image_and_text_are_those_of_the_model(index, saved, pictures):
    model, processor = load(saved)
    found = index.query(image=pictures[5][1], k=3)
    assert found[0][0] == ("scene 5", pytest.approx(1.0)) and len(found) == 1 and len(found[0]) == 3
    texts = ["a red seven", "a blue one and a white nine"]
    inputs = processor(text=texts, images=[image for _, image in pictures], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**inputs).logits_per_text / model.logit_scale.exp()
    for row, matches in zip(logits, index.query(text=texts, k=14)):
        assert [match.id for match in matches] == [f"scene {place}" for place in row.argsort(descending=True)]
        assert [match.score for match in matches] == pytest.approx(row.sort(descending=True).values.tolist(), abs=1e-5)
    assert [match.id for match in index.query(text="a red seven", k=2)[0]] == [
        match.id for match in index.query(text=texts, k=2)[0]
    ]
    assert index.query(text=[]) == []
    for wrong in ({}, {"text": "a", "image": pictures[0][1]}):
        with pytest.raises(EmbeddingIndexError, match="one of the two"):
            index.query(**wrong)


# Half a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["clip", "metaclip_2", "siglip", "altclip"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_query_needs_half_of_the_model(family, dtype, saved, pictures, tmp_path):
    model, processor = load(saved, family)
    whole = sum(parameter.numel() for parameter in model.parameters())
    index = EmbeddingIndex.build(model.to(getattr(torch, dtype)), processor, pictures)
    expected = index.query(text="a red seven"), index.query(image=pictures[2][1])
    index.save(tmp_path / "index")
    again = EmbeddingIndex.load(tmp_path / "index")
    assert again._towers == {}
    for part, answer, query in (
        ("text", expected[0], {"text": "a red seven"}),
        ("image", expected[1], {"image": pictures[2][1]}),
    ):
        alone = EmbeddingIndex.load(tmp_path / "index")
        found = alone.query(**query)
        # The families' own classes for a half may differ in the last bits
        assert [match.score for match in found[0]] == pytest.approx([match.score for match in answer[0]], abs=1e-2)
        assert [match.id for match in found[0]][:3] == [match.id for match in answer[0]][:3]
        if dtype == "float32":
            assert found[0] == [(match.id, pytest.approx(match.score, abs=1e-5)) for match in answer[0]]
        half = alone._towers[part].model
        assert set(alone._towers) == {part}
        assert 0 < sum(parameter.numel() for parameter in half.parameters()) < 0.7 * whole
        assert (
            type(half).__name__
            == {
                "clip": {"text": "CLIPTextModelWithProjection", "image": "CLIPVisionModelWithProjection"},
                "metaclip_2": {
                    "text": "MetaClip2TextModelWithProjection",
                    "image": "MetaClip2VisionModelWithProjection",
                },
                "siglip": {"text": "SiglipTextModel", "image": "SiglipVisionModel"},
                "altclip": dict.fromkeys(("text", "image"), "AltCLIPModel"),
            }[family][part]
        )


def test_half_a_model_is_loaded_once_and_in_silence(index, saved, tmp_path, monkeypatch, capfd):
    index.save(tmp_path / "index")
    index = EmbeddingIndex.load(tmp_path / "index")
    loads, from_pretrained = [], transformers.CLIPTextModelWithProjection.from_pretrained

    def watched(*args, **kwargs):
        loads.append(args)
        return from_pretrained(*args, **kwargs)

    monkeypatch.setattr(transformers.CLIPTextModelWithProjection, "from_pretrained", watched)
    assert index.query(text="a red seven") == index.query(text="a red seven")
    assert len(loads) == 1 and "UNEXPECTED" not in "".join(capfd.readouterr())


# Entries -----------------------------------------------------------------------------------------------------------


def test_adding_and_removing(saved, pictures):
    whole = EmbeddingIndex.build(*load(saved), pictures)
    index = EmbeddingIndex.build(*load(saved), pictures[:6])
    assert index.add(pictures[6:], batch_size=3) == 8 and len(index) == 14 and "scene 9" in index
    assert index.ids == whole.ids and torch.allclose(index.features, whole.features, atol=1e-6)
    index.remove(["scene 2", "scene 13"])
    assert len(index) == 12 and "scene 2" not in index
    assert index.query(image=pictures[13][1], k=1)[0][0].id != "scene 13"
    assert index.query(image=pictures[3][1], k=1)[0][0].id == "scene 3"
    before = index.features
    with pytest.raises(EmbeddingIndexError, match=r"has no 'scene 99' \(1 of 2 are unknown\)"):
        index.remove(["scene 99", "scene 3"])
    with pytest.raises(EmbeddingIndexError, match="Two images have the id 'scene 3'"):
        index.add([pictures[2], pictures[3]])
    with pytest.raises(EmbeddingIndexError, match="Two images have the id 'new'"):
        index.add([("new", pictures[2][1]), ("new", pictures[3][1])], batch_size=1)
    assert index.features is before and "scene 3" in index and "scene 2" not in index
    assert index.add([]) == 0
    index.remove(list(index.ids))
    assert len(index) == 0 and index.query(text="a red seven") == [[]]
    index.add(pictures[:1])
    assert index.query(text="a red seven")[0][0].id == "scene 0"


def test_a_model_that_matches_after_it_compares_keeps_several_features(pictures):
    """BLIP-2's rule: of the features of an image the most similar one counts."""
    model = Matcher(9, 9, queries=4)
    model.name_or_path, model.config = "", _settings()
    index = EmbeddingIndex.build(model, CountingInParts(), [(str(number), number) for number in range(9)])
    assert index.features.shape == (9, 4, 6) and index.fingerprint.feature_shape == [4, 6]
    expected = model.similarities(model.image_features, model.text_features).T.sort(dim=1, descending=True)
    found = index.query(text=[str(number) for number in range(9)], k=9)
    assert [[int(match.id) for match in row] for row in found] == expected.indices.tolist()
    with pytest.raises(EmbeddingIndexError, match="a rule to compare them with a text, none for two images"):
        index.query(image=3)
    model.similarities = lambda images, texts: -(images[:, 0] @ texts.T)
    with pytest.raises(EmbeddingIndexError, match="by a rule of its own"):
        EmbeddingIndex.build(model, CountingInParts(), [("0", 0)])


def _settings():
    return SimpleNamespace(model_type="matcher", _commit_hash=None, to_dict=dict)


class CountingInParts(Counting):
    """With the parts of a real processor; a blank image and the text "a", which the index tries, are number 0."""

    tokenizer, image_processor = SimpleNamespace(get_vocab=dict), SimpleNamespace(to_dict=dict)

    def __call__(self, images=None, text=None, **settings):
        images = images and [0 if isinstance(image, np.ndarray) else image for image in images]
        return super().__call__(images, text and [words.replace("a", "0") for words in text], **settings)


def test_images_come_from_folders_and_datasets(tmp_path, pictures):
    (tmp_path / "of" / "me").mkdir(parents=True)
    for name, (_, image) in zip(("b.png", "of/a.PNG", "of/me/c.png"), pictures):
        Image.fromarray(np.asarray(image)).save(tmp_path / name, format="png")
    (tmp_path / "notes.txt").write_text("not an image")
    found = list(read_images(tmp_path))
    assert [name for name, _ in found] == ["b.png", "of/a.PNG", "of/me/c.png"]
    assert np.array_equal(np.asarray(found[0][1]), np.asarray(pictures[0][1])) and found[0][1].mode == "RGB"
    assert len(list(read_images(tmp_path, size=2))) == 2
    rows = Dataset.from_dict({"picture": [name for name, _ in found], "key": [7, 8, 9]})
    rows.save_to_disk(tmp_path / "rows")
    named = list(read_images(tmp_path / "rows", image_column="picture", id_column="key"))
    assert named == [("7", "b.png"), ("8", "of/a.PNG"), ("9", "of/me/c.png")]
    Dataset.from_dict({"image": [Image.new("L", (8, 8), 200)]}).save_to_disk(tmp_path / "grey")
    assert next(read_images(tmp_path / "grey"))[1].getpixel((0, 0)) == (200, 200, 200)
    with pytest.raises(EmbeddingIndexError, match=r"has the columns .*'picture', 'key'.*, not 'image'"):
        list(read_images(tmp_path / "rows"))
    assert [name for name, _ in read_images("digit-scenes", split="test", size=3)] == ["0", "1", "2"]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 cut short")
    with pytest.raises(EmbeddingIndexError, match=r"broken.jpg cannot be read as an image .*leave it out"):
        list(read_images(tmp_path))


# Refusals ----------------------------------------------------------------------------------------------------------


def test_another_model_is_refused(index, saved, pictures):
    model, processor = load(saved)
    ask = {"text": "a red seven"}, {"image": pictures[0][1]}
    for query in ask:
        assert index.query(**query, model=model, processor=processor) == index.query(**query)
    with torch.no_grad():
        model.text_model.final_layer_norm.weight[0] += 1e-3
    with pytest.raises(EmbeddingIndexError, match="has other weights in the half that reads texts"):
        index.query(**ask[0], model=model, processor=processor)
    index.query(**ask[1], model=model, processor=processor)  # the half that reads images is the same
    with pytest.raises(EmbeddingIndexError, match="is in bfloat16, the index was made in float32"):
        index.add([("x", pictures[0][1])], model=model.bfloat16(), processor=processor)
    other, its_processor = load(saved, "siglip")
    with pytest.raises(
        EmbeddingIndexError, match=r"This is not the model of the index, CLIPModel .*/clip: SiglipModel"
    ):
        index.query(**ask[0], model=other, processor=its_processor)
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(EmbeddingIndexError, match="prepares images otherwise"):
        index.query(**ask[1], model=load(saved)[0], processor=processor)
    processor.tokenizer.add_tokens(["unicorn"])
    with pytest.raises(EmbeddingIndexError, match="prepares texts otherwise"):
        index.query(**ask[0], model=load(saved)[0], processor=processor)
    with pytest.raises(EmbeddingIndexError, match="give both or neither"):
        index.query(**ask[0], model=model)
    assert index.query(**ask[0])[0][0].score > -1  # and the index is as it was


@pytest.mark.parametrize("changed", ["weights", "config"])
def test_a_model_that_changed_under_its_name_is_refused(changed, index, saved, tmp_path, pictures):
    model, processor = load(saved)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    made = EmbeddingIndex.build(*load(tmp_path, "model"), pictures[:3])
    made.save(tmp_path / "index")
    if changed == "weights":
        model.logit_scale.data += 1  # which no tower reads
        model.save_pretrained(tmp_path / "model")
        assert EmbeddingIndex.load(tmp_path / "index").query(text="a red seven")
        model.text_projection.weight.data += 1
    else:
        model.config.text_config.hidden_act = "gelu"
    model.save_pretrained(tmp_path / "model")
    message = {"weights": "other weights in the half that reads texts", "config": "another config than it had then"}
    with pytest.raises(EmbeddingIndexError, match=message[changed]):
        EmbeddingIndex.load(tmp_path / "index").query(text="a red seven")


def test_models_without_embeddings_and_without_a_name(pictures):
    vilt = retrieval_parts.model("vilt"), retrieval_parts.processor("vilt")
    with pytest.raises(EmbeddingIndexError, match="ViltForImageAndTextRetrieval reads images and texts in pairs"):
        EmbeddingIndex.build(*vilt, pictures)
    clip = retrieval_parts.model("clip"), retrieval_parts.processor("clip")
    index = EmbeddingIndex.build(*clip, pictures)
    index._towers.clear()
    with pytest.raises(EmbeddingIndexError, match="CLIPModel that was never saved: pass it as `model`"):
        index.query(text="a red seven")
    assert index.query(text="a red seven", model=clip[0], processor=clip[1])
    with pytest.raises(EmbeddingIndexError, match="There are no images"):
        EmbeddingIndex.build(*clip, [])
    with pytest.raises(EmbeddingIndexError, match="Two images have the id 'scene 0'"):
        EmbeddingIndex.build(*clip, [*pictures, pictures[0]])
    with torch.no_grad():
        clip[0].visual_projection.weight.fill_(torch.nan)
    with pytest.raises(EmbeddingIndexError, match="the features are not finite"):
        EmbeddingIndex.build(*clip, pictures)


def test_parts_that_do_not_fit_each_other():
    features = torch.eye(4)
    with pytest.raises(EmbeddingIndexError, match=r"got \(4, 4\) and 3 ids"):
        EmbeddingIndex(features, ["a", "b", "c"], fingerprint(4))
    with pytest.raises(EmbeddingIndexError, match=r"are of shape \[5\], got \[4\]"):
        EmbeddingIndex(features, ["a", "b", "c", "d"], fingerprint(5))
    with pytest.raises(EmbeddingIndexError, match="Two images have the id 'b'"):
        EmbeddingIndex(features, ["a", "b", "c", "b"], fingerprint(4))


# On disk -----------------------------------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("shape", [(6,), (2, 6)])
def test_what_is_saved_is_loaded_bit_by_bit(shape, tmp_path):
    index = random_index(5, *shape)
    index.ids[0] = "ein Bild/ü.png"
    index.save(tmp_path / "index")
    again = EmbeddingIndex.load(tmp_path / "index")
    assert torch.equal(again.features, index.features) and again.ids == index.ids
    assert again.fingerprint == index.fingerprint
    again.remove(["e1"])
    again.save(tmp_path / "index")
    assert len(EmbeddingIndex.load(tmp_path / "index")) == 4
    assert len(names(tmp_path / "index")) == 2 and names(tmp_path / "index")[1] == "index.json"
    again.remove(again.ids)
    again.save(tmp_path / "index")
    assert len(EmbeddingIndex.load(tmp_path / "index")) == 0


def test_another_folder_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("the only copy")
    with pytest.raises(EmbeddingIndexError, match="is not empty and holds no index"):
        random_index(2, 3).save(tmp_path)
    assert names(tmp_path) == ["thesis.txt"]
    with pytest.raises(FileNotFoundError):
        random_index(2, 3).save(tmp_path / "no" / "index")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process to kill")
@pytest.mark.parametrize("moment", ["features", "before index.json", "index.json"])
def test_a_killed_process_leaves_the_old_index(tmp_path, moment):
    old, new = random_index(5, 4), random_index(9, 4, seed=1)
    old.save(tmp_path / "index")
    if (child := os.fork()) == 0:
        replace, written = os.replace, []

        def killed(source, target):
            written.append(target.name)
            if (moment == "features") == (len(written) == 1):
                if moment == "index.json":  # in the middle of the file
                    os.truncate(source, 10)
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        embedding_index.os.replace = killed
        new.save(tmp_path / "index")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    again = EmbeddingIndex.load(tmp_path / "index")
    assert torch.equal(again.features, old.features) and again.ids == old.ids
    assert len(names(tmp_path / "index")) > 2  # what the killed process left
    new.save(tmp_path / "index")
    assert len(names(tmp_path / "index")) == 2 and len(EmbeddingIndex.load(tmp_path / "index")) == 9


def test_a_full_disk_leaves_the_old_index(tmp_path, monkeypatch):
    old = random_index(5, 4)
    old.save(tmp_path / "index")
    before = names(tmp_path / "index")

    def no_space(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedding_index.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        random_index(9, 4).save(tmp_path / "index")
    assert names(tmp_path / "index") == before and len(EmbeddingIndex.load(tmp_path / "index")) == 5


def test_damaged_files_are_named(tmp_path):
    folder = tmp_path / "index"
    with pytest.raises(EmbeddingIndexError, match=r"There is no index in .*: it has no index\.json"):
        EmbeddingIndex.load(folder)
    random_index(5, 4).save(folder)
    features = next(folder.glob("*.safetensors"))
    good, about = features.read_bytes(), (folder / "index.json").read_text()
    flipped = bytearray(good)
    flipped[-3] ^= 1
    for content in (good[:-1], bytes(flipped), b""):
        features.write_bytes(content)
        with pytest.raises(EmbeddingIndexError, match=rf"{features.name} is damaged: its {len(content)} bytes"):
            EmbeddingIndex.load(folder)
    features.unlink()
    with pytest.raises(EmbeddingIndexError, match=rf"{features.name} is missing"):
        EmbeddingIndex.load(folder)
    features.write_bytes(good)
    wrong = json.loads(about)
    for content in (about[:40], "[]", "{}", json.dumps({**wrong, "model": {}}), json.dumps({**wrong, "model": 3})):
        (folder / "index.json").write_text(content)
        with pytest.raises(EmbeddingIndexError, match=r"index\.json is damaged \("):
            EmbeddingIndex.load(folder)
    (folder / "index.json").write_text(json.dumps({**wrong, "format": 2}))
    with pytest.raises(EmbeddingIndexError, match="is of format 2, this version reads 1"):
        EmbeddingIndex.load(folder)
    (folder / "index.json").write_text(json.dumps({**wrong, "ids": ["a"]}))
    with pytest.raises(EmbeddingIndexError, match=r"got \(5, 4\) and 1 ids"):
        EmbeddingIndex.load(folder)
