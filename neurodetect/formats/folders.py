"""Which TIFF files of a folder are the frames of one recording: one channel, one plane, no masks, one movie.

Programs that write a file a frame tell channels and planes apart by the files' names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from neurodetect.files import UserError, listed, natural_key
from neurodetect.formats.frames import choose

MOST_NUMBERS = 16  #: channels or planes, where every file has another number
# What ImageJ calls a projection, and Cellpose, ThorImage and people what is no frame.
DERIVED = re.compile(
    r"^(AVG|MAX|MIN|SUM|STD|MED)_"
    r"|(?i:[_\-. ](masks?|flows|outlines|labels?|rois?|preview|thumb(nail)?|projection|mean|avg|std)$)"
)
CHANNEL = re.compile(r"(?i)(?:^|[_\-. ]|(?<=\d))(?:channel|chan|ch)[_\-]?([a-d]|\d+)(?=$|[_\-. ]|[tz]\d)")
METAMORPH_CHANNEL = re.compile(r"(?i)(?:^|[_\-. ])w(\d)(?=$|[_\-. ]|[a-z])")
MANAGER_CHANNEL = re.compile(r"^img_\d+_(.+)_\d+$")  # Micro-Manager 1.4: time, channel, plane
MANAGER_PLANE = re.compile(r"^img_\d+_.+_(\d+)$")
COLOUR = re.compile(r"(?i)(?:^|[_\-. ])(red|green)(?=$|[_\-. ])")
PLANE = re.compile(r"(?i)(?:^|[_\-. ])plane[_\-]?(\d+)(?=$|[_\-. ])")
POSITION = re.compile(r"(?i)(?:^|[_\-. ])(?:pos|position|site)[_\-]?(\d+)(?=$|[_\-. ])")
# Letters that may as well belong to the number of a frame: then every file has another number.
CHANNEL_LETTER = re.compile(r"(?i)(?:^|[_\-. ]|(?<=\d))c[_\-]?(\d+)(?=$|[_\-. ]|[tz]\d)")
PLANE_LETTER = re.compile(r"(?i)(?:^|[_\-. ]|(?<=\d))(?:z|slice)[_\-]?(\d+)(?=$|[_\-. ]|[tc]\d)")
THORIMAGE_PLANE = re.compile(r"^Chan[A-D]_\d+_\d+_(\d+)_\d+$")  # then the number of the frame
# Of stacks: `mouse1`, `mouse2` are two movies, `mouse_1`, `mouse_2`, `mouse01` and `part1` parts of one.
ANIMAL = re.compile(r"[^\W\d_](\d|[1-9]\d+)$")
PART = re.compile(r"(?i)(part|file|block|chunk|frames?|images?|img)\d+$")
PRAIRIE = re.compile(
    r"_Cycle(\d+)_(?:CurrentSettings_)?Ch\d+_(\d+)$"
)  # Bruker: in a Z series the cycle counts the volumes
PRAIRIE_Z = b'type="TSeries ZSeries Element"'


class FrameFiles(NamedTuple):
    """The files of one channel and plane.

    `channel` and `plane` are what is left to choose within the files: None where the names told.
    """

    files: list[Path]
    channel: int | None
    plane: int | None
    notes: list[str]


def frame_files(files: list[Path], channel: int | None, plane: int | None) -> FrameFiles:
    """The files of one channel and plane by their names, and lines on what is left out.

    Parameters
    ----------
    files : list of Path
        TIFF files of one folder, in order.
    channel, plane : int, optional
        As the user chose.

    Raises
    ------
    UserError
        There are several channels or planes and none was chosen, or not as many.
    """
    folder, notes = files[0].parent, []
    left: dict[str, int | None] = {"channel": channel, "plane": plane}
    derived = [file for file in files if DERIVED.search(stem(file))]
    if 0 < len(derived) < len(files):
        files = [file for file in files if not DERIVED.search(stem(file))]
        notes.append(f"no frames, and left out: {listed(file.name for file in derived)}")
    for kind, by_name in (("channel", channels_by_name), ("plane", planes_by_name)):
        found = by_name(files)
        if kind == "channel" and not found and {str(channel)} == only_channel(files):
            left[kind] = None  # it is the only one that was saved
        if found:
            names = sorted(set(found.values()), key=natural_key)
            numbers = [int(name) for name in names] if all(map(str.isdecimal, names)) else None
            if numbers and (numbers[0] == 0 or len(set(numbers)) < len(numbers)):
                numbers = None
            name = names[choose(left[kind], [""] * len(names) if numbers else names, kind, folder, numbers)]
            left[kind] = None
            notes.append(f"{kind} {name} of {', '.join(names)}, the others are left out")
            files = [file for file in files if found.get(file) == name]
    return FrameFiles(files, left["channel"], left["plane"], notes)


@lru_cache(maxsize=2**16)  # asked for by every pattern
def stem(file: Path) -> str:
    """A file's name without `.tif` or `.ome.tif`."""
    name = file.stem
    return name[:-4] if name[-4:].lower() == ".ome" else name


def channels_by_name(files: Sequence[Path]) -> dict[Path, str]:
    """The channel of each file; empty where there are not several."""
    return tell_apart(files, (MANAGER_CHANNEL, CHANNEL, COLOUR, METAMORPH_CHANNEL, CHANNEL_LETTER))


def only_channel(files: Sequence[Path]) -> set[str]:
    """The numbers of the channels in the files' names, without leading zeros."""
    found = (CHANNEL.search(stem(file)) for file in files)
    return {match[1].lstrip("0") if match else "" for match in found}


def planes_by_name(files: Sequence[Path]) -> dict[Path, str]:
    """The plane of each file; empty where there are not several. Another place of the sample is one, too."""
    words = (THORIMAGE_PLANE, MANAGER_PLANE, PLANE, PLANE_LETTER)
    planes = tell_apart(files, words) or prairie_planes(files)
    places = tell_apart(files, (POSITION,))
    if not places:
        return planes
    return {file: f"position {place} {planes.get(file, '')}".strip() for file, place in places.items()}


def tell_apart(files: Sequence[Path], words: Sequence[re.Pattern[str]]) -> dict[Path, str]:
    """What follows one of the words in each file's name, where it tells a few sorts of files apart.

    Empty where the files have no such word, or all the same after it.
    """
    for word in words:
        found = {file: match[1] for file in files if (match := word.search(stem(file)))}
        sorts = set(found.values())
        certain = len(sorts) <= MOST_NUMBERS and word not in (CHANNEL_LETTER, PLANE_LETTER)
        if len(sorts) > 1 and (certain or 2 * len(sorts) <= len(found)):
            return found
    return {}


def prairie_planes(files: Sequence[Path]) -> dict[Path, str]:
    """The plane of each file that Bruker's Prairie View wrote in a Z series over time; otherwise empty."""
    found = {file: match for file in files if (match := PRAIRIE.search(stem(file)))}
    cycles, numbers = ({match[group] for match in found.values()} for group in (1, 2))
    if len(cycles) < 2 or len(numbers) < 2:
        return {}
    try:
        headers = [path.read_bytes() for path in files[0].parent.glob("*.xml")]
    except OSError:
        headers = []
    if not any(PRAIRIE_Z in header for header in headers) and (headers or len(numbers) > MOST_NUMBERS):
        return {}  # a movie that was taken in several runs
    return {file: match[2] for file, match in found.items()}


def require_one_movie(files: Sequence[Path], counts: Sequence[int]) -> list[str]:
    """Refuse files that do not look like parts of one recording; otherwise lines on how they are read.

    Files of a frame each belong together whatever they are called, unless most are called alike and some
    are not. Files of several frames have to be numbered as parts are: `run_1.tif`, `run_00001.tif`, not
    `mouse1.tif` and `mouse2.tif`.

    Parameters
    ----------
    files : sequence of Path
    counts : sequence of int
        Frames in each; files without one, of another plane of the set, do not matter.

    Raises
    ------
    UserError
        They do not.
    """
    folder = files[0].parent
    files = [file for file, count in zip(files, counts, strict=True) if count]
    advice = "give the file that is meant, or put the parts of one recording into a folder images/ in it"
    alike = Counter(pattern(file) for file in files)
    (usual, most), *others = alike.most_common()
    several = max(counts) > 1
    if others and (several or most > 1):
        first = next(file for file in files if pattern(file) == usual)
        names = listed([first.name, *(file.name for file in files if pattern(file) != usual)])
        raise UserError(f"{folder}: holds more than one movie, {names}: {advice}")
    if several and len(files) > 1:
        ends = [ANIMAL.search(stem(file)) for file in files if not PART.search(stem(file))]
        if len(ends) == len(files) and all(ends) and len({end[1] for end in ends if end}) > 1:
            raise UserError(
                f"{folder}: holds {len(files)} movies, {listed(file.name for file in files)}: {advice}"
            )
        return [f"{len(files)} files, {listed(file.name for file in files)}, are read as parts of one movie"]
    return []


def pattern(file: Path) -> str:
    """A file's name with # for every number, and without numbers at its end."""
    return re.sub(r"([\W_]*#)+\W*$", "", re.sub(r"\d+", "#", stem(file)))
