"""The page of `lamina play` in Chromium: every tab, keys, two windows, a phone, links and files."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import torch

from lamina.cli import main
from lamina.play.pictures import data_uri, png
from lamina.play.server import HOST, listen, server_of
from lamina.play.session import Player
from lamina.play.stage import Stage

torch.set_num_threads(1)
pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT = 60_000  # milliseconds: the machine may be busy


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def stage(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    home = tmp_path_factory.mktemp("page")
    data, run = str(home / "data"), str(home / "run")
    assert main(["collect", "grid", "--out", data, "--episodes", "12", "--size", "32", "32"]) == 0
    small = [
        "--image",
        "32",
        "32",
        "--size",
        "debug",
        "--slots",
        "4",
        "--decoder",
        "unet",
        "--steps",
        "60",
        "--batch",
        "8",
    ]
    assert main(["train", "flexlam", "--data", data, "--out", run, *small, "--device", "cpu", "--workers", "0"]) == 0
    assert main(["align", run, "--data", data, "--labels", "40", "--steps", "20", "--device", "cpu"]) == 0
    return Stage.load(Path(run), data, transitions=40, device="cpu")


@pytest.fixture(scope="module")
def address(stage: Stage) -> Iterator[str]:
    socket_ = listen(0)
    server = server_of(Player(stage), "of-a-test")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket_]}, daemon=True)
    thread.start()
    yield f"http://{HOST}:{socket_.getsockname()[1]}/of-a-test/"
    server.should_exit = True
    thread.join(20)
    socket_.close()


class Window:
    """A window of the page, which notes what goes wrong in it and what it asks of others."""

    def __init__(self, browser: Any, address: str, **options: Any):
        self.context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.page.on("request", lambda request: self._ask(request.url, address))
        self.open(address)

    def _ask(self, url: str, address: str) -> None:
        if not url.startswith((address.split("#")[0], "data:", "blob:")):
            self.wrong.append(f"asked for {url}")

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_selector("body[data-ready]", timeout=WAIT)

    def screen(self) -> str:
        return self.page.get_attribute("#screen", "src")

    def press(self, keys: str) -> None:
        """Press keys, and wait until each has made its step."""
        for key in keys:
            before = self.steps()
            self.page.keyboard.press(key)
            self.until(f"document.querySelectorAll('#strip figure').length == {before + 1}")

    def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true (playwright's own way of waiting is forbidden by the page's policy)."""
        end = time.monotonic() + WAIT / 1000
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, condition
            self.page.wait_for_timeout(40)

    def steps(self) -> int:
        return self.page.locator("#strip figure").count()

    def tab(self, name: str) -> None:
        self.page.click(f"#tab-{name}")
        self.page.wait_for_selector(f"#{name}:not([hidden])")

    def sources(self, selector: str) -> list[str]:
        return self.page.eval_on_selector_all(selector, "all => all.map(one => one.src || one.toDataURL())")


@pytest.fixture
def window(browser: Any, address: str) -> Iterator[Window]:
    window = Window(browser, address, accept_downloads=True)
    yield window
    assert window.wrong == []
    window.context.close()


def picture(player: Player, start: str, *moves: str) -> str:
    return data_uri(player.roll(player.session(start, list(moves)))[-1].frame)


def test_keys_drive_undo_and_reset(window, stage):
    player, page = Player(stage), window.page
    start = f"d{max((c.medoid for c in stage.clusters), key=stage.change.__getitem__)}"
    moves = [f"{stage.clusters[n].medoid}@4" for n in (0, 1, 0)]
    first = window.screen()
    assert first == picture(player, start)
    window.press("121")
    assert window.screen() == picture(player, start, *moves) != first
    assert "step 3" in page.inner_text("#count") and "ms" in page.inner_text("#speed")
    reading = player.roll(player.session(start, moves))[-1].reading
    assert page.inner_text("#reading .bars span >> nth=0") == reading.shown[0]["name"]
    page.keyboard.press("Backspace")
    assert window.screen() == picture(player, start, *moves[:2]) and window.steps() == 3
    page.keyboard.press("r")
    assert window.screen() == first and page.is_disabled("#undo")
    page.keyboard.press("n")
    window.until(f"document.getElementById('screen').src != {json.dumps(first)}")


def test_buttons_hold_and_show_examples(window, stage):
    page = window.page
    page.hover(".key >> nth=1")
    assert page.inner_text("#examples-title").startswith("Key 2: ")
    shown = page.eval_on_selector_all(
        "#examples .flip img:first-child", "all => all.map(one => one.src.split('/frame/')[1])"
    )
    assert shown == [f"{n}/0.png" for n in stage.clusters[1].examples]
    page.mouse.down()
    window.until("document.querySelectorAll('#strip figure').length > 4")  # held: it goes on
    page.mouse.up()
    page.wait_for_timeout(300)
    steps = window.steps()
    page.wait_for_timeout(600)
    assert window.steps() == steps  # let go: it stops
    assert "frames/s" in page.inner_text("#speed")


KEY = "for (const how of ['keydown', 'keyup']) document.dispatchEvent(new KeyboardEvent(how, {{key: '{}'}}));"
SLOTS = "c = document.getElementById('k'); c.value = 0; c.dispatchEvent(new Event('input'));"


@pytest.mark.parametrize(("at_once", "moves"), [("1n2", [(1, 4)]), ("2k", [(0, 4), (1, 1)]), ("n1", [(0, 4)])])
def test_what_is_shown_is_the_session_in_the_link_however_fast_keys_are_pressed(window, stage, at_once, moves):
    page = window.page
    window.press("1")
    made = (SLOTS if key == "k" else KEY.format(key) for key in at_once)
    page.evaluate(f"() => {{ let c; {' '.join(made)} }}")  # all of them before the server has answered any
    page.wait_for_timeout(1500)
    window.until("location.hash.includes('moves=')")
    values = parse_qs(page.url.partition("#")[2], keep_blank_values=True)
    (start,), (words,) = values["start"], values["moves"]
    found = [word for word in words.split(",") if word]
    assert found == [f"{stage.clusters[key].medoid}@{k}" for key, k in moves]
    assert window.steps() == len(found) + 1
    assert window.screen() == picture(Player(stage), start, *found)


def test_k_shows_the_same_step_from_fewer_slots(window, stage):
    player, page = Player(stage), window.page
    window.press("12")
    page.wait_for_selector("#prefixes img >> nth=2")
    start = f"d{max((c.medoid for c in stage.clusters), key=stage.change.__getitem__)}"
    one, two = (stage.clusters[n].medoid for n in (0, 1))
    expected = [picture(player, start, f"{one}@4", f"{two}@{k}") for k in (1, 2, 4)]
    window.until(f"document.querySelector('#prefixes img').src == {json.dumps(expected[0])}")
    assert window.sources("#prefixes img") == expected
    page.click("#prefixes figure >> nth=0")
    window.until(f"document.getElementById('screen').src == {json.dumps(expected[0])}")
    assert page.inner_text("#drive .slider span") == "k = 1 of 4" and window.steps() == 3


def test_every_tab_shows_pictures_that_follow_the_choice(window, stage):
    page = window.page
    window.tab("transfer")
    page.wait_for_selector("#transfer-result figure >> nth=6")
    results = "#transfer-result img, #transfer-result canvas"
    before = window.sources(results)
    page.click("#transfer-source button >> nth=3")
    window.until(f"document.querySelector('#transfer-result img').src != {json.dumps(before[0])}")
    assert window.sources(results)[2] == before[2] and window.sources(results)[3] != before[3]

    window.tab("add")
    page.wait_for_selector("#add-scale figure >> nth=4")
    assert page.locator("#add-sum figure").count() == 5 and "dB from what came" in page.inner_text("#add-sum")
    before = window.sources("#add-scale img")
    page.evaluate("const c = document.getElementById('factor'); c.value = -1; c.dispatchEvent(new Event('input'))")
    window.until(
        "document.querySelector('#add-scale figure:last-child img').src == document.querySelector('#add-scale img').src"
    )
    assert window.sources("#add-scale img")[:4] == before[:4]  # -1 z is -z
    page.click("#add-choice input >> nth=1")
    window.until("document.querySelectorAll('#add-sum figure').length == 4")

    window.tab("map")
    page.wait_for_selector("#point dl")
    title = page.inner_text("#point h2")
    box = page.locator("#sky").bounding_box()
    x, y = stage.map()[7].tolist()
    page.mouse.click(
        box["x"] + box["width"] / 2 + x * (box["width"] / 2 - 14),
        box["y"] + box["height"] / 2 - y * (box["height"] / 2 - 14),
    )
    window.until(
        f"document.querySelector('#point h2').textContent != {json.dumps(title)} || {json.dumps(title)} == 'Transition 7'"
    )
    assert page.inner_text("#point h2") == "Transition 7" and stage.action_text(7) in page.inner_text("#point dl")
    page.select_option("#map-colour", label="norm of the latent")
    assert page.locator("#legend .ramp").count() == 1
    page.click("#point button >> nth=0")
    page.wait_for_selector("#drive:not([hidden])")
    assert window.screen() == picture(Player(stage), "d7")

    window.tab("health")
    page.wait_for_selector(".codes")
    assert "Measured now" in page.inner_text("#diagnosis") and "flexlam" in page.inner_text("#diagnosis dl")
    assert page.locator(".codes i").count() == 4


@pytest.mark.parametrize("episodes", [1, 2])
def test_the_latent_of_an_unrelated_transition_is_one(browser, stage, episodes):
    """The control of Transfer: of another episode, or where there is only one half of the transitions away; also for a source that the
    map has chosen."""
    count = len(stage.clip)
    own = stage.clip.episode.clone()
    own[0] += episodes - 1
    socket_ = listen(0)
    server = server_of(Player(replace(stage, clip=replace(stage.clip, episode=own))), "of-a-test")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket_]}, daemon=True)
    thread.start()
    window = Window(browser, f"http://{HOST}:{socket_.getsockname()[1]}/of-a-test/")
    asked: list[list[str]] = []
    window.page.on("request", lambda r: r.url.endswith("/roll") and asked.append(r.post_data_json["sessions"]))

    def control(source: int) -> int:
        """Of the transition that the last request transferred."""
        moves = [int(one["moves"][0].split("@")[0]) for one in asked[-1]]
        assert moves[0] == source
        return moves[1]

    window.tab("transfer")
    window.page.wait_for_selector("#transfer-result figure >> nth=6")
    first = int(asked[-1][0]["moves"][0].split("@")[0])
    expected = (lambda n: (n + count // 2) % count) if episodes == 1 else (lambda n: 0)
    other = control(first)
    assert other == expected(first)
    window.tab("map")
    window.page.wait_for_selector("#point dl")
    window.page.focus("#sky")
    for _ in range((other - first) % count):  # to the control itself
        window.page.keyboard.press("ArrowRight")
    window.until(f"document.querySelector('#point h2').textContent == 'Transition {other}'")
    window.page.click("#point button >> nth=1")
    window.page.wait_for_selector("#transfer:not([hidden])")
    window.page.wait_for_timeout(500)
    found = control(other)
    assert found == expected(other) if episodes == 1 else own[found] != own[other]
    assert window.wrong == []
    window.context.close()
    server.should_exit = True
    thread.join(20)
    socket_.close()


def test_a_session_is_repeated_from_its_link_and_from_its_file(window, browser, address, tmp_path):
    page = window.page
    window.press("1231")
    window.until("location.hash.includes('moves=') && location.hash.split('@').length == 5")
    with page.expect_download() as download:
        page.click("#save-json")
    saved = tmp_path / "session.json"
    download.value.save_as(saved)
    with page.expect_download() as download:
        page.click("#save-mp4")
    download.value.save_as(tmp_path / "session.mp4")
    assert (tmp_path / "session.mp4").read_bytes()[4:8] == b"ftyp"
    other = Window(browser, page.url)
    assert other.screen() == window.screen() and other.steps() == 5
    other.press("2")
    assert window.steps() == 5 and other.screen() != window.screen()  # two windows at once, each with its session
    other.page.set_input_files("#open", saved)
    other.until("document.querySelectorAll('#strip figure').length == 5")
    assert other.screen() == window.screen()
    other.page.fill("#link", page.url.replace("run=", "run=0"))
    other.page.click("#repeat button")
    other.page.wait_for_selector("#toast:not([hidden])")
    assert "another run" in other.page.inner_text("#toast") and other.steps() == 5
    assert other.wrong == []
    other.context.close()


def test_an_upload_is_driven_and_a_wrong_one_is_refused_in_one_line(window, stage, tmp_path):
    page = window.page
    (tmp_path / "start.png").write_bytes(png(stage.clip.frames[5, 0]))
    (tmp_path / "no.png").write_bytes(b"<script>alert(1)</script>")
    before = window.screen()
    page.set_input_files("#upload", tmp_path / "no.png")
    page.wait_for_selector("#toast:not([hidden])")
    assert page.inner_text("#toast") == "the upload: is no PNG, JPEG or WebP picture" and window.screen() == before
    window.wrong.clear()  # the browser's console names the refusal too
    page.set_input_files("#upload", tmp_path / "start.png")
    expected = picture(Player(stage), "d5")
    window.until(f"document.getElementById('screen').src == {json.dumps(expected)}")
    window.press("1")
    assert window.screen() != expected


@pytest.mark.parametrize("width", [360, 390])
def test_a_phone_shows_everything_without_scrolling_sideways(browser, address, width):
    phone = Window(browser, address, has_touch=True, is_mobile=True)
    phone.page.set_viewport_size({"width": width, "height": 780})
    phone.page.tap(".key >> nth=1")
    phone.until("document.querySelectorAll('#strip figure').length == 2")
    for name in ("drive", "transfer", "add", "map", "health"):
        phone.tab(name)
        phone.page.wait_for_timeout(200)
        assert phone.page.evaluate("document.documentElement.scrollWidth") == width, name
        assert phone.page.evaluate(f"document.getElementById('tab-{name}').getBoundingClientRect().right") <= width
    assert phone.wrong == []
    phone.context.close()


def test_a_server_that_is_gone_is_said(browser, stage):
    socket_ = listen(0)
    server = server_of(Player(stage), "short")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket_]}, daemon=True)
    thread.start()
    window = Window(browser, f"http://{HOST}:{socket_.getsockname()[1]}/short/")
    server.should_exit = True
    thread.join(20)
    socket_.close()
    window.page.keyboard.press("1")
    window.page.wait_for_selector("#toast:not([hidden])")
    assert "does not answer" in window.page.inner_text("#toast")
    window.context.close()
