"""Simulated recordings: what is simulated is what was asked for, and what the labels say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from neurodetect.files import UserError
from neurodetect.synthetic import simulate_frames, simulate_regions, write_recording

SHAPE = (96, 150)  # not square: swapped rows and columns would leave the frame


@pytest.fixture(scope="module")
def regions():
    return simulate_regions(SHAPE, 32, np.random.default_rng(3))


@pytest.fixture(scope="module")
def frames(regions):
    return np.array(list(simulate_frames(regions, SHAPE, 60, np.random.default_rng(4))))


def mask_of(region, shape):
    mask = np.zeros(shape, bool)
    mask[region[:, 0], region[:, 1]] = True
    return mask


def union_of(regions, shape):
    return np.any([mask_of(region, shape) for region in regions], axis=0)


def share_touching(regions):
    """Share of neurons with a pixel beside (not diagonally) a pixel of another, by brute force."""
    pixels = [{tuple(pixel) for pixel in region.tolist()} for region in regions]
    beside = [
        {(r + dr, c + dc) for r, c in own for dr, dc in ((0, 1), (0, -1), (1, 0), (-1, 0))} for own in pixels
    ]
    touches = [any(beside[i] & pixels[j] for j in range(len(pixels)) if j != i) for i in range(len(pixels))]
    return np.mean(touches)


# Regions


@settings(max_examples=25)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    count=st.integers(0, 40),
    touching=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_regions_are_disjoint_whole_and_in_the_frame(height, width, count, touching, seed):
    shape = (height, width)
    regions = simulate_regions(shape, count, np.random.default_rng(seed), touching=touching)
    assert len(regions) <= count
    covered = np.zeros(shape, int)
    for region in regions:
        assert region.ndim == 2 and region.shape[1] == 2 and region.dtype.kind == "i"
        assert (region >= 0).all() and (region < shape).all()
        assert region.tolist() == sorted(region.tolist())
        assert ndimage.label(mask_of(region, shape))[1] == 1
        covered[region[:, 0], region[:, 1]] += 1
        assert np.ptp(region, axis=0).max() + 1 <= 16
    assert covered.max(initial=0) <= 1
    assert covered.sum() == sum(len(region) for region in regions)  # no pixel listed twice


def test_sizes_cover_the_range_asked_for():
    regions = simulate_regions((400, 400), 200, np.random.default_rng(0), diameter=(7, 16))
    whole = [r for r in regions if r.min() > 0 and r.max() < 399]  # not cut by the border
    across = np.array([np.sqrt(4 * len(region) / np.pi) for region in whole])  # of the disc of equal area
    assert across.min() > 5.5 and across.max() < 16
    assert (across < 9).mean() > 0.1 and (across > 12).mean() > 0.1
    extents = np.array([np.ptp(region, axis=0) + 1 for region in whole])
    assert (extents[:, 0] != extents[:, 1]).mean() > 0.5  # ellipses, not discs


def test_diameter_is_obeyed():
    regions = simulate_regions((200, 200), 30, np.random.default_rng(0), diameter=(20, 24))
    whole = [r for r in regions if r.min() > 0 and r.max() < 199]
    assert len(whole) > 10
    for region in whole:
        assert (np.ptp(region, axis=0) + 1 >= 17).all() and (np.ptp(region, axis=0) + 1 <= 24).all()


@pytest.mark.parametrize("touching", [0.0, 0.3, 0.6])
def test_the_share_that_touches(touching):
    rng = np.random.default_rng(1)
    regions = simulate_regions((256, 256), 100, rng, touching=touching)
    assert len(regions) == 100
    assert share_touching(regions) == pytest.approx(touching, abs=0.05)


def test_neurons_that_do_not_touch_keep_a_gap():
    regions = simulate_regions((128, 128), 30, np.random.default_rng(2), touching=0)
    for i, one in enumerate(regions):
        for other in regions[:i]:
            apart = np.abs(one[:, None] - other[None]).max(axis=2)  # 1 for neighbours, diagonal ones too
            assert apart.min() > 2


def test_default_density_fills_small_and_large_frames():
    assert len(simulate_regions((64, 64), 12, np.random.default_rng(0))) == 12
    regions = simulate_regions((160, 160), 60, np.random.default_rng(0))
    assert len(regions) == 60
    assert 0.15 < union_of(regions, (160, 160)).mean() < 0.25


def test_more_neurons_than_fit_gives_as_many_as_fit():
    regions = simulate_regions((40, 64), 10_000, np.random.default_rng(0))
    assert 10 < len(regions) < 80
    assert union_of(regions, (40, 64)).mean() > 0.25
    assert simulate_regions((3, 3), 5, np.random.default_rng(0), diameter=(10, 16)) == []


def test_some_neurons_are_cut_by_the_border_but_not_below_half(regions):
    many = simulate_regions((128, 128), 40, np.random.default_rng(5))
    at_border = [r for r in many if r.min() == 0 or r.max() == 127]
    assert at_border
    assert min(len(region) for region in at_border) >= 15


def test_same_seed_same_regions():
    first, again, other = (simulate_regions(SHAPE, 20, np.random.default_rng(s)) for s in (7, 7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


# Frames


def test_frames_are_uint16_and_reproducible(regions, frames):
    assert frames.shape == (60, *SHAPE)
    assert frames.dtype == np.uint16
    assert (frames == 65535).mean() == 0 and (frames == 0).mean() < 0.05
    again = np.array(list(simulate_frames(regions, SHAPE, 60, np.random.default_rng(4))))
    np.testing.assert_array_equal(frames, again)
    other = np.array(list(simulate_frames(regions, SHAPE, 60, np.random.default_rng(5))))
    assert (frames != other).mean() > 0.9


def test_frames_are_streamed(regions):
    """The first frame does not wait for the last: this movie would take 3 GB and minutes."""
    frames = simulate_frames(regions[:2], SHAPE, 100_000, np.random.default_rng(0))
    assert next(frames).shape == SHAPE


def test_neurons_stand_out_in_the_mean_image_and_only_where_the_labels_are(regions, frames):
    mean = frames.mean(axis=0)
    everyone = union_of(regions, SHAPE)
    contrast, flipped = [], []
    for region in regions:
        own = mask_of(region, SHAPE)
        surround = ndimage.binary_dilation(own, iterations=4) & ~everyone
        contrast.append(mean[own].mean() / mean[surround].mean())
        flipped.append(mean[own[::-1, ::-1]].mean() / mean[surround[::-1, ::-1]].mean())
    assert np.mean(contrast) > 1.3
    assert np.mean(np.array(contrast) > 1.05) > 0.8
    assert abs(np.mean(flipped) - 1) < 0.15  # the same measure where no neurons are


def test_faint_neurons_are_fainter(regions):
    inside = union_of(regions, SHAPE)
    level = {}
    for faint in (0.0, 1.0):
        rng = np.random.default_rng(0)
        mean = np.mean(list(simulate_frames(regions, SHAPE, 40, rng, faint=faint)), axis=0)
        level[faint] = mean[inside].mean() / mean[~inside].mean()
    assert level[1.0] < level[0.0] - 0.2


def nucleus_over_ring(regions, donuts):
    """Median over the larger neurons of the middle's mean brightness over the rim's."""
    rng = np.random.default_rng(6)
    mean = np.mean(list(simulate_frames(regions, SHAPE, 60, rng, donuts=donuts)), axis=0)
    ratios = []
    for region in regions:
        depth = ndimage.distance_transform_edt(np.pad(mask_of(region, SHAPE), 1))[1:-1, 1:-1]
        if depth.max() >= 5:
            ring = (depth > 1) & (depth < 0.45 * depth.max())
            ratios.append(mean[depth > 0.75 * depth.max()].mean() / mean[ring].mean())
    assert len(ratios) >= 5
    return np.median(ratios)


def test_donuts_have_a_dark_nucleus_and_discs_have_none(regions):
    assert nucleus_over_ring(regions, donuts=1.0) < 0.8
    assert nucleus_over_ring(regions, donuts=0.0) > 1.0


def test_active_neurons_flicker_together(regions, frames):
    """The mean over a neuron's pixels varies in time by more than that over as much background."""
    everyone = union_of(regions, SHAPE)
    background = ndimage.binary_dilation(everyone, iterations=3)
    inside, outside = [], []
    for region in regions:
        trace = frames[:, region[:, 0], region[:, 1]].mean(axis=1)
        inside.append(trace.std() / trace.mean())
    rng = np.random.default_rng(0)
    quiet = np.argwhere(~background)
    for region in regions:  # as many background pixels, so that averaging removes as much noise
        at = quiet[rng.integers(len(quiet))]
        near = quiet[np.argsort(np.abs(quiet - at).max(axis=1), kind="stable")[: len(region)]]
        trace = frames[:, near[:, 0], near[:, 1]].mean(axis=1)
        outside.append(trace.std() / trace.mean())
    assert np.median(inside) > 1.5 * np.median(outside)


def test_transients_rise_fast_and_decay_over_half_a_second_to_a_second(regions):
    """Their autocorrelation falls to 1/e in about the decay time, and steps up are larger than steps down."""
    rate_hz = 20.0
    rng = np.random.default_rng(1)
    movie = simulate_frames(
        regions, SHAPE, 600, rng, rate_hz=rate_hz, events_hz=0.5, photons=40.0, donuts=0.0, faint=0.0
    )
    traces = np.array([[frame[r[:, 0], r[:, 1]].mean() for r in regions] for frame in movie])
    lag, skew = [], []
    for trace in traces.T:
        trace = trace - trace.mean()
        correlation = np.correlate(trace, trace, "full")[len(trace) - 1 :]
        lag.append(np.argmax(correlation < correlation[0] / np.e) / rate_hz)
        steps = np.diff(trace)
        skew.append((steps**3).mean() / (steps**2).mean() ** 1.5)  # large steps up, small steps down
    assert 0.4 < np.median(lag) < 1.2
    assert np.median(skew) > 1


def test_noise_is_the_photons(regions):
    """From frame to frame a background pixel varies as Poisson counts do: variance = gain x mean."""
    rng = np.random.default_rng(2)
    movie = simulate_frames([], SHAPE, 200, rng, photons=4.0, counts_per_photon=50.0)
    steps = np.array(list(movie), float)
    variance = (np.diff(steps, axis=0) ** 2).mean(axis=0) / 2  # slow changes drop out of the difference
    expected = 50.0 * (steps.mean(axis=0) - 40) + 12**2
    assert np.median(variance / expected) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_a_dark_vessel_crosses_the_frame(seed):
    movie = simulate_frames([], SHAPE, 10, np.random.default_rng(seed), photons=40.0)
    mean = np.mean(list(movie), axis=0)
    dark = mean < 0.6 * ndimage.median_filter(mean, 25)
    assert max(dark.any(axis=1).mean(), dark.any(axis=0).mean()) > 0.9  # of all rows, or of all columns
    assert 0.01 < dark.mean() < 0.15


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (20, 900)])
def test_frames_of_any_shape_without_neurons(shape):
    frames = list(simulate_frames([], shape, 3, np.random.default_rng(0)))
    assert [frame.shape for frame in frames] == [shape] * 3


# Files


def read_back(recording):
    paths = sorted((recording / "images").iterdir())
    frames = np.concatenate([tifffile.imread(path).reshape(-1, *SHAPE) for path in paths])
    return [path.name for path in paths], frames


def test_a_recording_reads_back(tmp_path):
    recording = write_recording(
        tmp_path,
        "simulated.00",
        shape=SHAPE,
        count=20,
        n_frames=12,
        seed=5,
        rate_hz=8.0,
        pixels_per_micron=1.2,
    )
    assert recording == tmp_path / "simulated.00"
    names, frames = read_back(recording)
    assert names == [f"image{i:05d}.tiff" for i in range(12)]
    assert frames.dtype == np.uint16

    rng = np.random.default_rng(5)
    regions = simulate_regions(SHAPE, 20, rng)
    np.testing.assert_array_equal(frames, list(simulate_frames(regions, SHAPE, 12, rng, rate_hz=8.0)))

    written = json.loads((recording / "regions" / "regions.json").read_text())
    assert [region["coordinates"] for region in written] == [region.tolist() for region in regions]
    rows, columns = np.concatenate([region["coordinates"] for region in written]).T
    assert rows.max() < 96 < columns.max()  # [row, column]: swapped, the columns would leave the frame

    info = json.loads((recording / "info.json").read_text())
    assert info["id"] == "simulated.00"
    assert info["pixels-per-micron"] == 1.2
    assert info["rate-hz"] == 8.0
    assert info["dimensions"] == [96, 150, 12]


def test_labels_lie_on_bright_pixels_of_the_written_frames(tmp_path):
    recording = write_recording(tmp_path, "one", shape=SHAPE, n_frames=30, seed=1)
    _, frames = read_back(recording)
    mask = np.zeros(SHAPE, bool)
    for region in json.loads((recording / "regions" / "regions.json").read_text()):
        mask[tuple(np.transpose(region["coordinates"]))] = True
    mean = frames.mean(axis=0)
    assert 0.12 < mask.mean() < 0.28
    assert mean[mask].mean() > 1.3 * mean[~mask].mean()


def test_all_frames_in_one_file(tmp_path):
    many = write_recording(tmp_path, "many", shape=SHAPE, n_frames=5, seed=2)
    one = write_recording(tmp_path, "one", shape=SHAPE, n_frames=5, seed=2, one_file_per_frame=False)
    names, frames = read_back(one)
    assert names == ["image00000.tiff"]
    with tifffile.TiffFile(one / "images" / "image00000.tiff") as tiff:
        assert len(tiff.pages) == 5
    np.testing.assert_array_equal(frames, read_back(many)[1])


def content(recording):
    return {str(p.relative_to(recording)): p.read_bytes() for p in recording.rglob("*") if p.is_file()}


@pytest.mark.parametrize("one_file_per_frame", [True, False])
def test_same_seed_same_bytes(tmp_path, one_file_per_frame):
    options = {"shape": (40, 50), "n_frames": 4, "one_file_per_frame": one_file_per_frame}
    first = content(write_recording(tmp_path / "a", "x", seed=1, **options))
    assert first == content(write_recording(tmp_path / "b", "x", seed=1, **options))
    assert first == content(write_recording(tmp_path / "a", "x", seed=1, **options))  # over itself
    other = content(write_recording(tmp_path / "c", "x", seed=2, **options))
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first if name != "info.json")


def test_unlabelled_recordings_have_no_regions_but_the_same_frames(tmp_path):
    options = {"shape": SHAPE, "n_frames": 3, "seed": 1}
    labelled = content(write_recording(tmp_path / "a", "x", **options))
    unlabelled = content(write_recording(tmp_path / "b", "x", labelled=False, **options))
    assert labelled.keys() - unlabelled.keys() == {"regions/regions.json"}
    assert all(labelled[name] == data for name, data in unlabelled.items())


def test_frames_or_labels_of_another_recording_are_not_mixed_in(tmp_path):
    before = content(write_recording(tmp_path, "x", shape=(32, 32), n_frames=5))
    with pytest.raises(UserError, match="x holds another recording"):
        write_recording(tmp_path, "x", shape=(32, 32), n_frames=4)
    with pytest.raises(UserError, match="x holds another recording"):
        write_recording(tmp_path, "x", shape=(32, 32), n_frames=5, labelled=False)
    assert content(tmp_path / "x") == before
