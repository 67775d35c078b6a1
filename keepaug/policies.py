"""Image-level augmentation: a clean and a strongly augmented view of one image, with the same crop and flip.

The operations and policies are torchvision's; the ranges of their magnitudes are torchvision's or those of
Google's released code. They draw from torch's global CPU generator; `TwoViews` therefore runs them in a fork
of it, seeded from the caller's generator, so that an explicit generator decides everything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from keepaug.choices import OPERATIONS, ORDERS, RANGES
from keepaug.ops import check_batch
from keepaug.regions import given

if TYPE_CHECKING:
    from torchvision.transforms import v2

# torchvision's private names that this module rests on, said here alone; a test names the versions.
_SPACE, _APPLY, _PAIRS = "_AUGMENTATION_SPACE", "_apply_image_or_video_transform", "_policies"
_POLICIES = ("cifar10", "imagenet", "svhn")
_GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_ENHANCERS = ("Brightness", "Color", "Contrast", "Sharpness")
_MAX_LEVEL = 10
_LARGE = 128  # pixels: from here on the ranges of the code for ImageNet, below those of the code for CIFAR-10
_TRANSLATIONS = {"cifar10": 10 / 32, "imagenet": 100 / 224, "augmix": 1 / 3}  # as a share of the side


def google_magnitude(
    name: str, level: Tensor, image_size: tuple[int, int], *, code: str | None = None
) -> Tensor | None:
    """Strength of an operation at a level in [0, 10], as in AutoAugment's and RandAugment's released code.

    The code for CIFAR-10 (tensorflow/models, `research/autoaugment`) and the one for ImageNet
    (tensorflow/tpu, `efficientnet/autoaugment`) differ: at level 10, posterizing leaves no bits or 4,
    solarizing has a threshold of 0 or 256, and a translation is 10 pixels of 32 or 100 of 224.

    Args:
        name: torchvision's name of the operation.
        level: (...) float64.
        image_size: (H, W).
        code: "cifar10", "imagenet", or "augmix" (CIFAR-10's with translations of a third of the side); None
            is CIFAR-10's below 128 pixels and ImageNet's from there on.

    Returns:
        (...) float64, what torchvision's operation of that name takes, without a sign; None for nothing.
    """
    code = code or ("imagenet" if max(image_size) >= _LARGE else "cifar10")

    def whole(maximum: float) -> Tensor:
        """`int(level * maximum / 10)`."""
        return (level * maximum / _MAX_LEVEL + 1e-9).floor()

    if name in ("ShearX", "ShearY"):
        return level * 0.3 / _MAX_LEVEL
    if name in ("TranslateX", "TranslateY"):
        return whole(_TRANSLATIONS[code] * image_size[name == "TranslateX"])
    if name == "Rotate":
        return whole(30)
    if name in _ENHANCERS:
        return level * 1.8 / _MAX_LEVEL + 0.1 - 1
    if name == "Posterize":
        return whole(4) if code == "imagenet" else 4 - whole(4)
    if name == "Solarize":  # half a grey level less: a threshold between whole ones survives rounding
        return ((whole(256) if code == "imagenet" else 256 - whole(256)) - 0.5) / 255
    return None


def _google_magnitudes(name: str, num_bins: int, height: int, width: int) -> Tensor | None:
    """In the form of torchvision's tables: (num_bins,), of levels up to 10, or 9 where there are ten."""
    level = torch.arange(num_bins, dtype=torch.float64) * _MAX_LEVEL / max(_MAX_LEVEL, num_bins - 1)
    return google_magnitude(name, level, (height, width))


def _variant(
    kind: type[v2.Transform], like: type[v2.Transform], ranges: str, again: Any
) -> type[v2.Transform]:
    """RandAugment or AutoAugment with the operations of `like` and other ranges; `again` makes a copy."""
    from torchvision.transforms import v2

    space: Any = getattr(like, _SPACE)
    if ranges == "google":
        space = {name: (functools.partial(_google_magnitudes, name), name in _GEOMETRY) for name in space}

    def apply(self: Any, image: Any, name: str, magnitude: float, **options: Any) -> Any:
        if name == "Solarize" and magnitude > 1:  # a threshold of 256, which torchvision refuses
            return image
        if name == "Posterize" and magnitude == 0:  # no bits, which Pillow refuses
            return v2.functional.adjust_brightness(image, 0.0)
        return getattr(kind, _APPLY)(self, image, name, magnitude, **options)

    members = {
        _SPACE: space,
        _APPLY: apply,
        "__reduce__": lambda self: (again, ()),  # loader workers that are not forked unpickle it
    }
    return type(f"{kind.__name__}Variant", (kind,), members)


def _check_ranges(ranges: str) -> None:
    if ranges not in RANGES:
        raise ValueError(f"ranges must be one of {', '.join(RANGES)}, got {ranges!r}")


def rand_augment(
    num_ops: int = 2,
    magnitude: int = 9,
    *,
    magnitude_max: int = 30,
    operations: str = "rand_augment",
    ranges: str = "torchvision",
    fill: float | list[float] | None = None,
) -> v2.Transform:
    """RandAugment (Cubuk et al., 2020): `num_ops` operations of one magnitude.

    Args:
        num_ops: operations per image, drawn with replacement.
        magnitude: of all of them, from 0 to `magnitude_max`.
        magnitude_max: the magnitude that stands for the whole range: 10 in Google's released code, of which 9
            is nine tenths; 30 in torchvision and other public ports, and where magnitudes above 10 are
            compared.
        operations: whose: "rand_augment" (14, the identity among them), or "auto_augment" (AutoAugment's 14,
            which have Invert instead). The latter is how we read "the AutoAugment policy space" at a
            "distortion augmentation magnitude" (section 4.1, table 4): AutoAugment's policy has none.
        ranges: "torchvision", or "google" (`google_magnitude`): translations are shorter, brightness, colour,
            contrast and sharpness have factors from 0.1 to 1.9 that rise with the magnitude.
        fill: colour outside of the image, in [0, 255]; None is black. Google has the mean (CIFAR-10) or 128.

    Raises:
        ValueError: magnitude outside [0, magnitude_max], num_ops below 1, unknown operations or ranges.
    """
    if magnitude_max < 1 or not 0 <= magnitude <= magnitude_max:
        raise ValueError(
            f"magnitude must be in [0, {magnitude_max}], which magnitude_max says, got {magnitude}"
        )
    _check_ranges(ranges)
    if num_ops < 1:
        raise ValueError(f"num_ops must be 1 or more, got {num_ops}")
    if operations not in OPERATIONS:
        raise ValueError(f"operations must be one of {', '.join(OPERATIONS)}, got {operations!r}")
    from torchvision.transforms import v2  # inside: torchvision is slow to import, and the rest does without

    kind: Any = v2.RandAugment
    if operations == "auto_augment" or ranges == "google":
        like = v2.AutoAugment if operations == "auto_augment" else v2.RandAugment
        how: dict[str, Any] = {"operations": operations, "ranges": ranges, "fill": fill}
        again = functools.partial(rand_augment, num_ops, magnitude, magnitude_max=magnitude_max, **how)
        kind = _variant(v2.RandAugment, like, ranges, again)
    return kind(
        num_ops=num_ops,
        magnitude=magnitude,
        num_magnitude_bins=magnitude_max + 1,
        interpolation=v2.InterpolationMode.NEAREST,
        fill=fill,
    )


def auto_augment(
    policy: str = "cifar10", *, ranges: str = "torchvision", fill: float | list[float] | None = None
) -> v2.Transform:
    """AutoAugment (Cubuk et al., 2019) with its learnt policy "cifar10", "imagenet" or "svhn".

    The policies are the 25 pairs of the paper's appendix. The released code has 95 for CIFAR-10, with these.

    Args:
        policy: which.
        ranges: as in `rand_augment`.
        fill: as in `rand_augment`.

    Raises:
        ValueError: unknown policy or ranges.
    """
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(_POLICIES)}, got {policy!r}")
    _check_ranges(ranges)
    from torchvision.transforms import v2

    kind: Any = v2.AutoAugment
    if ranges == "google":
        again = functools.partial(auto_augment, policy, ranges=ranges, fill=fill)
        kind = _variant(v2.AutoAugment, v2.AutoAugment, ranges, again)
    return kind(v2.AutoAugmentPolicy(policy), interpolation=v2.InterpolationMode.NEAREST, fill=fill)


def aug_mix(
    severity: int = 3,
    mixture_width: int = 3,
    chain_depth: int = -1,
    alpha: float = 1.0,
    *,
    all_ops: bool = False,
) -> AugMix:
    """AugMix (Hendrycks et al., 2020) of one image; its consistency loss is `keepaug.baselines.three_views`.

    Each operation has a level of its own, uniform from 0.1 to the severity, as in the released code;
    torchvision's `AugMix` draws whole ones below the severity.

    Args:
        severity: in [1, 10].
        mixture_width: chains that are mixed.
        chain_depth: operations per chain; -1 draws 1 to 3.
        alpha: of the Dirichlet and Beta distributions of the weights.
        all_ops: brightness, contrast, colour and sharpness too; the released code leaves them out by default,
            because its benchmark tests robustness to them.

    Raises:
        ValueError: severity outside [1, 10], or a width below 1.
    """
    if not 1 <= severity <= 10:
        raise ValueError(f"severity must be in [1, 10], got {severity}")
    if mixture_width < 1:
        raise ValueError(f"mixture_width must be 1 or more, got {mixture_width}")
    return AugMix(severity, mixture_width, chain_depth, alpha, all_ops)


class AugMix:
    """What `aug_mix` returns: a callable on a PIL image or a uint8 tensor (3, H, W)."""

    def __init__(
        self, severity: int, mixture_width: int, chain_depth: int, alpha: float, all_ops: bool
    ) -> None:
        from torchvision.transforms import v2

        self.severity, self.mixture_width, self.chain_depth = severity, mixture_width, chain_depth
        self.alpha, self.all_ops = alpha, all_ops
        self._operations: Any = v2.AugMix(interpolation=v2.InterpolationMode.BILINEAR)
        space = getattr(self._operations, _SPACE)
        self._names = [name for name in space if all_ops or name not in _ENHANCERS]

    def __call__(self, image: Any) -> Any:
        """The mixture, of the image's own kind, with torch's global CPU generator."""
        from torchvision.transforms.v2 import functional as transforms

        pixels = image if isinstance(image, Tensor) else transforms.pil_to_tensor(image)
        share = self._dirichlet(2)
        weights = self._dirichlet(self.mixture_width)
        mixed = share[0] * pixels.double()
        for weight in weights:
            depth = self.chain_depth if self.chain_depth > 0 else int(torch.randint(1, 4, ()))
            chain = pixels
            for _ in range(depth):
                chain = self._operate(chain)
            mixed += share[1] * weight * chain.double()
        mixed = mixed.round().to(torch.uint8)
        return mixed if isinstance(image, Tensor) else transforms.to_pil_image(mixed)

    def _dirichlet(self, num: int) -> Tensor:
        return torch._sample_dirichlet(torch.full((num,), self.alpha, dtype=torch.float64))

    def _operate(self, pixels: Tensor) -> Tensor:
        name = self._names[int(torch.randint(len(self._names), ()))]
        level = 0.1 + (self.severity - 0.1) * torch.rand((), dtype=torch.float64)
        strength = google_magnitude(name, level, (pixels.shape[-2], pixels.shape[-1]), code="augmix")
        magnitude = 0.0 if strength is None else float(strength)
        if name in _GEOMETRY and torch.rand(()) < 0.5:
            magnitude = -magnitude
        return self._apply(pixels, name, magnitude)

    def _apply(self, pixels: Tensor, name: str, magnitude: float) -> Tensor:
        options = {"interpolation": self._operations.interpolation, "fill": self._operations._fill}
        result: Tensor = getattr(self._operations, _APPLY)(pixels, name, magnitude, **options)
        return result

    def __repr__(self) -> str:
        given = (self.severity, self.mixture_width, self.chain_depth, self.alpha)
        return f"AugMix({', '.join(map(str, given))}, all_ops={self.all_ops})"


class BatchPolicy:
    """RandAugment or AutoAugment of a whole batch.

    Each image has its own draws, each operation runs once for all it fell to. For the same draws the results
    are torchvision's, to the bit, and the draws have its distribution. On small images, where a call costs
    more than its work, this is several times faster.

    Args:
        policy: from `rand_augment` or `auto_augment`.

    Raises:
        TypeError: another transform.

    Example:
        >>> strong = BatchPolicy(rand_augment(2, 9))(pixels, generator=torch.Generator().manual_seed(0))
    """

    def __init__(self, policy: v2.Transform) -> None:
        from torchvision.transforms import v2

        if not isinstance(policy, v2.RandAugment | v2.AutoAugment):
            raise TypeError(
                f"expected what rand_augment or auto_augment returns, got {type(policy).__name__}; other "
                "transforms run image by image"
            )
        self.policy: Any = policy
        self._turns: dict[tuple[int, int], list[_Turn]] = {}
        self._operations: list[tuple[str, float]] = []

    def draw(self, seeds: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, list[tuple[str, float]]]:
        """What is done to each image.

        Args:
            seeds: (N,) int64, each deciding one image's draws.
            image_size: (H, W), which translations depend on.

        Returns:
            (N, turns) int64 positions in the list of operations, -1 for none; the list: names, signed
                magnitudes.
        """
        turns = self._turns_of(image_size)
        uniform = _uniform(seeds, 3 * len(turns)).view(len(seeds), len(turns), 3)
        one_choice = hasattr(self.policy, _PAIRS)  # AutoAugment draws a pair of operations
        chosen = []
        for number, turn in enumerate(turns):
            choice = (uniform[:, 0 if one_choice else number, 0] * len(turn.p)).long()
            signed = torch.where(uniform[:, number, 1] < 0.5, turn.negative[choice], turn.positive[choice])
            chosen.append(torch.where(uniform[:, number, 2] < turn.p[choice], signed, -1))
        return torch.stack(chosen, dim=1), self._operations

    def __call__(
        self, images: Tensor, seeds: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The augmented images.

        Args:
            images: (N, 3, H, W) uint8 on the CPU; not written to.
            seeds: (N,) int64, each deciding one image's draws, whatever the batch; None draws them.
            generator: source of the seeds; None is torch's global one.

        Raises:
            ValueError: not such images, or not one seed each.
        """
        check_batch(images)
        if images.dtype != torch.uint8:
            raise ValueError(
                "a policy changes uint8 (N, 3, H, W) images, before the normalization; got "
                f"{images.dtype} {tuple(images.shape)}"
            )
        if seeds is None:
            device = None if generator is None else generator.device
            seeds = torch.randint(2**62, (len(images),), device=device, **given(generator)).cpu()
        if seeds.shape != images.shape[:1]:
            raise ValueError(f"expected {len(images)} seeds, got {tuple(seeds.shape)} seeds")
        return self._applied(images, seeds, self.policy._fill)

    def sources(self, image_size: tuple[int, int], seeds: Tensor) -> Tensor:
        """Where each pixel of the augmented images comes from.

        Args:
            image_size: (H, W).
            seeds: (N,) int64, as for a call.

        Returns:
            (N, H, W) int64, row * W + column in the image; -1 where the image does not reach.
        """
        height, width = image_size
        rows, columns = torch.arange(1.0, height + 1), torch.arange(1.0, width + 1)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).repeat(len(seeds), 1, 1, 1)
        row, column = self._applied(places, seeds, {Tensor: 0}, only=_GEOMETRY).long().unbind(dim=1)
        return torch.where(row > 0, (row - 1) * width + column - 1, -1)

    def _applied(
        self, images: Tensor, seeds: Tensor, fill: Any, only: tuple[str, ...] | None = None
    ) -> Tensor:
        policy = self.policy
        chosen, operations = self.draw(seeds, (images.shape[2], images.shape[3]))
        images = images.clone()
        for turn in chosen.unbind(dim=1):
            for position in sorted(set(turn.tolist())):
                if position >= 0 and (only is None or operations[position][0] in only):
                    rows = (turn == position).nonzero()[:, 0]
                    name, magnitude = operations[position]
                    images[rows] = getattr(policy, _APPLY)(
                        images[rows], name, magnitude, interpolation=policy.interpolation, fill=fill
                    )
        return images

    def _turns_of(self, image_size: tuple[int, int]) -> list[_Turn]:
        if image_size not in self._turns:
            self._turns[image_size] = [self._turn(options, image_size) for options in self._options()]
        return self._turns[image_size]

    def _options(self) -> list[list[tuple[str, float, int | None]]]:
        """For each turn: the equally likely operations, their probability and their magnitude's position."""
        policy = self.policy
        if hasattr(policy, _PAIRS):
            return [list(options) for options in zip(*getattr(policy, _PAIRS), strict=True)]
        return [[(name, 1.0, policy.magnitude) for name in getattr(policy, _SPACE)]] * policy.num_ops

    def _turn(self, options: list[tuple[str, float, int | None]], image_size: tuple[int, int]) -> _Turn:
        policy, bins = self.policy, getattr(self.policy, "num_magnitude_bins", 10)
        p, positive, negative = [], [], []
        for name, probability, place in options:
            magnitudes, signed = getattr(policy, _SPACE)[name]
            values = magnitudes(bins, *image_size)
            magnitude = 0.0 if values is None else float(values[place])
            p.append(probability)
            positive.append(self._position(name, magnitude))
            negative.append(self._position(name, -magnitude if signed else magnitude))
        return _Turn(torch.tensor(p, dtype=torch.float64), torch.tensor(positive), torch.tensor(negative))

    def _position(self, name: str, magnitude: float) -> int:
        if (name, magnitude) not in self._operations:
            self._operations.append((name, magnitude))
        return self._operations.index((name, magnitude))

    def __repr__(self) -> str:
        return f"BatchPolicy({self.policy!r})"


class _Turn(NamedTuple):
    """What one operation of an image can be: (options,) probability, and position with either sign."""

    p: Tensor
    positive: Tensor
    negative: Tensor


def _uniform(seeds: Tensor, count: int) -> Tensor:
    """(N, count) float64 in [0, 1) from (N,) int64 seeds: SplitMix64 (Steele et al., 2014), wrapping."""

    def shifted(values: Tensor, bits: int) -> Tensor:
        return (values >> bits) & ((1 << (64 - bits)) - 1)

    state = seeds[:, None] + torch.arange(1, count + 1) * -0x61C8864680B583EB
    state = (state ^ shifted(state, 30)) * -0x40A7B892E31B1A47
    state = (state ^ shifted(state, 27)) * -0x6B2FB644ECCEEE15
    return shifted(state ^ shifted(state, 31), 11).double() * 2.0**-53


class Repeated:
    """Several draws of one policy on the same image, as a tuple of views.

    Args:
        policy: image to image.
        num_views: 1 or more; AugMix's consistency loss takes 2.
    """

    def __init__(self, policy: Callable[[Any], Any], num_views: int) -> None:
        if num_views < 1:
            raise ValueError(f"num_views must be 1 or more, got {num_views}")
        self.policy, self.num_views = policy, num_views

    def __call__(self, image: Any) -> tuple[Any, ...]:
        """The views, each with random numbers of its own."""
        return tuple(self.policy(image) for _ in range(self.num_views))

    def __repr__(self) -> str:
        return f"Repeated({self.policy!r}, {self.num_views})"


class TwoViews:
    """Two views of an image that agree pixel by pixel in geometry, so that a region can be pasted back.

    Args:
        geometry: crop and flip, applied once, before both; None for none.
        policy: the strong, image-level augmentation, applied to the second view.
        order: "after_crop": the policy sees what `geometry` made; "before_crop": it sees the whole image and
            `geometry` follows, as in AutoAugment's code for CIFAR-10. The views agree pixel by pixel in both.

    Raises:
        ValueError: unknown order.

    Example:
        >>> views = TwoViews(v2.RandomCrop(32, padding=4), rand_augment(2, 9))
        >>> clean, strong = views(image)
    """

    def __init__(
        self,
        geometry: Callable[[Any], Any] | None,
        policy: Callable[[Any], Any],
        *,
        order: str = "after_crop",
    ) -> None:
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        self.geometry = geometry
        self.policy = policy
        self.order = order

    def __call__(self, image: Any, *, generator: torch.Generator | None = None) -> tuple[Any, Any]:
        """Both views of one image.

        Args:
            image: PIL image or uint8 tensor (C, H, W), whatever the transforms take.
            generator: CPU generator that decides everything; None is torch's global one.

        Returns:
            The clean and the strongly augmented view.
        """
        if generator is None:
            return self._views(image)
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach CUDA too
            return self._views(image)

    def _views(self, image: Any) -> tuple[Any, Any]:
        if self.geometry is None:
            return image, self.policy(image)
        if self.order == "after_crop":
            clean = self.geometry(image)
            return clean, self.policy(clean)
        strong = self.policy(image)
        with torch.random.fork_rng(devices=[]):
            clean = self.geometry(image)
        return clean, self.geometry(strong)  # with the random numbers of the line before

    def __repr__(self) -> str:
        return f"TwoViews(geometry={self.geometry!r}, policy={self.policy!r}, order={self.order!r})"
