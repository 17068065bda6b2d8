"""tools/board.py in a real browser: Chromium, opened from file://."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.boards import copy_evaluation, make_board
from tests.helpers.stored_results import evaluation, evaluation_by_two

webdriver = pytest.importorskip("selenium.webdriver")
By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
Service = pytest.importorskip("selenium.webdriver.chrome.service").Service

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--window-size=1200,900"),
)
NUM_ROWS = 50


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["webdriver.Chrome"]:
    program, driver_program = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("needs Chromium: the programs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board of 50 evaluations by two attacks, and of one by another protocol."""
    root = tmp_path_factory.mktemp("board")
    kinds = [evaluation_by_two(root / "kinds" / str(scale), scale) for scale in (1.0, 2.0, 4.0)]
    for kind in kinds:  # drawing the examples would take longer
        Image.new("RGB", (480, 900), (0, 90, 200)).save(kind / "sheet.png")
    for number in range(NUM_ROWS):
        source = kinds[number % 3]
        accuracy = 0.5 + number / 200
        diagnostics = json.loads((source / "summary.json").read_text())["diagnostics"]
        diagnostics["best"] = 0.1 + (number * 7 % NUM_ROWS) / 100
        changes = {"accuracy": accuracy, "diagnostics": diagnostics, "model": f"net{number % 2}"}
        copy_evaluation(source, root / "runs" / f"run{number}", **changes)
    copy_evaluation(kinds[0], root / "runs" / "<b>bold</b>", accuracy=0.99)
    evaluation(root / "runs" / "deepfool", 1.0)
    make_board(root / "out", root / "runs")
    return root / "out"


@pytest.fixture
def page(browser: "webdriver.Chrome", board: Path) -> Iterator["webdriver.Chrome"]:
    browser.get((board / "protocol-1.html").as_uri())
    yield browser
    assert browser.get_log("browser") == [], "errors or warnings in the console"


def shown_names(page: "webdriver.Chrome") -> list[str]:
    script = "return [...document.querySelectorAll('#board tbody tr:not([hidden]) th')]"
    return page.execute_script(f"{script}.map(th => th.textContent)")


def drawn_names(page: "webdriver.Chrome", chart: str) -> list[str]:
    script = f"return [...document.querySelectorAll('#{chart} path.line')]"
    return page.execute_script(f"{script}.map(line => line.dataset.name)")


def header(page: "webdriver.Chrome", text: str) -> "webdriver.remote.webelement.WebElement":
    buttons = page.find_elements(By.CSS_SELECTOR, "#board thead button")
    return next(button for button in buttons if button.text == text)


def sort_order(page: "webdriver.Chrome", text: str) -> str | None:
    return header(page, text).find_element(By.XPATH, "..").get_attribute("aria-sort")


def column_values(page: "webdriver.Chrome", text: str) -> list[float]:
    number = page.execute_script("return arguments[0].parentNode.cellIndex", header(page, text))
    cells = page.find_elements(By.CSS_SELECTOR, f"#board tbody tr > :nth-child({number + 1})")
    return [float(cell.get_attribute("data-value")) for cell in cells]


def set_value(page: "webdriver.Chrome", name: str, value: str) -> None:
    script = "const e = arguments[0]; e.value = arguments[1]; e.dispatchEvent(new Event('input'))"
    page.execute_script(script, page.find_element(By.ID, name), value)


def test_fifty_rows_load_fast(page: "webdriver.Chrome", board: Path) -> None:
    times = []
    for _ in range(3):
        page.refresh()
        entry = "performance.getEntriesByType('navigation')[0].loadEventEnd"
        times.append(page.execute_script(f"return {entry} / 1000"))
    assert page.execute_script("return document.documentElement.dataset.ready") == "true"
    assert len(shown_names(page)) == NUM_ROWS + 1
    size = (board / "protocol-1.html").stat().st_size
    print(f"{NUM_ROWS + 1} rows, {size / 1e6:.2f} MB, load in {min(times):.3f} s of {times}")
    assert 0 < min(times) < 5


def test_sorting_by_mouse_and_keyboard(page: "webdriver.Chrome") -> None:
    # The page starts with the most robust rows.
    assert sort_order(page, "rho2, best") == "descending"
    best = column_values(page, "rho2, best")
    assert best == sorted(best, reverse=True)
    assert len(set(best)) > 40
    header(page, "accuracy, %").click()
    assert sort_order(page, "accuracy, %") == "descending"
    assert sort_order(page, "rho2, best") is None
    accuracies = column_values(page, "accuracy, %")
    assert accuracies == sorted(accuracies, reverse=True)
    header(page, "accuracy, %").send_keys(Keys.ENTER)
    assert sort_order(page, "accuracy, %") == "ascending"
    assert column_values(page, "accuracy, %") == accuracies[::-1]
    header(page, "name").send_keys(Keys.SPACE)
    assert shown_names(page)[:4] == ["<b>bold</b>", "run0", "run1", "run2"]  # 2 before 10


def test_filters(page: "webdriver.Chrome") -> None:
    page.find_element(By.ID, "text-filter").send_keys("NET1")
    assert {int(name.removeprefix("run")) % 2 for name in shown_names(page)} == {1}
    set_value(page, "text-filter", "run4")
    assert sorted(shown_names(page)) == ["run4", *(f"run{n}" for n in range(40, 50))]
    set_value(page, "accuracy-filter", "72.5")  # that of run45
    assert sorted(shown_names(page)) == [f"run{n}" for n in range(45, 50)]
    status = page.find_element(By.ID, "count")
    assert status.text.startswith(f"5 of {NUM_ROWS + 1} rows, ")
    assert status.get_attribute("role") == "status"
    set_value(page, "text-filter", "nothing")
    assert shown_names(page) == []
    assert not page.find_element(By.ID, "drawings").is_displayed()
    set_value(page, "text-filter", "")
    set_value(page, "accuracy-filter", "")
    assert len(shown_names(page)) == NUM_ROWS + 1
    assert page.find_element(By.ID, "curve").is_displayed()


@pytest.fixture
def pick(page: "webdriver.Chrome") -> Callable[[str], None]:
    def click(name: str) -> None:
        box = page.find_element(By.CSS_SELECTOR, f"#board input[aria-label='Draw {name}']")
        page.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
        box.click()

    return click


def test_selected_rows_are_overlaid(
    page: "webdriver.Chrome", pick: Callable[[str], None], board: Path
) -> None:
    assert len(drawn_names(page, "curve")) == 3
    page.find_element(By.ID, "clear").click()
    assert page.find_element(By.ID, "nothing-selected").is_displayed()
    for name in ("run0", "run1", "<b>bold</b>"):
        pick(name)
    for chart in ("curve", "histogram"):
        assert sorted(drawn_names(page, chart)) == ["<b>bold</b>", "run0", "run1"]
    legend = page.find_element(By.ID, "legend")
    assert "<b>bold</b>" in legend.text
    assert page.find_elements(By.TAG_NAME, "b") == []
    # The legend reads the curves at the budget.
    data = json.loads(page.find_element(By.ID, "data").get_attribute("textContent"))
    curves = {row["name"]: row["curves"]["relative"] for row in data["rows"]}
    set_value(page, "budget", "0")
    lines = page.find_elements(By.CSS_SELECTOR, "#legend tbody tr")
    for line in lines:
        _, name, accuracy, _ = (cell.text for cell in line.find_elements(By.TAG_NAME, "td"))
        assert float(accuracy) == pytest.approx(100 * curves[name]["accuracy"]["best"][0])
    before = page.find_element(By.CSS_SELECTOR, "#curve path.line").get_attribute("d")
    page.find_element(By.CSS_SELECTOR, "#method option[value='deepfool']").click()
    assert page.find_element(By.CSS_SELECTOR, "#curve path.line").get_attribute("d") != before
    images = page.find_elements(By.CSS_SELECTOR, "#sheets img")
    assert len(images) == 3
    page.execute_script("arguments[0].scrollIntoView()", images[0])
    deadline = time.monotonic() + 10
    while page.execute_script("return arguments[0].naturalWidth", images[0]) == 0:
        assert time.monotonic() < deadline, "the picture was not loaded"
        time.sleep(0.05)
    page.find_element(By.ID, "select-shown").click()
    assert len(drawn_names(page, "curve")) == NUM_ROWS + 1
    styles = page.execute_script(
        "return [...document.querySelectorAll('#curve path.line')].map(e => e.style.cssText)"
    )
    assert len(set(styles[:40])) == 40  # colour and dashes together


def test_the_other_protocol_and_the_index(page: "webdriver.Chrome", board: Path) -> None:
    section = page.find_element(By.CSS_SELECTOR, "section[aria-labelledby=others]")
    assert "methods: deepfool + ddn, 200 steps -> deepfool" in section.text
    section.find_element(By.TAG_NAME, "a").click()
    assert page.current_url.endswith("/protocol-2.html")
    assert shown_names(page) == ["deepfool"]
    page.get((board / "index.html").as_uri())
    links = [link.text for link in page.find_elements(By.CSS_SELECTOR, "tbody a")]
    assert links == ["1: deepfool + ddn, L2, 40 images", "2: deepfool, L2, 40 images"]


def test_a_phone_and_a_dark_page(page: "webdriver.Chrome") -> None:
    def background() -> str:
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    assert background() == "rgb(255, 255, 255)"
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    try:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        assert background() == "rgb(21, 23, 27)"
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        page.refresh()
        # Only the table scrolls sideways.
        assert page.execute_script("return document.documentElement.scrollWidth") == 390
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
