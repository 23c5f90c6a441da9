"""Standard training for MoCSE's columns "CIFAR-10 Augmented"; the recipe says what the images are augmented with."""

from moat.methods.standard import Standard

METHOD = Standard
