"""The frames of TIFF files on disk, each read when it is needed.

Files come from strangers: whatever is wrong with one is a `UserError` that names it.
"""

from __future__ import annotations

import logging
import os
import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import tifffile

from neurodetect.files import UserError, reason
from neurodetect.formats.frames import LARGEST_FRAME, describe_frame, require_finite

TIFF_SUFFIXES = (".tif", ".tiff")
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
    """Where the frames of a TIFF file are.

    `directories` are the positions of its image file directories in the file. There is one for each
    frame, or one for all `count` frames, which then follow each other uncompressed.
    """

    directories: list[int]
    count: int


class TiffFrames:
    """The frames of TIFF files, one or several a file, all of one kind.

    Attributes
    ----------
    shape : (int, int)
        (H, W) of every frame, pixels.
    dtype : numpy.dtype
        Of every frame: an integer or float type.
    rate_hz : None
        TIFF does not say.
    """

    rate_hz = None

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._found: tuple[list[Layout], list[int]] | None = None
        with open_tiff(files[0]) as tiff:
            refuse_channels(tiff, files[0])
            first = read_page(tiff, files[0], tiff.pages[0], 0)
            self._compressed = tiff.pages[0].compression != tifffile.COMPRESSION.NONE
        self.shape: tuple[int, int] = first.shape
        self.dtype: np.dtype = first.dtype

    def __len__(self) -> int:
        """Number of frames. The first call looks into every file."""
        return self._layouts()[1][-1]

    def __iter__(self) -> Iterator[np.ndarray]:
        each = ahead if self._compressed else in_turn
        files = zip(self._files, self._layouts()[0], strict=True)
        for alone, group in groupby(files, key=lambda file: file[1].count == 1):
            if alone:  # a file a frame
                yield from each(partial(self._read_file, path, layout, 0) for path, layout in group)
                continue
            for path, layout in group:
                with open_tiff(path) as tiff:
                    tiff.filehandle.set_lock(self._compressed)  # it is shared by the threads of `ahead`
                    like = frame_entries(tiff, tiff.pages[0].offset)
                    read = partial(self._read, tiff, path, layout, like=like)
                    yield from each(partial(read, index) for index in range(layout.count))

    def frame(self, index: int) -> np.ndarray:
        """One frame by its number: (H, W). Raises IndexError, and UserError as iterating does."""
        layouts, ends = self._layouts()
        if not 0 <= index < ends[-1]:
            raise IndexError(f"frame {index} of {ends[-1]}")
        number = bisect_right(ends, index)
        layout = layouts[number]
        return self._read_file(self._files[number], layout, index - (ends[number] - layout.count))

    def _layouts(self) -> tuple[list[Layout], list[int]]:
        """The layout of each file, and the number of frames up to its end."""
        if self._found is None:
            counts: dict[bytes, int] = {}
            layouts = [find_layout(path, counts) for path in self._files]
            self._found = layouts, list(accumulate(layout.count for layout in layouts))
        return self._found

    def _read_file(self, path: Path, layout: Layout, index: int) -> np.ndarray:
        """A file's frame by its number in the file."""
        with open_tiff(path) as tiff:
            return self._read(tiff, path, layout, index)

    def _read(
        self, tiff: tifffile.TiffFile, path: Path, layout: Layout, index: int, like: list[bytes] | None = None
    ) -> np.ndarray:
        """An open file's frame by its number in the file, checked. `like` is as of `find_page`."""
        skip = index if len(layout.directories) == 1 else 0
        frame = read_page(tiff, path, find_page(tiff, layout, index, like), index, skip)
        if frame.shape != self.shape or frame.dtype != self.dtype:
            raise UserError(
                f"{path}: frame {index} is {describe_frame(frame.shape, frame.dtype)}, but the recording "
                f"began with {describe_frame(self.shape, self.dtype)}; a recording has frames of one kind"
            )
        return require_finite(frame, path, index)


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


def refuse_channels(tiff: tifffile.TiffFile, path: Path) -> None:
    """Refuse a movie of several channels: a mean over its pages would mix the colours.

    Where nothing but "channels" is many they are taken for frames: tifffile calls them so in an ImageJ
    file when it is not told what they are.
    """
    images = channels = 1
    if tiff.is_imagej:
        channels, images = (tiff.imagej_metadata.get(key, 1) for key in ("channels", "images"))
    elif tiff.is_ome:
        channels = dict(zip(tiff.series[0].axes, tiff.series[0].shape, strict=True)).get("C", 1)
        images = len(tiff.pages)
    if 1 < channels < images:
        raise UserError(f"{path}: has {channels} channels; export the one that shows the neurons")


def find_layout(path: Path, counts: dict[bytes, int]) -> Layout:
    """Find the frames of a TIFF file without reading them.

    Only the chain of directories is followed, which takes microseconds a frame where parsing the
    directories takes tens of them. tifffile's `pages` would follow it too, but to end earlier than the
    file says is no error there, and a chain that leads back into itself takes all memory.

    Parameters
    ----------
    path : Path
    counts : dict
        Number of frames by description, of files with one directory; what is learned is added, since
        the thousands of files of one recording say the same.

    Raises
    ------
    UserError
        The file is unreadable, or its chain of directories leads out of it or back into itself.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            directories, description = follow_directories(file, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the file") from error
    # One directory may describe the first of many frames that follow each other: ImageJ does this above
    # 4 GB, tifffile on request. Both say so in the description.
    if len(directories) > 1 or not (b"ImageJ=" in description or b"shape" in description):
        return Layout(directories, len(directories))
    if description not in counts:
        with open_tiff(path) as tiff:
            counts[description] = described_count(tiff)
    return Layout(directories, counts[description])


def follow_directories(file: BinaryIO, path: Path) -> tuple[list[int], bytes]:
    """Positions of a TIFF file's directories, and the first one's description (empty without one).

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
        raise UserError(
            f"{path}: is cut short, frame {len(directories)} is missing or damaged; copy or export it again"
        ) from None
    if not directories:
        raise UserError(f"{path}: has no frames; copy or export it again")
    return directories, description


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


def described_count(tiff: tifffile.TiffFile) -> int:
    """Number of frames that the description of a file with one directory promises."""
    if tiff.is_imagej:
        return max(1, int(tiff.imagej_metadata.get("images", 1)))
    if tiff.is_shaped:
        return max(1, tiff.series[0].size // max(tiff.pages[0].size, 1))
    return 1


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
        tiff.filehandle.seek(position)
        return tifffile.TiffPage(tiff, index)


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
) -> np.ndarray:
    """The frame of a TIFF page, or the one `skip` frames after it: (H, W), in the machine's byte order.

    `index` is its number in the file, for errors.
    """
    if page.dtype is None or page.dtype.kind not in "iuf":
        raise UserError(f"{path}: frame {index} is neither integer nor float; export it as grey values")
    if len(page.shape) != 2 or not page.size:
        raise UserError(
            f"{path}: frame {index} is {describe_frame(page.shape, page.dtype)}; "
            "a frame is a two-dimensional grey image, not RGB: export one channel"
        )
    if page.size > LARGEST_FRAME:
        raise UserError(f"{path}: frame {index} claims {page.size} pixels; the file is damaged")
    ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))
    if max(ends, default=0) + skip * page.nbytes > tiff.filehandle.size:
        raise UserError(f"{path}: is cut short in frame {index}; copy or export it again")
    if skip:
        with tiff.filehandle.lock:
            tiff.filehandle.seek(page.dataoffsets[0] + skip * page.nbytes)
            frame = tiff.filehandle.read_array(page.dtype.newbyteorder(tiff.byteorder), page.size)
        frame = frame.reshape(page.shape)
    else:
        frame = page.asarray()
    return frame.astype(frame.dtype.newbyteorder("="), copy=False)
