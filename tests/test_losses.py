"""The losses: against the authors' values, independent recomputations, and one process with the whole batch."""

import itertools
import math
from functools import partial

import pytest
import torch
from golden_case import GOLDEN, GoldenCase
from scipy.optimize import linprog
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel
from two_processes import WORLD, on_two_processes, share

from hf_mmunify.losses import (
    causal_language_modeling_loss,
    contrastive_loss,
    gather,
    gather_without_gradient,
    hinge_ranking_loss,
    image_text_matching_loss,
    inner_words,
    knowledge_distillation_loss,
    masked_language_modeling_loss,
    matching_targets,
    momentum_contrastive_loss,
    optimal_transport,
    pad_to_longest,
    rank,
    sample_hard_negatives,
    soft_cross_entropy,
    word_patch_alignment_loss,
    world_size,
)


PAIRS, WIDTH, QUEUE, VOCABULARY = 8, 6, 10, 11
IDS = torch.tensor([0, 1, 2, 0, 1, 0, 3, 4])  # equal ones within a process, and across the two


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return normalize(random(*shape, seed=seed, dtype=dtype), dim=-1)


# -- Two processes and one --------------------------------------------------------------------------------------------


class Towers(nn.Module):
    """The smallest model of two towers with a scale that is learnt; the loss is computed inside, as in ours."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.image = nn.Parameter(random(WIDTH, WIDTH, seed=1, dtype=dtype))
        self.text = nn.Parameter(random(WIDTH, WIDTH, seed=2, dtype=dtype))
        self.scale = nn.Parameter(torch.tensor([1.5], dtype=dtype))

    def forward(self, images, texts, loss):
        features = normalize(images @ self.image, dim=-1), normalize(texts @ self.text, dim=-1)
        return loss(*features, self.scale)


def contrastive(mode: str, with_ids: bool, label_smoothing: float = 0.0):
    def loss(images, texts, scale):
        ids = share(IDS) if with_ids else None
        return contrastive_loss(
            images, texts, scale.exp(), image_ids=ids, gather=mode, label_smoothing=label_smoothing
        )

    return loss


def with_momentum(with_ids: bool):
    def loss(images, texts, scale):
        teacher = (
            share(unit(PAIRS, WIDTH, seed=3, dtype=images.dtype)),
            share(unit(PAIRS, WIDTH, seed=4, dtype=images.dtype)),
        )
        queues = (unit(QUEUE, WIDTH, seed=seed, dtype=images.dtype).t() for seed in (5, 6))
        ids = {"image_ids": share(IDS), "queue_ids": torch.arange(QUEUE)[None]} if with_ids else {}
        return momentum_contrastive_loss(images, texts, *teacher, *queues, 1 / scale.exp(), 0.4, **ids)[0]

    return loss


def masked(images, texts, scale):
    """As if each pair were a token: the first process hides two of four, the second all of four."""
    labels = share(torch.tensor([[3], [-100], [7], [-100], [1], [0], [9], [2]]))
    project = random(WIDTH, VOCABULARY, seed=7, dtype=images.dtype)
    logits, soft = (images @ project * scale)[:, None], (texts @ project)[:, None]
    return masked_language_modeling_loss(logits, labels, soft_logits=soft, alpha=0.3)


def masked_in_one_process(images, texts, scale):
    labels = share(torch.tensor([[-100]] * 4 + [[1], [0], [-100], [2]]))
    logits = images @ random(WIDTH, VOCABULARY, seed=7, dtype=images.dtype) * scale
    return masked_language_modeling_loss(logits[:, None], labels)


def hidden_nowhere(images, texts, scale):
    logits = images @ random(WIDTH, VOCABULARY, seed=7, dtype=images.dtype) * scale
    return masked_language_modeling_loss(logits[:, None], torch.full((len(images), 1), -100))


def hinge(hardest: bool, own: bool = False, with_ids: bool = False):
    """Of all pairs in every process, or of its own against all."""

    def loss(images, texts, scale):
        all_images, all_texts = gather(images), gather(texts)
        settings = {"margin": 0.5, "hardest": hardest}
        if not own:
            return hinge_ranking_loss(all_images @ all_texts.t() * scale, **settings)
        ids = share(IDS) if with_ids else None
        others = texts @ all_images.t() * scale
        return hinge_ranking_loss(images @ all_texts.t() * scale, text_to_image=others, image_ids=ids, **settings)

    return loss


def matching(images, texts, scale):
    """Pairs with hard negatives of all processes, their features gathered with gradient."""
    all_texts = gather(texts)
    weights = (images @ all_texts.t() * scale).softmax(1)
    weights = weights.masked_fill(share(IDS)[:, None] == gather_without_gradient(share(IDS))[None], 0)
    wrong = all_texts[sample_hard_negatives(weights, torch.Generator().manual_seed(1))]
    logits = torch.stack([images * wrong, images * texts], dim=-1).sum(1)
    return image_text_matching_loss(logits, torch.ones(len(images), dtype=torch.long))


LOSSES = {
    **{
        f"contrastive-{mode}{'-ids' * with_ids}": contrastive(mode, with_ids)
        for mode, with_ids in itertools.product(("full", "local"), (False, True))
    },
    "contrastive-smooth": contrastive("local", True, label_smoothing=0.1),
    "momentum": with_momentum(False),
    "momentum-ids": with_momentum(True),
    "masked": masked,
    "masked-in-one": masked_in_one_process,
    "masked-nowhere": hidden_nowhere,
    "hinge": hinge(False),
    "hinge-hardest": hinge(True),
    "hinge-own": hinge(False, own=True),
    "hinge-own-hardest-ids": hinge(True, own=True, with_ids=True),
    "matching": matching,
}
SEPARATE = {"contrastive-separate": contrastive("none", False)}
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def measure() -> dict[str, dict[str, torch.Tensor]]:
    """Loss, and gradients averaged over the processes, of every loss and precision."""
    measured = {}
    for (name, loss), (precision, dtype) in itertools.product({**LOSSES, **SEPARATE}.items(), DTYPES.items()):
        towers = Towers(dtype)
        model = DistributedDataParallel(towers, find_unused_parameters=True) if world_size() > 1 else towers
        images, texts = (share(random(PAIRS, WIDTH, seed=seed, dtype=dtype)) for seed in (8, 9))
        value = model(images, texts, loss)
        value.backward()
        gradients = {
            key: p.grad if p.grad is not None else torch.zeros_like(p) for key, p in towers.named_parameters()
        }
        measured[f"{name}-{precision}"] = {"loss": value.detach(), **gradients}
    weights = share(random(PAIRS, PAIRS, seed=10).exp().fill_diagonal_(0))
    draws = [sample_hard_negatives(weights, torch.Generator().manual_seed(seed)) for seed in range(5)]
    own = sample_hard_negatives(weights[:, :3], torch.Generator().manual_seed(0))
    measured["draws"] = {"of all": torch.stack(draws), "of a few": own}
    states = pad_to_longest(random(2, 3 + 2 * rank(), 4, seed=11).requires_grad_())
    measured["sequences"] = {"states": gather(states).detach()}
    measured["place"] = {"rank": torch.tensor(rank()), "world": torch.tensor(world_size())}
    return measured


@pytest.fixture(scope="module")
def measurements(tmp_path_factory):
    """What one process with the whole batch measures, and what two with half of it each."""
    ranks = on_two_processes(measure, tmp_path_factory.mktemp("ranks"))
    return measure(), ranks


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_are_one_with_the_whole_batch(measurements, name, precision):
    alone, ranks = measurements
    alone, ranks = alone[f"{name}-{precision}"], [rank[f"{name}-{precision}"] for rank in ranks]
    tolerance = 1e-13 if precision == "float64" else 1e-6
    mean = sum(rank["loss"] for rank in ranks) / WORLD
    torch.testing.assert_close(mean, alone["loss"], rtol=tolerance, atol=tolerance)
    for key in alone.keys() - {"loss"}:
        assert torch.equal(ranks[0][key], ranks[1][key])  # averaged
        size = alone[key].abs().max()
        assert size > 1e-3 or name in ("masked-nowhere",) or key in ("text", "scale"), f"{key} is not tested"
        torch.testing.assert_close(
            ranks[0][key] / size.clamp(min=1), alone[key] / size.clamp(min=1), rtol=0, atol=tolerance
        )


def test_a_whole_matrix_gives_every_process_the_loss_of_the_whole_batch(measurements):
    alone, ranks = measurements
    for measured in ranks:
        torch.testing.assert_close(
            measured["contrastive-full-float64"]["loss"], alone["contrastive-full-float64"]["loss"], rtol=1e-14, atol=0
        )


def test_separate_processes_learn_something_else(measurements):
    """The comparison above would see negatives that are missing."""
    alone, ranks = measurements
    theirs = ranks[0]["contrastive-separate-float64"]["image"]
    assert (theirs - alone["contrastive-separate-float64"]["image"]).norm() > 0.1 * theirs.norm()
    assert torch.equal(alone["contrastive-separate-float64"]["image"], alone["contrastive-full-float64"]["image"])


def test_equal_seeds_draw_the_negatives_of_one_process(measurements):
    alone, ranks = measurements
    assert torch.equal(torch.cat([measured["draws"]["of all"] for measured in ranks], dim=1), alone["draws"]["of all"])
    assert all((measured["draws"]["of a few"] < 3).all() for measured in ranks)
    assert [int(measured["place"]["rank"]) for measured in ranks] == [0, 1]
    assert [int(measured["place"]["world"]) for measured in (alone, *ranks)] == [1, 2, 2]


def test_sequences_are_gathered_at_the_length_of_the_longest(measurements):
    _, ranks = measurements
    short, long = (random(2, length, 4, seed=11) for length in (3, 5))
    for measured in ranks:
        states = measured["sequences"]["states"]
        assert torch.equal(states[:2, :3], short) and not states[:2, 3:].any() and torch.equal(states[2:], long)


def test_alone_nothing_is_gathered():
    features = random(3, 4).requires_grad_()
    assert gather(features) is features
    assert not gather_without_gradient(features).requires_grad


# -- The authors' values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["albef/pretrain", "blip/pretrain", "blip/retrieval"])
def test_momentum_contrast_and_matching_are_the_authors(name):
    """From the features and logits that the authors' code gave; the teacher's features are those put in the queue."""
    case = GoldenCase(GOLDEN / f"{name}.json")
    inputs, outputs, weights = case.of_kind("inputs"), case.of_kind("outputs"), case.state_dict()
    pointer, batch = case.info["config"]["queue_ptr"], len(inputs["input_ids"])
    teacher = [outputs[f"after.{kind}_queue"][:, pointer : pointer + batch].t() for kind in ("image", "text")]
    queues = [weights[f"{kind}_queue"] for kind in ("image", "text")]
    ids = {"image_ids": inputs["idx"], "queue_ids": weights["idx_queue"]} if "idx" in inputs else {}
    students = outputs["image_feat"], outputs["text_feat"]
    temperature = weights["temp"].clamp(0.001, 0.5)
    loss, image_to_text, text_to_image = momentum_contrastive_loss(
        *students, *teacher, *queues, temperature, case.info["config"].get("alpha", 0.4), **ids
    )
    assert abs(loss - outputs["loss_ita"]) <= 1e-6
    assert image_to_text.shape == text_to_image.shape == (batch, batch + queues[0].shape[1])
    labels = torch.tensor([1] * batch + [0] * 2 * batch)
    assert abs(image_text_matching_loss(outputs["itm_logits_all"], labels) - outputs["loss_itm"]) <= 1e-6
    if not ids:  # BLIP's retrieval draws by the student's similarities
        drawn = sample_hard_negatives(
            image_to_text[:, :batch].softmax(1).fill_diagonal_(0), choose=partial(torch.argmax, dim=1)
        )
        assert torch.equal(drawn, inputs["neg_text_for_image"])


def test_distilled_masked_language_modeling_is_the_authors():
    case = GoldenCase(GOLDEN / "albef/pretrain.json")
    inputs, outputs = case.of_kind("inputs"), case.of_kind("outputs")
    loss = masked_language_modeling_loss(
        outputs["mlm_logits"], inputs["mlm_labels"], soft_logits=outputs["mlm_logits_m"], alpha=0.4
    )
    assert abs(loss - outputs["loss_mlm"]) <= 4e-6


def test_smoothed_captions_are_the_authors():
    case = GoldenCase(GOLDEN / "blip/pretrain.json")
    inputs, outputs = case.of_kind("inputs"), case.of_kind("outputs")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    loss = causal_language_modeling_loss(outputs["lm_logits"], labels, label_smoothing=0.1)
    assert abs(loss - outputs["loss_lm"]) <= 2e-6
    assert abs(causal_language_modeling_loss(outputs["lm_logits"], labels) - outputs["loss_lm"]) > 1e-2


# -- Contrast ---------------------------------------------------------------------------------------------------------


def test_contrast_is_cross_entropy_in_both_directions():
    images, texts = unit(PAIRS, WIDTH, seed=1), unit(PAIRS, WIDTH, seed=2)
    logits, targets = 5.0 * images @ texts.t(), torch.arange(PAIRS)
    expected = (cross_entropy(logits, targets) + cross_entropy(logits.t(), targets)) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, 5.0), expected, rtol=1e-14, atol=0)


def test_pairs_of_one_image_share_the_target():
    targets = matching_targets(IDS[:3], torch.tensor([0, 1, 0, 2]))
    assert targets.tolist() == [[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    images, texts = unit(PAIRS, WIDTH, seed=1), unit(PAIRS, WIDTH, seed=2)
    every_its_own = contrastive_loss(images, texts, 5.0, image_ids=torch.arange(PAIRS))
    torch.testing.assert_close(every_its_own, contrastive_loss(images, texts, 5.0), rtol=1e-14, atol=0)
    assert contrastive_loss(images, texts, 5.0, image_ids=IDS) != every_its_own


def test_half_precision_is_summed_in_float32():
    images, texts = (unit(PAIRS, WIDTH, seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    assert contrastive_loss(images, texts, 5.0).dtype == torch.float32


def test_alpha_zero_needs_no_teacher():
    students, teacher = (
        (unit(4, WIDTH, seed=1), unit(4, WIDTH, seed=2)),
        (unit(4, WIDTH, seed=3), unit(4, WIDTH, seed=4)),
    )
    queues = unit(5, WIDTH, seed=5).t(), unit(5, WIDTH, seed=6).t()
    loss, image_to_text, text_to_image = momentum_contrastive_loss(*students, *teacher, *queues, 0.1, 0.0)
    targets = torch.arange(4)
    expected = (cross_entropy(image_to_text, targets) + cross_entropy(text_to_image, targets)) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(image_to_text[:, 4:], students[0] @ queues[1] / 0.1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: contrastive_loss(random(2, 3), random(3, 3), 1.0), r"as many images as texts.*\[2, 3\] and \[3, 3\]"),
        (lambda: contrastive_loss(random(2, 5, 3), random(2, 5, 3), 1.0), "several queries"),
        (lambda: contrastive_loss(random(2, 3), random(2, 3), 1.0, gather="ful"), 'full, local, none, got "ful"'),
        (
            lambda: momentum_contrastive_loss(
                *[random(2, 3)] * 4, *[random(3, 4)] * 2, 1.0, 0.4, image_ids=torch.arange(2)
            ),
            "come together",
        ),
        (lambda: hinge_ranking_loss(random(2, 3)), r"as many images as texts.*\[2, 3\]"),
        (
            lambda: soft_cross_entropy(random(2, 3), random(2, 4)),
            r"a probability for each logit, \(2, 3\), got \(2, 4\)",
        ),
        (lambda: soft_cross_entropy(random(2, 3), random(2, 3), "avg"), 'got "avg"'),
        (lambda: sample_hard_negatives(torch.tensor([[0.0, 1.0], [0.0, 0.0]])), "row 1 .* larger batches"),
        (lambda: masked_language_modeling_loss(random(1, 2, 3), torch.zeros(1, 3).long()), "expected shape"),
        (lambda: masked_language_modeling_loss(random(1, 2, 3), torch.tensor([[3, -100]])), "from 0 to 2"),
        (lambda: masked_language_modeling_loss(random(1, 2, 3), torch.tensor([[-1, 0]])), "from 0 to 2"),
        (lambda: masked_language_modeling_loss(random(1, 1, 3), torch.tensor([[0]]), alpha=0.4), "soft_logits"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- Hard negatives ---------------------------------------------------------------------------------------------------


def test_hard_negatives_are_drawn_in_proportion():
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0]).expand(20_000, 4)
    drawn = sample_hard_negatives(weights, torch.Generator().manual_seed(0)).bincount(minlength=4) / 20_000
    torch.testing.assert_close(drawn, torch.tensor([0, 0.125, 0.25, 0.625]), atol=0.01, rtol=0)
    assert drawn[0] == 0


# -- Masked tokens, distillation --------------------------------------------------------------------------------------


def test_nothing_hidden_is_loss_zero():
    logits = random(2, 3, VOCABULARY).requires_grad_()
    loss = masked_language_modeling_loss(
        logits, torch.full((2, 3), -100), soft_logits=random(2, 3, VOCABULARY), alpha=0.5
    )
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_masked_tokens_are_averaged():
    logits, labels = random(2, 3, VOCABULARY), torch.tensor([[4, -100, 2], [-100, -100, 9]])
    torch.testing.assert_close(masked_language_modeling_loss(logits, labels), cross_entropy(logits.mT, labels))
    soft = random(2, 3, VOCABULARY, seed=5)
    by_teacher = -(soft.softmax(-1) * logits.log_softmax(-1)).sum(-1)[labels != -100].mean()
    expected = 0.6 * cross_entropy(logits.mT, labels) + 0.4 * by_teacher
    torch.testing.assert_close(masked_language_modeling_loss(logits, labels, soft_logits=soft, alpha=0.4), expected)


def test_soft_cross_entropy_of_certainty_is_cross_entropy():
    logits, labels = random(4, 5), torch.tensor([0, 3, 1, 4])
    certain = nn.functional.one_hot(labels, 5).double()
    for reduction in ("mean", "sum", "none"):
        expected = cross_entropy(logits, labels, reduction=reduction)
        torch.testing.assert_close(soft_cross_entropy(logits, certain, reduction), expected)


def test_distillation_is_the_divergence_from_the_teacher():
    student, teacher = random(4, 5, seed=1).requires_grad_(), random(4, 5, seed=2).requires_grad_()
    loss = knowledge_distillation_loss(student, teacher, temperature=3.0)
    divergence = nn.functional.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(loss, 9 * divergence)
    loss.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert knowledge_distillation_loss(teacher, teacher).abs() < 1e-15


# -- Order ------------------------------------------------------------------------------------------------------------


def test_hinge_counts_every_wrong_pair_or_the_hardest():
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.5, 0.6], [0.0, 0.9, 0.7]])
    # Rows: 0.1 at 0.8; 0.3 at 0.6; 0.4 at 0.9. Columns: none; 0.5 at 0.8 and 0.6 at 0.9; 0.1 at 0.6.
    assert math.isclose(
        hinge_ranking_loss(scores, 0.2, hardest=False), 0.1 + 0.3 + 0.4 + 0.5 + 0.6 + 0.1, abs_tol=1e-6
    )
    assert math.isclose(hinge_ranking_loss(scores, 0.2), 0.1 + 0.3 + 0.4 + 0.6 + 0.1, abs_tol=1e-6)
    assert hinge_ranking_loss(scores[:1, :1]) == 0


def test_hinge_spares_pairs_of_the_same_image():
    scores = random(3, 3)
    assert hinge_ranking_loss(scores, 9.0, image_ids=torch.tensor([4, 4, 4])) == 0
    two = hinge_ranking_loss(scores, 9.0, hardest=False, image_ids=torch.tensor([4, 5, 4]))
    wrong = 9 + scores[[0, 1, 1, 2], [1, 0, 2, 1]]  # the others show the same image
    rows = wrong - scores.diagonal()[[0, 1, 1, 2]]
    columns = wrong - scores.diagonal()[[1, 0, 2, 1]]
    torch.testing.assert_close(two, rows.sum() + columns.sum())


def test_sequences_alone_are_as_long_as_they_are():
    states = random(2, 3, 4)
    assert pad_to_longest(states) is states


# -- Transport --------------------------------------------------------------------------------------------------------


def exact_transport(cost: torch.Tensor) -> float:
    """Least cost of moving a uniform distribution over the rows onto one over the columns: a linear programme."""
    rows, columns = cost.shape
    sums = torch.zeros(rows + columns, rows, columns)
    for row in range(rows):
        sums[row, row] = 1
    for column in range(columns):
        sums[rows + column, :, column] = 1
    shares = [1 / rows] * rows + [1 / columns] * columns
    return linprog(cost.flatten().numpy(), A_eq=sums.flatten(1).numpy(), b_eq=shares).fun


def test_transport_finds_the_cheapest_plan():
    sizes = [(3, 4), (5, 2), (4, 4), (1, 3)]
    cost = random(len(sizes), 5, 4, seed=1).abs()
    first = torch.stack([torch.arange(5) < rows for rows, _ in sizes])
    second = torch.stack([torch.arange(4) < columns for _, columns in sizes])
    plan = optimal_transport(cost, first, second, iterations=3000)
    assert not plan[~(first[:, :, None] & second[:, None])].any()
    for i, (rows, columns) in enumerate(sizes):
        torch.testing.assert_close(
            plan[i].sum(1)[:rows], torch.full((rows,), 1 / rows, dtype=torch.float64), rtol=0, atol=1e-3
        )
        torch.testing.assert_close(plan[i].sum(0)[:columns], torch.full((columns,), 1 / columns, dtype=torch.float64))
        found, least = float((plan[i] * cost[i]).sum()), exact_transport(cost[i, :rows, :columns])
        assert math.isclose(found, least, rel_tol=2e-3), (found, least)


def test_fifty_iterations_are_near_the_cheapest_plan_and_padding_changes_nothing():
    cost = random(1, 4, 6, seed=2).abs()
    whole = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 6, dtype=torch.bool)
    plan = optimal_transport(cost, *whole)
    least = exact_transport(cost[0])
    assert least - 1e-9 <= (plan * cost).sum() <= 1.1 * least
    padded = nn.functional.pad(cost, (0, 2, 0, 3), value=7.0)
    masks = [nn.functional.pad(mask, (0, extra)) for mask, extra in zip(whole, (3, 2))]
    torch.testing.assert_close(optimal_transport(padded, *masks)[:, :4, :6], plan, rtol=1e-12, atol=0)


def test_alignment_pulls_right_pairs_together_and_wrong_ones_apart():
    words, patches = random(3, 4, WIDTH, seed=1).requires_grad_(), random(3, 5, WIDTH, seed=2)
    words_mask, patches_mask = torch.ones(3, 4), torch.ones(3, 5)
    words_mask[2] = 0  # nothing there: no distance, no gradient, no NaN
    loss = word_patch_alignment_loss(words, patches, words_mask, patches_mask, torch.tensor([1, 0, 1]))
    loss.backward()
    singles = [
        word_patch_alignment_loss(
            words[i : i + 1], patches[i : i + 1], words_mask[i : i + 1], patches_mask[i : i + 1], torch.tensor([1])
        )
        for i in range(2)
    ]
    torch.testing.assert_close(loss, (singles[0] - singles[1]) / 3)
    assert words.grad[:2].abs().amin((1, 2)).gt(0).all() and not words.grad[2].any()


def test_inner_words_are_without_the_first_and_the_last():
    mask = inner_words(torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]))
    assert mask.int().tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
