from __future__ import annotations

import numpy as np
import pytest
import torch

from neurodetect.network import MAPS_MULTIPLE, NeuronNet, TiedNet
from neurodetect.weights import WEIGHTS_BYTES


def numpy_convolution(maps, weight, bias):
    """3 x 3 cross-correlation with zeros around, by the definition: (C, H, W) to (O, H, W)."""
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", patches, weight, optimize=True) + bias[:, None, None]


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def numpy_network(window, weights):
    """The network by its description in float64: one (40, 40) window to (100, 20, 20) and 400 logits."""
    maps = window[None].astype(np.float64)
    for number in range(1, 7):
        maps = elu(numpy_convolution(maps, weights[f"conv{number}.weight"], weights[f"conv{number}.bias"]))
        if number == 3:
            maps = maps.reshape(50, 20, 2, 20, 2).max(axis=(2, 4))
    hidden = np.tanh(weights["dense.weight"] @ maps.ravel() + weights["dense.bias"])
    return maps, weights["output.weight"] @ hidden + weights["output.bias"]


def test_the_network_has_81_073_300_parameters(network):
    assert sum(parameter.numel() for parameter in network.parameters()) == 81_073_300


def test_shapes(network):
    windows = torch.randn(3, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = network.features(windows)
        logits = network(windows)
        assert torch.allclose(network.classify(features), logits)
    assert features.shape == (3, 100, 20, 20)
    assert logits.shape == (3, 400)


def test_forward_pass_against_numpy(network):
    generator = torch.Generator().manual_seed(2)
    windows = torch.randn(2, 1, 40, 40, generator=generator)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        with torch.inference_mode():
            for layer in network.children():  # zero biases would hide a bias that is never added
                if hasattr(layer, "bias"):
                    layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) / 10)
            features, logits = network.features(windows), network(windows)
            weights = {name: value.double().numpy() for name, value in network.state_dict().items()}
    finally:
        network.load_state_dict(state)
    for window, feature, logit in zip(windows, features, logits, strict=True):
        expected_features, expected_logits = numpy_network(window[0].numpy(), weights)
        np.testing.assert_allclose(feature.numpy(), expected_features, atol=1e-4)
        np.testing.assert_allclose(logit.numpy(), expected_logits, atol=1e-4)


@pytest.mark.parametrize("multiple", [8, 16])
def test_maps_of_zeros_change_nothing(monkeypatch, multiple):
    """As they are computed on a GPU: features, and the gradients of every weight."""
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 6)
    net = NeuronNet(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(3)
    windows = torch.randn(3, 1, 40, 40, generator=generator)
    with torch.no_grad():  # zero biases would hide a bias in the wrong place
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=generator)

    def results():
        net.zero_grad()
        features = net.features(windows)
        net.classify(features).square().mean().backward()
        return features.detach(), [parameter.grad.clone() for parameter in net.parameters()]

    features, gradients = results()
    shapes, conv2d = [], torch.nn.functional.conv2d
    monkeypatch.setattr(
        torch.nn.functional,
        "conv2d",
        lambda x, *rest, **how: shapes.append(x.shape[1]) or conv2d(x, *rest, **how),
    )
    monkeypatch.setitem(MAPS_MULTIPLE, "cpu", multiple)
    padded_features, padded_gradients = results()
    assert shapes[0] == 1 and all(maps % multiple == 0 for maps in shapes[1:]) and len(shapes) == 6
    torch.testing.assert_close(padded_features, features)
    for padded, gradient in zip(padded_gradients, gradients, strict=True):
        torch.testing.assert_close(padded, gradient)


@pytest.fixture(scope="module")
def tied():
    """A tied network whose biases are not zero."""
    generator = torch.Generator().manual_seed(5)
    net = TiedNet(generator)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=generator)
    return net.eval()


def test_a_tied_network_written_out_is_the_same_network(tied):
    windows = torch.randn(4, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    whole = tied.untied()
    assert type(whole) is NeuronNet and sum(weight.numel() for weight in whole.parameters()) == 81_073_300
    for net, recipe in (tied, "standard"), (whole, "2016"):
        assert sum(weight.nbytes for weight in net.parameters()) == WEIGHTS_BYTES[recipe]
    with torch.inference_mode():
        logits, expected = whole(windows), tied(windows)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_what_is_seen_two_pixels_further_is_labelled_two_pixels_further(tied):
    """Away from the edges, where neither the window's end nor that of the central square is seen."""
    features = torch.randn(2, 100, 20, 20, generator=torch.Generator().manual_seed(2))
    moved = features.roll((1, -2), dims=(2, 3))
    with torch.inference_mode():
        labels, further = (tied.classify(maps).view(2, 20, 20) for maps in (features, moved))
    inner = further.roll((-2, 4), dims=(1, 2))[:, 6:12, 8:14]
    torch.testing.assert_close(inner, labels[:, 6:12, 8:14], atol=1e-5, rtol=1e-5)


def test_weights_start_orthogonal_and_biases_at_zero(network):
    for name, layer in network.named_children():
        if not hasattr(layer, "weight"):
            continue
        matrix = layer.weight.detach().flatten(1)
        if len(matrix) > matrix.shape[1]:  # more maps than inputs: the columns are orthonormal
            matrix = matrix.T
        gram = matrix @ matrix.T
        assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-4), name
        assert not layer.bias.any(), name


def test_the_seed_decides_the_weights(monkeypatch):
    # The dense layer would take seconds; what draws the convolutions' weights draws its weights too.
    monkeypatch.setattr("neurodetect.network.HIDDEN_UNITS", 4)
    first, again, other = (NeuronNet(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.conv2.weight, other.conv2.weight)
