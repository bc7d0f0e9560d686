"""The convolutional network of the method: a 40 x 40 window in, 20 x 20 logits out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WINDOW = 40  #: side of the square window that the network sees, pixels
TARGET = 20  #: side of the central square of the window that it labels, pixels
MARGIN = (WINDOW - TARGET) // 2  #: pixels of the window outside the central square, on each side

MAPS_BEFORE_POOL = 50
MAPS_AFTER_POOL = 100
HIDDEN_UNITS = 2000
SHARED = "dense.weight"  #: 80 of the 81 million weights, the same for every group of recordings

# A GPU's tensor cores take maps by eights: 50 and 100 of them are computed there as 56 and 104, of which the
# last are zero. On a CPU a training step's convolutions get slower by it, and by 64 and 112 or 128 too.
MAPS_MULTIPLE = {"cuda": 8}


class NeuronNet(nn.Module):
    """Probability of 'neuron' for each of the central 20 x 20 pixels of a window.

    Three 3 x 3 convolutions of 50 maps with ELU, a 2 x 2 max-pool, three of 100 maps with ELU,
    a dense layer of 2000 units with tanh and a dense layer of 400 logits. Every convolution pads
    the window with zeros and keeps its size: 81,073,300 parameters. Weights start orthogonal
    (Saxe et al. 2014, arXiv:1312.6120), biases at zero.

    Parameters
    ----------
    generator : torch.Generator, optional
        Source of the random initial weights; PyTorch's global generator by default.

    Attributes
    ----------
    own : dict of str to dict of str to Tensor
        By group of recordings, what stands in the place of all weights but SHARED. See `groups.fine_tune`.

    Examples
    --------
    >>> with torch.device("meta"):  # shapes without memory
    ...     logits = NeuronNet()(torch.zeros(7, 1, 40, 40))
    >>> tuple(logits.shape)
    (7, 400)
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        before, after = MAPS_BEFORE_POOL, MAPS_AFTER_POOL
        self.conv1 = nn.Conv2d(1, before, 3, padding=1)
        self.conv2 = nn.Conv2d(before, before, 3, padding=1)
        self.conv3 = nn.Conv2d(before, before, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.conv4 = nn.Conv2d(before, after, 3, padding=1)
        self.conv5 = nn.Conv2d(after, after, 3, padding=1)
        self.conv6 = nn.Conv2d(after, after, 3, padding=1)
        self.activation = nn.ELU(inplace=True)  # its gradient then needs no exponential function
        self.dense = nn.Linear(after * (WINDOW // 2) ** 2, HIDDEN_UNITS)
        self.output = nn.Linear(HIDDEN_UNITS, TARGET**2)
        self.own: dict[str, dict[str, Tensor]] = {}
        self.initialize(generator)

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Set every weight to a random (semi-)orthogonal matrix and every bias to zero."""
        for layer in self.children():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.orthogonal_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def features(self, windows: Tensor) -> Tensor:
        """Feature maps of windows: (N, 1, 40, 40) to (N, 100, 20, 20)."""
        x = windows
        for conv in (self.conv1, self.conv2, self.conv3):
            x = self._convolve(conv, x)
        x = self.pool(x)
        for conv in (self.conv4, self.conv5, self.conv6):
            x = self._convolve(conv, x)
        return x[:, : self.conv6.out_channels]

    def _convolve(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A convolution and its activation; of as many maps as the device likes, see MAPS_MULTIPLE."""
        multiple = MAPS_MULTIPLE.get(x.device.type, 1)
        if multiple == 1:
            return self.activation(conv(x))
        weight, bias = with_empty_maps(conv.weight, conv.bias, multiple)  # type: ignore[arg-type]
        return self.activation(functional.conv2d(x, weight, bias, padding=1))

    def classify(self, features: Tensor, centered: bool = False) -> Tensor:
        """Logits of the central pixels, row by row: (N, 100, 20, 20) to (N, 400).

        With the same result the dense layer's gradient is `centered`, see `CenteredDense`.
        """
        if centered:
            weight, bias = (of.to(features.dtype) for of in (self.dense.weight, self.dense.bias))
            hidden = CenteredDense.apply(features, weight, bias)
        else:
            hidden = self.dense(features.flatten(1))
        return self.output(torch.tanh(hidden))

    def forward(self, windows: Tensor, centered: bool = False) -> Tensor:
        """Logits of the central pixels of windows: (N, 1, 40, 40) to (N, 400). See `classify`."""
        return self.classify(self.features(windows), centered)

    def small_weights(self) -> dict[str, Tensor]:
        """Copies, on the CPU, of all weights but SHARED: 1 of 81 million."""
        weights = self.state_dict()
        del weights[SHARED]
        return {name: weight.cpu().contiguous().clone() for name, weight in weights.items()}

    def for_group(self, group: str | None) -> NeuronNet:
        """The network with the weights that a group has of its own; itself, where it has none, or for None.

        Of SHARED there is one tensor for both.
        """
        if group not in self.own:
            return self
        network = empty_network()
        shared = self.state_dict()[SHARED]
        own = {name: weight.to(shared.device) for name, weight in self.own[group].items()}
        network.load_state_dict({**own, SHARED: shared}, assign=True)
        return network.train(self.training)


class CenteredDense(torch.autograd.Function):
    """The dense layer, whose weights' gradient is that of feature maps without their mean over positions.

    The feature maps are far from zero in the mean, the same way in every window. Through 400 x 100 inputs a
    step of Adam moves a unit by that mean much more than by what tells windows apart. Without it the loss
    falls faster, and rates three to five times higher hold; with it they stall on images that differ.
    (Gradient centralization, Yong et al. 2020, arXiv:2004.01461; there the mean is over all inputs of a
    unit. It is taken off the features here, which are few, and not off the gradient, which has 80 million.)
    """

    @staticmethod
    def forward(context: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        context.save_for_backward(features, weight)
        return functional.linear(features.flatten(1), weight, bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, weight = context.saved_tensors
        centered = features - features.mean(dim=(2, 3), keepdim=True)
        # A CPU takes a third longer for the product with a transposed view, a GPU for that with a copy.
        turned = gradient.T if gradient.is_cuda else gradient.T.contiguous()
        of_weight = turned @ centered.flatten(1)
        return (gradient @ weight).view(features.shape), of_weight, gradient.sum(0)


def empty_network() -> NeuronNet:
    """A network of weights still to be filled in: until then without memory, and without random numbers."""
    with torch.device("meta"):
        return NeuronNet()


def with_empty_maps(weight: Tensor, bias: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """A convolution's weights with maps of zeros added before and after it, up to a multiple.

    ELU and pooling keep zeros, so that the maps there were come out as before, and so do their gradients.
    The image, one map, stays alone.

    Parameters
    ----------
    weight : Tensor (after, before, 3, 3)
    bias : Tensor (after,)
    multiple : int
        1 changes nothing.
    """
    after, before = weight.shape[:2]
    more_after, more_before = -after % multiple, -before % multiple if before > 1 else 0
    weight = functional.pad(weight, (0, 0, 0, 0, 0, more_before, 0, more_after))
    return weight, functional.pad(bias, (0, more_after))
