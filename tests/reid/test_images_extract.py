"""Resized images from memory or files, and features that depend on nothing but image and network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from reid_helpers import write_image
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from keepaug.data.batch_transforms import normalize
from keepaug.runs.distributed import setup
from reid.data.images import ResizedImages
from reid.evaluation.features import extract_features
from reid.models.network import build_reid_network

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("i")
    found = [root / f"{number}.png" for number in range(7)]
    for number, path in enumerate(found):
        write_image(path, number, 1, number, size=(40 + number, 30 - number))
    return found


def images(paths: list[Path], *, in_memory: bool = True, augment: bool = False) -> ResizedImages:
    labels = torch.arange(len(paths))
    padding = 3 if augment else 0
    return ResizedImages(
        paths, labels, (48, 32), padding=padding, flip=augment, in_memory=in_memory, threads=2
    )


def test_memory_and_files_give_the_same_batches(paths: list[Path]) -> None:
    indices, seeds = torch.tensor([6, 0, 0, 3]), torch.tensor([5, 2**40 + 1, 77, 12345])
    first = images(paths, augment=True).load(indices, seeds)
    second = images(paths, in_memory=False, augment=True).load(indices, seeds)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, indices)
    assert not torch.equal(first.images[1], first.images[2])  # the same image by other seeds
    assert len(images(paths, in_memory=False).resized(torch.tensor([], dtype=torch.int64))) == 0


def test_resizing_is_the_recipes(paths: list[Path]) -> None:
    with Image.open(paths[2]) as image:
        expected = pil_to_tensor(v2.Resize((48, 32))(image))  # PIL's bilinear, as in 2019
    assert torch.equal(images(paths).resized(torch.tensor([2]))[0], expected)


def test_features_are_those_of_the_network_image_by_image(paths: list[Path]) -> None:
    torch.manual_seed(0)
    network = build_reid_network("resnet18", 4)
    network.backbone.train()
    network.neck.eval()
    network.neck.running_mean.fill_(0.3)
    settings = {"mean": MEAN, "std": STD, "world": setup("cpu")}
    after = extract_features(network, images(paths), batch_size=3, **settings)
    before = extract_features(network, images(paths, in_memory=False), after_neck=False, **settings)
    mirrored = extract_features(network, images(paths), flip_test=True, **settings)
    assert network.backbone.training  # as found
    assert not network.neck.training
    network.eval()
    with torch.no_grad():
        for number in range(len(paths)):
            pixels = normalize(images(paths).resized(torch.tensor([number])), MEAN, STD)
            torch.testing.assert_close(after[number], network.features(pixels)[0], rtol=1e-4, atol=1e-5)
            plain = network.features(pixels, after_neck=False)[0]
            torch.testing.assert_close(before[number], plain, rtol=1e-4, atol=1e-5)
            both = (network.features(pixels) + network.features(pixels.flip(3)))[0] / 2
            torch.testing.assert_close(mirrored[number], both, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after, before)
    assert after.dtype == torch.float32


def test_one_label_per_image(paths: list[Path]) -> None:
    with pytest.raises(ValueError, match="got 7 images and 2 labels"):
        ResizedImages(paths, torch.zeros(2), (8, 8))
