"""Datasets and the loader: formats, exact resumption, independence of workers and processes."""

from __future__ import annotations

import gzip
import os
import pickle
import tarfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from keepaug import rand_augment
from keepaug.data.batch_transforms import (
    Colours,
    change_colours,
    draw_colours,
    normalize,
    random_crop_flip,
)
from keepaug.data.cifar import load_cifar10
from keepaug.data.folder import open_folder
from keepaug.data.identity import describe_files, describe_tensors
from keepaug.data.imagenet import read_train
from keepaug.data.images import Batch, FileImages, MemoryImages, decode_all, one_by_one
from keepaug.data.loader import Loader, default_workers
from keepaug.policies import Repeated


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, number in (("train", 3), ("val", 2)):
        for index, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            for n in range(number):
                pixels = np.random.default_rng(10 * index + n).integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{n}.png")
    return tmp_path


def memory(num: int = 23, **options) -> MemoryImages:
    images = torch.randint(
        0, 256, (num, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return MemoryImages(images, torch.arange(num) % 3, ["a", "b", "c"], **options)


def epochs(loader, number: int) -> list:
    return [batch for _ in range(number) for batch in loader]


def same(first, second) -> bool:
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("stop", [1, 3, 5, 6, 9])
def test_resumes_exactly_at_any_batch(stop: int) -> None:
    whole = epochs(Loader(memory(padding=2, flip=True), 4, seed=1, shuffle=True, drop_last=True), 2)
    loader = Loader(memory(padding=2, flip=True), 4, seed=1, shuffle=True, drop_last=True)
    taken = 0
    state = None
    while state is None:
        for _ in loader:
            taken += 1
            if taken == stop:
                state = loader.state_dict()
                break
    fresh = Loader(memory(padding=2, flip=True), 4, seed=1, shuffle=True, drop_last=True)
    fresh.load_state_dict(state)
    rest = []
    while fresh.epoch < 2:
        rest += list(fresh)
    assert len(rest) == 10 - stop
    assert all(same(a, b) for a, b in zip(rest, whole[stop:], strict=True))


def test_every_image_once_per_epoch_in_a_new_order() -> None:
    loader = Loader(memory(), 5, seed=1, shuffle=True)
    first, second = (torch.cat([batch.indices for batch in loader]) for _ in range(2))
    assert torch.equal(first.sort().values, torch.arange(23))
    assert not torch.equal(first, second)


def test_workers_and_processes_change_nothing(folder: Path) -> None:
    (paths, labels), _, classes = open_folder(folder)
    images = FileImages(paths, labels, classes, read=partial(read_train, size=16), policy=rand_augment(2, 9))
    alone = epochs(Loader(images, 4, seed=3, shuffle=True), 1)
    workers = epochs(Loader(images, 4, seed=3, shuffle=True, num_workers=2), 1)
    assert all(same(a, b) for a, b in zip(alone, workers, strict=True))
    parts = [epochs(Loader(images, 4, seed=3, shuffle=True, rank=rank, world_size=2), 1) for rank in range(2)]
    for batch, even, odd in zip(alone, *parts, strict=True):
        assert torch.equal(batch.images[0::2], even.images)
        assert torch.equal(batch.images[1::2], odd.images)


class Watched(MemoryImages):
    """Says which process made a batch, in its seeds."""

    def load(self, indices: torch.Tensor, seeds: torch.Tensor) -> Batch:
        return super().load(indices, seeds)._replace(seeds=torch.tensor([os.getpid()]))


def test_workers_stay_from_epoch_to_epoch_and_leave_with_the_loader() -> None:
    given = memory()
    images = Watched(given.images, given.labels, given.classes, padding=2, flip=True)
    loader = Loader(images, 4, seed=1, shuffle=True, num_workers=2)
    workers = [{int(batch.seeds) for batch in loader} for _ in range(3)]
    assert workers[0] == workers[1] == workers[2]
    assert len(workers[0] - {os.getpid()}) == 2
    del loader
    for worker in workers[0]:
        deadline = time.monotonic() + 20
        while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{worker}").exists()


def test_workers_that_stay_go_on_after_a_break() -> None:
    """The epoch is left in the middle, with batches under way, and taken up again."""
    whole = epochs(Loader(memory(padding=2, flip=True), 4, seed=1, shuffle=True), 2)
    loader = Loader(memory(padding=2, flip=True), 4, seed=1, shuffle=True, num_workers=2)
    taken = []
    for stop in (2, 3, 6, len(whole)):
        while len(taken) < stop:
            for batch in loader:
                taken.append(batch)
                if len(taken) == stop:
                    break
    assert all(same(a, b) for a, b in zip(taken, whole, strict=True))


def test_default_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(24)), raising=False)
    assert default_workers(torch.device("cpu"), in_memory=False) == 0
    assert default_workers(torch.device("cuda"), in_memory=True) == 4
    assert default_workers(torch.device("cuda"), in_memory=False) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_workers(torch.device("cuda"), in_memory=False) == 3


def test_other_data_cannot_be_resumed() -> None:
    state = Loader(memory(23), 4).state_dict()
    with pytest.raises(ValueError, match="23 images in batches of 4; now there are 22"):
        Loader(memory(22), 4).load_state_dict(state)
    with pytest.raises(ValueError, match="no batch would be left"):
        Loader(memory(3), 4, drop_last=True)


def test_crop_and_flip_against_loops() -> None:
    images = torch.randint(0, 256, (50, 3, 6, 7), dtype=torch.uint8)
    seeds = torch.randint(2**62, (50,))
    out = random_crop_flip(images, seeds, padding=2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    flips = 0
    for index in range(50):
        top, left, flip = int(seeds[index] % 5), int(seeds[index] // 5 % 5), int(seeds[index] // 25 % 2)
        wanted = padded[index, :, top : top + 6, left : left + 7]
        assert torch.equal(out[index], wanted.flip(2) if flip else wanted)
        flips += flip
    assert 10 < flips < 40


def test_normalise_and_lighting() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    wanted = (images.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(
        std
    ).double().view(3, 1, 1)
    torch.testing.assert_close(normalize(images, mean, std), wanted.float(), rtol=1e-5, atol=1e-5)
    drawn = draw_colours(4, lighting=0.1, generator=torch.Generator().manual_seed(0))
    noisy = normalize(change_colours(images, None, drawn)[0], mean, std) - wanted.float()
    assert (noisy - noisy[:, :, :1, :1]).abs().max() < 1e-4  # one shift per image and channel
    assert len(noisy[:, 0, 0, 0].unique()) == 4


def test_a_border_can_have_a_colour() -> None:
    """As zero padding of normalised images, which is the mean colour."""
    images, seeds = memory(20).images, torch.arange(20) * 977
    mean = (125.0, 123.0, 114.0)
    shifted = images.float() - torch.tensor(mean).view(3, 1, 1)
    wanted = random_crop_flip(shifted, seeds) + torch.tensor(mean).view(3, 1, 1)
    got = random_crop_flip(images, seeds, border=mean)
    assert got.dtype == torch.uint8
    assert torch.equal(got.float(), wanted)
    with pytest.raises(ValueError, match=r"or 3 numbers; got \(1, 2\)"):
        random_crop_flip(images, seeds, border=(1, 2))


def slow_jitter(image: torch.Tensor, strength: list[float], order: list[int]) -> torch.Tensor:
    """CutMix's released colour jitter, from its description: each step moves the image towards black, its
    mean grey or its own grey by a share that may be negative; nothing is clipped."""
    image = image.double()
    for which in order:
        grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        target = [torch.zeros(()), grey.mean(), grey][which]
        image = torch.stack([channel + strength[which] * (target - channel) for channel in image])
    return image


def test_colour_jitter_is_the_released_one() -> None:
    images = memory(12).images
    drawn = draw_colours(12, jitter=0.4, generator=torch.Generator().manual_seed(1))
    got, nothing = change_colours(images, None, drawn)
    assert nothing is None
    for index, image in enumerate(images):
        wanted = slow_jitter(image, drawn.strength[index].tolist(), drawn.order[index].tolist())
        torch.testing.assert_close(got[index], wanted.float(), rtol=1e-5, atol=1e-3)
    assert float(got.min()) < 0  # the jitter of torchvision would clip
    assert float(got.max()) > 255


def test_draws_of_colours_have_their_distribution() -> None:
    drawn = draw_colours(60_000, jitter=0.4, lighting=0.1, generator=torch.Generator().manual_seed(2))
    assert float(drawn.strength.abs().max()) <= 0.4
    assert float(drawn.strength.mean()) == pytest.approx(0, abs=0.002)
    assert float(drawn.strength.var()) == pytest.approx(0.4**2 / 3, rel=0.02)
    orders = (drawn.order * torch.tensor([9, 3, 1])).sum(dim=1).bincount()
    assert (orders > 0).sum() == 6
    assert float(orders[orders > 0].min()) > 9500
    # the covariance of the noise is that of ImageNet's colours, times its strength squared
    covariance = torch.cov(drawn.shift.double().T / 255)
    assert float(covariance.trace()) == pytest.approx(0.01 * (0.2175**2 + 0.0188**2 + 0.0045**2), rel=0.03)
    assert draw_colours(3) == Colours(None, None, None)


def identity(image):
    return image


GEOMETRY = {
    "crop": {"padding": 2},
    "flip": {"flip": True},
    "reflected": {"padding": 3, "flip": True, "border": "reflect"},
    "mean": {"padding": 3, "flip": True, "border": (125, 123, 114)},
    "alternating": {"padding": 2, "flip": True, "alternate": True},
    "policy first": {"padding": 2, "flip": True, "policy_first": True},
    "files": {},
}


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize(
    "colours", [{}, {"jitter": 0.4}, {"lighting": 0.1}, {"jitter": 0.4, "lighting": 0.1}]
)
@pytest.mark.parametrize("geometry", GEOMETRY)
def test_what_is_no_policy_is_one_draw_for_all_views(
    geometry: str, colours: dict[str, float], num_views: int, folder: Path
) -> None:
    """With the identity for a policy, the strong view is the clean one, whatever else is drawn."""
    policy = identity if num_views == 1 else Repeated(identity, num_views)
    if geometry == "files":
        (paths, labels), _, classes = open_folder(folder)
        data = FileImages(paths, labels, classes, read=partial(read_train, size=24), policy=policy)
    else:
        data = memory(6, policy=one_by_one(policy), **GEOMETRY[geometry])
    seeds = torch.randint(2**62, (6,), generator=torch.Generator().manual_seed(4))
    batch = data.load(torch.arange(6), seeds)
    drawn = draw_colours(6, **colours, generator=torch.Generator().manual_seed(5))
    clean, strong = change_colours(batch.images, batch.strong, drawn)
    for view in (strong,) if num_views == 1 else strong.unbind(dim=1):
        assert torch.equal(view, clean)
    if colours:
        change = (clean - batch.images).flatten(1).abs().mean(dim=1)
        assert (change > 0).all()
        assert len(change.unique()) == 6


def test_a_pasted_patch_has_the_colours_of_its_surroundings() -> None:
    """The change is one function of the pixels, although the two views differ in their mean."""
    images = memory(6).images
    strong = images // 3
    strong[:, :, :4] = images[:, :, :4]
    drawn = draw_colours(6, jitter=0.4, lighting=0.1, generator=torch.Generator().manual_seed(0))
    clean, changed = change_colours(images, strong, drawn)
    assert torch.equal(clean, change_colours(images, None, drawn)[0])  # about its own mean
    torch.testing.assert_close(changed[:, :, :4], clean[:, :, :4])
    assert not torch.allclose(changed[:, :, 4:], clean[:, :, 4:])


def test_strong_view_shares_crop_and_flip() -> None:
    data = memory(8, padding=3, flip=True, policy=one_by_one(lambda image: 255 - image))
    batch = data.load(torch.arange(8), torch.randint(2**62, (8,)))
    assert torch.equal(255 - batch.images, batch.strong)


def test_cifar_from_archive_and_from_folder(tmp_path: Path, folder: Path) -> None:
    batches = tmp_path / "c" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    rng = np.random.default_rng(0)
    every = []
    for name in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        every.append(data)
        with (batches / name).open("wb") as file:
            pickle.dump({"data": data, "labels": [0, 1, 2, 9]}, file)
    (train, labels), (test, _), classes = load_cifar10(tmp_path / "c")
    assert train.shape == (20, 3, 32, 32)
    assert np.array_equal(train[:4].numpy().reshape(4, -1), every[0])
    assert np.array_equal(test.numpy().reshape(4, -1), every[5])
    assert labels.tolist() == [0, 1, 2, 9] * 5
    assert classes[0] == "airplane"

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    with (batches / "data_batch_1").open("wb") as file:
        pickle.dump(Evil(), file)
    with pytest.raises(ValueError, match=r"data_batch_1 is not a batch.*builtins\.print"):
        load_cifar10(tmp_path / "c")
    (batches / "data_batch_1").write_bytes(pickle.dumps({"data": every[0], "labels": [0, 1, 2, 9]}))
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
        archive.add(batches, batches.name)
    assert torch.equal(load_cifar10(tmp_path / "whole.tar.gz")[0][0], train)
    for content in (
        {"data": every[0], "labels": [0, 1, 2]},
        {"data": every[0], "labels": [0, 1, 2, 10]},
        {"data": every[0].astype(np.float32), "labels": [0, 1, 2, 3]},
        {"data": every[0].tolist(), "labels": [0, 1, 2, 3]},
    ):
        (batches / "data_batch_1").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match="data_batch_1 is not a batch"):
            load_cifar10(tmp_path / "c")
    whole = (tmp_path / "whole.tar.gz").read_bytes()
    packed = gzip.compress(bytes(3000))
    for number, damaged in enumerate(
        (packed, packed[:20], packed[:12] + b"x" + packed[13:], whole[:-8] + b"x" + whole[-7:])
    ):
        archive = tmp_path / f"{number}.tar.gz"
        archive.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tar\.gz"):
            load_cifar10(archive)
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 in"):
        load_cifar10(tmp_path / "nowhere")


@pytest.mark.data
def test_real_cifar_folder(data_root: Path) -> None:
    (train, labels), (test, _), classes = load_cifar10(data_root / "cifar10")
    assert train.shape == (50_000, 3, 32, 32)
    assert test.shape == (10_000, 3, 32, 32)
    assert len(classes) == 10
    assert labels.bincount().tolist() == [5000] * 10


def test_folder_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_folder(tmp_path / "nothing")
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*train/train; .* \(it has ant, .*: if these are cl"
    ):
        open_folder(folder / "train")
    with pytest.raises(FileNotFoundError, match=r"is .* meant\?"):
        open_folder(folder.parent)
    (folder / "train" / "cow").mkdir()
    with pytest.raises(ValueError, match="cow has no images"):
        open_folder(folder)
    Image.new("RGB", (9, 9)).save(folder / "train" / "cow" / "a.png")
    with pytest.raises(ValueError, match="only in one: cow"):
        open_folder(folder)
    with pytest.raises(ValueError, match="must have one size: set loading=files and image_size"):
        decode_all([folder / "train" / "cow" / "a.png", folder / "train" / "ant" / "0.png"], "x")
    broken = folder / "train" / "ant" / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        decode_all([broken], "x")


def test_identity_depends_on_the_data(folder: Path) -> None:
    data = memory()
    first = describe_tensors("a", {"train": (data.images, data.labels)})
    changed = data.images.clone()
    changed[0, 0, 0, 0] += 1
    assert first["sizes"] == {"train": 23}
    assert first["checksum"] != describe_tensors("a", {"train": (changed, data.labels)})["checksum"]
    (paths, _), _, _ = open_folder(folder)
    assert describe_files("f", folder, {"train": paths}) == describe_files(
        "f", folder, {"train": list(paths)}
    )
    assert (
        describe_files("f", folder, {"train": paths})["checksum"]
        != describe_files("f", folder, {"train": paths[1:]})["checksum"]
    )


def test_alternate_mirrors_every_image_in_every_second_epoch() -> None:
    data = memory(40, padding=2, flip=True, alternate=True, border="reflect")
    loader = Loader(data, 8, seed=3, shuffle=True, alternate=True)
    mirrored = torch.zeros(4, 40, dtype=torch.bool)
    tops = torch.zeros(4, 40, dtype=torch.int64)
    for epoch in range(4):
        for batch in loader:
            place = data.place_of(batch.seeds)
            mirrored[epoch, batch.indices], tops[epoch, batch.indices] = place.mirrored, place.top
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert torch.equal(mirrored[::2], mirrored[:1].expand(2, 40))
    assert 10 < int(mirrored[0].sum()) < 30
    assert (tops != tops[0]).any(dim=0).sum() > 30  # the crops are new in every epoch


def test_alternate_images_are_mirrored_as_place_of_says() -> None:
    data = memory(10, padding=2, flip=True, alternate=True, border="reflect")
    (batch,) = Loader(data, 10, seed=3, shuffle=True, alternate=True)
    place = data.place_of(batch.seeds)
    assert place.mirrored.any()
    for index, source in enumerate(batch.indices.tolist()):
        image = torch.nn.functional.pad(data.images[source].float(), (2, 2, 2, 2), mode="reflect")
        top, left = int(place.top[index]), int(place.left[index])
        height, width = data.images.shape[2:]
        crop = image[:, top : top + height, left : left + width]
        assert torch.equal(batch.images[index].float(), crop.flip(2) if place.mirrored[index] else crop)


def test_an_alternating_loader_changes_nothing_but_the_mirrors() -> None:
    plain, alternating = (
        Loader(memory(12), 12, seed=5, shuffle=True, alternate=way) for way in (False, True)
    )
    (first,), (second,) = plain, alternating
    assert torch.equal(first.indices, second.indices)
    assert torch.equal(first.seeds, second.seeds & (2**62 - 1))
