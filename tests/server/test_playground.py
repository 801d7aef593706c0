"""The playground: what is served, and in a browser what a visitor sees and does."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from zweave import Dispatch
from zweave.dispatch import FixedDispatcher

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


def test_a_browser_keeps_files_until_they_change(server: Any) -> None:
    for name in ("/", "/playground/app.js"):
        first = server.http().get(name)
        assert first.headers["cache-control"] == "no-cache"
        again = server.http().get(name, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
        assert server.http().get(name, headers={"If-None-Match": '"0"'}).content == first.content


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).is_file():
        pytest.skip("there is no chromium: install it, or name one in ZWEAVE_CHROMIUM")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[[Any], Any]]:
    """The page of a server, whose faults are kept."""
    pages = []

    def open_page(server: Any) -> Any:
        page = browser.new_context().new_page()
        pages.append(page)
        page.set_default_timeout(20000)
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
        page.goto(server.url)
        return page

    yield open_page
    for page in pages:
        page.context.close()


@pytest.fixture
def page(visit: Callable[[Any], Any], server: Any) -> Any:
    found = visit(server)
    offered(found)
    return found


def offered(page: Any) -> None:
    page.locator("#expert option").nth(2).wait_for(state="attached")


def ask(page: Any, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def answered(page: Any) -> None:
    page.locator("#send:enabled").wait_for()


def shown(page: Any) -> list[str]:
    """The last answer of both columns."""
    return [page.locator(f"#{column} .assistant").last.text_content() for column in ("base", "adapted")]


def errors(page: Any) -> list[str]:
    """What is said to be wrong in each column, and of the page."""
    return [page.locator(f"#{name}").text_content() for name in ("base-error", "adapted-error", "error")]


def until_words(page: Any, server: Any) -> None:
    """Lets an engine on hold compute until both answers have words."""
    while not all(shown(page)):
        server.steps.release()
        page.wait_for_timeout(10)


@pytest.mark.slow
def test_a_visitor_asks_and_mixes(page: Any, server: Any) -> None:
    page.get_by_label("Expert", exact=True).select_option("a")
    ask(page, "hello")
    answered(page)
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 128}
    told = [
        server.http().post("/v1/chat/completions", json=body | {"model": m}).json() for m in ("base", "a")
    ]
    assert shown(page) == [one["choices"][0]["message"]["content"].lstrip() for one in told]
    assert "first token" in page.locator("#adapted-facts").text_content()
    timeline = page.locator("#timeline li")
    assert timeline.count() == 2 and "to the first token" in timeline.first.text_content()
    page.get_by_text("What the expert changes").click()
    page.wait_for_selector("#heatmap svg rect")
    z = server.http().get("/v1/experts/a/z").json()
    assert page.locator("#heatmap rect").count() == z["layers"] * len(z["matrices"])
    page.get_by_label("Expert", exact=True).select_option(label="a mixture of several")
    page.get_by_label("Add an expert").select_option("b")
    page.get_by_label("Add an expert").select_option("a")
    page.get_by_label("b 0.50").fill("1")
    with page.expect_request(lambda request: "expert" in (request.post_data_json or {})) as sent:
        ask(page, "again")
    assert sent.value.post_data_json["expert"] == {"b": 1, "a": 0.5}
    answered(page)
    assert page.faults == []


@pytest.mark.slow
def test_an_answer_grows_and_sliders_act_on_it(visit: Callable[[Any], Any], start_server: Any) -> None:
    server = start_server({"kv_tokens": 2048})
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 128}
    told = server.http().post("/v1/chat/completions", json=body | {"expert": {"a": 0.5, "b": 0.5}}).json()
    page = visit(server)
    offered(page)
    page.get_by_label("Expert", exact=True).select_option(label="a mixture of several")
    for expert in ("a", "b"):
        page.get_by_label("Add an expert").select_option(expert)
    server.hold()
    ask(page, "hello")
    until_words(page, server)
    partial = shown(page)
    assert page.locator("#adapted").get_attribute("aria-busy") == "true"
    assert page.locator("#send:disabled").count() == 1
    with page.expect_response("**/v1/requests/*/rescale") as rescaled:
        page.get_by_label("b 0.50").fill("1.5")
    assert rescaled.value.status == 200
    assert rescaled.value.json()["expert"] == {"a": 0.5, "b": 1.5}
    server.steps.release(10000)
    answered(page)
    whole = shown(page)
    assert all(
        after.startswith(before) and after != before for before, after in zip(partial, whole, strict=True)
    )
    unchanged = told["choices"][0]["message"]["content"].lstrip()
    assert unchanged.startswith(partial[1]) and whole[1] != unchanged
    assert page.locator("#adapted").get_attribute("aria-busy") is None
    assert page.faults == []


@pytest.mark.slow
def test_the_space_before_an_answer_is_not_shown_and_stays_in_the_conversation(page: Any) -> None:
    told = page.evaluate(
        """async () => {
          const { Conversation } = await import("/playground/conversation.js");
          const made = () => document.createElement("div");
          const one = new Conversation(made(), made(), made());
          await one.answer("who?", async function* () {
            yield { id: "1", choices: [{ delta: { content: " person" } }] };
          });
          return [one.log.lastChild.textContent, one.messages.at(-1).content];
        }"""
    )
    assert told == ["person", " person"]


@pytest.mark.slow
def test_auto_tells_the_probabilities_of_its_labels(visit: Callable[[Any], Any], start_server: Any) -> None:
    server = start_server()
    server.engine.dispatcher = FixedDispatcher("a")
    chosen = Dispatch("film", {"question": 0.25, "film": 0.75}, "a", 0.75)
    server.engine.dispatcher.choose = lambda prompt, evidence: chosen
    page = visit(server)
    offered(page)
    page.get_by_label("Expert", exact=True).select_option("auto")
    ask(page, "hello")
    answered(page)
    assert page.locator("#probabilities label").all_text_contents() == ["film 75.0%", "question 25.0%"]
    assert page.locator("#probabilities meter").first.evaluate("meter => meter.value") == 0.75


@pytest.mark.slow
def test_a_lora_is_offered_like_an_expert(
    visit: Callable[[Any], Any], start_server: Any, save_lora: Callable[..., Any]
) -> None:
    server = start_server()
    server.engine.load_expert("low", save_lora("low", 1, r=4, merge=False, target_modules=["q_proj"])[0])
    page = visit(server)
    offered(page)
    page.get_by_label("Expert", exact=True).select_option("low")
    assert page.locator("#description").text_content() == "LoRA of rank 4. "
    page.get_by_text("What the expert changes").click()
    page.wait_for_selector("#heatmap svg rect")
    assert page.locator("#heatmap rect").count() == 2
    drawn = page.locator("#heatmap svg").get_attribute("aria-label")
    assert drawn.startswith("Norm of what the LoRA adds in 2 layers")
    page.get_by_label("Expert", exact=True).select_option(label="a mixture of several")
    page.get_by_label("Add an expert").select_option("low")
    with page.expect_request(lambda request: "expert" in (request.post_data_json or {})) as sent:
        ask(page, "hello")
    assert sent.value.post_data_json["expert"] == {"low": 0.5}
    answered(page)
    assert page.faults == [] and all(shown(page))


@pytest.mark.slow
def test_what_goes_wrong_is_said_where_it_does(visit: Callable[[Any], Any], start_server: Any) -> None:
    server = start_server()
    page = visit(server)
    offered(page)
    page.get_by_label("Expert", exact=True).select_option("late")
    server.engine.unload_expert("late")
    ask(page, "hello")
    answered(page)
    base, adapted, of_page = errors(page)
    assert (base, of_page) == ("", "") and "there is no expert 'late'" in adapted
    page.get_by_label("Expert", exact=True).select_option("a")
    page.locator("summary", has_text="Options").click()
    page.get_by_label("Most tokens").fill("0")
    ask(page, "hello")
    answered(page)
    base, adapted, of_page = errors(page)
    assert of_page == "" and "max_tokens must be" in base and base == adapted


@pytest.mark.slow
def test_a_server_that_stops_in_an_answer(visit: Callable[[Any], Any], start_server: Any) -> None:
    server = start_server({"kv_tokens": 2048})
    server.slow_down()
    page = visit(server)
    offered(page)
    page.locator("summary", has_text="Options").click()
    page.get_by_label("Most tokens").fill("400")
    ask(page, "hello")
    page.wait_for_function("document.querySelector('#adapted .assistant')?.textContent")
    server.stop()
    answered(page)
    base, adapted, _ = errors(page)
    assert base == adapted and ("stopped" in base or "closed" in base)
    assert all(shown(page))
    ask(page, "hello again")
    answered(page)
    assert errors(page)[:2] == ["The server does not answer: is it still running?"] * 2


@pytest.mark.slow
def test_a_server_that_wants_a_key(visit: Callable[[Any], Any], start_server: Any) -> None:
    page = visit(start_server(api_keys=("secret",)))
    page.locator("#key:focus").wait_for()
    assert errors(page)[2] == "The server wants an API key: enter it under Options."
    page.keyboard.type("guess")
    page.keyboard.press("Enter")
    page.get_by_text("The server does not know this API key: enter another.").wait_for()
    page.get_by_label("Message").focus()
    ask(page, "hello")
    answered(page)
    assert errors(page)[:2] == ["The server does not know this API key: enter another."] * 2
    page.locator("#key:focus").fill("secret")
    page.keyboard.press("Enter")
    offered(page)
    ask(page, "hello")
    answered(page)
    assert errors(page) == ["", "", ""] and all(shown(page))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_used_on_a_phone_and_by_keys_alone(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(251, 251, 250)", "dark": "rgb(22, 24, 27)"}[scheme]
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
