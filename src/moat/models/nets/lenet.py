"""LeNet-5 with ReLU and max pooling.

Source: LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998, with today's activations.
"""

from torch import nn

from moat.base.errors import ConfigError
from moat.models.nets.classifier import Classifier, scale_channels

SMALLEST_IMAGE = 12


def lenet5(num_classes: int, *, width: float, image_size: int, in_channels: int) -> Classifier:
    """LeNet-5 for images of ``image_size`` pixels; below 32 its first layer pads by 2, as 28x28 digits need.

    Raises:
        ConfigError: images smaller than 12 pixels, which two 5x5 convolutions with pooling use up.
    """
    if image_size < SMALLEST_IMAGE:
        raise ConfigError(f"image_size: {image_size} is too small for lenet5; at least {SMALLEST_IMAGE}")
    channels1, channels2, hidden1, hidden2 = (scale_channels(value, width) for value in (6, 16, 120, 84))
    padding = 0 if image_size >= 32 else 2
    side = ((image_size + 2 * padding - 4) // 2 - 4) // 2
    trunk = nn.Sequential(
        nn.Conv2d(in_channels, channels1, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels1, channels2, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(channels2 * side * side, hidden1),
        nn.ReLU(),
        nn.Linear(hidden1, hidden2),
        nn.ReLU(),
    )
    return Classifier(trunk, hidden2, num_classes)


NETS = {"lenet5": lenet5}
