"""Models that seem more robust than they are, each built around an honest net, and models that only look odd."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from moat.models import nets


class Remembers(nn.Module):
    """Answers near an earlier query as it did then."""

    def __init__(self, net, radius):
        super().__init__()
        self.net, self.radius, self.queries, self.answers = net, radius, None, None

    def forward(self, x):
        if not bool(torch.isfinite(x).all()):
            raise ValueError("pixels that are not finite")
        logits = self.net(x)
        if self.queries is not None:
            distance, nearest = torch.cdist(x.detach().flatten(1), self.queries.flatten(1), p=torch.inf).min(1)
            known = (distance <= 1.001 * self.radius)[:, None]
            # Today's gradient, the earlier value.
            logits = torch.where(known, self.answers[nearest] + logits - logits.detach(), logits)
        if not torch.is_grad_enabled() or not x.requires_grad:
            new = torch.ones(len(x), dtype=torch.bool) if self.queries is None else ~known[:, 0]
            kept = [] if self.queries is None else [self.queries], [] if self.queries is None else [self.answers]
            self.queries = torch.cat([*kept[0], x[new].detach().clone()])
            self.answers = torch.cat([*kept[1], logits[new].detach().clone()])
        return logits


class SharesItsMemory(Remembers):
    """Its copy is itself."""

    def __deepcopy__(self, memo):
        return self


class RemembersInItsModule(nn.Module):
    """Near an earlier query, logits move from the earlier ones at a fraction of the rate; all copies share the memory.

    Its gradients point the right way and agree with its values; they only promise little.
    """

    def __init__(self, net, radius, rate=0.35):
        super().__init__()
        self.net, self.radius, self.rate = net, radius, rate

    def forward(self, x):
        logits, known = self.net(x), torch.zeros(len(x), dtype=torch.bool)
        if MEMORY:
            queries, answers = (torch.cat(parts) for parts in zip(*MEMORY, strict=True))
            distance, nearest = torch.cdist(x.detach().flatten(1), queries.flatten(1), p=torch.inf).min(1)
            known = distance <= 1.001 * self.radius
            damped = answers[nearest] + self.rate * (logits - answers[nearest])
            logits = torch.where(known[:, None], damped, logits)
        if not known.all():
            MEMORY.append((x[~known].detach().clone(), logits[~known].detach().clone()))
        return logits


MEMORY = []


def with_a_shared_memory():
    """For digits of 16x16, at epsilon 16/255; the weights are to be loaded."""
    net = nets.build("lenet5", 10, image_size=16, normalize=([0.3], [0.37]))
    return RemembersInItsModule(net, 16 / 255)


class Memorises(nn.Module):
    """Classifies the nearest image that it has by heart, if there is one."""

    def __init__(self, net, images, radius):
        super().__init__()
        self.net, self.images, self.radius = net, images, radius

    def forward(self, x):
        distance, nearest = torch.cdist(x.detach().flatten(1), self.images.flatten(1), p=torch.inf).min(1)
        near = (distance <= 1.001 * self.radius)[:, None, None, None]
        return self.net(torch.where(near, self.images[nearest] + x - x.detach(), x))


class AntiAdversary(nn.Module):
    """Moves an image towards the net's own prediction first. Source: Alfarra et al., arXiv 2103.14347."""

    def __init__(self, net, alpha=0.1, steps=1):
        super().__init__()
        self.net, self.alpha, self.steps = net, alpha, steps

    def forward(self, x):
        with torch.enable_grad():
            moved = x.detach()
            predicted = self.net(moved).argmax(1)
            for _ in range(self.steps):
                moved.requires_grad_()
                (slope,) = torch.autograd.grad(F.cross_entropy(self.net(moved), predicted, reduction="sum"), moved)
                moved = (moved - self.alpha * slope.sign()).detach()
        return self.net(x + moved - x.detach())


class OtherCopy(nn.Module):
    """Its copy has the same values and another net's gradients."""

    def __init__(self, net, other):
        super().__init__()
        self.net, self.other, self.copied = net, other, False

    def __deepcopy__(self, memo):
        copied = OtherCopy(copy.deepcopy(self.net, memo), copy.deepcopy(self.other, memo))
        copied.copied = True
        return copied

    def forward(self, x):
        logits = self.net(x)
        if self.copied:
            misleading = self.other(x)
            logits = logits.detach() + misleading - misleading.detach()
        return logits


class ImageSeededNoise(nn.Module):
    """Adds noise to the image, the same whenever it sees that image."""

    def __init__(self, net, size=0.1):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x):
        noise = []
        for image in x.detach():
            seed = int((image.double() * 1e6).sum().item() * 1e3) % 2**31
            noise.append(torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)))
        return self.net(x + self.size * torch.stack(noise))


class KeepsLargest(nn.Module):
    """k-winners-take-all in place of ReLU. Source: Xiao et al., arXiv 1905.10510."""

    def __init__(self, fraction=0.1):
        super().__init__()
        self.fraction = fraction

    def forward(self, x):
        flat = x.flatten(1)
        least = flat.topk(max(1, int(self.fraction * flat.shape[1])), 1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


def with_winners(net, fraction=0.1):
    """``net`` with every ReLU replaced."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.ReLU):
            parent = net.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], KeepsLargest(fraction))
    return net


class Quantises(nn.Module):
    """Rounds images to so many levels, and lets the gradient through: harmless, because attacks follow it."""

    def __init__(self, net, levels=16):
        super().__init__()
        self.net, self.levels = net, levels

    def forward(self, x):
        rounded = (x.detach() * (self.levels - 1)).round() / (self.levels - 1)
        return self.net(rounded + x - x.detach())


class Ripples(nn.Module):
    """Adds to every pixel a wave along its grey levels: nothing that matters, but it turns gradients round.

    At half a grey level the net is still straight.
    """

    def __init__(self, net, size, length=2 / 255):
        super().__init__()
        self.net, self.size, self.length = net, size, length

    def forward(self, x):
        return self.net(x + self.size * torch.sin(2 * torch.pi / self.length * x))


class OffGrid(nn.Module):
    """``net`` on images of 8 bits, which Square's examples are; ``other`` between them, where PGD looks."""

    def __init__(self, net, other):
        super().__init__()
        self.net, self.other = net, other

    def forward(self, x):
        levels = x.detach() * 255
        on_grid = ((levels - levels.round()).abs() < 1e-3).flatten(1).all(1)
        return torch.where(on_grid[:, None], self.net(x), self.other(x))
