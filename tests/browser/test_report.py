"""report.html in a real browser: opened from disk, read, sorted, filtered, asked where its numbers come from."""

import base64
import json

import pytest

selenium = pytest.importorskip(
    "selenium", reason="the page is not looked at in a browser: no selenium (pip install selenium)"
)

from selenium.webdriver import ActionChains, Keys  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

TABLE = "#unified-leaderboard"
PUBLISHED = "#dramoe-table2"


@pytest.fixture
def page(driver, report):
    """The page as it opens at 1300 x 900, light."""
    driver.get_log("performance")
    return Page(driver, report)


class Page:
    def __init__(self, driver, report):
        self.driver = driver
        self.media("light")
        self.size(1300, 900)
        driver.get(report.as_uri())

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def tell(self, command: str, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def size(self, width: int, height: int) -> None:
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def media(self, scheme: str, kind: str = "screen") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", media=kind, features=features)

    def one(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Of what is shown."""
        return [element.text for element in self.all(selector) if element.is_displayed()]

    def press(self, *keys) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def click(self, element) -> None:
        self.run("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", element)
        element.click()

    def until(self, condition) -> None:
        WebDriverWait(self.driver, 10, poll_frequency=0.05).until(lambda _: condition())

    @property
    def focus(self):
        return self.driver.switch_to.active_element

    @property
    def card(self) -> dict[str, str] | None:
        """The card that is open: what -> value, and its title; None where none is."""
        card = self.one("#card")
        if not card.is_displayed():
            return None
        lines = card.find_elements(By.CSS_SELECTOR, "dl > div")
        said = {line.find_element(By.TAG_NAME, "dt").text: line.find_element(By.TAG_NAME, "dd").text for line in lines}
        return {**said, "title": card.find_element(By.TAG_NAME, "h4").text}


def test_opens_from_disk_without_an_error_or_a_request(page):
    assert [entry for entry in page.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    messages = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert sent and all(url.startswith(("file:", "data:")) for url in sent)
    assert (
        page.run("return performance.getEntriesByType('resource').filter((e) => e.name.startsWith('http')).length") == 0
    )


def test_every_picture_is_seen(page):
    sizes = page.run(
        "return [...document.images].map((i) => [i.complete, i.naturalWidth, i.clientWidth, i.alt.length])"
    )
    assert len(sizes) == 2
    assert all(complete and natural > 200 and shown > 200 and alt > 20 for complete, natural, shown, alt in sizes)


def test_figures_carry_their_data(page):
    for link in page.all("article.figure a[download]"):
        content = page.run("return atob(arguments[0].href.split(',')[1])", link)
        assert content.count("\n") > 5 and content.split("\n")[0].count(",") > 5


def values(page, table: str, column: int) -> list[float | None]:
    cells = f"[...document.querySelectorAll('{table} tbody tr')].map((row) => row.cells[{column}].dataset.sort)"
    return [None if text is None else float(text) for text in page.run(f"return {cells}")]


@pytest.mark.parametrize(("table", "column"), [(TABLE, 1), (TABLE, 7), (PUBLISHED, 1)])
def test_sorting(page, table, column):
    header = page.one(f"{table} thead th:nth-child({column + 1})")
    known = sorted(value for value in values(page, table, column) if value is not None)
    missing = [None] * (len(values(page, table, column)) - len(known))
    assert len(known) >= 1
    for order, expected in (("ascending", known), ("descending", known[::-1])):
        page.click(header.find_element(By.TAG_NAME, "button"))
        assert header.get_attribute("aria-sort") == order
        assert values(page, table, column) == expected + missing
    page.click(page.one(f"{table} thead th:first-child button"))
    assert header.get_attribute("aria-sort") is None
    labels = page.texts(f"{table} tbody th")
    assert labels == sorted(labels, key=str.lower)


def test_filtering_by_words(page):
    # Rows that were not run are behind a button, until they are looked for.
    before = page.texts(f"{PUBLISHED} tbody th")
    field = page.one(f"{PUBLISHED} input[type=search]")
    page.click(field)
    page.press("resnet-18  TRADES")
    assert page.texts(f"{PUBLISHED} tbody th") == ["ResNet-18 TRADES"]
    assert page.one(f"{PUBLISHED} [role=status]").text == "1 of 15 rows"
    page.press(" and nothing else")
    assert page.texts(f"{PUBLISHED} tbody th") == []
    field.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE)
    assert page.texts(f"{PUBLISHED} tbody th") == before
    assert page.one(f"{PUBLISHED} [role=status]").text == ""


def test_filtering_by_verdict(page):
    before = page.texts(f"{PUBLISHED} tbody th")
    chip = page.one(f"{PUBLISHED} [data-verdicts=unverified] button")
    page.click(chip)
    assert chip.get_attribute("aria-pressed") == "true"
    assert page.texts(f"{PUBLISHED} tbody th") == ["ResNet-18 PGD-AT"]
    dimmed = page.all(f"{PUBLISHED} tbody tr:not([hidden]) .entry.dim")
    assert len(dimmed) == 2 and all("v-not-run" in cell.get_attribute("class") for cell in dimmed)
    page.click(chip)
    assert page.texts(f"{PUBLISHED} tbody th") == before and page.all(".dim") == []


def test_filtering_everything_by_what_became_of_the_published_numbers(page):
    def tile(name):
        return next(each for each in page.all(".tile button") if each.text.startswith(name))

    page.click(tile("unverified"))
    assert page.texts(f"{PUBLISHED} tbody th") == ["ResNet-18 PGD-AT"]
    assert not page.one(TABLE).is_displayed()  # nothing was published that it could be compared with
    assert page.one(".bar").text.startswith("Only what is unverified.")
    page.click(tile("not run"))
    assert len(page.texts(f"{PUBLISHED} tbody th")) == 15
    page.click(page.one(".bar button"))
    assert page.one(TABLE).is_displayed() and not page.one(".bar").is_displayed()
    page.click(tile("contradicted"))
    assert page.texts("article tbody th") == []


def first(page):
    return page.one(f"{TABLE} td.entry button")


def test_a_click_says_where_a_number_comes_from(page):
    button = first(page)
    page.click(button)
    said = page.card
    assert said["title"] == "digits (for CIFAR-10) / ResNet-18 / standard, clean"
    assert said["examples"] == "400 per seed" and said["verdict"] == "measured"
    assert said["rows"] == "results/smoke/evaluations/digits/resnet18/standard/seed0/dramoe.parquet"
    assert said["made by"].startswith("snakemake --cores all results/smoke/evaluations/digits/")
    target = page.one("#card a[href$='dramoe.parquet']").get_property("href")
    assert target == page.driver.current_url.replace("report.html", said["rows"].removeprefix("results/smoke/"))
    page.click(page.one("#card .close"))
    assert page.card is None and page.focus == button


@pytest.mark.parametrize("leave", ["escape", "elsewhere", "again"])
def test_a_card_can_be_left(page, leave):
    page.click(first(page))
    assert page.card
    if leave == "escape":
        page.press(Keys.ESCAPE)
    elif leave == "elsewhere":
        page.one(f"{TABLE} h3").click()
    else:
        first(page).click()
    assert page.card is None


def test_the_keyboard_is_enough(page):
    page.one(f"{TABLE} thead th:last-child button").send_keys(Keys.TAB)
    assert page.focus == first(page)
    page.until(lambda: page.card)
    assert page.card["title"].endswith("standard, clean")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    page.until(lambda: page.card and page.card["title"].endswith("PGD-AT, FG_SM & 50 % <b>"))
    assert "the check monotone-epsilon failed" in page.card["why"]
    page.press(Keys.ENTER)
    assert page.focus.text == "Close"
    page.press(Keys.ESCAPE)
    assert page.card is None and page.focus.text.startswith("unverified")
    page.press(Keys.TAB)  # one stop per table: what follows is behind it
    assert page.focus.get_attribute("data-card") is None


def test_a_filter_leaves_the_keyboard_a_way_into_the_table(page):
    page.one(f"{PUBLISHED} input[type=search]").send_keys("trades")
    page.one(f"{PUBLISHED} thead th:last-child button").send_keys(Keys.TAB)
    assert page.focus.get_attribute("data-card") == "dramoe-table2-1-0"


def test_pointing_at_a_number_shows_its_card(page):
    button = first(page)
    page.run("arguments[0].scrollIntoView({block: 'center'})", button)
    ActionChains(page.driver).move_to_element(button).perform()
    page.until(lambda: page.card and page.card["title"].endswith("standard, clean"))
    assert not page.one("#card .close").is_displayed()
    ActionChains(page.driver).move_to_element(page.one("header")).perform()
    page.until(lambda: page.card is None)


def test_checks_and_runs_have_cards_too(page):
    page.click(page.one("#checks .fail"))
    assert page.card["outcome"] == "failed" and page.card["message"] == "monotone-epsilon < limit & such"
    page.press(Keys.ESCAPE)
    page.click(page.one("[data-card=run-0]"))
    assert page.card["torch"] == "2.13.0"


@pytest.mark.parametrize("name", ["pass", "fail", "skip"])
def test_the_outcome_of_a_check_is_seen_in_its_cell(page, name):
    """Whatever it is: n/a, too, whose class another rule of the page once moved off the screen."""
    button = page.one("#checks .check button")
    page.run("arguments[0].className = arguments[1]", button, name)
    boxes = "return [arguments[0], arguments[0].parentElement].map((each) => each.getBoundingClientRect())"
    inner, outer = page.run(boxes, button)
    assert outer["left"] <= inner["left"] and inner["right"] <= outer["right"] and inner["width"] > 0


@pytest.mark.parametrize(("width", "goes_on"), [(1300, False), (390, True)])
def test_a_table_that_goes_on_to_the_right_says_so(page, width, goes_on):
    page.size(width, 800)
    hint = page.one(f"{TABLE} .sideways")
    page.until(lambda: hint.is_displayed() == goes_on)
    scroll = page.one(f"{TABLE} .scroll")
    assert page.run("return arguments[0].scrollWidth > arguments[0].clientWidth + 1", scroll) == goes_on
    assert not goes_on or hint.text == "8 columns: scroll sideways →"


def test_the_header_of_a_long_table_stays(page):
    page.size(390, 300)
    scroll = page.one(f"{PUBLISHED} .scroll")
    page.run("document.querySelector(arguments[0] + ' .unfold')?.click()", PUBLISHED)
    page.run("arguments[0].scrollIntoView(); arguments[0].scrollTop = arguments[0].scrollHeight", scroll)
    top = "return arguments[0].getBoundingClientRect().top"
    header, row = page.one(f"{PUBLISHED} thead th"), page.one(f"{PUBLISHED} tbody tr")
    assert abs(page.run(top, header) - page.run(top, scroll)) <= 2 and page.run(top, row) < page.run(top, scroll)


def test_evidence_leads_to_its_cell(page):
    page.run("document.querySelectorAll('#claims details').forEach((each) => { each.open = true; })")
    page.click(page.one("#claims a[href='#dramoe-table2-1-1']"))
    assert page.run("return document.querySelector(':target').id") == "dramoe-table2-1-1"
    top, height = page.run("return [document.querySelector(':target').getBoundingClientRect().top, innerHeight]")
    assert 0 < top < height


TOO_WIDE = """
  const parts = "h1, h2, h3, p, img, .tile, .banner, .chips, .tools, .scroll, .flow";
  const seen = [...document.querySelectorAll(parts)].filter((part) => part.getClientRects().length);
  const wide = seen.filter((part) => part.getBoundingClientRect().right > innerWidth + 1);
  return wide.map((part) => part.outerHTML.slice(0, 80));
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 768, 390, 320])
def test_nothing_overflows(page, width, scheme):
    page.media(scheme)
    page.size(width, 800)
    assert page.run("return document.documentElement.scrollWidth") <= width
    wide = page.run(TOO_WIDE)
    assert wide == []
    page.run("arguments[0].scrollIntoView({block: 'center'})", first(page))
    page.run("arguments[0].click()", first(page))
    box = page.run(
        "const b = arguments[0].getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]", page.one("#card")
    )
    assert box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= 800


CONTRAST = """
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  function light(color) {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const parts = [...canvas.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
    const [r, g, b] = parts.map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  }
  function ground(element) {
    const color = getComputedStyle(element).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : color;
  }
  return [...document.querySelectorAll(arguments[0])].map((element) => {
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
    return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), element.outerHTML.slice(0, 80)];
  });
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(page, scheme):
    """Contrast of 4.5 at least: WCAG 2.1, level AA."""
    page.media(scheme)
    kinds = "p, h1, h2, h3, th, td, a, .name, .meaning, .word, .published, .interval, .tag, .pass, .fail, .muted, code"
    found = page.run(CONTRAST, kinds)
    assert len(found) > 100
    assert [text for ratio, text in found if ratio < 4.5] == []


def test_the_theme_follows_the_system_until_it_is_chosen(page):
    def ground():
        return page.run("return getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.media("dark")
    dark = ground()
    assert dark != light
    button = page.one(".theme")
    for name, expected in (("light", light), ("dark", dark), ("auto", dark), ("light", light)):
        button.click()
        assert (button.text, ground()) == (f"Theme: {name}", expected)
    page.driver.refresh()
    assert (page.one(".theme").text, ground()) == ("Theme: light", light)
    page.run("localStorage.clear()")


def test_paper_is_white_and_carries_no_controls(page):
    page.media("dark", kind="print")
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for selector in ("header", f"{PUBLISHED} input", ".bar"):
        assert not page.one(selector).is_displayed()
    assert page.one(f"{PUBLISHED} table").is_displayed()
    content = base64.b64decode(page.tell("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"])
    assert content.startswith(b"%PDF") and len(content) > 50_000


def test_without_scripts_the_tables_are_all_there(page, report):
    page.tell("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.driver.get(report.as_uri())
        assert len(page.all(f"{PUBLISHED} tbody tr")) == 15 and page.all("input") == []
        assert page.one(f"{TABLE} td.entry b").text
    finally:
        page.tell("Emulation.setScriptExecutionDisabled", value=False)
