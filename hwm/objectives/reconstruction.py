"""How good a tokenizer's reconstruction is, as a loss: absolute error, a perceptual distance, and an adversary.

Sources: Esser, Rombach and Ommer, "Taming transformers for high-resolution image synthesis" (CVPR 2021,
arXiv 2012.09841): a patch discriminator beside a perceptual distance, balanced by the size of gradients, that begins
late; Lim and Ye, "Geometric GAN" (arXiv 1705.02894): the hinge loss; Isola et al., "Image-to-image translation with
conditional adversarial networks" (CVPR 2017, arXiv 1611.07004): discriminators of patches.

Shape suffixes: B batch, F frames, C channels, H W picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hwm.errors import HwmError
from hwm.networks.efficientnet import SCALES, load_efficientnet
from hwm.networks.lpips import LPIPS, SMALLEST, load_lpips


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """What reconstructions are judged by, and how much each says beside the mean absolute error, whose weight is 1.

    Errors are of values in [-1, 1].

    Attributes:
        squared: weight of the mean squared error.
        perceptual: weight of LPIPS, where `lpips` names its weights.
        lpips: files with the weights of LPIPS (see `hwm.networks.lpips`); empty leaves it out.
        adversarial: weight of the adversary; 0 leaves it out.
        adaptive: multiply that weight by how much larger the gradient of all else is than that of the adversary.
        begins: forward passes of training before the adversary begins; an update has `train.accumulate` of them.
        reach: frames that a layer of the discriminator sees at once, an odd number; 1 weights each frame by itself.
        width: channels of the discriminator's first layer, a multiple of 8; each halving after it doubles them.
        halvings: how often it halves the resolution, in space and, where `reach` is more than 1, in time.
    """

    squared: float = 0.0
    perceptual: float = 1.0
    lpips: tuple[str, ...] = ()
    adversarial: float = 0.0
    adaptive: bool = True
    begins: int = 0
    reach: int = 3
    width: int = 64
    halvings: int = 3

    def __post_init__(self) -> None:
        if min(self.squared, self.perceptual, self.adversarial, self.begins) < 0:
            raise HwmError(f"the weights of a loss, and when it begins, are not negative: {self}")
        if self.reach < 1 or not self.reach % 2 or self.width < 8 or self.width % 8 or self.halvings < 1:
            raise HwmError(
                "a discriminator needs an odd reach, a width that is a multiple of 8, and at least one halving: "
                f"reach={self.reach}, width={self.width}, halvings={self.halvings}"
            )


class Discriminator(nn.Sequential):
    """Video (B, 3, F, H, W) in [-1, 1] -> how real each of its patches looks, (B, 1, f, h, w)."""

    def __init__(self, weights: LossWeights) -> None:
        time, layers = weights.reach, list[nn.Module]()
        stride, padding, before = (min(time, 2), 2, 2), (time // 2, 1, 1), 3
        for i in range(weights.halvings):
            after = weights.width << i
            layers += [nn.Conv3d(before, after, (time, 4, 4), stride, padding)]
            layers += [nn.GroupNorm(8, after)] if i else []
            layers += [nn.LeakyReLU(0.2)]
            before = after
        layers += [nn.Conv3d(before, 1, (time, 3, 3), padding=padding)]
        super().__init__(*layers)


class Adversary(nn.Module):
    """A discriminator, and both sides of its game in one loss: one backward pass and one optimizer train both.

    The discriminator's own loss sees reconstructions without their history, so its gradient ends in the discriminator.
    The tokenizer's loss goes through the discriminator with its weights taken for constants, so its gradient ends in
    the tokenizer. Both steps are taken at once, from the same weights, where others take turns.
    """

    passes: Tensor

    def __init__(self, weights: LossWeights) -> None:
        super().__init__()
        self.loss_weights, self.discriminator = weights, Discriminator(weights)
        # in the checkpoint, so that a resumed run begins when an uninterrupted one does
        self.register_buffer("passes", torch.zeros(()))
        # how many more until it begins: read from the device once, for the host waits for it, and counted down here
        self.left: int | None = None
        self.register_load_state_dict_post_hook(lambda *_: setattr(self, "left", None))

    def forward(self, made_BFCHW: Tensor, truth_BFCHW: Tensor, other: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What to add to the loss, scalar, and scalars worth logging; `other` is the loss without the adversary."""
        if self.left is None:
            self.left = int((self.loss_weights.begins - self.passes).clamp(min=0))
        self.passes += 1
        if self.left:
            self.left -= 1
            return torch.zeros_like(other), {}
        made, truth = made_BFCHW.transpose(1, 2), truth_BFCHW.transpose(1, 2)
        frozen = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        fooled = -functional_call(self.discriminator, frozen, (made,)).mean()
        real, fake = self.discriminator(truth), self.discriminator(made.detach())
        hinge = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        weight = balance(other, fooled, made_BFCHW) if self.loss_weights.adaptive else torch.ones_like(other)
        values = {"discriminator": hinge, "real": real.mean(), "fake": fake.mean(), "adversarial_weight": weight}
        return self.loss_weights.adversarial * weight * fooled + hinge, {k: v.detach() for k, v in values.items()}


def balance(other: Tensor, fooled: Tensor, made: Tensor, limit: float = 1e4) -> Tensor:
    """How much larger one loss's gradient in the pictures is than another's, at most `limit`; a constant.

    Esser et al. compare the gradients in the weights of the last layer, which every gradient in the pictures passes
    through. In the pictures themselves they cost no pass through the tokenizer.
    """
    ours, theirs = (torch.autograd.grad(x, made, retain_graph=True)[0].norm() for x in (other, fooled))
    return (ours / theirs.clamp_min(torch.finfo(theirs.dtype).tiny)).clamp(max=limit).detach()


def reconstruction_loss(
    weights: LossWeights, adversary: Adversary | None, made_BFCHW: Tensor, truth_BFCHW: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Scalar loss of reconstructions in about [-1, 1], and scalars worth logging.

    The adversary takes part in training alone: held-out losses stay comparable, whenever it begins.

    Raises:
        HwmError: the weights of LPIPS cannot be read, or pictures are too small for it.
    """
    # the balance asks for gradients in the pictures, which a graph of both would not give; to say so where the function
    # is defined would import the compiler with it, which takes longer than all the rest of the package
    loss = torch.compiler.disable(_loss) if torch.compiler.is_compiling() else _loss
    return loss(weights, adversary, made_BFCHW, truth_BFCHW)


def _loss(
    weights: LossWeights, adversary: Adversary | None, made_BFCHW: Tensor, truth_BFCHW: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    error = made_BFCHW - truth_BFCHW
    squared = error.square()
    loss = absolute = error.abs().mean()
    values = {"absolute": absolute, "psnr": -10 * torch.log10((squared / 4).mean((2, 3, 4)).clamp_min(1e-8)).mean()}
    if weights.squared:
        loss = loss + weights.squared * squared.mean()
    if weights.lpips and weights.perceptual:
        values["lpips"] = lpips(weights.lpips, made_BFCHW, truth_BFCHW)
        loss = loss + weights.perceptual * values["lpips"]
    if adversary is not None and adversary.training:
        added, more = adversary(made_BFCHW, truth_BFCHW, loss)
        loss, values = loss + added, values | more
    return loss, {k: v.detach() for k, v in values.items()}


def lpips(files: tuple[str, ...], made_BFCHW: Tensor, truth_BFCHW: Tensor) -> Tensor:
    """Mean LPIPS of frames in [-1, 1], with gradients."""
    if min(made_BFCHW.shape[-2:]) < SMALLEST:
        raise HwmError(
            f"LPIPS needs pictures of at least {SMALLEST} x {SMALLEST}; leave out --model.loss-weights.lpips"
        )
    network = _network(files, made_BFCHW.device)
    made, truth = ((x.flatten(0, 1) + 1) / 2 for x in (made_BFCHW, truth_BFCHW))
    distance: Tensor = network.distance(made, truth)
    return distance.mean()


def lite_distance(made_NCHW: Tensor, truth_NCHW: Tensor, scales: int = SCALES) -> Tensor:
    """Mean perceptual distance of pictures in about [-1, 1] by EfficientNet-Lite0, with gradients in those made.

    Raises:
        HwmError: as `hwm.networks.efficientnet`: its weights are not installed, pictures are too small, no such scales.
    """
    distance = torch.compiler.disable(_lite) if torch.compiler.is_compiling() else _lite
    return distance(made_NCHW, truth_NCHW, scales)


def _lite(made_NCHW: Tensor, truth_NCHW: Tensor, scales: int) -> Tensor:
    network = load_efficientnet(made_NCHW.device)
    return network.distance((made_NCHW + 1) / 2, (truth_NCHW + 1) / 2, scales).mean()


@lru_cache(maxsize=2)
def _network(files: tuple[str, ...], device: torch.device) -> LPIPS:
    """Kept apart from the tokenizer, whose checkpoints need no weights of others; made outside inference mode."""
    with torch.inference_mode(False):
        return load_lpips(files, device)
