"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from radgaze.cohort import Cohort
from radgaze.cohort.sources.tables import import_tables
from radgaze.inference import Predictor
from radgaze.training.attention import AttentionTarget
from tests.cohort.pictures import write_dicom
from tests.cohorts import write_tables
from tests.inference.predictors import formula_predictor
from tests.inference.server.conftest import Served

HOSTILE = '<img src=x onerror="window.hacked=1">'
CLASSES = ("normal", "pneumonia", HOSTILE)
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
TOKEN = "a-token-of-some-length"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def hostile_cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """The blob cohort with a study whose id is markup."""
    folder = tmp_path_factory.mktemp("hostile")
    tables = write_tables(folder / "tables")
    for name in ("images.csv", "gaze.csv", "boxes.csv"):
        with (tables / name).open(newline="") as file:
            rows = [[HOSTILE if cell == "s002" else cell for cell in row] for row in csv.reader(file)]
        with (tables / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return import_tables(
        tables / "images.csv", folder / "cohort", gaze=tables / "gaze.csv", size=(32, 24), workers=1, progress=False
    )


def models(classes: tuple[str, ...]) -> dict[str, Predictor]:
    """One that predicts attention, one with class activation maps and without a calibration."""
    return {
        "unet": formula_predictor(("logits", "saliency_logits"), classes),
        "cam": formula_predictor(("logits", "cams"), classes, calibrated=False),
    }


def served(cohort: Cohort | None = None, **settings: Any) -> Served:
    drawn = dict.fromkeys(models(CLASSES), AttentionTarget("gaze", sigma=4.0))
    return Served(models(CLASSES), cohort, drawn, **settings)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(hostile_cohort: Cohort) -> Iterator[str]:
    with served(hostile_cohort) as server:
        yield server.url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page of a server with a cohort. Afterwards: no error, no script of the data's, no request elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: problems.append(request.url) if not request.url.startswith(url) else None)
    page.goto(url)
    expect(page.locator("#total")).to_contain_text("24")
    yield page
    assert page.evaluate("window.hacked") is None
    context.close()
    wanted = ("status of 400", "status of 503", "ERR_FAILED")  # Chromium reports answers that a test asked for
    wanted += getattr(page, "expected", ())
    assert [problem for problem in problems if not any(words in problem for words in wanted)] == []


def png(path: Path, at: tuple[int, int] = (24, 60)) -> Path:
    """96x64, dark but for a bright spot at ``at`` (x, y) and a frame that tells where the image ends."""
    y, x = np.mgrid[:96, :64]
    spot = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 50)
    values = (30 + 220 * spot).astype(np.uint8)
    values[:2] = values[-2:] = values[:, :2] = values[:, -2:] = 150
    Image.fromarray(values).save(path)
    return path


def upload(page: Page, file: Path) -> None:
    page.set_input_files("#file", file)
    expect(page.locator("#findings")).to_contain_text(file.name)


def pixels(page: Page, pane: int = 0) -> np.ndarray:
    """What a pane's canvas shows, (h, w, 3), once it has drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    shot = page.locator(f"#pane-{pane} [data-part=canvas]").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)[4:-4, 4:-4]  # without a focus ring


def colour_of(shown: np.ndarray) -> np.ndarray:
    """How far from grey each pixel is."""
    return shown.max(2) - shown.min(2)


def choose_overlay(page: Page, name: str) -> None:
    page.locator("#pane-0 [data-part=overlay]").select_option(value=name)


def test_an_upload_is_shown_with_what_the_network_says(page: Page, tmp_path: Path) -> None:
    upload(page, png(tmp_path / "scan.png"))
    findings = page.locator("#findings")
    for name in CLASSES:
        expect(findings).to_contain_text(name)
    expect(findings).to_contain_text("96")
    expect(page.locator("#status")).to_contain_text("scan.png")
    assert re.search(
        r"64 by 96 pixels.*highest at x \d+, y \d+",
        page.locator("#pane-0 canvas[role=img]").get_attribute("aria-label") or "",
    )


def test_overlays_lie_where_the_maps_are_high(page: Page, tmp_path: Path) -> None:
    """The formula's attention follows brightness, so its colour is brightest at the spot, wherever that is."""
    for at in ((16, 70), (48, 20)):
        upload(page, png(tmp_path / f"{at[0]}.png", at))
        choose_overlay(page, "attention")
        coloured = pixels(page)
        choose_overlay(page, "none")
        grey = pixels(page)
        assert colour_of(grey).max() < 12
        assert colour_of(coloured).max() > 60
        rows, columns = np.nonzero(grey.sum(2) > 60)  # the image on the black stage
        top, left = rows.min(), columns.min()
        height, width = rows.max() - top + 1, columns.max() - left + 1
        assert height / width == pytest.approx(96 / 64, rel=0.02)  # the aspect is kept
        hottest = coloured.sum(2) * (colour_of(coloured) > 40)
        y, x = np.unravel_index(hottest.argmax(), hottest.shape)
        assert (x - left) / width * 64 == pytest.approx(at[0], abs=4)
        assert (y - top) / height * 96 == pytest.approx(at[1], abs=4)
    before = pixels(page)
    choose_overlay(page, "attention")
    page.locator("#opacity").fill("0")
    assert np.abs(pixels(page) - before).mean() < 2


def test_another_run_has_overlays_of_its_own(page: Page, tmp_path: Path) -> None:
    upload(page, png(tmp_path / "scan.png"))
    page.locator("#pane-0 [data-part=model]").select_option("cam")
    expect(page.locator("#findings")).to_contain_text("cam")
    overlays = page.locator("#pane-0 [data-part=overlay] option")
    expect(overlays).to_have_count(4)
    assert [option.get_attribute("value") for option in overlays.all()] == [
        "none",
        *(f"cam:{name}" for name in CLASSES),
    ]
    expect(page.locator("#findings")).to_contain_text("the test wants it so")  # why it is not calibrated


def test_dicom(page: Page, tmp_path: Path) -> None:
    values = np.tile(np.linspace(0, 4000, 50).astype(np.uint16), (70, 1))
    file = tmp_path / "chest.dcm"
    write_dicom(file, values)
    upload(page, file)
    expect(page.locator("#findings")).to_contain_text("50")


def test_window_and_level(page: Page, tmp_path: Path) -> None:
    upload(page, png(tmp_path / "scan.png"))
    choose_overlay(page, "none")
    usual, level = pixels(page), page.locator("#level").input_value()
    box = page.locator("#pane-0 [data-part=canvas]").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 30, y - 90, steps=5)  # up is brighter
    page.mouse.up()
    assert pixels(page).mean() > usual.mean() + 3
    assert page.locator("#level").input_value() != level
    page.mouse.dblclick(x, y)
    assert np.abs(pixels(page) - usual).max() <= 2
    page.locator("#invert").click()
    inside = usual.sum(2) > 60
    assert (pixels(page) + usual)[inside].mean() == pytest.approx(255, abs=12)
    page.locator("#reset").click()
    assert np.abs(pixels(page) - usual).max() <= 2


def test_zoom_and_pan(page: Page, tmp_path: Path) -> None:
    upload(page, png(tmp_path / "scan.png"))
    choose_overlay(page, "none")
    whole = pixels(page)
    box = page.locator("#pane-0 [data-part=canvas]").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -400)
    expect(page.locator("#zoom")).not_to_have_text("1.0×")
    zoomed = pixels(page)
    assert (zoomed.sum(2) > 60).sum() > 1.3 * (whole.sum(2) > 60).sum()
    page.locator("#viewer").focus()
    page.keyboard.press("Shift+ArrowDown")
    assert np.abs(pixels(page) - zoomed).mean() > 0.5
    page.keyboard.press("0")
    expect(page.locator("#zoom")).to_have_text("1.0×")
    assert np.abs(pixels(page) - whole).max() <= 2


def brightest(shown: np.ndarray) -> tuple[float, float]:
    """(x, y) of the middle of what is brightest."""
    rows, columns = np.nonzero(shown.sum(2) >= shown.sum(2).max() - 30)
    return float(columns.mean()), float(rows.mean())


def middle(page: Page) -> tuple[float, float]:
    box = page.locator("#pane-0 [data-part=canvas]").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_zoom_keeps_what_is_under_the_pointer(page: Page, tmp_path: Path) -> None:
    upload(page, png(tmp_path / "scan.png"))
    choose_overlay(page, "none")
    spot = brightest(pixels(page))
    box = page.locator("#pane-0 [data-part=canvas]").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 4 + spot[0], box["y"] + 4 + spot[1])
    page.mouse.wheel(0, -600)
    assert brightest(pixels(page)) == pytest.approx(spot, abs=4)
    page.keyboard.press("+")
    assert brightest(pixels(page)) == pytest.approx(spot, abs=4)
    assert float(page.locator("#zoom").inner_text().rstrip("×")) > 2.5


@pytest.mark.parametrize("how", ["space", "middle button"])
def test_dragging_pans(page: Page, tmp_path: Path, how: str) -> None:
    upload(page, png(tmp_path / "scan.png"))
    choose_overlay(page, "none")
    page.locator("#zoom-in").click()
    page.locator("#viewer").focus()
    level, before = page.locator("#level").input_value(), brightest(pixels(page))
    x, y = middle(page)
    page.mouse.move(x, y)
    if how == "space":
        page.keyboard.down(" ")
    page.mouse.down(button="left" if how == "space" else "middle")
    page.mouse.move(x + 30, y + 40, steps=4)
    page.mouse.up(button="left" if how == "space" else "middle")
    if how == "space":
        page.keyboard.up(" ")
    after = brightest(pixels(page))
    assert (after[0] - before[0], after[1] - before[1]) == pytest.approx((30, 40), abs=3)
    assert page.locator("#level").input_value() == level


def test_two_fingers_zoom_and_move(page: Page, tmp_path: Path) -> None:
    upload(page, png(tmp_path / "scan.png"))
    level = page.locator("#level").input_value()
    x, y = middle(page)
    fingers = page.context.new_cdp_session(page)

    def touch(kind: str, *apart: float) -> None:
        points = [{"x": x + side * one, "y": y, "id": index} for one in apart for index, side in enumerate((-1, 1))]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 40)
    for apart in (50, 60, 70, 80):
        touch("touchMove", apart)
    touch("touchEnd")
    expect(page.locator("#zoom")).to_have_text("2.0×")
    assert page.locator("#level").input_value() == level


def test_a_dropped_file_is_opened(page: Page, tmp_path: Path) -> None:
    content = list(png(tmp_path / "scan.png").read_bytes())
    page.evaluate(
        """(content) => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(content)], "dropped.png"));
            const event = (kind) => new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event("dragenter"));
            if (document.getElementById("drop").hidden) throw new Error("no hint where to drop");
            document.body.dispatchEvent(event("drop"));
        }""",
        content,
    )
    expect(page.locator("#findings")).to_contain_text("dropped.png")
    expect(page.locator("#drop")).to_be_hidden()


def test_a_server_that_is_gone_or_busy(page: Page, tmp_path: Path) -> None:
    page.route("**/v1/predict?*", lambda route: route.abort())
    page.set_input_files("#file", png(tmp_path / "scan.png"))
    expect(page.locator("#alert")).to_contain_text("cannot be reached; check that radgaze serve is still running")
    expect(page.locator("#busy")).to_be_hidden()
    page.unroute("**/v1/predict?*")
    busy = {"status": 503, "headers": {"Retry-After": "0.2"}, "json": {"error": "The server is full."}}
    page.route("**/v1/predict?*", lambda route: route.fulfill(**busy), times=2)
    page.locator("#alert").get_by_text("Try again").click()
    expect(page.locator("#findings")).to_contain_text("scan.png")
    expect(page.locator("#alert")).to_be_empty()


def test_thousands_of_studies_need_few_rows(page: Page) -> None:
    """The list asks for the pages it shows; any of them can be opened."""

    def answer(route: Route) -> None:
        asked = parse_qs(urlsplit(route.request.url).query)
        first, count = int(asked["offset"][0]), int(asked["limit"][0])
        studies = [
            {"index": place % 24, "study_id": f"many{place}", "split": "train", "label": None, "gaze_count": 0}
            for place in range(first, min(first + count, 5000))
        ]
        route.fulfill(json={"total": 5000, "studies": studies})

    page.route("**/v1/cohort/studies?*", answer)
    page.locator("#split").select_option("train")
    expect(page.locator("#total")).to_have_text("5,000 studies")
    for place in (500, 1500, 2500):  # by scrolling, which leaves rows behind
        page.locator("#rows").evaluate("(rows, top) => { rows.scrollTop = top; }", place * 48)
        expect(page.locator(f"#study-{place}")).to_contain_text(f"many{place}")
    assert page.locator("#rows [role=option]").count() < 30
    page.locator("#rows").press("End")
    expect(page.locator("#rows [aria-selected=true]")).to_contain_text("many4999")
    assert page.locator("#rows [role=option]").count() < 50
    expect(page.locator("#rows [aria-selected=true]")).to_have_attribute("aria-posinset", "5000")
    expect(page.locator("#findings")).to_contain_text("s007")  # 4999 % 24


def test_studies_slide_in_on_a_tablet(page: Page) -> None:
    page.set_viewport_size({"width": 820, "height": 1180})
    rows = page.locator("#rows")
    expect(rows).to_be_hidden()
    page.locator("#studies-toggle").click()
    expect(rows).to_be_focused()
    page.mouse.click(700, 400)
    expect(rows).to_be_hidden()
    page.locator("#studies-toggle").click()
    page.locator("#rows [role=option]").nth(4).click()
    expect(page.locator("#findings")).to_contain_text("s004")
    expect(rows).to_be_hidden()


def test_without_motion_a_fixation_appears_whole(page: Page) -> None:
    choose_overlay(page, "none")
    expect(page.locator("#clock")).to_contain_text("fixation 1 of 6")
    growing = (colour_of(pixels(page)) > 20).sum()
    page.emulate_media(reduced_motion="reduce")
    page.locator("#scrub").fill("0")
    assert (colour_of(pixels(page)) > 20).sum() > 2 * growing


def test_studies_by_keyboard_and_filter(page: Page) -> None:
    page.locator("#rows").focus()
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator("#findings")).to_contain_text(HOSTILE)  # the third study, as text
    page.keyboard.press("k")
    expect(page.locator("#findings")).to_contain_text("s001")
    page.locator("#label").select_option("class1")
    expect(page.locator("#total")).to_contain_text("8")
    page.locator("#label").select_option("")
    page.locator("#search").fill("s01")
    expect(page.locator("#total")).to_contain_text("10")


def test_whatever_the_data_call_themselves_is_text(browser: Browser, tmp_path: Path) -> None:
    """Classes, labels, runs, readers, studies, the cohort and files with names that are markup: read, never run.

    The policy would stop most scripts; here no element may come of them in the first place.
    """
    tables = write_tables(tmp_path / "tables")
    given = {"s000": HOSTILE, "class0": HOSTILE, "class1": "</option><svg onload=window.hacked=1>", "a": HOSTILE}
    for name in ("images.csv", "gaze.csv", "boxes.csv"):
        with (tables / name).open(newline="") as file:
            rows = [[given.get(cell, cell) for cell in row] for row in csv.reader(file)]
        with (tables / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    options = {"gaze": tables / "gaze.csv", "size": (32, 24), "workers": 1, "progress": False, "name": HOSTILE}
    cohort = import_tables(tables / "images.csv", tmp_path / "cohort", **options)
    runs = {HOSTILE: models(CLASSES)["unet"], "</select><script>window.hacked=1</script>": models(CLASSES)["cam"]}
    with Served(runs, cohort) as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page.locator("#findings")).to_contain_text(HOSTILE)
        expect(page.locator("#cohort-name")).to_have_text(HOSTILE)
        expect(page.locator("#reader")).to_contain_text(HOSTILE)
        expect(page.locator("#label")).to_contain_text("</option><svg")
        expect(page.locator("#rows")).to_contain_text(HOSTILE)
        page.locator("[data-layout=runs]").click()
        expect(page.locator("#findings")).to_contain_text("</select><script>")
        choose_overlay(page, "attention")
        upload(page, png(tmp_path / "<img src=x onerror=window.hacked=1>.png"))
        (tmp_path / "<svg onload=window.hacked=1>.png").write_bytes(b"no image")
        page.set_input_files("#file", tmp_path / "<svg onload=window.hacked=1>.png")
        expect(page.locator("#alert")).to_contain_text("<svg onload")
        assert page.locator("img, iframe, script:not([src]), svg[onload], [onerror]").count() == 0
        assert page.evaluate("window.hacked") is None
        page.close()


def test_the_policy_stops_what_is_not_the_pages_own(page: Page) -> None:
    """Scripts in the page, handlers in attributes, ``eval``, and requests elsewhere."""
    blocked = page.evaluate(
        """async () => {
            const blocked = [];
            document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            const link = document.createElement("a");
            link.setAttribute("onclick", "window.hacked = 1");
            document.body.append(script, link);
            link.click();
            await fetch("http://127.0.0.2:9/").catch(() => {});
            const frame = document.createElement("iframe");
            frame.src = "http://127.0.0.2:9/";
            document.body.append(frame);
            await new Promise((done) => setTimeout(done, 300));
            script.remove(); link.remove(); frame.remove();
            return blocked;
        }"""
    )
    assert {"script-src-elem", "script-src-attr", "connect-src", "frame-src"} <= set(blocked)
    page.expected = ("Content Security Policy", "violates", "127.0.0.2")  # type: ignore[attr-defined]


def test_a_page_of_another_host_can_neither_show_nor_ask_it(browser: Browser, url: str) -> None:
    """Not in a frame, not by fetch, not as an image, and not under a name of its own that points at this machine."""
    port = urlsplit(url).port
    page = browser.new_page()
    page.route("http://evil.example/", lambda route: route.fulfill(content_type="text/html", body="<p>evil"))
    page.goto("http://evil.example/")
    assert (
        page.evaluate("(url) => fetch(`${url}/v1/health`).then((answer) => answer.text(), (error) => error.name)", url)
        == "TypeError"
    )
    page.evaluate(
        """(url) => new Promise((done) => {
            const frame = document.createElement("iframe");
            frame.src = url;
            frame.onload = done;
            document.body.append(frame);
        })""",
        url,
    )
    assert [frame.locator("#findings").count() for frame in page.frames[1:]] == [0]
    answer = page.request.get(f"{url}/v1/health", headers={"host": f"evil.example:{port}"})
    assert answer.status == 400
    page.close()


def test_gaze_is_replayed_in_order(page: Page) -> None:
    expect(page.locator("#replay")).to_be_visible()
    page.locator("#reader").select_option("a")
    expect(page.locator("#clock")).to_contain_text("fixation 1 of 6")
    choose_overlay(page, "none")
    start = colour_of(pixels(page)).sum()
    page.locator("#speed").select_option("0.5")
    page.locator("#play").click()
    expect(page.locator("#clock")).to_contain_text("fixation 3 of 6", timeout=10_000)
    page.locator("#play").click()
    held = page.locator("#clock").inner_text()
    assert colour_of(pixels(page)).sum() > start  # circles and the path between them
    assert page.locator("#clock").inner_text() == held
    page.locator("#fixation-on").click()
    page.locator("#fixation-on").click()
    expect(page.locator("#clock")).to_contain_text("of 6")
    page.locator("#scrub").fill("0")
    expect(page.locator("#clock")).to_contain_text("fixation 1 of 6")
    page.locator("#gaze-shown").uncheck()
    assert colour_of(pixels(page)).max() < 12


def test_beside_the_reader_with_their_agreement(page: Page) -> None:
    expect(page.locator("#replay")).to_be_visible()
    page.keyboard.press("2")
    expect(page.locator("#pane-1")).to_be_visible()
    page.locator("#gaze-shown").uncheck()
    expect(page.locator("#pane-1 [data-part=overlay]")).to_have_value("human")
    assert colour_of(pixels(page, 1)).max() > 60
    answer = page.request.get(f"{page.url.rstrip('/')}/v1/cohort/studies/0/predict?model=unet").json()
    cells = page.locator("#findings table").first.locator("tbody td").all_inner_texts()
    assert [float(cell) for cell in cells] == pytest.approx(list(answer["agreement"]["attention"].values()), rel=5e-3)


def test_two_runs_share_their_view(page: Page, tmp_path: Path) -> None:
    upload(page, png(tmp_path / "scan.png"))
    page.locator("[data-layout=runs]").click()
    expect(page.locator("#pane-1 [data-part=model]")).to_have_value("cam")
    for name in ("unet", "cam"):
        expect(page.locator("#findings")).to_contain_text(name)
    first, second = (page.locator(f"#pane-{pane} [data-part=canvas]").bounding_box() for pane in (0, 1))
    assert first is not None
    assert second is not None
    assert (first["y"], first["height"]) == (second["y"], second["height"])  # so the images lie level
    for pane in (0, 1):
        page.locator(f"#pane-{pane} [data-part=overlay]").select_option("none")
    assert np.abs(pixels(page, 0) - pixels(page, 1)).mean() < 3
    page.locator("#zoom-in").click()
    page.locator("#invert").click()
    assert np.abs(pixels(page, 0) - pixels(page, 1)).mean() < 3


def test_an_error_is_the_servers_sentence(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.set_input_files("#file", tmp_path / "broken.png")
    alert = page.locator("#alert")
    expect(alert).to_contain_text("no PNG, JPEG, TIFF or DICOM file")
    alert.get_by_text("Dismiss").click()
    expect(alert).to_be_empty()
    upload(page, png(tmp_path / "scan.png"))


def test_every_control_has_a_name_and_can_be_reached(page: Page, tmp_path: Path) -> None:
    upload(page, png(tmp_path / "scan.png"))
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas[role=img]")]
            .filter((one) => !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length
                || document.getElementById(one.getAttribute("aria-labelledby"))))
            .map((one) => one.outerHTML)"""
    )
    assert unnamed == []
    wanted = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select")]
            .filter((one) => one.checkVisibility() && !one.disabled && one.tabIndex >= 0).map((one) => one.id)
            .filter(Boolean)"""
    )
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert set(wanted) <= reached
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#shortcuts")).to_be_hidden()


def test_light_and_dark(page: Page) -> None:
    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    before = background()
    page.locator("#theme").click()
    assert background() != before
    page.reload()
    expect(page.locator("#total")).to_contain_text("24")
    assert background() != before


@pytest.mark.parametrize("width", [1280, 820])
def test_nothing_leaves_the_screen(page: Page, width: int, tmp_path: Path) -> None:
    page.set_viewport_size({"width": width, "height": 1180 if width < 1000 else 800})
    upload(page, png(tmp_path / "scan.png"))
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_token(browser: Browser, tmp_path: Path) -> None:
    with served(token=TOKEN) as server:
        url = server.url
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#token-dialog")).to_be_visible()
        page.locator("#token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#token-dialog")).to_be_hidden()
        upload(page, png(tmp_path / "scan.png"))
        page.goto("about:blank")
        page.goto(f"{url}/#token={TOKEN}")
        upload(page, png(tmp_path / "scan.png"))
        expect(page.locator("#token-dialog")).to_be_hidden()
        page.close()
