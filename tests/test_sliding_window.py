"""The shared-arithmetic map against brute force, and brute force against one window at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neurodetect import sliding_window
from neurodetect.device import choose_precision, is_out_of_memory
from neurodetect.files import UserError
from neurodetect.network import MAPS_MULTIPLE, NeuronNet, TiedNet, empty_network
from neurodetect.sliding_window import brute_force_map, probability_map, window_runs, windows_per_pixel

CPU = torch.device("cpu")


def random_network(seed: int, gain: float, bias: float, kind: type[NeuronNet] = NeuronNet) -> NeuronNet:
    """A network with normal weights: an orthogonal start would take seconds."""
    network = empty_network(kind).to_empty(device=CPU)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, bias, generator=generator)
            else:
                parameter.normal_(0, gain / parameter[0].numel() ** 0.5, generator=generator)
    return network


@pytest.fixture(scope="module")
def network() -> NeuronNet:
    """Like a trained one: clear answers, and biases, which show what the zeros at borders do."""
    return random_network(seed=1, gain=1.5, bias=0.3)


@pytest.fixture(scope="module")
def tied() -> NeuronNet:
    """The same with tied dense layers."""
    return random_network(seed=1, gain=1.5, bias=0.3, kind=TiedNet)


@pytest.fixture(params=["network", "tied"])
def either(request: pytest.FixtureRequest) -> NeuronNet:
    return request.getfixturevalue(request.param)


def random_image(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_window_at_a_time(network: NeuronNet, image: np.ndarray, stride: int) -> np.ndarray:
    """The definition once more, in terms of centres and pixels of the image, without padding it."""
    height, width = image.shape
    answers: list[list[list[float]]] = [[[] for _ in range(width)] for _ in range(height)]

    def centres(length: int) -> list[int]:
        regular = [i for i in range(length + 1) if i % stride == 0]
        return regular if length - 1 <= regular[-1] + 9 else [*regular, length]

    for centre_row in centres(height):
        for centre_column in centres(width):
            window = np.zeros((40, 40), np.float32)
            for i in range(40):
                for j in range(40):
                    r, c = centre_row - 20 + i, centre_column - 20 + j
                    if 0 <= r < height and 0 <= c < width:
                        window[i, j] = image[r, c]
            with torch.no_grad():
                logits = network(torch.from_numpy(window)[None, None]).numpy().astype(float)
            probabilities = 1 / (1 + np.exp(-logits.reshape(20, 20)))
            for i in range(20):
                for j in range(20):
                    r, c = centre_row - 10 + i, centre_column - 10 + j
                    if 0 <= r < height and 0 <= c < width:
                        answers[r][c].append(probabilities[i, j])
    return np.array([[np.mean(pixel) for pixel in row] for row in answers])


def test_windows_of_the_challenge() -> None:
    assert window_runs(512, 1) == [range(513)]
    assert window_runs(510, 20) == [range(0, 501, 20)]  # the last, 500, labels the pixels to 509
    assert window_runs(511, 20) == [range(0, 501, 20), range(511, 512)]


@pytest.mark.parametrize("stride", range(1, 21))
def test_windows_label_every_pixel(stride: int) -> None:
    for length in range(1, 70):
        starts = [start for run in window_runs(length, stride) for start in run]
        assert starts == sorted(set(starts)) and starts[0] == 0 and starts[-1] <= length
        assert set(range(length)) <= {start - 10 + i for start in starts for i in range(20)}


@settings(max_examples=40)
@given(height=st.integers(1, 70), width=st.integers(1, 70), stride=st.integers(1, 20))
def test_windows_that_label_a_pixel(height: int, width: int, stride: int) -> None:
    expected = np.zeros((height + 40, width + 40))
    rows, columns = ([start for run in window_runs(n, stride) for start in run] for n in (height, width))
    for row in rows:
        for column in columns:
            expected[row + 10 : row + 30, column + 10 : column + 30] += 1
    actual = np.outer(windows_per_pixel(height, stride), windows_per_pixel(width, stride))
    assert (actual == expected[20:-20, 20:-20]).all()


@pytest.mark.parametrize(
    ("shape", "stride"), [((13, 2), 1), ((1, 1), 1), ((2, 27), 4), ((15, 12), 20), ((25, 11), 7)]
)
def test_brute_force_is_the_definition(network: NeuronNet, shape: tuple[int, int], stride: int) -> None:
    image = random_image(shape)
    expected = one_window_at_a_time(network, image, stride)
    actual = brute_force_map(network, image, stride, batch_size=5)
    assert actual.shape == shape and actual.dtype == np.float32
    assert np.abs(actual - expected).max() < 2e-6
    assert expected.std() > 0.01 or shape == (1, 1)


@pytest.mark.parametrize(
    ("shape", "stride", "block_side"),
    [
        ((1, 1), 1, None),
        ((12, 7), 1, None),
        ((12, 7), 1, 5),
        ((3, 50), 2, 4),
        ((41, 23), 3, None),
        ((41, 23), 3, 6),
        ((19, 8), 7, 1),
        ((45, 31), 7, None),
        ((30, 30), 20, None),
        ((41, 23), 20, 2),
        ((64, 3), 13, 3),
    ],
)
def test_sharing_changes_nothing(
    either: NeuronNet, shape: tuple[int, int], stride: int, block_side: int | None
) -> None:
    image = random_image(shape)
    expected = brute_force_map(either, image, stride)
    actual = probability_map(either, image, stride, precision="float32", block_side=block_side)
    assert actual.shape == shape and actual.dtype == np.float32
    assert np.abs(actual - expected).max() < 1e-5
    assert expected.std() > 0.005 or shape == (1, 1)


@pytest.mark.parametrize("multiple", [8, 16])
def test_maps_of_zeros_change_nothing(
    either: NeuronNet, monkeypatch: pytest.MonkeyPatch, multiple: int
) -> None:
    """As the map is computed on a GPU."""
    image = random_image((19, 26))
    expected = brute_force_map(either, image, 3)
    monkeypatch.setitem(MAPS_MULTIPLE, "cpu", multiple)
    actual = probability_map(either, image, 3, precision="float32", block_side=5)
    assert np.abs(actual - expected).max() < 1e-5


def test_more_windows_than_a_batch(either: NeuronNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block wider than a batch, and one whose last batch is smaller than the others."""
    for shape, block_side in (((1, 30), 70), ((14, 5), None)):
        monkeypatch.setattr(sliding_window, "BATCH", 25)
        image = random_image(shape)
        expected = brute_force_map(either, image, 1)
        actual = probability_map(either, image, 1, precision="float32", block_side=block_side)
        assert np.abs(actual - expected).max() < 1e-5


def test_untrained_network() -> None:
    network = random_network(seed=2, gain=1.0, bias=0.0)
    image = random_image((25, 33))
    expected = brute_force_map(network, image, 4)
    assert np.abs(probability_map(network, image, 4, precision="float32") - expected).max() < 1e-5


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 60), width=st.integers(1, 60), stride=st.integers(5, 20), scale=st.floats(0, 1e6)
)
def test_probabilities(network: NeuronNet, height: int, width: int, stride: int, scale: float) -> None:
    result = probability_map(network, scale * random_image((height, width)), stride)
    assert result.shape == (height, width)
    assert result.min() >= 0 and result.max() <= 1  # false for NaN


def test_certain_answers_average_to_themselves() -> None:
    certain = random_network(seed=3, gain=0.0, bias=0.0)
    for logit, probability in ((1e4, 1.0), (-1e4, 0.0), (0.0, 0.5)):
        torch.nn.init.constant_(certain.output.bias, logit)
        for precision in ("float32", "bfloat16"):
            assert (
                probability_map(certain, random_image((12, 31)), 3, precision=precision) == probability
            ).all()


def test_leaves_network_and_image_alone(network: NeuronNet) -> None:
    image = random_image((9, 14))
    before = image.copy(), {name: p.clone() for name, p in network.named_parameters()}
    network.train()
    probability_map(network, image, 10, precision="bfloat16")
    assert network.training
    assert (image == before[0]).all()
    assert all(torch.equal(p, before[1][name]) and p.requires_grad for name, p in network.named_parameters())


@pytest.mark.parametrize("compute", [probability_map, brute_force_map])
@pytest.mark.parametrize(
    ("image", "stride", "message"),
    [
        (np.full((5, 5), np.nan), 1, "NaN"),
        (np.full((5, 5), 1e300), 1, "infinity"),
        (np.zeros(25), 1, "rows x columns"),
        (np.zeros((5, 5, 3)), 1, "rows x columns"),
        (np.zeros((0, 5)), 1, "rows x columns"),
        (np.zeros((5, 5)), 0, "stride"),
        (np.zeros((5, 5)), 21, "stride"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_refuses(network: NeuronNet, compute, image: np.ndarray, stride: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compute(network, image, stride)


def test_blocks_hold_every_window_once(network: NeuronNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of them more than was asked for, however tall the image."""
    seen = []

    def record(self, padded, rows, columns):
        assert len(rows) * len(columns) <= 7**2
        seen.extend((r, c) for r in rows for c in columns)
        return torch.full((len(rows), len(columns), 20, 20), 0.25)

    monkeypatch.setattr(sliding_window._SharingNetwork, "probabilities", record)
    result = probability_map(network, np.zeros((211, 34)), 2, block_side=7)
    assert (result == 0.25).all()
    assert sorted(seen) == [(r, c) for r in range(0, 212, 2) for c in range(0, 35, 2)]


class Held(TorchDispatchMode):
    """Counts operations that compute, and the largest number of bytes that tensors held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = self.computed = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        given = [x for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)]
        storages = {x.untyped_storage()._cdata for x in given}
        self.computed += not (operation.is_view or "empty" in str(operation))
        for x in tree_leaves(result):
            storage = x.untyped_storage()
            if storage._cdata not in storages:
                self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.held = {key: held for key, held in self.held.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return result


def block_without_memory(
    stride: int, side: int, batch: int, dtype: torch.dtype, kind: type[NeuronNet] = NeuronNet
) -> Held:
    """What a block of windows takes, on a device that has shapes only."""
    with torch.device("meta"):
        shared = sliding_window._SharingNetwork(kind(), dtype, batch)
        padded = torch.empty(2 * [(side - 1) * stride + 40])
    starts = range(0, side * stride, stride)
    with torch.inference_mode(), Held() as held:
        shared.probabilities(padded, starts, starts)
    return held


@pytest.mark.parametrize("gigabytes", [2, 4, 80])
@pytest.mark.parametrize("stride", [1, 4, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [NeuronNet, TiedNet])
def test_a_block_on_a_gpu_takes_half_of_its_memory(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, stride: int, dtype: torch.dtype, kind: type[NeuronNet]
) -> None:
    monkeypatch.setitem(MAPS_MULTIPLE, "meta", MAPS_MULTIPLE["cuda"])
    memory = gigabytes * 2**30
    side, batch = sliding_window.gpu_block(memory, stride, dtype.itemsize)
    held = block_without_memory(stride, side, batch, dtype, kind)
    assert 0.2 * memory < held.peak < 0.55 * memory


@pytest.mark.parametrize("kind", [NeuronNet, TiedNet])
def test_a_large_gpu_gets_few_commands(kind: type[NeuronNet]) -> None:
    """The launch of one takes some microseconds: ten thousand for an image of 512 x 512 are 0.05 s."""
    side, batch = sliding_window.gpu_block(80 * 2**30, 1, 2)
    assert side >= 513
    assert block_without_memory(1, 513, batch, torch.bfloat16, kind).computed < 3_000


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_memory_that_no_machine_has(allocate) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate(2**50)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5.28 GB, other allocations: 1 GB)"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (2)"), False),
        (UserError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_mean_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def cuda_allocation_fails() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def cpu_allocation_fails() -> None:
    torch.empty(2**50)


@pytest.mark.parametrize("fails", [cuda_allocation_fails, cpu_allocation_fails])
def test_smaller_blocks_where_memory_is_short(
    network: NeuronNet, monkeypatch: pytest.MonkeyPatch, fails
) -> None:
    image = random_image((30, 21))
    expected = probability_map(network, image, 5, precision="float32")
    compute = sliding_window._SharingNetwork.probabilities

    def small_memory(self, padded, rows, columns):
        if len(rows) * len(columns) > 6:
            fails()
        return compute(self, padded, rows, columns)

    monkeypatch.setattr(sliding_window._SharingNetwork, "probabilities", small_memory)
    with pytest.warns(UserWarning, match="memory") as warned:
        actual = probability_map(network, image, 5, precision="float32")
    assert len(warned) == 1
    assert np.abs(actual - expected).max() < 1e-6


@pytest.mark.parametrize("fails", [cuda_allocation_fails, cpu_allocation_fails])
def test_no_memory_at_all(network: NeuronNet, monkeypatch: pytest.MonkeyPatch, fails) -> None:
    monkeypatch.setattr(sliding_window._SharingNetwork, "probabilities", lambda *_: fails())
    with pytest.warns(UserWarning, match="memory"), pytest.raises(UserError, match="close other programs"):
        probability_map(network, np.zeros((5, 5)))


def test_other_errors_are_not_taken_for_short_memory(
    network: NeuronNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sliding_window._SharingNetwork, "probabilities", lambda *_: torch.zeros(2) + torch.zeros(3)
    )
    with pytest.raises(RuntimeError, match="size of tensor"):
        probability_map(network, np.zeros((5, 5)))


def test_progress(network: NeuronNet, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurodetect.progress.DELAY", 0)
    probability_map(network, np.zeros((5, 5)), 5)
    assert capsys.readouterr().err == ""
    probability_map(network, np.zeros((5, 5)), 5, description="01.00.test")
    shown = capsys.readouterr().err
    assert "01.00.test" in shown and "4/4" in shown


@pytest.mark.skipif(choose_precision("auto", CPU) != "bfloat16", reason="this processor has no fast bfloat16")
def test_bfloat16(either: NeuronNet) -> None:
    image = random_image((33, 40))
    exact = brute_force_map(either, image, 6)
    for approximate in (
        brute_force_map(either, image, 6, precision="bfloat16"),
        probability_map(either, image, 6, precision="bfloat16"),
        probability_map(either, image, 6),
    ):
        assert 0 < np.abs(approximate - exact).max() < 0.02


@pytest.mark.cuda
@pytest.mark.parametrize("kind", [NeuronNet, TiedNet])
@pytest.mark.parametrize("stride", [1, 7, 20])
def test_cuda(kind: type[NeuronNet], stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # ten bits, not float32
    image = random_image((35, 52))
    expected = brute_force_map(random_network(seed=1, gain=1.5, bias=0.3, kind=kind), image, stride)
    on_device = random_network(seed=1, gain=1.5, bias=0.3, kind=kind).to("cuda")
    for precision, tolerance in (("float32", 1e-5), ("bfloat16", 0.02)):
        for compute in (brute_force_map, probability_map):
            actual = compute(on_device, image, stride, precision=precision)
            assert np.abs(actual - expected).max() < tolerance
