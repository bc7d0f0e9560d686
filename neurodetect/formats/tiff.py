"""The frames of TIFF files on disk, each read when it is needed.

Files come from strangers: whatever is wrong with one is a `UserError` that names it.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import warnings
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import tifffile

from neurodetect.files import UserError, reason
from neurodetect.formats.axes import (
    ONE_BY_ONE,
    Axes,
    OmePlane,
    chosen_pages,
    make_choice,
    pages_taken_for_time,
    read_axes,
    read_ome,
    read_rate,
    read_scale,
)
from neurodetect.formats.frames import LARGEST_FRAME, TIFF_SUFFIXES, choose, describe_frame, require_finite

DECODERS = min(4, os.cpu_count() or 1)  #: threads that decompress; beyond four, parsing limits them
DIRECTORY_BYTES = 512  #: read at once of a TIFF directory; most are smaller
LARGEST_DIRECTORY = 4096  #: entries; there are not that many kinds
DESCRIPTION_BYTES = 2**16  #: read of a description; what is looked for stands at its beginning
IMAGE_DESCRIPTION = 270  #: the TIFF tag
STORAGE_TAGS = """
    ImageWidth ImageLength ImageDepth TileWidth TileLength TileDepth RowsPerStrip BitsPerSample SampleFormat
    SamplesPerPixel PlanarConfiguration PhotometricInterpretation FillOrder Compression Predictor
    YCbCrSubSampling LercParameters GDAL_NODATA
""".split()  #: of TIFF, which say how a frame is stored
STORAGE_CODES = {struct.pack(f"{o}H", tifffile.TIFF.TAGS[name]) for name in STORAGE_TAGS for o in "<>"}
HEADERS = {
    b"II*\0": tifffile.TIFF.CLASSIC_LE,
    b"MM\0*": tifffile.TIFF.CLASSIC_BE,
    b"II+\0": tifffile.TIFF.BIG_LE,
    b"MM\0+": tifffile.TIFF.BIG_BE,
}

# What tifffile has to say of a broken file reaches the user as our one line, not beside it.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class Layout(NamedTuple):
    """Where the pages of a TIFF file are, and which of them are the recording's frames.

    `directories` are the positions of its image file directories in the file. There is one for each
    page, or one for all, which then follow each other uncompressed.
    """

    directories: list[int]
    pages: Sequence[int] | np.ndarray  # their numbers, from 0

    @property
    def length(self) -> int:
        """Number of frames."""
        return len(self.pages)


class TiffFrames:
    """The frames of TIFF files, one or several a file, all of one kind.

    Parameters
    ----------
    files : list of Path
        In the order of time.
    channel, plane : int, optional
        Which to read where there are several, by their numbers.
    transpose : bool
        Exchange rows and columns.

    Attributes
    ----------
    shape : (int, int)
        (H, W) of every frame, pixels.
    dtype : numpy.dtype
        Of every frame: an integer or float type.
    rate_hz, pixels_per_micron : float or None
        Where ImageJ, OME or ScanImage say.
    notes : list of str
        What of the files is left out.

    Raises
    ------
    UserError
        The first file is unreadable, or has several channels or planes and none was chosen.
    """

    def __init__(
        self,
        files: list[Path],
        channel: int | None = None,
        plane: int | None = None,
        transpose: bool = False,
    ) -> None:
        self._files = files
        self._transpose = transpose
        self._found: tuple[list[Layout], list[int]] | None = None
        self._ome: dict[str, list[OmePlane]] | None = None
        self.notes: list[str] = []
        with open_tiff(files[0]) as tiff:
            self._named = channel is not None or plane is not None
            self._axes = read_axes(tiff, files[0], self._named)
            if tiff.pages[0].is_ome:
                self._ome, self._axes, self.notes = ome_set(tiff, files)
            self._sample, notes = choose_sample(tiff.pages[0], channel, files[0])
            self.notes += notes
            if self._sample is not None:
                channel = None
            self._choice, notes = make_choice(self._axes, channel, plane, files[0])
            self.notes += notes
            if not self._named:
                self.notes += pages_taken_for_time(self._axes, read_axes(tiff, files[0], named=True))
            self._goes_on = bool(tiff.is_scanimage)  # from file to file, in the middle of a volume too
            self.pixels_per_micron = read_scale(tiff)
            self.rate_hz = read_rate(tiff, len(self._axes.planes))
            first = read_page(tiff, files[0], tiff.pages[0], 0, sample=self._sample)
            self._compressed = tiff.pages[0].compression != tifffile.COMPRESSION.NONE
        self.shape: tuple[int, int] = first.shape[::-1] if transpose else first.shape
        self.dtype: np.dtype = first.dtype

    def __len__(self) -> int:
        """Number of frames. The first call looks into every file."""
        return self._layouts()[1][-1]

    def between(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The frames from `start` to before `stop`, in order: (H, W)."""
        each = ahead if self._compressed else in_turn
        layouts, ends = self._layouts()
        parts = [
            (
                path,
                layout,
                range(max(0, start - end + layout.length), min(layout.length, stop - end + layout.length)),
            )
            for path, layout, end in zip(self._files, layouts, ends, strict=True)
        ]
        for alone, group in groupby(parts, key=lambda part: len(part[1].directories) == 1 == part[1].length):
            if alone:  # a file a frame
                yield from each(
                    partial(self._read_file, path, layout, i) for path, layout, of in group for i in of
                )
                continue
            for path, layout, indices in group:
                if not indices:
                    continue
                with open_tiff(path) as tiff:
                    tiff.filehandle.set_lock(self._compressed)  # it is shared by the threads of `ahead`
                    like = frame_entries(tiff, tiff.pages[0].offset)
                    read = partial(self._read, tiff, path, layout, like=like)
                    yield from each(partial(read, index) for index in indices)

    def frame(self, index: int) -> np.ndarray:
        """One frame by its number: (H, W). Raises IndexError, and UserError as iterating does."""
        layouts, ends = self._layouts()
        if not 0 <= index < ends[-1]:
            raise IndexError(f"frame {index} of {ends[-1]}")
        number = bisect_right(ends, index)
        layout = layouts[number]
        return self._read_file(self._files[number], layout, index - (ends[number] - layout.length))

    def counts(self) -> list[int]:
        """Number of frames in each file. The first call looks into every file."""
        return [layout.length for layout in self._layouts()[0]]

    def _layouts(self) -> tuple[list[Layout], list[int]]:
        """The layout of each file, and the number of frames up to its end."""
        if self._found is None:
            described: dict[bytes, Described] = {}
            layouts = []
            before = 0
            for path in self._files:
                alone = len(self._files) == 1
                directories, count, description = find_pages(path, described, alone)
                frame = re.search(rb"frameNumbers? *= *(\d+)", description)
                if frame and self._goes_on:  # ScanImage: another acquisition begins anew, and a file may lack
                    before = (int(frame[1]) - 1) * len(self._axes.channels)
                layouts.append(Layout(directories, self._chosen(path, count, before)))
                before += count if self._goes_on else 0
            if not sum(layout.length for layout in layouts):
                raise UserError(f"{self._files[0]}: has no frame of this channel and plane; choose another")
            self._found = layouts, list(accumulate(layout.length for layout in layouts))
        return self._found

    def _chosen(self, path: Path, count: int, before: int) -> Sequence[int] | np.ndarray:
        """Which pages of a file are frames of the channel and plane that are read."""
        ome, axes = self._ome, self._axes
        if path != self._files[0] and count > 1 and not self._goes_on and not (ome and path.name in ome):
            with open_tiff(path) as tiff:  # it may have more frames than the first file, or less
                axes = read_axes(tiff, path, self._named)
                if tiff.pages[0].is_ome:
                    ome, axes, _ = ome_set(tiff, [path])
            if [len(axes.channels), len(axes.planes)] != [len(self._axes.channels), len(self._axes.planes)]:
                raise UserError(
                    f"{path}: has {len(axes.channels)} channels and {len(axes.planes)} planes, but the "
                    f"recording began with {len(self._axes.channels)} and {len(self._axes.planes)}; "
                    "put what belongs together into a folder of its own"
                )
        if ome is None:
            return chosen_pages(axes, self._choice, count, before)
        listed = ome.get(path.name, []) + ome.get("", [])
        if not listed and count > 1:
            raise UserError(
                f"{path}: is not among the files that {self._files[0].name} lists as its recording; "
                "put it into a folder of its own"
            )
        if len(axes.channels) == len(axes.planes) == 1 or not listed:
            return range(count)
        if len(listed) < count:
            raise UserError(
                f"{path}: has {count} pages, of which its OME-XML lists {len(listed)}; export it again"
            )
        wanted = self._choice.channel, self._choice.plane
        return [page.page for page in listed if (page.channel, page.plane) == wanted and page.page < count]

    def _read_file(self, path: Path, layout: Layout, index: int) -> np.ndarray:
        """A file's frame by its number in the file."""
        with open_tiff(path) as tiff:
            return self._read(tiff, path, layout, index)

    def _read(
        self, tiff: tifffile.TiffFile, path: Path, layout: Layout, index: int, like: list[bytes] | None = None
    ) -> np.ndarray:
        """An open file's frame by its number in the file, checked. `like` is as of `find_page`."""
        number = int(layout.pages[index])
        skip = number if len(layout.directories) == 1 else 0
        page = find_page(tiff, layout, number, like)
        frame = read_page(tiff, path, page, number, skip, self._sample)
        if self._transpose:
            frame = frame.T
        if frame.shape != self.shape or frame.dtype != self.dtype:
            raise UserError(
                f"{path}: frame {number} is {describe_frame(frame.shape, frame.dtype)}, but the recording "
                f"began with {describe_frame(self.shape, self.dtype)}; a recording has frames of one kind"
            )
        return require_finite(frame, path, number)


def in_turn(reads: Iterable[Callable[[], np.ndarray]]) -> Iterator[np.ndarray]:
    """What the functions return, in order."""
    for read in reads:
        yield read()


def ahead(reads: Iterable[Callable[[], np.ndarray]]) -> Iterator[np.ndarray]:
    """What the functions return, in order, while threads are at work on the next few."""
    with ThreadPoolExecutor(DECODERS) as pool:
        jobs: deque[Future] = deque()
        for read in reads:
            jobs.append(pool.submit(read))
            if len(jobs) > DECODERS:
                yield jobs.popleft().result()
        while jobs:
            yield jobs.popleft().result()


@contextmanager
def open_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file; whatever is wrong with it, then or while it is read, is a UserError."""
    try:
        with tifffile.TiffFile(path) as tiff:
            yield tiff
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the file") from error
    except Exception as error:
        # tifffile meets damage in many ways: TiffFileError, struct.error, ValueError, KeyError, ...
        mend = "pip install imagecodecs" if "imagecodecs" in str(error) else "copy or export it again"
        raise UserError(f"{path}: cannot be read as TIFF ({error}); {mend}") from error


def ome_set(
    tiff: tifffile.TiffFile, files: list[Path]
) -> tuple[dict[str, list[OmePlane]] | None, Axes, list[str]]:
    """What the OME-XML of an open file, or of the file that it points to, says of the recording's pages.

    By the names of their files; channels and planes (or images, of which one has one plane) are counted
    among those that are there: of a set whose files were told apart by their names only what is in the
    given files counts. There is a line on an XML that is not there.
    """
    xml = tiff.pages[0].description
    master = re.search(r'<(?:\w+:)?BinaryOnly\b[^>]*\bMetadataFile="([^"]*)"', xml)
    if master:
        path = files[0].with_name(Path(master[1]).name)
        if not path.exists():
            note = f"{path.name} with the OME-XML of the files is not there: they are taken for one channel"
            return None, ONE_BY_ONE, [note] if len(files) > 1 else []
        if path.suffix.lower() in TIFF_SUFFIXES:
            with open_tiff(path) as other:
                xml = other.pages[0].description
        else:
            xml = path.read_text("utf-8", "replace")
    ome = read_ome(xml, files[0])
    names = {file.name for file in files}
    listed = [page for page in ome.pages if page.file in names or not page.file]
    if not listed:  # they were renamed
        if len(files) == len({page.file for page in ome.pages}) == 1:
            listed = [page._replace(file="") for page in ome.pages]
        elif len({page.time for page in ome.pages}) < len(files):
            raise UserError(
                f"{files[0]}: lists several channels or planes in files of other names; "
                "give the files the names that they had"
            )
    channels = sorted({page.channel for page in listed}) or [0]
    several = ome.images > 1
    planes = sorted({page.image if several else page.plane for page in listed}) or [0]
    if several and ome.planes > 1:
        raise UserError(f"{files[0]}: has {ome.images} images of {ome.planes} planes; export one of each")
    by_file: dict[str, list[OmePlane]] = {}
    for page in listed:
        plane = planes.index(page.image if several else page.plane)
        page = page._replace(channel=channels.index(page.channel), plane=plane)
        by_file.setdefault(page.file, []).append(page)
    axes = Axes(
        (("T", 1),),
        [ome.channels[channel] for channel in channels],
        [f"image {plane + 1}" if several else "" for plane in planes],
    )
    return by_file, axes, []


class Described(NamedTuple):
    """What a file with one directory says of the pages that follow the first: bytes, and where they begin."""

    count: int
    start: int
    page: int


def find_pages(path: Path, described: dict[bytes, Described], alone: bool) -> tuple[list[int], int, bytes]:
    """Find the pages of a TIFF file without reading them: positions of its directories, and their number.

    And what the first one says of itself in words.

    Only the chain of directories is followed, which takes microseconds a frame where parsing the
    directories takes tens of them. tifffile's `pages` would follow it too, but to end earlier than the
    file says is no error there, and a chain that leads back into itself takes all memory.

    Of a file whose last frame was cut, as when a recording is aborted, the others are found, with a warning.

    Parameters
    ----------
    path : Path
    described : dict
        By description, what files with one directory say; what is learned is added, since the thousands
        of files of one recording say the same.
    alone : bool
        Whether the file is the whole recording.

    Raises
    ------
    UserError
        The file is unreadable, or its chain of directories leads out of it or back into itself.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            directories, description, whole = follow_directories(file, path)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the file") from error
    if len(directories) > 1 or not whole:
        directories = whole_directories(path, directories, whole, size)
        return directories, len(directories), description
    # One directory may describe the first of many frames that follow each other: ImageJ does this above
    # 4 GB, tifffile on request. Both say so in the description.
    if not (b"ImageJ=" in description or b"shape" in description):
        return directories, 1, description
    if description not in described:
        with open_tiff(path) as tiff:
            described[description] = described_pages(tiff)
    count, start, page = described[description]
    there = (size - start) // page if count > 1 else 1
    if there == 1 < count and b"ImageJ=" in description:
        # Copied from the movie to a single frame of it.
        if alone:
            warnings.warn(f"{path}: says that it has {count} frames, but holds one", stacklevel=4)
        return directories, 1, description
    if there == count - 1 > 0:
        warn_of_cut(path, there)
        count = there
    return directories, count, description


def whole_directories(path: Path, directories: list[int], chain_ends: bool, size: int) -> list[int]:
    """The directories without the last one if its frame was cut, for which there is a warning.

    Raises
    ------
    UserError
        More than one frame is missing: the file is damaged.
    """
    with open_tiff(path) as tiff:
        ends = [
            end_of(page_at(tiff, directories[i], i))
            for i in range(max(0, len(directories) - 2), len(directories))
        ]
        if len(ends) > 1 and ends[0] <= size < ends[1]:
            warn_of_cut(path, len(directories) - 1)
            return directories[:-1]
        if not chain_ends:
            # What follows the last whole frame is less than one of them.
            if not ends[-1] <= size < ends[-1] + abs(ends[-1] - (ends[0] if len(ends) > 1 else 0)):
                raise UserError(
                    f"{path}: is cut short, frame {len(directories)} is missing or damaged; "
                    "copy or export it again"
                )
            warn_of_cut(path, len(directories))
    return directories


def page_at(tiff: tifffile.TiffFile, position: int, index: int) -> tifffile.TiffPage:
    """The page whose directory is at a position of an open file, parsed in full."""
    tiff.filehandle.seek(position)
    return tifffile.TiffPage(tiff, index)


def end_of(page: tifffile.TiffPage | tifffile.TiffFrame) -> int:
    """Where in its file the pixels of a page end."""
    return max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)


def warn_of_cut(path: Path, count: int) -> None:
    warnings.warn(
        f"{path}: is cut short in frame {count + 1}, which is left out; {count} are read", stacklevel=5
    )


def follow_directories(file: BinaryIO, path: Path) -> tuple[list[int], bytes, bool]:
    """Positions of a TIFF file's directories, the first one's description (empty without one).

    And whether their chain ends as it should: it may lead out of a file that was cut.

    The format: https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf, section 2; BigTIFF has
    the same structure with wider numbers.
    """
    start = file.read(16)
    if start[:4] not in HEADERS:
        raise UserError(f"{path}: is no TIFF file; copy or export it again")
    numbers = HEADERS[start[:4]]
    directories: list[int] = []
    seen: set[int] = set()
    description = b""
    try:
        (position,) = struct.unpack_from(numbers.offsetformat, start, numbers.offsetsize)
        while position:
            if position in seen:
                raise UserError(
                    f"{path}: frame {len(directories)} leads back to an earlier one; export it again"
                )
            entries, following = read_entries(file, numbers, position)
            if not directories:
                description = description_of(file, numbers, entries)
            seen.add(position)
            directories.append(position)
            position = following
    except (struct.error, OverflowError):
        if directories:
            return directories, description, False
        raise UserError(f"{path}: is cut short before its first frame; copy or export it again") from None
    if not directories:
        raise UserError(f"{path}: has no frames; copy or export it again")
    return directories, description, True


def read_entries(
    file: BinaryIO | tifffile.FileHandle, numbers: tifffile.TiffFormat, position: int
) -> tuple[bytes, int]:
    """The entries of the directory at a position, one behind the other, and the position of the next one.

    Raises struct.error where the file ends before the directory does.
    """
    file.seek(position)
    content = file.read(DIRECTORY_BYTES)
    (count,) = struct.unpack_from(numbers.tagnoformat, content)
    if count > LARGEST_DIRECTORY:
        raise struct.error(f"{count} entries in a directory")
    end = numbers.tagnosize + count * numbers.tagsize
    if len(content) < end + numbers.offsetsize:
        content += file.read(end + numbers.offsetsize - len(content))
    (following,) = struct.unpack_from(numbers.offsetformat, content, end)
    return content[numbers.tagnosize : end], following


def description_of(file: BinaryIO, numbers: tifffile.TiffFormat, entries: bytes) -> bytes:
    """The beginning of what a directory says of its frame in words, which may be in several entries."""
    description = b""
    for start in range(0, len(entries), numbers.tagsize):
        tag, _ = struct.unpack_from(numbers.tagformat1, entries, start)
        if tag == IMAGE_DESCRIPTION:
            length, value = struct.unpack_from(numbers.tagformat2, entries, start + 4)
            if length > len(value):  # then it has the position instead
                file.seek(struct.unpack(numbers.offsetformat, value)[0])
                value = file.read(min(length, DESCRIPTION_BYTES))
            description += value
    return description


def described_pages(tiff: tifffile.TiffFile) -> Described:
    """The pages that the description of a file with one directory promises."""
    first = tiff.pages[0]
    count = 1
    if tiff.is_imagej:
        count = int((tiff.imagej_metadata or {}).get("images", 1))
    elif tiff.is_shaped:
        count = tiff.series[0].size // max(first.size, 1)
    return Described(max(1, count), first.dataoffsets[0] if first.dataoffsets else 0, max(1, first.nbytes))


def frame_entries(tiff: tifffile.TiffFile, position: int) -> list[bytes]:
    """The entries of a directory that say how its frame is stored, as they are in the file."""
    entries, _ = read_entries(tiff.filehandle, tiff.tiff, position)
    each = (entries[start : start + tiff.tiff.tagsize] for start in range(0, len(entries), tiff.tiff.tagsize))
    return [entry for entry in each if entry[:2] in STORAGE_CODES]


def find_page(
    tiff: tifffile.TiffFile, layout: Layout, index: int, like: list[bytes] | None
) -> tifffile.TiffPage | tifffile.TiffFrame:
    """What an open file says of a frame, by its number in the file; of the first, if it describes that only.

    `like` are the `frame_entries` of its first directory. A directory with the same entries is read in a
    quarter of the time; without `like` each is parsed in full.
    """
    first = tiff.pages[0]  # parsed when the file was opened
    if index == 0 or len(layout.directories) == 1:
        return first
    position = layout.directories[index]
    with tiff.filehandle.lock:
        if like is not None and frame_entries(tiff, position) == like:
            # A TiffFrame reads where its strips are and takes all else from the first page without a look.
            frame = tifffile.TiffFrame(tiff, index, offset=position)
            if strips_fit(frame, first):
                frame.keyframe = first
                return frame
        return page_at(tiff, position, index)


def strips_fit(frame: tifffile.TiffFrame, first: tifffile.TiffPage) -> bool:
    """Whether a frame's strips can be read as the first page's: as many, and contiguous if those are."""
    if not first.is_contiguous:
        return len(frame.dataoffsets) == len(first.dataoffsets)
    (distances, expected) = ([o - page.dataoffsets[0] for o in page.dataoffsets] for page in (frame, first))
    return distances == expected


def read_page(
    tiff: tifffile.TiffFile,
    path: Path,
    page: tifffile.TiffPage | tifffile.TiffFrame,
    index: int,
    skip: int = 0,
    sample: int | None = None,
) -> np.ndarray:
    """The frame of a TIFF page, or the one `skip` frames after it: (H, W), in the machine's byte order.

    `index` is its number in the file, for errors; `sample` is which to take of those that a pixel has.
    """
    if page.dtype is None or page.dtype.kind not in "iuf":
        what = "a mask of 1 bit" if page.dtype == bool else "neither integer nor float"
        raise UserError(f"{path}: frame {index} is {what}; export it as grey values")
    samples = page.keyframe.samplesperpixel
    if len(page.shape) != (2 if sample is None else 3) or not page.size or (sample or 0) >= samples:
        choice = f", or choose one with --channel N, of 1 to {samples}" if samples > 1 else ""
        raise UserError(
            f"{path}: frame {index} is {describe_frame(page.shape, page.dtype)}; "
            f"a frame is a two-dimensional grey image, not RGB: export one channel{choice}"
        )
    if page.size > LARGEST_FRAME:
        raise UserError(f"{path}: frame {index} claims {page.size} pixels; the file is damaged")
    if end_of(page) + skip * page.nbytes > tiff.filehandle.size:
        raise UserError(f"{path}: is cut short in frame {index}; copy or export it again")
    if skip:
        with tiff.filehandle.lock:
            tiff.filehandle.seek(page.dataoffsets[0] + skip * page.nbytes)
            frame = tiff.filehandle.read_array(page.dtype.newbyteorder(tiff.byteorder), page.size)
        frame = frame.reshape(page.shape)
    else:
        require_codec(page.keyframe, path)
        frame = page.asarray()
    if sample is not None:
        frame = frame.take(sample, axis=page.keyframe.axes.index("S"))
    frame = frame.astype(frame.dtype.newbyteorder("="), copy=False)
    if page.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE:  # its large values are dark
        frame = -frame if frame.dtype.kind == "f" else ~frame
    return frame


def choose_sample(page: tifffile.TiffPage, channel: int | None, path: Path) -> tuple[int | None, list[str]]:
    """Which sample of each pixel to take of a colour image, if the user chose; and a line on the others."""
    count = page.samplesperpixel
    if count == 1 or channel is None or len(page.shape) != 3:
        return None, []
    sample = choose(channel, [""] * count, "channel", path)
    return sample, [f"channel {channel} of {count}, the others are left out"]


def require_codec(page: tifffile.TiffPage, path: Path) -> None:
    """Refuse a compression that takes a package which is not installed."""
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
        tifffile.TIFF.UNPREDICTORS[page.predictor]
    except Exception as error:  # KeyError, and ImportError, AttributeError, ... of a package half installed
        name = getattr(page.compression, "name", page.compression)
        raise UserError(
            f"{path}: is compressed ({name}), for which a package is missing; pip install imagecodecs"
        ) from error
