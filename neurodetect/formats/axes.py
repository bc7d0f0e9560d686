"""What the metadata of TIFF files say: which pages are of which channel and plane, and how large a pixel is.

Known are ScanImage (3 and later), OME-TIFF, ImageJ, tifffile's own and Micro-Manager's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import tifffile

from neurodetect.files import UserError, possible_scale
from neurodetect.formats.frames import MICRONS, SECONDS, choose

LARGEST_AXIS = 16  #: channels or planes that an axis without a name may have; a longer one is time
MOST_CHANNELS = 4  #: that ScanImage takes
MOST_PAGES = 2**22  #: of an OME set; a damaged XML may promise more
METAMORPH_TAG = 33629  #: UIC2: the number of frames, their times and planes
SQUARE = 0.01  #: largest relative difference of a pixel's height and width


class Axes(NamedTuple):
    """How the pages of a TIFF file, or of several that follow each other, are ordered.

    Attributes
    ----------
    sizes : tuple of (str, int)
        The axes from the slowest to the fastest: "C" channels, "Z" planes, "T" anything else. The first
        one may be of any length: its number is not looked at.
    channels, planes : list of str
        Their names. Planes may be fewer than the axis is long: then the rest is flyback.
    numbers : list of int, optional
        The channels' numbers at the microscope, by which they are chosen; otherwise from 1.
    """

    sizes: tuple[tuple[str, int], ...]
    channels: list[str]
    planes: list[str]
    numbers: list[int] | None = None


ONE_BY_ONE = Axes((("T", 1),), [""], [""])  #: every page is a frame


class Choice(NamedTuple):
    """The channel and the plane that are read, from 0."""

    channel: int = 0
    plane: int = 0


def chosen_pages(axes: Axes, choice: Choice, count: int, before: int = 0) -> range | np.ndarray:
    """Numbers of the pages of one channel and plane, of `count` pages after `before` others.

    Examples
    --------
    >>> two_channels = Axes((("T", 1), ("C", 2)), ["green", "red"], [""])
    >>> chosen_pages(two_channels, Choice(channel=1), 6).tolist()
    [1, 3, 5]
    """
    if len(axes.channels) == len(axes.planes) == 1 and len(axes.sizes) == 1:
        return range(count)
    number = before + np.arange(count)
    keep = np.ones(count, bool)
    for axis, size in reversed(axes.sizes[1:]):
        number, position = np.divmod(number, size)
        keep &= position == wanted(axis, choice, position)
    axis = axes.sizes[0][0]
    return np.flatnonzero(keep & (number == wanted(axis, choice, number)))


def wanted(axis: str, choice: Choice, otherwise: np.ndarray) -> int | np.ndarray:
    """The position on an axis that is read; all of an axis that is neither channels nor planes."""
    return {"C": choice.channel, "Z": choice.plane}.get(axis, otherwise)


def make_choice(axes: Axes, channel: int | None, plane: int | None, path: Path) -> tuple[Choice, list[str]]:
    """The channel and plane to read, by the numbers that the user gave, and a line on what is left out.

    Raises
    ------
    UserError
        There are several and none was chosen, or not as many.
    """
    choice = Choice(
        choose(channel, axes.channels, "channel", path, axes.numbers),
        choose(plane, axes.planes, "plane", path),
    )
    notes = []
    for kind, names, index, numbers in (
        ("channel", axes.channels, choice.channel, axes.numbers),
        ("plane", axes.planes, choice.plane, None),
    ):
        if len(names) > 1:
            name = f" ({names[index]})" if names[index] else ""
            number = numbers[index] if numbers else index + 1
            notes.append(f"{kind} {number}{name} of {len(names)}, the others are left out")
    flyback = sum(size for axis, size in axes.sizes if axis == "Z") - len(axes.planes)
    if flyback > 0 and len(axes.planes) > 1:
        notes.append(f"{flyback} flyback frames of each volume are left out")
    return choice, notes


def read_axes(tiff: tifffile.TiffFile, path: Path, named: bool) -> Axes:
    """How the pages of an open TIFF file are ordered, as its metadata say.

    Parameters
    ----------
    tiff : tifffile.TiffFile
    path : Path
    named : bool
        Whether the user named a channel or a plane: then an axis that could be time or channels is
        taken for channels.

    Raises
    ------
    UserError
        There are axes of which it cannot be told what they are.
    """
    page = tiff.pages[0]
    if tiff.is_scanimage or "scanimage.SI" in page.description:
        return scanimage_axes(tiff)
    if page.is_ome:
        return ONE_BY_ONE  # see `tiff.ome_set`
    if tiff.is_imagej:
        if second_page(tiff) is None and tiff.filehandle.size < page.dataoffsets[0] + 2 * page.nbytes:
            return ONE_BY_ONE  # a single frame with the description of the movie
        return imagej_axes(tiff.imagej_metadata or {}, named)
    if tiff.is_shaped:
        # Not by `tiff.series`, which looks into every page.
        text = page.shaped_description or ""
        metadata = json.loads(text) if text[:1] == "{" else {"shape": re.findall(r"\d+", text)}
        shape = tuple(map(int, metadata["shape"]))
        leading = next(n for n in reversed(range(len(shape))) if math.prod(shape[n:]) >= page.size)
        return named_axes(metadata.get("axes", "Q" * len(shape))[:leading], shape[:leading], path, named)
    if METAMORPH_TAG in page.tags:  # one directory of all frames
        raise UserError(f"{path}: is a MetaMorph stack; export it as a TIFF stack, for example with Fiji")
    if tiff.is_mmstack or tiff.is_fluoview or tiff.is_lsm:
        series = tiff.series[0]
        many = [
            size for axis, size in zip(series.axes, series.shape, strict=True) if axis in "CZ" and size > 1
        ]
        if many and len(series.shape) > 3:
            # Their pages may be in another order, with small pictures between them.
            raise UserError(
                f"{path}: has {' x '.join(map(str, series.shape))} pixels ({series.axes}): "
                "export one channel and plane as a TIFF stack, for example with Fiji"
            )
    return ONE_BY_ONE


def pages_taken_for_time(axes: Axes, named: Axes) -> list[str]:
    """A line where the few pages of a file are read as frames, but may be something else.

    Parameters
    ----------
    axes, named : Axes
        What `read_axes` gives, and what it gives where a channel or plane is named.
    """
    kind, several = ("channel", named.channels) if len(named.channels) > 1 else ("plane", named.planes)
    if len(axes.channels) * len(axes.planes) > 1 or not 1 < len(several) <= LARGEST_AXIS:
        return []
    return [
        f"the {len(several)} pages of a file are taken for frames, one after the other; if they are {kind}s, "
        f"choose one with --{kind} N"
    ]


def second_page(tiff: tifffile.TiffFile) -> tifffile.TiffPage | tifffile.TiffFrame | None:
    """The page after the first; None without one. The length of `tiff.pages` would look for all."""
    try:
        return tiff.pages.get(1)
    except IndexError:
        return None


# ScanImage


def scanimage_axes(tiff: tifffile.TiffFile) -> Axes:
    """The axes of a ScanImage file, by its header and by the frames' numbers.

    Of a header that names one channel the pages may still be of two, each page with its own header: then
    the pages of one frame have the same number.
    """
    page = tiff.pages[0]
    header = f"{page.software}\n{page.description}".replace("\r", "\n")
    old = "state.acq." in header

    def value(*keys: str) -> str:
        for key in keys:
            match = re.search(rf"\b{re.escape(key)} *= *(.*)", header)
            if match:
                return match.group(1).strip()
        return ""

    def whole(*keys: str, otherwise: int = 1) -> int:
        text = value(*keys)
        return int(float(text)) if re.fullmatch(r"\d+(\.0*)?", text) else otherwise

    if old:
        channels = list(range(1, whole("state.acq.numberOfChannelsSave") + 1))
        saved = [n for n in range(1, MOST_CHANNELS + 1) if value(f"state.acq.savingChannel{n}") == "1"]
        channels = saved if len(saved) == len(channels) else channels
        slices, flyback = whole("state.acq.numberOfZSlices"), 0
        frames = 1 if whole("state.acq.averaging", otherwise=0) else whole("state.acq.numberOfFrames")
        fast = False
    else:
        header_channels = value("SI.hChannels.channelSave", "SI5.channelsSave", "SI4.channelsSave")
        channels = [int(number) for number in re.findall(r"\d+", header_channels)] or [1]
        fast = value("SI.hFastZ.enable", "SI5.fastZEnable", "SI4.fastZEnable") in ("true", "1")
        slices = whole(
            "SI.hStackManager.actualNumSlices",
            "SI.hStackManager.numSlices",
            "SI5.stackNumSlices",
            "SI4.stackNumSlices",
        )
        if value("SI.hStackManager.enable") in ("false", "0") and not fast:
            slices = 1  # what was set for another day
        frames = whole("SI.hStackManager.framesPerSlice", "SI5.acqNumFrames", "SI4.acqNumFrames")
        frames = max(1, frames // max(1, whole("SI.hScan2D.logAverageFactor")))
        flyback = whole(
            "SI.hFastZ.numDiscardFlybackFrames",
            "SI5.fastZNumDiscardFrames",
            "SI4.fastZNumDiscardFrames",
            otherwise=0,
        )
        volume = whole("SI.hStackManager.numFramesPerVolumeWithFlyback", otherwise=slices + flyback)
        flyback = max(flyback, volume - slices * frames if frames * slices <= volume else 0)
        fast = fast or value("SI.hStackManager.stackMode").strip("'\"") == "fast"
    if slices == 1:
        flyback = 0
    channels = pages_of_one_frame(tiff, channels)
    if slices > 1 and not fast and frames > 1:  # all frames of one plane, then those of the next
        sizes = [("T", 1), ("Z", slices), ("T", frames), ("C", len(channels))]
    else:
        sizes = [("T", 1), ("Z", slices + flyback), ("C", len(channels))]
    many = tuple(size for size in sizes if size not in (("Z", 1), ("C", 1)))
    return Axes(many, [""] * len(channels), [""] * slices, list(channels))


def pages_of_one_frame(tiff: tifffile.TiffFile, channels: list[int]) -> list[int]:
    """The channels' numbers; of headers that are each page's own, those of the pages of the first frame."""
    texts = []
    for index in range(MOST_CHANNELS + 1):
        try:
            page = tiff.pages.get(index)
        except IndexError:
            break
        texts.append(f"{page.software}\n{page.description}")
    frames = [re.search(r"^frameNumbers? *= *(\d+)", text, re.MULTILINE) for text in texts]
    if not frames[0]:
        return channels
    same = [text for text, frame in zip(texts, frames, strict=True) if frame and frame[1] == frames[0][1]]
    if not len(channels) < len(same) <= MOST_CHANNELS:
        return channels
    saved = [re.search(r"channels?Save = \[?(\d+)\]?\s*$", text, re.MULTILINE) for text in same]
    numbers = [int(match[1]) for match in saved if match]
    return numbers if len(set(numbers)) == len(same) else list(range(1, len(same) + 1))


# ImageJ, and axes that have names


def imagej_axes(metadata: dict[str, Any], named: bool) -> Axes:
    """The axes of an ImageJ hyperstack: frames, slices, channels, the last fastest.

    Pages that are all called slices, or all channels, are a movie: programs that are not told what pages
    are call them so. A composite image has channels.
    """
    count = {key: int(metadata.get(key, 1)) for key in ("frames", "slices", "channels")}
    composite = metadata.get("mode") in ("composite", "color")
    if count["channels"] > 1 and count["frames"] * count["slices"] == 1 and not (composite or named):
        return ONE_BY_ONE
    if count["slices"] > 1 and count["frames"] == 1 and not (named and count["channels"] == 1):
        count["frames"], count["slices"] = count["slices"], 1
    sizes = (("T", count["frames"]), ("Z", count["slices"]), ("C", count["channels"]))
    return Axes(sizes, [""] * count["channels"], [""] * count["slices"])


def named_axes(names: str, sizes: tuple[int, ...], path: Path, named: bool) -> Axes:
    """The leading axes that tifffile names by letters: C, Z, T; Q where nobody knows.

    Raises
    ------
    UserError
        Two axes or more have no name, and the user did not name a channel or plane.
    """
    many = [(name, size) for name, size in zip(names, sizes, strict=True) if size > 1]
    one = len(many) == 1 and (many[0][0] == "C" or (named and many[0][0] == "Z"))
    if len(many) < 2 and not one:
        return Axes((("T", math.prod(sizes)),), [""], [""])
    kinds = [name if name in "TZC" else "T" if name == "I" else "" for name, _ in many]
    if "T" not in kinds and "" not in kinds and kinds.count("Z") == 1 and not one:
        kinds[kinds.index("Z")] = "T"  # a movie whose frames are called slices
    unknown = [index for index, kind in enumerate(kinds) if not kind]
    if unknown and "T" not in kinds:
        longest = max(unknown, key=lambda index: many[index][1])
        kinds[longest] = "T"
        unknown.remove(longest)
    if len(unknown) == 1 and named and many[unknown[0]][1] <= LARGEST_AXIS and "C" not in kinds:
        kinds[unknown[0]] = "C"
    elif unknown:
        shape = " x ".join(map(str, sizes))
        small = min(many[index][1] for index in unknown)
        raise UserError(
            f"{path}: has pages in {shape}, of which it does not say what is time: name one of {small} with "
            "--channel N, or export one channel and plane as a stack"
        )
    sizes_of = {kind: [size for k, (_, size) in zip(kinds, many, strict=True) if k == kind] for kind in "CZ"}
    return Axes(
        (("T", 1), *((kind, size) for kind, (_, size) in zip(kinds, many, strict=True))),
        [""] * math.prod(sizes_of["C"]),
        [""] * math.prod(sizes_of["Z"]),
    )


# OME


class OmePlane(NamedTuple):
    """One page of an OME set: its file's name (empty: the file itself) and its number there."""

    file: str
    page: int
    image: int
    channel: int
    plane: int
    time: int


class OmeSet(NamedTuple):
    """What the XML of an OME-TIFF says of its pages, in the order of time."""

    pages: list[OmePlane]
    images: int
    channels: list[str]
    planes: int


def read_ome(xml: str, path: Path) -> OmeSet:
    """The pages that an OME-XML lists.

    See https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html.

    Raises
    ------
    UserError
        It is damaged.
    """
    try:
        root = ElementTree.fromstring(xml)
        images = [pixels for pixels in root.iter() if pixels.tag.rpartition("}")[2] == "Pixels"]
        pages = [plane for number, pixels in enumerate(images) for plane in ome_planes(pixels, number)]
        channels = [
            channel.get("Name") or ""
            for channel in (images[0] if images else [])
            if channel.tag.rpartition("}")[2] == "Channel"
        ]
    except (ElementTree.ParseError, ValueError, KeyError) as error:
        raise UserError(f"{path}: has a damaged OME-XML ({error}); export it again") from error
    count = max((page.channel for page in pages), default=0) + 1
    return OmeSet(
        sorted(pages, key=lambda page: (page.image, page.time)),
        len(images),
        (channels + [""] * count)[:count],
        max((page.plane for page in pages), default=0) + 1,
    )


def ome_planes(pixels: ElementTree.Element, image: int) -> Iterator[OmePlane]:
    """The pages of one image of an OME-XML."""
    order = [axis for axis in pixels.attrib["DimensionOrder"] if axis in "ZCT"]
    samples = [c.get("SamplesPerPixel") for c in pixels if c.tag.rpartition("}")[2] == "Channel"]
    sizes = {axis: int(pixels.attrib[f"Size{axis}"]) for axis in order}
    if samples and samples[0] not in (None, "1"):
        sizes["C"] //= int(samples[0] or 1)  # those of a colour image are in one page
    count = math.prod(sizes.values())
    if count > MOST_PAGES:
        raise ValueError(f"{count} pages")
    blocks = [element for element in pixels if element.tag.rpartition("}")[2] == "TiffData"]
    for block in blocks:
        first = sum(
            int(block.get(f"First{axis}", 0)) * math.prod(sizes[a] for a in order[:position])
            for position, axis in enumerate(order)
        )
        length = int(block.get("PlaneCount", block.get("NumPlanes", 1 if "IFD" in block.attrib else count)))
        uuid = next((element for element in block if element.tag.rpartition("}")[2] == "UUID"), None)
        file = uuid.get("FileName", "") if uuid is not None else ""
        for index in range(min(length, count - first)):
            number, at = first + index, {}
            for axis in order:
                number, at[axis] = divmod(number, sizes[axis])
            yield OmePlane(file, int(block.get("IFD", 0)) + index, image, at["C"], at["Z"], at["T"])


# The size of a pixel, and the frames a second


def read_scale(tiff: tifffile.TiffFile) -> float | None:
    """Pixels per micrometre as ScanImage, OME or ImageJ metadata say; None where they do not.

    None too where a pixel is not square.
    """
    page = tiff.pages[0]
    rows, columns = page.shape[:2]
    if tiff.is_scanimage:
        corners = re.search(r"imagingFovUm = \[([-\d.;\s e+]+)\]", page.software)
        points = np.array([[*map(float, row.split())] for row in corners[1].split(";")]) if corners else None
        if points is None or points.shape != (4, 2):
            return None
        width, height = np.ptp(points, axis=0)
        return of_square_pixels(columns / width if width else 0, rows / height if height else 0)
    if page.is_ome:
        found = ome_attributes(page.description)
        sizes = []
        for axis in "XY":
            micron = MICRONS.get(found.get(f"PhysicalSize{axis}Unit", "µm").lower())
            size = as_number(found.get(f"PhysicalSize{axis}")) * (micron or math.nan)
            sizes.append(1 / size if size > 0 else 0)
        return of_square_pixels(*sizes)
    if tiff.is_imagej:
        micron = MICRONS.get(str((tiff.imagej_metadata or {}).get("unit", "")).lower())
        tags = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
        if micron is None or not all(isinstance(tag, tuple) and len(tag) == 2 and tag[1] for tag in tags):
            return None
        return of_square_pixels(*(tag[0] / tag[1] / micron for tag in tags))
    return None


def of_square_pixels(across: float, down: float) -> float | None:
    """Pixels per micrometre that are the same both ways; None where they are not, or unknown."""
    if abs(across - down) > SQUARE * across:
        return None
    return possible_scale(float(across))


def read_rate(tiff: tifffile.TiffFile, planes: int) -> float | None:
    """Frames of one of so many planes a second as ScanImage, OME or ImageJ metadata say; None where not."""
    page = tiff.pages[0]
    if tiff.is_scanimage:
        name = "scanFrameRate" if planes == 1 else "scanVolumeRate"
        rate = re.search(rf"SI\.hRoiManager\.{name} *= *([\d.e+-]+)", page.software)
        averaged = re.search(r"SI\.hScan2D\.logAverageFactor *= *(\d+)", page.software)
        return as_number(rate[1]) / max(1.0, as_number(averaged[1]) if averaged else 1.0) if rate else None
    if page.is_ome:
        found = ome_attributes(page.description)
        interval, unit = found.get("TimeIncrement"), found.get("TimeIncrementUnit", "s")
    elif tiff.is_imagej:
        found = tiff.imagej_metadata or {}
        interval, unit = found.get("finterval"), found.get("tunit", "sec")
    else:
        return None
    seconds = as_number(interval) * SECONDS.get(str(unit).lower(), math.nan)
    return 1 / seconds if seconds > 0 else None


def ome_attributes(xml: str) -> dict[str, str]:
    """The attributes of the first image's `Pixels` in an OME-XML."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    return dict(re.findall(r'\b(\w+)="([^"]*)"', pixels[0])) if pixels else {}


def as_number(value: Any) -> float:
    """The value as a number, NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
