"""The plain nets of DWF with stems for small images, and EfficientNet-B0: torchvision's, and timm's Xception.

Layers, their order and their options are the library's. The functions below change strides and poolings that would
shrink 32x32 pixels to nothing, and the first layers of GoogLeNet. In all nets

- the classification layer is the project's linear head on the mean over all pixels;
- auxiliary classifiers, dropout and stochastic depth are off: the latter two draw from the global generator, which a
  resumed run cannot repeat (pytorch-cifar's VGG, DenseNet, GoogLeNet and MobileNet-V2 have none of them either);
- width and initialisation are the project's (:func:`~moat.models.nets.fitting.fit`, :func:`moat.models.initialize`), as
  for every other net: Kaiming normal with fan out instead of truncated normals in the inceptions and fan in in
  DenseNet. The scale of the weights hardly matters: batch norm follows every convolution but those in EfficientNet's
  squeeze layers.

Sources: torchvision.models, timm.models.xception; for what small images need, the repositories pytorch-cifar (VGG,
ResNet, DenseNet, GoogLeNet, MobileNet-V2, EfficientNet) and pytorch-cifar100 (Xception). Inception-V3's stem is ours.
"""

import functools
from collections.abc import Callable

from torch import nn

from moat.base import torchvision_ops
from moat.base.errors import ConfigError
from moat.models.nets.classifier import Classifier
from moat.models.nets.fitting import fit

# Three halvings must leave a pixel.
SMALLEST_IMAGE = 8
# Up to this size EfficientNet's stem keeps the image size.
LARGEST_SMALL_IMAGE = 64

library = functools.partial(torchvision_ops.library, user="arch: this net")


def zoo(
    num_classes: int, *, make: Callable[[int], nn.Module], width: float, image_size: int, in_channels: int
) -> Classifier:
    """The net that ``make(image_size)`` returns without its head, and a linear head.

    Raises:
        ConfigError: images smaller than 8 pixels, or the net's library is missing.
    """
    if image_size < SMALLEST_IMAGE:
        raise ConfigError(f"image_size: {image_size} is too small for this net; at least {SMALLEST_IMAGE}")
    trunk, num_features = fit(lambda: make(image_size), width=width, in_channels=in_channels, image_size=image_size)
    return Classifier(trunk, num_features, num_classes)


def vgg19(image_size: int) -> nn.Module:
    """VGG-19 with batch norm (Simonyan and Zisserman, arXiv 1409.1556); 1x1 pixels are left of 32x32.

    Its two hidden linear layers are left out, as in pytorch-cifar: 100 M parameters are wasted on one pixel. Poolings
    round up, so that images below 32x32 keep one pixel; this has no effect if the size is a multiple of 32.
    """
    net = library("torchvision.models").vgg19_bn()
    for pool in net.features:
        if isinstance(pool, nn.MaxPool2d):
            pool.ceil_mode = True
    net.avgpool, net.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
    return net


def resnet50(image_size: int) -> nn.Module:
    """ResNet-50 (He et al., arXiv 1512.03385) with a 3x3 convolution without pooling as stem; 4x4 pixels are left."""
    net = library("torchvision.models").resnet50()
    net.conv1, net.maxpool = _small_stem(net.conv1), nn.Identity()
    net.fc = nn.Identity()
    return net


def densenet(image_size: int, *, depth: int) -> nn.Module:
    """DenseNet (Huang et al., arXiv 1608.06993) with a 3x3 convolution without pooling as stem; 4x4 pixels are left.

    The library's norm and ReLU after the stem are kept; pytorch-cifar has neither.
    """
    net = getattr(library("torchvision.models"), f"densenet{depth}")()
    net.features.conv0, net.features.pool0 = _small_stem(net.features.conv0), nn.Identity()
    net.classifier = nn.Identity()
    return net


def googlenet(image_size: int) -> nn.Module:
    """GoogLeNet with batch norm (Szegedy et al., arXiv 1409.4842); 8x8 pixels are left.

    The stem is a single 3x3 convolution to the 192 channels of the first inception block instead of three
    convolutions and two poolings. The library's "5x5" branches are one 3x3 convolution, pytorch-cifar's are two.
    """
    net = library("torchvision.models").googlenet(aux_logits=False, init_weights=False, dropout=0.0)
    net.conv1 = type(net.conv1)(3, net.conv3.conv.out_channels, kernel_size=3, padding=1)
    net.maxpool1, net.conv2, net.conv3, net.maxpool2 = (nn.Identity() for _ in range(4))
    net.fc = nn.Identity()
    return net


def inception_v3(image_size: int) -> nn.Module:
    """Inception-V3 (Szegedy et al., arXiv 1512.00567); 7x7 pixels are left.

    The five convolutions of the stem keep the image size (stride 1, padded), its two poolings are left out.
    """
    net = library("torchvision.models").inception_v3(aux_logits=False, init_weights=False, dropout=0.0)
    for block in (net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_4a_3x3):
        block.conv.stride, block.conv.padding = (1, 1), (1, 1)
    net.maxpool1, net.maxpool2 = nn.Identity(), nn.Identity()
    net.fc = nn.Identity()
    return net


def xception(image_size: int) -> nn.Module:
    """Xception (Chollet, arXiv 1610.02357) of timm; 4x4 pixels are left.

    Both convolutions of the stem and the third block keep the image size (stride 1, padded).
    """
    net = library("timm.models.xception").Xception(num_classes=0)
    for conv in (net.conv1, net.conv2):
        conv.stride, conv.padding = (1, 1), (1, 1)
    net.block3.skip.stride, net.block3.rep[-1].stride = (1, 1), 1
    return net


def mobilenet_v2(image_size: int) -> nn.Module:
    """MobileNet-V2 (Sandler et al., arXiv 1801.04381); 4x4 pixels are left.

    The stem and the first block of the second stage keep the image size. pytorch-cifar has three more 1x1
    convolutions, as shortcuts of blocks whose channels change; the paper and the library have none.
    """
    net = library("torchvision.models").mobilenet_v2()
    for block in (net.features[0], net.features[2].conv[1]):
        block[0].stride = (1, 1)
    net.classifier = nn.Identity()
    return net


def efficientnet_b0(image_size: int) -> nn.Module:
    """EfficientNet-B0 (Tan and Le, arXiv 1905.11946); 2x2 pixels are left of 32x32.

    The stem has stride 1 for images of up to 64 pixels; larger images, as in the hybrid study, use the library's net.
    """
    net = library("torchvision.models").efficientnet_b0(stochastic_depth_prob=0.0)
    if image_size <= LARGEST_SMALL_IMAGE:
        net.features[0][0].stride = (1, 1)
    net.classifier = nn.Identity()
    return net


def _small_stem(stem: nn.Conv2d) -> nn.Conv2d:
    """A 3x3 convolution that keeps the image size, instead of a 7x7 one of stride 2."""
    return nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False)


NETS = {
    "vgg19": functools.partial(zoo, make=vgg19),
    "resnet50": functools.partial(zoo, make=resnet50),
    "densenet121": functools.partial(zoo, make=functools.partial(densenet, depth=121)),
    "densenet169": functools.partial(zoo, make=functools.partial(densenet, depth=169)),
    "googlenet": functools.partial(zoo, make=googlenet),
    "inception-v3": functools.partial(zoo, make=inception_v3),
    "xception": functools.partial(zoo, make=xception),
    "mobilenet-v2": functools.partial(zoo, make=mobilenet_v2),
    "efficientnet-b0": functools.partial(zoo, make=efficientnet_b0),
}
