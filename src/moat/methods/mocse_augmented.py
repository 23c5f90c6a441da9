"""MoCSE for MoCSE's columns "CIFAR-10 Augmented"; the recipe says what the images are augmented with."""

from moat.methods.mocse import Mocse

METHOD = Mocse
