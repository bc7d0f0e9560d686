from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.figure import Figure
from PIL import Image

from neurodetect import scoring
from neurodetect.detection import Found, assess
from neurodetect.files import UserError
from neurodetect.prepared import Prepared
from neurodetect.regions import find_regions, mean_probability
from neurodetect.view.figures import draw_found
from neurodetect.view.report import COLUMNS, OUTLINES, section, svg_path, write_report

SHAPE = (40, 60)
PROBABILITY = np.random.default_rng(0).random(SHAPE).astype(np.float32)
IMAGE = np.random.default_rng(1).random(SHAPE).astype(np.float32)
NASTY = (
    "</script><img src=x onerror=alert(1)>",
    "\"' onclick=alert(1) x='\" & &amp; <b>",
    "a\nb",
    "{{title}} \\1 <!-- ]]>",
    "half a character \udcff",
)


def block(row, column, height, width):
    """Pixels of a rectangle, row by row."""
    return np.argwhere(np.ones((height, width))) + (row, column)


TRUTH = [block(2, 3, 8, 9), block(20, 30, 6, 7), block(30, 2, 5, 5)]
HOLLOW = block(21, 30, 6, 8)
HOLLOW = HOLLOW[(HOLLOW != (23, 33)).any(axis=1)]
FOUND = [block(2, 45, 4, 12), HOLLOW, block(3, 4, 8, 9)]
PAIRS = [(0, 2), (1, 1)]  # truth 2 is missed, found 0 is false


def labelled_recording(name="labelled", scale=None):
    mask = np.zeros(SHAPE, np.uint8)
    for region in TRUTH:
        mask[tuple(region.T)] = 1
    return Prepared(name, IMAGE, mask, TRUTH, scale)


def labelled_section(name="labelled", scale=None, note=""):
    recording = labelled_recording(name, scale)
    row = scoring.evaluate(PROBABILITY, FOUND, recording.mask, TRUTH, scale)
    return section(recording, found(), row, PAIRS, note)


def found(regions=FOUND, probability=PROBABILITY):
    return Found(regions, probability, mean_probability(probability, regions))


def bare_section(name="bare", regions=FOUND, probability=PROBABILITY, note=""):
    """Of a recording without labels."""
    return section(Prepared(name, IMAGE, None, None, None), found(regions, probability), note=note)


def drawn(path, shape=SHAPE):
    """The pixels inside an SVG path by the even-odd rule: each edge down or up flips all on its right."""
    inside = np.zeros(shape, bool)
    rings = re.findall(r"M(\d+) (\d+)((?:[vh]-?\d+)+)z", path)
    assert "".join(f"M{c} {r}{steps}z" for c, r, steps in rings) == path
    for column, row, steps in rings:
        column, row = int(column), int(row)
        edges = [(direction, int(by)) for direction, by in re.findall(r"([vh])(-?\d+)", steps)]
        across, down = (sum(by for direction, by in edges if direction == way) for way in "hv")
        assert across == 0 or down == 0  # "z", the last edge, is straight
        for direction, by in [*edges, ("v", -down)]:
            if direction == "v":
                inside[min(row, row + by) : max(row, row + by), column:] ^= True
                row += by
            else:
                column += by
    return inside


def painted(region, shape=SHAPE):
    mask = np.zeros(shape, bool)
    for row, column in region:
        mask[row, column] = True
    return mask


class Page(HTMLParser):
    """A parsed page: every element with its attributes and text; fails on tags that do not fit together."""

    VOID = ("meta", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.elements, self.stack = [], []
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in self.VOID:
            self.stack.append(element)

    def handle_endtag(self, tag):
        assert self.stack.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.stack:
            element["text"] += data

    def all(self, tag, **attributes):
        wanted = {"tag": tag, **attributes}
        return [e for e in self.elements if wanted.items() <= e.items()]

    def texts(self, tag):
        return [element["text"].strip() for element in self.all(tag)]

    def data(self):
        def never(constant):
            raise AssertionError(constant)

        return json.loads(self.all("script", id="data")[0]["text"], parse_constant=never)

    def shape(self):
        """Tags and names of attributes, in order: what no text may change."""
        return [(e["tag"], sorted(e)) for e in self.elements]


def report(folder, sections, title="A run", settings=None, figures=None):
    path = folder / "report.html"
    write_report(path, title=title, settings=settings or {}, sections=sections, figures=figures)
    return path


def read(path):
    return Page(path.read_bytes().decode("utf-8"))


def curve():
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2, 3])
    return figure


# A recording


neurons_of_any_shape = st.lists(
    hnp.arrays(bool, (6, 8), fill=st.just(False)).filter(np.any).map(np.argwhere), max_size=4
)


@settings(max_examples=60)
@given(
    truth=st.none() | neurons_of_any_shape,
    regions=neurons_of_any_shape,
    scale=st.none() | st.floats(0.1, 10),
    seed=st.integers(0, 99),
)
def test_outlines_and_numbers_are_those_of_the_neurons(truth, regions, scale, seed):
    probability = np.random.default_rng(seed).random((6, 8)).astype(np.float32)
    pairs = [] if truth is None else scoring.match_centers(truth, regions, 2.0)
    page = section(Prepared("any", probability, None, truth, scale), found(regions, probability), None, pairs)
    neurons = [dict(zip(COLUMNS, values, strict=True)) for values in page.neurons]
    labelled = truth or []
    assert sorted(n["found"] for n in neurons if n["found"]) == list(range(1, len(regions) + 1))
    assert sorted(n["labelled"] for n in neurons if n["labelled"]) == list(range(1, len(labelled) + 1))
    lines = {key: iter(path.split("\n")) for key, path in page.paths.items()}
    for n in neurons:
        f = {tuple(p) for p in regions[n["found"] - 1].tolist()} if n["found"] else set()
        t = {tuple(p) for p in truth[n["labelled"] - 1].tolist()} if n["labelled"] else set()
        if f and t:
            assert n["kind"] == "matched" and (n["labelled"] - 1, n["found"] - 1) in pairs
            assert n["iou"] == pytest.approx(len(f & t) / len(f | t), abs=6e-4)
        else:
            assert n["kind"] == ("missed" if t else "found" if truth is None else "false")
            assert n["iou"] is None
        pixels = f or t
        assert n["area"] == len(pixels)
        mean = sum(float(probability[p]) for p in pixels) / len(pixels)
        assert n["probability"] == pytest.approx(mean, abs=6e-4)
        for axis, key in enumerate(("row", "column")):
            assert n[key] == pytest.approx(sum(p[axis] for p in pixels) / len(pixels), abs=0.051)
        # The kind's outlines come in the order of the list.
        for key, region in {
            "matched": {"matched-labelled": t, "matched-found": f},
            "missed": {"missed": t},
            "false": {"false": f},
            "found": {"found": f},
        }[n["kind"]].items():
            np.testing.assert_array_equal(drawn(next(lines[key]), (6, 8)), painted(region, (6, 8)))
    assert all(next(rest, "") == "" for rest in lines.values())


def test_svg_path_of_a_ring_by_hand():
    ring = np.array([[1, 2], [1, 3], [1, 4], [2, 2], [2, 4], [3, 2], [3, 3], [3, 4]])
    assert sorted(re.findall("M[^M]+", svg_path(ring))) == ["M2 1h3v3h-3z", "M3 3h1v-1h-1z"]
    assert svg_path(np.array([[0, 5]])) == "M5 0h1v1h-1z"


def test_picture_is_the_image_in_grey(tmp_path):
    page = read(report(tmp_path, [labelled_section()]))
    (image,) = page.all("img", alt="mean image")
    kind, content = image["src"].split(",")
    assert kind == "data:image/png;base64"
    grey = np.array(Image.open(io.BytesIO(base64.b64decode(content))))
    assert grey.shape == SHAPE and (image["height"], image["width"]) == ("40", "60")
    low, high = np.percentile(IMAGE, (1.0, 99.7))
    wanted = 255 * (np.clip(IMAGE, low, high) - low) / (high - low)
    np.testing.assert_allclose(grey, wanted, atol=0.51)


def test_section_and_figure_show_what_assess_gives():
    recording = labelled_recording(scale=1.2)
    row, pairs = assess(recording, found())
    assert row == scoring.evaluate(PROBABILITY, FOUND, recording.mask, TRUTH, 1.2)
    assert row["threshold"] == 6
    page = section(recording, found(), row, pairs, note="held out")
    assert page == labelled_section(scale=1.2, note="held out")
    assert page.pixels_per_micron == 1.2
    figure = draw_found(recording, found(), pairs, note="held out")
    assert figure.get_label() == "labelled, held out" and len(figure.axes[1].collections) == 4


def test_section_and_figure_of_a_recording_without_labels():
    recording = Prepared("bare", IMAGE, None, None, None)
    assert assess(recording, found()) == (None, [])
    page = section(recording, found())
    assert page.row is None and page.pixels_per_micron is None
    assert [neuron[0] for neuron in page.neurons] == ["found"] * 3
    assert draw_found(recording, found()).axes[1].get_title() == "3 found neurons"


@pytest.mark.parametrize("truth", [None, TRUTH, []])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_probability(tmp_path, truth, value):
    probability = np.full(SHAPE, value, np.float32)
    mask = None if truth is None else labelled_recording().mask if truth else np.zeros(SHAPE, np.uint8)
    regions = find_regions(probability)
    recording = Prepared("flat", IMAGE, mask, truth, None)
    page = section(recording, found(regions, probability), *assess(recording, found(regions, probability)))
    parsed = read(report(tmp_path, [page]))
    (listed,) = parsed.data()["recordings"]
    assert len(regions) == int(value)
    assert sum(n[COLUMNS.index("found")] is not None for n in listed["neurons"]) == int(value)
    assert all(n[COLUMNS.index("probability")] == value for n in listed["neurons"])
    assert len(parsed.all("path")) == len(page.paths) == (1 if truth is None else 4)


# The page


def test_data_and_outlines_on_the_page_are_those_of_the_sections(tmp_path):
    sections = [labelled_section("one", 1.28), bare_section("two")]
    page = read(report(tmp_path, sections))
    data = page.data()
    assert data["columns"] == list(COLUMNS)
    for s, recording in zip(sections, data["recordings"], strict=True):
        assert recording == {
            "name": s.name,
            "pixels_per_micron": s.pixels_per_micron,
            "neurons": [list(n) for n in s.neurons],
        }
    wanted = [(f"outline {key}", OUTLINES[key][1], path) for s in sections for key, path in s.paths.items()]
    assert [(p["class"], p["data-kind"], p["d"]) for p in page.all("path")] == wanted
    assert [e["viewbox"] for e in page.all("svg")] == ["0 0 60 40"] * 2
    names = [
        "labelled, matched: 2",
        "found, matched: 2",
        "labelled, missed: 1",
        "found, false: 1",
        "found: 3",
    ]
    assert page.texts("label") == names
    assert [e["id"] for e in page.all("details", **{"class": "recording"})] == ["recording-1", "recording-2"]


def test_scale_bar_is_a_round_length_and_only_where_the_scale_is_known(tmp_path):
    page = read(report(tmp_path, [labelled_section("one", 1.5), labelled_section("two")]))
    (bar,) = page.all("div", **{"class": "bar"})
    # A quarter of 60 pixels is 10 µm.
    assert bar["text"] == "10 µm"
    assert bar["data-microns"] == "10"
    assert bar["style"] == "--share: 25.000"


def test_score_table(tmp_path):
    sections = [labelled_section("one"), labelled_section("two", 3.0, "seen before")]
    sections += [bare_section("bare"), bare_section("none", [])]
    page = read(report(tmp_path, sections))
    assert page.texts("p")[0] == "4 recordings, 9 neurons found, 6 labelled"
    rows = [re.split(r"\s*</?td>", row)[1::2] for row in table_rows(tmp_path / "report.html")]
    areas, means = [48, 47, 72], [PROBABILITY[tuple(region.T)].mean() for region in FOUND]
    end = [f"{sorted(areas)[1]}", f"{sum(means) / 3:.2f}"]
    measures = [[f"{s.row[key]:.3f}" for key in scoring.MEASURES] for s in sections[:2]]
    assert [row[1:] for row in rows[:4]] == [
        ["3", "3", *measures[0], *end],
        ["3", "3", *measures[1], *end],
        ["3", "", *[""] * len(scoring.MEASURES), *end],
        ["0", "", *[""] * len(scoring.MEASURES), "", ""],
    ]
    mean = [f"{(sections[0].row[key] + sections[1].row[key]) / 2:.3f}" for key in scoring.MEASURES]
    assert rows[4] == ["mean", "3.0", "3.0", *mean, "", ""]
    assert [e["text"] for e in page.all("a")] == ["one", "two", "bare", "none"]
    assert [e["href"] for e in page.all("a")] == [f"#recording-{n}" for n in (1, 2, 3, 4)]
    assert rows[1][0].endswith('<span class="note">seen before</span>')


def table_rows(path):
    """The rows of the score table but its head, as HTML."""
    table = re.search(r"<tbody>.*?</tfoot>", path.read_text(encoding="utf-8"), re.DOTALL)[0]
    return re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)


def test_page_without_labels_speaks_of_no_scores(tmp_path):
    page = read(report(tmp_path, [bare_section("bare", FOUND[:1])]))
    assert page.texts("p")[0] == "1 recording, 1 neuron found"
    assert page.texts("th") == ["recording", "found", "median area", "mean probability"]
    assert not re.search("recall|missed|labelled", " ".join(page.texts("body")).split('{"columns"')[0])


def test_page_without_recordings(tmp_path):
    page = read(report(tmp_path, []))
    assert page.data()["recordings"] == []
    assert page.texts("p")[0] == "0 recordings, 0 neurons found"


def test_settings(tmp_path):
    given = {
        "batch_size": 100,
        "learning_rate": 2e-4,
        "time": 1234567.25,
        "resume": True,
        "export": ["imagej", "labels"],
        "recordings": [],
        "network": None,
        "versions": {"numpy": "2.0"},
        "inputs": {f"X_{n}.npy": "0" for n in range(30)},
    }
    page = read(report(tmp_path, [], settings=given))
    values = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    wanted = {
        "batch size": "100",
        "learning rate": "0.0002",
        "time": "1234567.25",
        "resume": "yes",
        "export": "imagej, labels",
        "recordings": "none",
        "network": "not given",
        "numpy": "2.0",
    }
    assert wanted.items() <= values.items()
    folded = {e["text"].split(" ")[0]: "open" not in e for e in page.all("details")[1:]}
    assert folded["1"] is False and folded["30"] is True


def test_nothing_is_fetched_from_anywhere(tmp_path):
    path = report(tmp_path, [labelled_section("one", 1.28)], figures={"A curve": curve()})
    page = read(path)
    assert all(e["src"].startswith("data:image/png;base64,") for e in page.elements if "src" in e)
    assert all(e["href"].startswith("#") for e in page.elements if "href" in e)
    assert not {"link", "iframe", "object", "embed", "base"} & {e["tag"] for e in page.elements}
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, no address
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|\bimport\b", text)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")
    assert page.texts("figcaption") == ["A curve"]


def page_about(folder, text):
    """A page with this text wherever text of others can come."""
    sections = [labelled_section(text, 1.28, note=text), bare_section(text, note=text)]
    given = {text: text, "more": {text: [text, text]}}
    return report(folder, sections, title=text, settings=given, figures={text: curve()})


@pytest.mark.parametrize("name", NASTY)
def test_text_of_others_stays_text(tmp_path, name):
    plain = read(page_about(tmp_path, "plain"))
    page = read(page_about(tmp_path, name))
    assert page.shape() == plain.shape()
    for one, other in zip(page.elements, plain.elements, strict=True):
        differing = {key for key in one if one[key] != other[key]}
        assert differing <= {"text", "alt"} and one.get("alt") in (other.get("alt"), seen(name))
    assert page.texts("title") == page.texts("h1") == [seen(name)]
    assert page.texts("h2")[:2] == [seen(name)] * 2
    assert page.texts("dd")[-1] == f"{seen(name)}, {seen(name)}"
    assert [r["name"] for r in page.data()["recordings"]] == [name, name]


def seen(name):
    return name.replace("\udcff", "?")


@settings(max_examples=30)
@given(text=st.text(st.characters(exclude_characters="\x00\r"), max_size=20))
def test_any_text_stays_text(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("page", numbered=True)
    bare = bare_section(text, [], note="note")
    page = read(report(folder, [bare], title=text, settings={text: text}))
    assert page.texts("h1") == [text.encode("utf-8", "replace").decode().strip()]
    assert page.data()["recordings"][0]["name"] == text
    same = read(report(folder, [bare._replace(name="n")], title="n", settings={"n": "n"}))
    assert page.shape() == same.shape()


def test_same_input_same_bytes(tmp_path):
    pages = [page_about(tmp_path / name, NASTY[0]).read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]


def test_nan_is_refused_and_nothing_written(tmp_path):
    broken = bare_section("nan", probability=np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(ValueError, match="not JSON compliant"):
        report(tmp_path, [broken])
    assert list(tmp_path.iterdir()) == []


def test_page_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="report.html: cannot be written"):
        report(tmp_path / "file", [])


# In a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    programs = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=next(programs, None))
        except sync_api.Error as error:
            pytest.skip(f"no browser starts (playwright install chromium): {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page of two recordings with names that are markup."""
    folder = tmp_path_factory.mktemp("report")
    sections = [labelled_section(NASTY[0], 2.0, note=NASTY[1]), bare_section(NASTY[1])]
    return report(folder, sections, NASTY[0], {NASTY[0]: NASTY[1]}, {NASTY[0]: curve()})


@pytest.fixture
def page(browser, file):
    """The page, opened; no test may leave an error, a dialogue or a request behind."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    trouble, requests = [], []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.set_default_timeout(5000)
    page.goto(file.as_uri())
    yield page
    page.close()
    assert trouble == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]


def hover_pixel(page, row, column):
    page.locator("#recording-1").scroll_into_view_if_needed()
    box = page.locator("#recording-1 .frame").bounding_box()
    page.mouse.move(
        box["x"] + (column + 0.5) * box["width"] / SHAPE[1], box["y"] + (row + 0.5) * box["height"] / SHAPE[0]
    )


def lit_rows(page):
    return page.locator("#recording-1 .neurons tbody tr.lit").all_inner_texts()


def cells(page, index=1):
    """Visible rows of a recording's list."""
    rows = page.locator(f"#recording-{index} .neurons tbody tr:visible").all()
    return [[cell.strip() for cell in row.locator("td").all_inner_texts()] for row in rows]


def list_of(index=1):
    """What the list has to say, by brute force: rows by number found, the missed ones last."""
    mean = [f"{PROBABILITY[tuple(r.T)].mean(dtype=float):.2f}" for r in (*FOUND, TRUTH[2])]
    if index == 2:
        places = [("3.5", "50.5"), None, ("6.5", "8.0")]
        places[1] = tuple(f"{value:.1f}" for value in HOLLOW.mean(axis=0))
        return [[f"{n + 1}", f"{len(FOUND[n])}", mean[n], *places[n]] for n in range(3)]
    of_found = list_of(2)
    iou = [f"{len(a & b) / len(a | b):.2f}" for a, b in map(as_sets, PAIRS)]
    kinds = [["", "false"], ["2", "matched"], ["1", "matched"]]
    return [
        [n, *kinds[i], area, f"{int(area) / 4:.0f}", probability, *place, ["", iou[1], iou[0]][i]]
        for i, (n, area, probability, *place) in enumerate(of_found)
    ] + [["", "3", "missed", "25", "6", mean[3], "32.0", "4.0", ""]]


def as_sets(pair):
    return set(map(tuple, TRUTH[pair[0]].tolist())), set(map(tuple, FOUND[pair[1]].tolist()))


def test_list_says_what_the_neurons_are(page):
    assert cells(page) == list_of()


def test_switches_hide_and_show_outlines(page):
    keys = ["matched-labelled", "matched-found", "missed", "false"]

    def visible():
        return [key for key in keys if page.locator(f"#recording-1 .outline.{key}").is_visible()]

    assert visible() == keys
    for key in keys:
        page.locator(f"#recording-1 .show-{key}").uncheck()
        assert visible() == [k for k in keys if k != key]
        page.locator(f"#recording-1 .show-{key}").check()
    assert visible() == keys
    # A switch that is on is not drawn as if it were off.
    opacity = "e => Number(getComputedStyle(e).opacity)"
    label = page.locator("#recording-1 label.false")
    assert label.evaluate(opacity) == 1
    label.click()
    assert label.evaluate(opacity) < 1
    hover_pixel(page, 3, 50)  # the false neuron, which does not answer to the mouse now
    assert lit_rows(page) == []


def test_neuron_under_the_mouse_lights_up_in_image_and_list(page):
    tip = page.locator("#recording-1 .tip")
    for pixel, index, words in (
        ((3, 50), 0, "neuron 1: false\narea 48 px, 12 µm²"),
        ((24, 35), 1, "neuron 2: matched\narea 47 px, 12 µm²"),
        ((32, 4), 3, "labelled neuron 3: missed\narea 25 px, 6 µm²"),
    ):
        hover_pixel(page, *pixel)
        wanted = list_of()[index]
        assert [row.split("\t") for row in lit_rows(page)] == [wanted]
        says = f"{words}\nmean probability {wanted[5]}"
        if wanted[2] == "matched":
            says += f"\nwith labelled neuron {wanted[1]}, IoU {wanted[-1]}"
        assert tip.inner_text() == says
        hover_pixel(page, 15, 15)
        assert lit_rows(page) == [] and tip.is_hidden()


def test_row_under_the_mouse_lights_up_the_neuron(page):
    rows = page.locator("#recording-1 .neurons tbody tr")
    regions = [[FOUND[0]], [TRUTH[1], FOUND[1]], [TRUTH[0], FOUND[2]], [TRUTH[2]]]
    for index, of_row in enumerate(regions):
        rows.nth(index).hover()
        lit = page.locator("#recording-1 .hit.lit")
        assert lit.count() == 1
        assert lit.get_attribute("d") == "".join(map(svg_path, of_row))
    page.mouse.move(5, 5)
    assert page.locator("#recording-1 .hit.lit").count() == 0


def test_click_on_a_row_goes_to_the_neuron_and_escape_lets_go(page):
    page.locator("#recording-1 .neurons tbody tr").first.click()
    stage, hit = (page.locator(f"#recording-1 {s}").bounding_box() for s in (".view", ".hit.lit"))
    assert stage["x"] <= hit["x"] and hit["x"] + hit["width"] <= stage["x"] + stage["width"]
    assert page.locator("#recording-1 .tip").is_visible()
    assert page.locator("#recording-1 .frame").bounding_box()["width"] > 3 * stage["width"]
    page.mouse.move(5, 5)
    assert len(lit_rows(page)) == 1
    page.keyboard.press("Escape")
    assert lit_rows(page) == []
    page.get_by_role("button", name="whole image").first.click()
    assert page.locator("#recording-1 .frame").bounding_box()["width"] == pytest.approx(stage["width"])


def test_list_is_sorted_by_each_column(page):
    heads = page.locator("#recording-1 .neurons th button")
    names = heads.all_inner_texts()
    assert names == ["found", "labelled", "kind", "area px", "area µm²", "prob.", "row", "column", "IoU"]
    for index in range(len(names)):
        heads.nth(index).click()
        for direction in ("ascending", "descending") if index else ("descending", "ascending"):
            column = [row[index] for row in cells(page)]
            values = [value for value in column if value]
            key = str if names[index] == "kind" else float
            values.sort(key=key, reverse=direction == "descending")
            assert column == values + [""] * (len(column) - len(values))  # those without a value come last
            head = page.locator("#recording-1 .neurons th").nth(index)
            assert head.get_attribute("aria-sort") == direction
            heads.nth(index).click()


def test_list_is_searched(page):
    for words, rows in {
        "2": [1],
        "#3": [2, 3],
        "matched": [1, 2],
        "MISS": [3],
        "matched, 3": [2],
        "nothing": [],
        "": [0, 1, 2, 3],
    }.items():
        page.locator("#recording-1 input[type=search]").fill(words)
        assert cells(page) == [list_of()[row] for row in rows]
        assert page.locator("#recording-1 .head .quiet").inner_text() == f"{len(rows)} of 4"


@pytest.mark.parametrize("way", ["#recording-2 > summary", ".scores a[href='#recording-2']"])
def test_second_recording_is_built_when_it_is_opened(page, way):
    assert page.locator("#recording-2 .neurons tbody tr").count() == 0
    page.locator(way).click()
    page.locator("#recording-2 .neurons tbody tr").first.wait_for()
    assert cells(page, 2) == list_of(2)
    assert page.locator("#recording-2 .outline.found").is_visible()


def test_names_that_are_markup_show_as_text(page):
    assert page.title() == page.locator("h1").inner_text() == NASTY[0]
    assert page.locator("h2").all_inner_texts()[:2] == list(NASTY[:2])
    assert page.locator("#recording-1 input[type=search]").get_attribute("aria-label").endswith(NASTY[0])
    assert page.locator("img[src=x], [onclick], [onerror], b").count() == 0


def test_narrow_window_is_not_scrolled_sideways(page):
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    assert page.locator("#recording-1 .frame").bounding_box()["width"] > 250


def test_page_is_readable_without_javascript(browser, file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("#recording-1 img").is_visible()
    assert page.locator("#recording-1 .outline.missed").is_visible()
    page.locator("#recording-1 .show-missed").uncheck()
    assert page.locator("#recording-1 .outline.missed").is_hidden()
    assert "needs JavaScript" in page.locator("#recording-1 .neurons").inner_text()
    assert page.locator(".scores tbody tr").count() == 2
    page.locator("#recording-2 > summary").click()
    assert page.locator("#recording-2 .outline.found").is_visible()
    context.close()


def test_small_neuron_within_a_large_one_lights_up(browser, tmp_path):
    nested = [block(12, 22, 6, 6), block(5, 10, 25, 40)]
    for order in (nested, nested[::-1]):
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.goto(report(tmp_path, [bare_section("nested", order)]).as_uri())
        hover_pixel(page, 14, 24)
        assert [row.split("\t")[1] for row in lit_rows(page)] == ["36"]
        hover_pixel(page, 25, 40)
        assert [row.split("\t")[1] for row in lit_rows(page)] == ["1000"]
        page.close()


def test_dragging_moves_the_zoomed_image_and_chooses_nothing(page):
    page.get_by_label("zoom").first.fill("4")
    view = page.locator("#recording-1 .view")
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    before = view.evaluate("v => [v.scrollLeft, v.scrollTop]")
    x, y = box["x"] + box["width"] / 2 + 60, box["y"] + box["height"] / 2 + 60
    page.mouse.move(x, y)  # right and below the centre of the image, its pixel [20, 30]: labelled neuron 2
    assert len(lit_rows(page)) == 1
    page.mouse.down()
    page.mouse.move(x - 40, y - 30, steps=4)
    page.mouse.up()
    assert view.evaluate("v => [v.scrollLeft, v.scrollTop]") == pytest.approx(
        [before[0] + 40, before[1] + 30], abs=1
    )
    assert page.locator("#recording-1 tr.pinned").count() == 0
    page.mouse.click(x - 40, y - 30)  # without a move it is a click
    assert page.locator("#recording-1 tr.pinned").count() == 1


def test_printed_score_table_fits_the_paper(page):
    page.set_viewport_size({"width": 700, "height": 900})  # A4 between its margins
    page.emulate_media(media="print")
    table = page.locator(".scores table").bounding_box()
    assert table["x"] + table["width"] <= 700
