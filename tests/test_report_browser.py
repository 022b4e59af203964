"""The page in a real browser: it draws, loads nothing from elsewhere, and a click plays the clip that was clicked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_report import HOSTILE, log_lines, write_clips, write_run, write_scores, write_tree
from test_report_music import write_music

from auricle.evaluation.music import RELATIONS, circle_of_fifths, relation
from auricle.report.build import build_report

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the browser test needs playwright: pip install playwright"
)

CLIP = """index => {
    const chart = Chart.getChart('map'), set = chart.data.datasets.findIndex(set => set.rows.includes(index));
    const at = chart.getDatasetMeta(set).data[chart.data.datasets[set].rows.indexOf(index)];
    return {x: at.x, y: at.y};
}"""
"""Where a clip of the map stands on its canvas, in pixels."""


PLAYING = """() => new Promise((done) => {
    const look = () => player.currentTime > 0
        ? done([player.paused && !player.ended, player.currentSrc]) : setTimeout(look, 10);
    look();
})"""
"""Whether paused, and the address of the sound, once it is heard."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_api.sync_playwright() as playwright:
        path = found or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("the browser test needs chromium: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return build_report(write_tree(folder), folder / "report.html")


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    return build_report([write_music(folder)], folder / "report.html")


class Visit:
    """An open page, and what it complained of and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1400, "height": 900}, **options})
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def until(self, condition: str) -> None:
        """Wait in the page, whose policy forbids playwright's own way to."""
        look = f"const look = () => {condition} ? done() : setTimeout(look, 10); look();"
        self.page.evaluate(f"() => new Promise((done) => {{ {look} }})")

    def elsewhere(self) -> list[str]:
        return [url for url in self.requests[1:] if not url.startswith("data:")]

    def playing(self, clip: str) -> tuple[bool, str]:
        """Whether the player, having come to `clip`, is paused, and the sound's address."""
        sync_api.expect(self.page.locator("#player")).to_have_attribute("data-clip", clip)
        paused, source = self.page.evaluate(PLAYING)
        return paused, source


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_page_draws_without_complaint_or_network(browser: Any, report: Path, scheme: str, width: int) -> None:
    visit = Visit(browser, report, viewport={"width": width, "height": 900}, color_scheme=scheme)
    for chart in ("loss-0", "lr-0", "speed-0", "map"):
        drawn = f"(c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size)(window['{chart}'])"
        assert visit.page.evaluate(drawn) > 1, chart
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.complaints == []
    assert visit.elsewhere() == []
    visit.page.close()


def test_a_click_on_a_point_plays_that_clip(browser: Any, report: Path) -> None:
    visit = Visit(browser, report)
    count = visit.page.evaluate("shown.map.id.length")
    for index in (0, count // 2, count - 1):
        at = visit.page.evaluate(CLIP, index)
        topmost = visit.page.evaluate(  # where points overlap, the click is for the nearest
            """({x, y}) => { const chart = Chart.getChart('map'); let best = null, least = Infinity;
            chart.data.datasets.forEach((set, d) => chart.getDatasetMeta(d).data.forEach((p, k) => {
                const away = Math.hypot(p.x - x, p.y - y); if (away < least) { least = away; best = set.rows[k]; } }));
            return best; }""",
            at,
        )
        assert topmost == index
        visit.page.locator("#map").click(position=at)
        clip = visit.page.evaluate("i => data.maps[0].id[i]", index)
        paused, source = visit.playing(clip)
        assert source == visit.page.evaluate("i => sounds[data.maps[0].audio[i]]", index)
        assert not paused
        assert visit.page.locator("#now-id").inner_text() == clip
    assert visit.complaints == []
    assert visit.elsewhere() == []
    visit.page.close()


def test_the_play_list_works_from_the_keyboard(browser: Any, report: Path) -> None:
    visit = Visit(browser, report)
    buttons = visit.page.locator("#plays button")
    buttons.first.focus()
    visit.page.keyboard.press("ArrowDown")
    visit.page.keyboard.press("ArrowDown")
    visit.page.keyboard.press("Enter")
    paused, _ = visit.playing(buttons.nth(2).get_attribute("title"))
    assert not paused
    assert buttons.nth(2).get_attribute("aria-current") == "true"
    visit.page.close()


def test_legend_encoder_and_mistakes_choose_what_is_shown(browser: Any, report: Path) -> None:
    visit = Visit(browser, report)
    shown = "Chart.getChart('map').data.datasets.flatMap(set => set.rows).length"
    assert visit.page.evaluate(shown) == 40
    visit.page.locator("#legend button").first.click()
    assert visit.page.evaluate(shown) == 30
    visit.page.locator("#legend button").first.click()
    visit.page.select_option("#encoder", label="fbank")
    visit.page.check("#mistakes")
    assert visit.page.evaluate(shown) == 18
    assert visit.page.locator("#plays .wrong").count() == 18
    visit.page.close()


def test_the_slider_shows_other_pictures(browser: Any, report: Path) -> None:
    visit = Visit(browser, report)
    visit.page.locator("#slider-0").fill("0")
    assert visit.page.locator("#picture-0").get_attribute("src") == visit.page.evaluate("data.runs[0].pictures[0].uri")
    assert visit.page.locator("output").inner_text() == "step 100"
    visit.page.close()


def test_hostile_names_run_nothing(browser: Any, tmp_path: Path) -> None:
    targets = [HOSTILE, "b"] * 6
    paths = write_clips(tmp_path / "audio", targets)
    for encoder in (HOSTILE, "fbank"):
        write_scores(tmp_path / "r", encoder, [True] * 12, targets, paths, task=HOSTILE.replace("/", ""))
    run = write_run(tmp_path / "<img src=x onerror=alert(2)>", log_lines())
    visit = Visit(browser, build_report([run, tmp_path / "r"], tmp_path / "x.html"))
    alerts: list[Any] = []
    visit.page.on("dialog", lambda dialog: (alerts.append(dialog), dialog.dismiss()))
    visit.page.locator("#plays button").first.click()
    visit.page.hover("#map")
    assert visit.page.locator("img").count() == 1
    assert alerts == []
    assert visit.complaints == []
    visit.page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (420, "dark")])
def test_music_draws_without_complaint(browser: Any, music: Path, width: int, scheme: str) -> None:
    visit = Visit(browser, music, viewport={"width": width, "height": 900}, color_scheme=scheme)
    for chart in ("layers-0", "polyphony-0"):
        drawn = f"(c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size)(window['{chart}'])"
        assert visit.page.evaluate(drawn) > 1, chart
    visit.page.locator("summary", has_text="Further measures").focus()
    visit.page.keyboard.press("Enter")
    assert visit.page.locator("tr.oracle").is_visible()
    assert visit.page.locator("#wheels svg").count() == 2
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    visit.page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    assert visit.page.evaluate("charts.length") == 2
    assert visit.complaints == []
    assert visit.elsewhere() == []
    visit.page.close()


def test_the_legend_hides_an_encoder_in_all_charts(browser: Any, music: Path) -> None:
    visit = Visit(browser, music)
    shown = "charts.map(chart => chart.getSortedVisibleDatasetMetas().map(meta => meta.label).sort())"
    assert visit.page.evaluate(shown) == [["ours"], ["chance", "fbank", "ours"]]
    visit.page.locator(".encoders button", has_text="ours").first.click()
    assert visit.page.evaluate(shown) == [[], ["chance", "fbank"]]
    assert visit.page.locator(".encoders [aria-pressed=false]").all_inner_texts() == ["ours", "ours"]
    visit.page.locator(".encoders button", has_text="show all").first.click()
    assert visit.page.locator(".encoders [aria-pressed=false]").count() == 0
    visit.page.locator(".encoders button", has_text="hide all").first.click()
    assert visit.page.evaluate(shown) == [[], ["chance"]]
    visit.page.close()


def test_keys_get_the_credit_they_are_scored_with(browser: Any, music: Path) -> None:
    visit = Visit(browser, music)
    keys = circle_of_fifths()
    places = [(minor, other, fifths) for minor in (0, 1) for other in (0, 1) for fifths in range(12)]
    credit = visit.page.evaluate("places => places.map(place => Number(RELATIONS[relation(...place)][1]))", places)
    assert credit == [RELATIONS[relation(keys[minor], keys[2 * fifths + other])] for minor, other, fifths in places]
    shares = visit.page.locator("#relations tr").all_inner_texts
    assert shares()[0].split()[-1] == "100.0"
    visit.page.select_option("#key-encoder", label="fbank")  # tells the key a fifth above
    assert [row.split()[-1] for row in shares()] == ["0.0", "100.0", "0.0", "0.0", "0.0", "0.0"]
    assert visit.page.locator("#wheels .near").count() == visit.page.locator("#wheels .share").count() * 2 == 4
    visit.page.close()


def test_beats_are_told_apart_and_the_cursor_follows_the_sound(browser: Any, music: Path) -> None:
    visit = Visit(browser, music)
    kinds = "[...document.querySelectorAll('#strip-marks .beat')].map(mark => mark.classList[1])"
    assert visit.page.evaluate(kinds) == ["miss"] * 15 + ["extra"] * 16
    visit.page.select_option("#beat-clip", index=3)
    assert visit.page.evaluate(kinds) == ["hit"] * 15 + ["extra"] + ["hit"] * 15
    visit.page.select_option("#task", label="gtzan-genre")
    visit.page.locator("#plays button").first.click()
    visit.page.locator("#strip-marks").click(position={"x": 300, "y": 150})
    share = 300 / visit.page.locator("#strip-marks").bounding_box()["width"]
    left = "parseFloat(document.getElementById('cursor').style.left) / 100"
    visit.until(f"Math.abs({left} - {share}) < 0.01")
    visit.page.evaluate("beatPlayer.play()")
    visit.until(f"{left} > {share} + 0.02")
    assert visit.page.evaluate("player.paused")  # one sound at a time
    playing = visit.page.evaluate("[beatPlayer.currentTime / strip.clip.length, beatPlayer.paused]")
    assert playing[0] > share
    assert not playing[1]
    assert visit.complaints == []
    visit.page.close()


def test_hostile_names_run_nothing_among_music(browser: Any, tmp_path: Path) -> None:
    results = write_music(tmp_path, (HOSTILE, "fbank"), HOSTILE.replace("/", ""))
    for path in results.rglob("*.parquet"):
        table = pq.read_table(path)
        names = pa.array([HOSTILE + name for name in table["clip_id"].to_pylist()])
        pq.write_table(table.set_column(0, "clip_id", names), path)
    visit = Visit(browser, build_report([results], tmp_path / "x.html"))
    alerts: list[Any] = []
    visit.page.on("dialog", lambda dialog: (alerts.append(dialog), dialog.dismiss()))
    visit.page.locator(".encoders button").first.click()
    for select in ("#key-task", "#key-encoder", "#beat-task", "#beat-clip", "#beat-encoder"):
        visit.page.select_option(select, index=0)
    for canvas in ("#layers-0", "#polyphony-0"):
        visit.page.hover(canvas)
    assert Path(HOSTILE).name in visit.page.locator("#strip-note").inner_text()
    assert visit.page.locator("img").count() == 0
    assert alerts == []
    assert visit.complaints == []
    visit.page.close()
