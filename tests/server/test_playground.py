"""The playground: what is served, and in a browser what a visitor sees and does."""

import os
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

FOLDER = files("zweave.server") / "playground"
ASSETS = {file.name: file.read_text("utf-8") for file in FOLDER.iterdir()}
CHROMIUM = os.environ.get("ZWEAVE_CHROMIUM") or shutil.which("chromium") or ""
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def test_the_page_and_what_it_loads(server: Any) -> None:
    page = server.http().get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    loaded = re.findall(r'(?:src|href)="(playground/[^"]+)"', page.text)
    loaded += [f"playground/{name}" for name in re.findall(r'from "\./([^"]+)"', "".join(ASSETS.values()))]
    assert {name.removeprefix("playground/") for name in loaded} == set(ASSETS) - {"index.html"}
    for name in loaded:
        told = server.http().get(f"/{name}")
        assert told.status_code == 200 and told.headers["x-content-type-options"] == "nosniff"
        assert told.headers["content-type"].startswith(("text/css", "text/javascript"))
    assert server.http().get("/playground/%2e%2e%2fapp.py").status_code == 404
    assert server.http().get("/playground/x.js").status_code == 404


def test_nothing_comes_from_elsewhere_and_no_script_stands_in_the_page() -> None:
    for name, text in ASSETS.items():
        links = set(re.findall(r"https?://[^\s\"'`]+", text)) - {"http://www.w3.org/2000/svg"}
        assert links == set(), name
        assert "innerHTML" not in text
    assert not re.search(r"<script[^>]*>[^<]|\son\w+=|\sstyle=", ASSETS["index.html"])


def test_scripts_name_elements_that_are_there() -> None:
    ids = set(re.findall(r'id="([^"]+)"', ASSETS["index.html"]))
    assert set(re.findall(r'\$\("([^"]+)"\)', ASSETS["app.js"])) <= ids
    for what in re.findall(r'(?:for|aria-labelledby)="([^"]+)"', ASSETS["index.html"]):
        assert what in ids


def test_z_of_an_expert(server: Any) -> None:
    told = server.http().get("/v1/experts/late/z").json()
    z = server.engine.bank.registered("late").read().z
    assert told["layers"] == 2 and told["matrices"][0] == "q_proj"
    assert told["values"][0] == [None] * len(told["matrices"])
    for index, matrix in enumerate(told["matrices"]):
        (values,) = [values for name, values in z.items() if name.endswith(matrix) and ".1." in name]
        assert told["values"][1][index] == pytest.approx(abs(values.numpy() - 1).mean(), rel=1e-5)
    assert server.http().get("/v1/experts/nobody/z").status_code == 404


@pytest.fixture
def page(server: Any) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).is_file():
        pytest.skip("there is no chromium: install it, or name one in ZWEAVE_CHROMIUM")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        found = browser.new_page()
        faults: list[str] = []
        found.on("pageerror", lambda error: faults.append(str(error)))
        found.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        found.goto(server.url)
        found.locator("#expert option").nth(2).wait_for(state="attached")
        found.faults = faults
        yield found
        browser.close()


def answered(page: Any) -> None:
    page.locator("#send:enabled").wait_for(timeout=30000)


@pytest.mark.slow
def test_a_visitor_asks_and_mixes(page: Any, server: Any) -> None:
    page.get_by_label("Expert", exact=True).select_option("a")
    page.get_by_label("Message").fill("hello")
    page.keyboard.press("Enter")
    answered(page)
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 128}
    told = [
        server.http().post("/v1/chat/completions", json=body | {"model": m}).json() for m in ("base", "a")
    ]
    wanted = [one["choices"][0]["message"]["content"] for one in told]
    shown = [page.locator(f"#{column} .assistant").last.text_content() for column in ("base", "adapted")]
    assert shown == wanted
    assert "first token" in page.locator("#adapted-facts").text_content()
    assert page.locator("#timeline li").count() == 2
    page.get_by_text("What the expert changes").click()
    page.wait_for_selector("#heatmap svg rect")
    page.get_by_label("Expert", exact=True).select_option(label="a mixture of several")
    page.get_by_label("Add an expert").select_option("b")
    page.get_by_label("Add an expert").select_option("a")
    page.get_by_label("b 0.50").fill("1")
    sent = []
    page.on(
        "request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None
    )
    page.get_by_label("Message").fill("again")
    page.get_by_role("button", name="Send").click()
    answered(page)
    assert {"b": 1} in [
        {k: v for k, v in body["expert"].items() if k == "b"} for body in sent if "expert" in body
    ]
    assert page.faults == []


@pytest.mark.slow
def test_what_goes_wrong_is_said_in_words(page: Any) -> None:
    page.locator("summary", has_text="Options").click()
    page.get_by_label("Most tokens").fill("0")
    page.get_by_label("Message").fill("hello")
    page.get_by_role("button", name="Send").click()
    answered(page)
    assert "max_tokens must be" in page.get_by_role("alert").text_content()


@pytest.mark.slow
def test_it_can_be_used_on_a_phone_and_by_keys_alone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#expert").focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    page.keyboard.type("hi")
    page.keyboard.press("Enter")
    answered(page)
    assert page.locator("#adapted .user").text_content() == "hi"
