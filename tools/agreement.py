"""Measure how far each operation is from what its source describes, and print the table of docs/agreement.md.

    python tools/agreement.py                              the table
    python tools/agreement.py --write                      and into docs/agreement.md
    python tools/agreement.py --only GridMask              some rows

Each row compares the program with an independent slow version, written from the description in the source
(tests/oracles.py and beside the tests), on drawn images; the test that it names holds the agreement. Runs
from a clone: the slow versions are tests.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from keepaug import (
    BatchPolicy,
    GridMask,
    KeepCutMix,
    KeepCutout,
    Mixup,
    aug_mix,
    auto_augment,
    cut,
    mixed_cross_entropy,
    paste,
    rand_augment,
    random_regions,
    region_scores,
    saliency_map,
    sample_regions,
)
from keepaug.baselines import CutMix, Cutout, jensen_shannon
from keepaug.data.batch_transforms import change_colours, draw_colours, random_crop_flip
from keepaug.models import build_network

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "agreement.md"
TESTS = ROOT / "tests"
HEAD = """# Agreement with the sources

Each operation against an independent slow version of the rule in its source, on drawn images. Made by
`python tools/agreement.py --write`; the named tests hold the agreement. What is read differently on purpose:
[readings](readings.md).
"""


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        operation: what is compared.
        source: with what: the paper, or a repository's description and behaviour.
        test: that holds it, below tests/.
        measure: the figure, as text.
    """

    operation: str
    source: str
    test: str
    measure: Callable[[], str]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def largest(found: Tensor, wanted: Tensor) -> str:
    """The largest difference, in parts of the largest value."""
    scale = wanted.double().abs().max().clamp(min=1e-300)
    difference = float((found.double() - wanted.double()).abs().max() / scale)
    return f"largest difference {difference:.0e} of the largest value" if difference else "no difference"


def share(equal: Sequence[bool] | Tensor, what: str) -> str:
    hits = torch.as_tensor(equal)
    return f"{int(hits.sum()):,} of {hits.numel():,} {what}"


def boxes_of(regions: Any) -> list[tuple[int, int, int, int]]:
    return list(zip(*(part.tolist() for part in regions), strict=True))


def small_network() -> torch.nn.Module:
    torch.manual_seed(0)
    network = build_network("resnet8", 5, stem="cifar").double()
    return network.eval()


def saliency() -> str:
    import oracles

    network, images, labels = small_network(), torch.randn(3, 3, 12, 10, generator=seeded()), [0, 3, 4]
    wanted = torch.stack(
        [
            oracles.saliency(network, image.double(), label)
            for image, label in zip(images, labels, strict=True)
        ]
    )
    return largest(saliency_map(network, images.double(), torch.tensor(labels)), wanted)


def saliency_of_loss() -> str:
    network, images = small_network(), torch.randn(3, 3, 12, 10, generator=seeded()).double()
    labels, wanted = torch.tensor([0, 3, 4]), []
    for image, label in zip(images, labels, strict=True):
        pixels = image[None].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(pixels), label[None]), pixels)
        wanted.append(gradient[0].abs().amax(dim=0))
    return largest(saliency_map(network, images, labels, of="loss"), torch.stack(wanted))


def scores() -> str:
    import oracles

    heat, found, wanted = torch.rand(2, 9, 11, generator=seeded()), [], []
    for placement in ("inside", "clipped"):
        for size in ((3, 4), (1, 2), (9, 5)):
            values, _ = region_scores(heat, size, placement=placement)
            found.append(values.flatten())
            places = oracles.candidates((9, 11), size, placement)
            wanted += [oracles.importance(one, box) for one in heat for box in places]
    return largest(torch.cat(found), torch.tensor(wanted, dtype=torch.float64))


def selection() -> str:
    import oracles

    allowed = []
    for seed in range(6):
        heat = torch.randint(0, 20, (40, 9, 8), generator=seeded(seed)).float()
        for prefer, placement in (("low", "inside"), ("high", "inside"), ("low", "clipped")):
            drawn = sample_regions(heat, (4, 3), prefer=prefer, placement=placement, generator=seeded(seed))
            every = oracles.candidates((9, 8), (4, 3), placement)
            for one, box in zip(heat, boxes_of(drawn), strict=True):
                good = oracles.allowed(one, (4, 3), 0.6, prefer, placement)
                allowed.append(box in {every[index] for index in good})
    return share(allowed, "regions drawn are among those that nested loops allow")


def cut_and_paste() -> str:
    import oracles

    images, other = torch.randn(2, 40, 3, 12, 10, generator=seeded())
    regions, equal = random_regions(40, (12, 10), (4, 3), generator=seeded()), []
    for index, box in enumerate(boxes_of(regions)):
        equal.append(torch.equal(cut(images, regions, 2.5)[index], oracles.cut(images[index], box, 2.5)))
        wanted = oracles.paste(other[index], images[index], box)
        equal.append(torch.equal(paste(other, images, regions)[index], wanted))
    return share(equal, "images equal to the bit")


def released_boxes() -> str:
    import oracles

    images, equal = torch.zeros(3000, 1, 32, 32), []
    possible = [[oracles.released_box((y, x), (size, size), (32, 32)) for y in range(32) for x in range(32)]
                for size in (16, 20, 21, 24)]  # fmt: skip
    for size, boxes in zip((16, 20, 21, 24), possible, strict=True):
        drawn = set(boxes_of(Cutout(size).sample(images, generator=seeded(size))))
        equal += [box in set(boxes) for box in drawn]
    return share(equal, "different boxes of 16, 20, 21 and 24 pixels are the released code's")


def matched() -> str:
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    heat = torch.exp(-((rows - 7.5) ** 2 + (columns - 7.5) ** 2) / 32).expand(2000, -1, -1)
    images, equal = torch.zeros(2000, 1, 16, 16), []
    means = []
    for plain, keep in ((Cutout, KeepCutout), (CutMix, KeepCutMix)):
        size = {"size": 9} if plain is Cutout else {}
        first = plain(**size).sample(images, generator=seeded())
        second = keep(**size, placement="matched").sample(images, heat, generator=seeded())
        clipped = keep(**size, placement="clipped").sample(images, heat, generator=seeded())
        equal.append(first.area == second.area)
        means.append(float(clipped.area.double().mean() / first.area.double().mean()))
    return (
        share(torch.cat(equal), "areas equal")
        + f" (clipped: {means[0]:.2f} and {means[1]:.2f} of the plain area)"
    )


def google(code: str) -> str:
    from test_policy_ranges import NAMES, differing

    worst = max((differing(name, code), name) for name in NAMES)
    return f"at most {100 * worst[0]:.2f} % of the pixels more than one grey level away ({worst[1]})"


def batched() -> str:
    equal = []
    images = torch.randint(0, 256, (120, 3, 32, 32), dtype=torch.uint8, generator=seeded())
    seeds = torch.arange(120) * 9973
    policies = (
        rand_augment(2, 9),
        rand_augment(3, 9, magnitude_max=10, ranges="google", fill=[128.0] * 3),
        auto_augment(ranges="google", fill=[125.0, 123.0, 114.0]),
    )
    for policy in policies:
        batch = BatchPolicy(policy)
        chosen, operations = batch.draw(seeds, (32, 32))
        for image, result, turns in zip(images, batch(images, seeds), chosen.tolist(), strict=True):
            for place in turns:
                if place >= 0:
                    name, strength = operations[place]
                    image = policy._apply_image_or_video_transform(
                        image, name, strength, interpolation=policy.interpolation, fill=policy._fill
                    )
            equal.append(torch.equal(image, result))
    return share(equal, "images equal to the bit")


def magnitudes() -> str:
    angles = []
    for most in (10, 30):
        policy = rand_augment(2, 9, magnitude_max=most)
        table = policy._AUGMENTATION_SPACE["Rotate"][0](policy.num_magnitude_bins, 32, 32)
        angles.append(float(table[policy.magnitude]))
    return f"9 of 10 turns by {angles[0]:.0f} degrees (Google's 27), 9 of 30 by {angles[1]:.0f}"


def aug_mix_levels() -> str:
    policy, seen = aug_mix(3, mixture_width=1, chain_depth=1), []
    policy._names = ["ShearX"]

    def note(image: Tensor, name: str, magnitude: float) -> Tensor:
        seen.append(abs(magnitude) / 0.03)
        return image

    policy._apply = note
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for _ in range(3000):
            policy(torch.zeros(3, 4, 4, dtype=torch.uint8))
    order = (torch.tensor(seen).sort().values - 0.1) / 2.9
    distance = float((order - torch.arange(1, 3001) / 3000).abs().max())
    return f"Kolmogorov-Smirnov distance to U(0.1, 3) {distance:.3f} of 3,000 (5 % of the time above 0.025)"


def consistency() -> str:
    logits, wanted = torch.randn(3, 6, 5, generator=seeded()).double(), 0.0
    for n in range(6):
        parts = [torch.softmax(one[n], 0) for one in logits]
        mean = sum(parts) / 3
        wanted += sum(float((part * (part / mean).log()).sum()) for part in parts) / 3 / 6
    return largest(jensen_shannon(*logits), torch.tensor(wanted))


def grid_lines() -> str:
    grid = GridMask((96, 223), ratio=0.6)
    drawn = grid.at(1.0).sample(4000, generator=seeded())
    used = drawn.unit > 0
    pairs = zip(drawn.unit.tolist(), drawn.kept.tolist(), strict=True)
    right = [kept == math.ceil(unit * 0.6) for unit, kept in pairs if unit]
    return share(right, "widths equal") + f"; probability {float(used.double().mean()):.2f} (0.8)"


def grid_geometry() -> str:
    import numpy as np
    from PIL import Image
    from test_baselines import grids, slow_grid

    from keepaug.baselines.grid_mask import grid_mask

    equal, inner = [], slice(10, 50)
    for degrees in (0, 30, 90, 145, 270):
        plane = (slow_grid((60, 60), 9, 4, 2, 5, 0).numpy() * 255).astype("uint8")
        wanted = torch.from_numpy(np.array(Image.fromarray(plane).rotate(degrees)))[inner, inner] > 0
        equal.append(
            (grid_mask(grids(9, 4, 2, 5, degrees), (60, 60))[0][inner, inner] == wanted).double().mean()
        )
    return f"{100 * float(torch.stack(equal).mean()):.2f} % of the pixels as Pillow turns them"


def jitter() -> str:
    from test_images_loader import memory, slow_jitter

    images = memory(20).images
    drawn = draw_colours(20, jitter=0.4, generator=seeded())
    wanted = [
        slow_jitter(image, drawn.strength[index].tolist(), drawn.order[index].tolist())
        for index, image in enumerate(images)
    ]
    found = change_colours(images, None, drawn)[0]
    return f"largest difference {float((found - torch.stack(wanted)).abs().max()):.0e} grey levels"


def one_draw() -> str:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=seeded())
    drawn = draw_colours(50, jitter=0.4, lighting=0.1, generator=seeded())
    clean, strong = change_colours(images, images, drawn)
    change = float((clean - images).abs().mean())
    apart = float((clean - strong).abs().max())
    return f"identity policy: views differ by {apart:.0f}, both changed by {change:.0f} grey levels"


def mean_border() -> str:
    images, seeds = (
        torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=seeded()),
        torch.arange(60) * 977,
    )
    mean = torch.tensor([125.0, 123.0, 114.0]).view(3, 1, 1)
    wanted = random_crop_flip(images - mean, seeds) + mean
    return share(random_crop_flip(images, seeds, border=(125.0, 123.0, 114.0)) == wanted, "pixels equal")


def mixup() -> str:
    images, labels = torch.randn(16, 3, 6, 6, generator=seeded()), torch.arange(16) % 5
    permutation, lam = torch.randperm(16, generator=seeded()), torch.rand(16, generator=seeded())
    found, target = Mixup()(images, labels, lam=lam, permutation=permutation)
    pairs = zip(lam.tolist(), images, images[permutation], strict=True)
    wanted = torch.stack([one * a + (1 - one) * b for one, a, b in pairs])
    logits = torch.randn(16, 5, generator=seeded())
    soft = lam[:, None] * F.one_hot(labels, 5) + (1 - lam[:, None]) * F.one_hot(labels[permutation], 5)
    loss = abs(float(mixed_cross_entropy(logits, target) - F.cross_entropy(logits, soft)))
    return f"{largest(found, wanted)}, loss {loss:.0e}"


def attentive() -> str:
    from test_baselines import slow_attentive

    from keepaug.baselines import AttentiveCutMix

    images, attention = (
        torch.randn(8, 3, 28, 30, generator=seeded()),
        torch.rand(8, 28, 30, generator=seeded(1)),
    )
    permutation = torch.arange(8).roll(1)
    found, target = AttentiveCutMix()(images, torch.arange(8), attention, permutation=permutation)
    equal = []
    for n, other in enumerate(permutation.tolist()):
        wanted, lam = slow_attentive(images[other], images[n], attention[other], (7, 7), 6)
        equal.append(torch.equal(found[n], wanted) and math.isclose(float(target.lam[n]), lam, rel_tol=1e-6))
    return share(equal, "images and shares equal")


def networks() -> str:
    import network_oracles as written
    from test_small_networks import randomise

    found, wanted = [], []
    cases: list[tuple[str, dict[str, Any], Callable[[Any, Tensor], Tensor]]] = [
        ("wrn16_2", {}, lambda state, x: written.wide_resnet(state, x, 2, "activated")),
        ("wrn16_2", {"shortcut": "raw"}, lambda state, x: written.wide_resnet(state, x, 2, "raw")),
        ("resnet14", {}, lambda state, x: written.cifar_resnet(state, x, 2, "padded")),
        ("shake_shake_14_2x8d", {}, lambda state, x: written.shake_shake(state, x, 2)),
        ("pyramidnet20_a12", {}, lambda state, x: written.pyramid_net(state, x, 2, 0.5)),
    ]
    for arch, options, oracle in cases:
        torch.manual_seed(0)
        network = randomise(build_network(arch, 7, **options)).eval().double()
        images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        with torch.no_grad():
            found.append(network(images))
            wanted.append(oracle(network.state_dict(), images))
    return largest(torch.cat(found), torch.cat(wanted))


@torch.no_grad()
def initialisations() -> str:
    torch.manual_seed(0)
    weight = build_network("resnet18", 10, stem="cifar").layer3[0].conv1.weight
    last = build_network("wrn28_2", 10, shortcut="raw").fc.weight
    return (
        f"ResNet-18, 128 to 256 channels: standard deviation {float(weight.std()):.4f} "
        f"({1152**-0.5 / 3**0.5:.4f}); UDA's last layer: up to {float(last.abs().max()):.3f} ({10**-0.5:.3f})"
    )


def uda_policy() -> str:
    from test_policy import oracle, pictures

    from ssl_uda.policy import apply_policy, draw_policy

    images = pictures(200, 32, 32)
    draws = draw_policy(200, p=1.0, generator=seeded())
    (pixels, blank), (wanted, empty) = apply_policy(images, draws), oracle(images, draws)
    return share(
        ((pixels == wanted) & (blank == empty)[:, None]).flatten(1).all(dim=1), "images equal to the bit"
    )


def uda_objective() -> str:
    from test_uda_losses import drawn_outputs, oracle_uda

    from ssl_uda.algorithms.uda import uda_loss
    from ssl_uda.config import UdaConfig

    found, wanted = [], []
    for seed in range(50):
        outputs, labels = drawn_outputs(seed)
        config = UdaConfig(tsa="linear", steps=100)
        eta = 2 * seed / 100 * (1 - 1 / 3) + 1 / 3
        found.append(uda_loss(outputs, labels, config, 2 * seed).total.item())
        wanted.append(oracle_uda(outputs, labels, temperature=0.4, confidence=0.8, weight=1.0, eta=eta))
    return largest(torch.tensor(found), torch.tensor(wanted))


def fixmatch_objective() -> str:
    from test_uda_losses import drawn_outputs, oracle_fixmatch

    from ssl_uda.algorithms.fixmatch import fixmatch_loss
    from ssl_uda.config import UdaConfig

    drawn = [drawn_outputs(seed) for seed in range(50)]
    config = UdaConfig(algorithm="fixmatch", confidence=0.8)
    found = [fixmatch_loss(outputs, labels, config, 0).total.item() for outputs, labels in drawn]
    wanted = [oracle_fixmatch(outputs, labels, 0.8, 1.0)[0] for outputs, labels in drawn]
    return largest(torch.tensor(found), torch.tensor(wanted))


def uda_rate() -> str:
    from ssl_uda.schedule import learning_rate

    found = torch.tensor([learning_rate(step, 1000, 0.03) for step in range(1001)])
    wanted = torch.tensor([0.03 * math.cos(7 * math.pi / 16 * step / 1000) for step in range(1001)])
    return largest(found, wanted)


def triplet() -> str:
    from test_losses import oracle_triplet

    from reid.training.losses import batch_hard_triplet

    features, labels = torch.randn(24, 8, generator=seeded()).double(), torch.arange(24) // 4
    wanted = oracle_triplet(features, labels, 0.3)
    return largest(batch_hard_triplet(features, labels), torch.tensor(wanted))


def reranking() -> str:
    from test_rerank import crowd, slow

    from reid.evaluation.reranking import rerank

    query, gallery, _ = crowd(0)
    found = rerank(query, gallery, metric="euclidean", k1=20, k2=6, lambda_value=0.3)
    return largest(found, slow(torch.cat([query, gallery]), len(query), 20, 6, 0.3))


def ranking() -> str:
    from test_evaluate import data, slow

    from reid.evaluation.protocol import evaluate

    query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras = data(0)
    found = evaluate(
        query, gallery, query_ids=query_ids, gallery_ids=gallery_ids, query_cameras=query_cameras,
        gallery_cameras=gallery_cameras, metric="cosine", ties="pessimistic",
    )  # fmt: skip
    cmc, precision, _, _ = slow(
        query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras, "cosine", "pessimistic"
    )
    difference = max(abs(found.mAP - precision), abs(found.rank1 - cmc[0]))
    return f"mAP and rank-1 differ by {difference:.0e}" if difference else "no difference"


ROWS = (
    Row(
        "Saliency: gradient of the logit",
        "paper, section 3",
        "core/test_saliency.py::test_is_the_paper_formula_image_by_image",
        saliency,
    ),
    Row(
        "Saliency: gradient of the loss",
        "paper, section 3.1",
        "core/test_saliency.py::test_of_the_loss_is_the_gradient_of_the_cross_entropy",
        saliency_of_loss,
    ),
    Row("Scores of regions", "paper, equation 1", "core/test_regions.py::test_scores_are_the_sums", scores),
    Row(
        "Selection below and above the quantile",
        "paper, Algorithm 1 and Remark",
        "core/test_regions.py::test_every_region_is_allowed",
        selection,
    ),
    Row(
        "Cut and paste",
        "paper, equations 2 and 3",
        "core/test_augmentations.py::test_cut_and_paste_are_the_equations",
        cut_and_paste,
    ),
    Row(
        "Boxes of Cutout and CutMix",
        "uoguelph-mlrg/Cutout, clovaai/CutMix-PyTorch",
        "core/test_regions.py::test_clipped_is_the_released_box_at_every_centre",
        released_boxes,
    ),
    Row(
        "Placement matched",
        "the plain draw of the same generator",
        "core/test_regions.py::test_matched_chooses_the_place_alone",
        matched,
    ),
    Row(
        "Google's operations, CIFAR-10",
        "tensorflow/models, research/autoaugment",
        "core/test_policy_ranges.py::test_operations_are_those_of_the_released_code",
        lambda: google("cifar10"),
    ),
    Row(
        "Google's operations, ImageNet",
        "tensorflow/tpu, efficientnet/autoaugment",
        "core/test_policy_ranges.py::test_operations_are_those_of_the_released_code",
        lambda: google("imagenet"),
    ),
    Row(
        "Policies on batches",
        "torchvision, image by image",
        "core/test_batch_policy.py::test_equals_torchvision_image_by_image",
        batched,
    ),
    Row(
        "Scale of RandAugment's magnitude",
        "tensorflow/tpu, efficientnet/autoaugment",
        "core/test_policy_ranges.py::test_magnitude_nine_of_ten_is_nine_tenths",
        magnitudes,
    ),
    Row(
        "AugMix: levels",
        "google-research/augmix",
        "core/test_policy_ranges.py::test_aug_mix_draws_continuous_levels",
        aug_mix_levels,
    ),
    Row(
        "AugMix: Jensen-Shannon loss",
        "google-research/augmix",
        "core/test_baselines.py::test_jensen_shannon_is_its_definition",
        consistency,
    ),
    Row(
        "GridMask: widths and probability",
        "dvlab-research/GridMask",
        "core/test_baselines.py::test_grid_mask_follows_the_released_recipe",
        grid_lines,
    ),
    Row(
        "GridMask: rotation",
        "dvlab-research/GridMask",
        "core/test_baselines.py::test_grid_mask_turns_as_pillow_turns",
        grid_geometry,
    ),
    Row("Mixup", "Zhang et al., 2018", "core/test_baselines.py::test_mixup_is_the_convex_combination", mixup),
    Row(
        "Attentive CutMix",
        "Walawalkar et al., 2020",
        "core/test_baselines.py::test_attentive_cutmix_pastes_the_partners_best_cells",
        attentive,
    ),
    Row(
        "Colour jitter",
        "clovaai/CutMix-PyTorch",
        "data/test_images_loader.py::test_colour_jitter_is_the_released_one",
        jitter,
    ),
    Row(
        "Jitter and lighting of all views",
        "one draw per image",
        "data/test_images_loader.py::test_what_is_no_policy_is_one_draw_for_all_views",
        one_draw,
    ),
    Row(
        "Border of the mean colour",
        "tensorflow/models, research/autoaugment",
        "data/test_images_loader.py::test_a_border_can_have_a_colour",
        mean_border,
    ),
    Row(
        "Networks for CIFAR-10",
        "their papers, written out",
        "models/test_small_networks.py::test_forward_pass_is_the_papers",
        networks,
    ),
    Row(
        "Initialisations",
        "uoguelph-mlrg/Cutout, google-research/uda",
        "models/test_small_networks.py::test_initialisation_is_that_of_the_released_code",
        initialisations,
    ),
    Row(
        "UDA: strong augmentation",
        "google-research/uda",
        "ssl_uda/test_policy.py::test_every_operation_is_pils_to_the_bit",
        uda_policy,
    ),
    Row(
        "UDA: objective",
        "google-research/uda, Xie et al., 2020",
        "ssl_uda/test_uda_losses.py::test_uda_is_its_objective_one_image_after_the_other",
        uda_objective,
    ),
    Row(
        "FixMatch: objective",
        "google-research/fixmatch, Sohn et al., 2020",
        "ssl_uda/test_uda_losses.py::test_fixmatch_is_its_algorithm_one_image_after_the_other",
        fixmatch_objective,
    ),
    Row(
        "UDA: learning rate",
        "google-research/uda",
        "ssl_uda/test_uda_losses.py::test_learning_rate_is_seven_sixteenths_of_a_cosine",
        uda_rate,
    ),
    Row(
        "Re-identification: triplet loss",
        "Hermans et al., 2017",
        "reid/test_losses.py::test_triplet",
        triplet,
    ),
    Row(
        "Re-identification: re-ranking",
        "Zhong et al., 2017",
        "reid/test_rerank.py::test_is_the_paper",
        reranking,
    ),
    Row(
        "Re-identification: mAP and rank-1",
        "Market-1501's protocol",
        "reid/test_evaluate.py::test_is_the_protocol",
        ranking,
    ),
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="rows whose operation or source contains this"
    )
    parser.add_argument(
        "--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}; needs all rows"
    )
    return parser


def table(rows: Sequence[Row]) -> str:
    lines = ["| operation | source | agreement | test |", "|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row.operation} | {row.source} | {row.measure()} | `tests/{row.test}` |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    rows = [row for row in ROWS if args.only in f"{row.operation} {row.source}"]
    if not rows or (args.write and len(rows) < len(ROWS)):
        print(
            f"error: --only {args.only!r} {'goes without --write' if rows else 'fits no row'}",
            file=sys.stderr,
        )
        return 2
    sys.path[:0] = [
        str(TESTS),
        *(str(TESTS / name) for name in ("core", "data", "models", "ssl_uda", "reid")),
    ]
    text = table(rows)
    print(text)
    if args.write:
        PAGE.write_text(f"{HEAD}\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
