"""The convolutional network of the method: a 40 x 40 window in, 20 x 20 logits out."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

WINDOW = 40  #: side of the square window that the network sees, pixels
TARGET = 20  #: side of the central square of the window that it labels, pixels
MARGIN = (WINDOW - TARGET) // 2  #: pixels of the window outside the central square, on each side

MAPS_BEFORE_POOL = 50
MAPS_AFTER_POOL = 100
HIDDEN_UNITS = 2000
SQUARES = TARGET // 2  #: squares of 2 x 2 pixels, a value of each feature map, along the central square
SEEN_BY_UNIT = WINDOW // 2 - SQUARES + 1  #: values of a feature map along a side of what a tied unit sees
SEEN_BY_PIXEL = 5  #: squares along a side of those whose tied units a pixel's logit is made of
SHARED = "dense.weight"  #: the weights that are the same for every group of recordings

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
        self.dense, self.output = self.dense_layers()
        self.own: dict[str, dict[str, Tensor]] = {}
        self.initialize(generator)

    def dense_layers(self) -> tuple[nn.Module, nn.Module]:
        """The two layers after the feature maps."""
        values = MAPS_AFTER_POOL * (WINDOW // 2) ** 2
        return nn.Linear(values, HIDDEN_UNITS), nn.Linear(HIDDEN_UNITS, TARGET**2)

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

    def classify(self, features: Tensor) -> Tensor:
        """Logits of the central pixels, row by row: (N, 100, 20, 20) to (N, 400)."""
        return self.output(torch.tanh(self.dense(features.flatten(1))))

    def forward(self, windows: Tensor) -> Tensor:
        """Logits of the central pixels of windows: (N, 1, 40, 40) to (N, 400)."""
        return self.classify(self.features(windows))

    def small_weights(self) -> dict[str, Tensor]:
        """Copies, on the CPU, of all weights but SHARED: 1 of 81 million, or 273,000 of 515,000 tied ones."""
        weights = self.state_dict()
        del weights[SHARED]
        return {name: weight.cpu().contiguous().clone() for name, weight in weights.items()}

    def for_group(self, group: str | None) -> NeuronNet:
        """The network with the weights that a group has of its own; itself, where it has none, or for None.

        Of SHARED there is one tensor for both.
        """
        if group not in self.own:
            return self
        network = empty_network(type(self))
        shared = self.state_dict()[SHARED]
        own = {name: weight.to(shared.device) for name, weight in self.own[group].items()}
        network.load_state_dict({**own, SHARED: shared}, assign=True)
        return network.train(self.training)


class TiedNet(NeuronNet):
    """The network with tied dense layers: what is learned at one place of a window holds for all.

    Of the central pixels each square of 2 x 2 has 20 of the 2000 units. They see the 11 x 11 values of every
    feature map around it (as far as the window goes around the outermost squares), with the same weights in
    all squares, and a pixel's logit is made of the units of the 5 x 5 squares around it: 244,000 weights
    instead of 81 million. It answers as the network does that has all of them written out, see `untied`.

    Weights that are shared between places are those of a convolution (LeCun et al. 1989, Neural Computation
    1:541).

    Examples
    --------
    >>> network, windows = TiedNet(), torch.zeros(7, 1, 40, 40)
    >>> tuple(network(windows).shape), tuple(network.untied()(windows).shape)
    ((7, 400), (7, 400))
    """

    def dense_layers(self) -> tuple[nn.Module, nn.Module]:
        units = HIDDEN_UNITS // SQUARES**2
        return (
            nn.Conv2d(MAPS_AFTER_POOL, units, SEEN_BY_UNIT),
            nn.Conv2d(units, 4, SEEN_BY_PIXEL, padding=SEEN_BY_PIXEL // 2),
        )

    def classify(self, features: Tensor) -> Tensor:
        logits = self.output(torch.tanh(self.dense(features)))
        return functional.pixel_shuffle(logits, 2).flatten(1)

    @torch.no_grad()
    def output_written_out(self) -> tuple[Tensor, Tensor]:
        """Weights (400, 2000) and biases (400,) of the layer of logits, for every pixel and unit."""
        weights, around = self.state_dict(), SEEN_BY_PIXEL // 2
        pixel = weights["output.weight"].unflatten(0, (2, 2))
        output = pixel.new_zeros(2, 2, SQUARES, SQUARES, pixel.shape[2], *[SQUARES + 2 * around] * 2)
        for row, column in product(range(SQUARES), repeat=2):
            output[:, :, row, column, :, row : row + SEEN_BY_PIXEL, column : column + SEEN_BY_PIXEL] = pixel
        output = output[..., around:-around, around:-around].permute(2, 0, 3, 1, 4, 5, 6)
        bias = weights["output.bias"].view(2, 2).tile(SQUARES, SQUARES)
        return output.reshape(TARGET**2, HIDDEN_UNITS), bias.flatten()

    @torch.no_grad()
    def untied(self) -> NeuronNet:
        """The same network as a `NeuronNet`, on the same device."""
        weights = self.state_dict()
        unit = weights["dense.weight"]
        (units, maps), side = unit.shape[:2], WINDOW // 2
        dense = unit.new_zeros(units, SQUARES, SQUARES, maps, side, side)
        for row, column in product(range(SQUARES), repeat=2):
            dense[:, row, column, :, row : row + SEEN_BY_UNIT, column : column + SEEN_BY_UNIT] = unit
        weights["dense.weight"] = dense.view(HIDDEN_UNITS, -1)
        weights["dense.bias"] = weights["dense.bias"].repeat_interleave(SQUARES**2)
        weights["output.weight"], weights["output.bias"] = self.output_written_out()
        network = empty_network()
        network.load_state_dict(weights, assign=True)
        return network.train(self.training)


def empty_network(kind: type[NeuronNet] = NeuronNet) -> NeuronNet:
    """A network of weights still to be filled in: until then without memory, and without random numbers."""
    with torch.device("meta"):
        return kind()


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
