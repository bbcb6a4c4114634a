"""The playground in a headless Chromium, over a server with the demo model.

LOCKSTEP_BIN is the server's binary, CHROMIUM the browser; PLAYGROUND_SHOTS, if set, a folder for screenshots.
"""

import json
import os
import re
import subprocess
import unittest
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from lockstep_server import PATIENCE_S, Server

SHOTS = os.environ.get("PLAYGROUND_SHOTS")
PATIENCE_MS = PATIENCE_S * 1000
expect.set_options(timeout=PATIENCE_MS)


class Playground(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.addClassCleanup(cls.server.close)
        playwright = sync_playwright().start()
        cls.addClassCleanup(playwright.stop)
        cls.browser = playwright.chromium.launch(
            executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"]
        )
        cls.addClassCleanup(cls.browser.close)

    def open(self, **options):
        context = self.browser.new_context(**{"viewport": {"width": 1180, "height": 800}, **options})
        self.addCleanup(context.close)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        self.problems, self.hosts = [], set()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self.note)
        page.on(
            "request",
            lambda request: self.hosts.add(request.url.split("/")[2]) if "://" in request.url else None,
        )
        page.goto(f"{self.server.url}/playground")
        expect(page.locator("#model b")).to_have_text("lockstep/demo")
        return page

    def note(self, message):
        # A browser reports every refused request by itself; the page shows those.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.problems.append(message.text)

    def tearDown(self):
        self.assertEqual(self.problems, [])
        self.assertEqual(self.hosts, {self.server.url.split("/")[2]})

    def shot(self, page, name):
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / f"{name}.png")

    def say(self, page, text):
        page.get_by_label("Message").fill(text)
        page.get_by_label("Message").press("Enter")

    def finished(self, page):
        expect(page.locator("#status")).to_contain_text("Answer complete")
        return page.locator(".turn.assistant .flow").last

    def test_a_chat_of_two_turns_streams(self):
        page = self.open()
        self.shot(page, "empty")
        page.get_by_label("System").fill("Answer briefly.")
        sent = []
        page.on("request", lambda request: sent.append(request) if request.method == "POST" else None)
        self.say(page, "What is the capital of France?")
        first = self.finished(page).inner_text()
        self.assertGreater(len(first), 3)
        self.say(page, "And of Italy?")
        expect(page.locator(".turn")).to_have_count(4)
        expect(page.locator(".running")).to_have_count(0)
        self.shot(page, "chat")
        body = json.loads(sent[-1].post_data)
        self.assertTrue(body["stream"])
        self.assertEqual(
            [message["role"] for message in body["messages"]], ["system", "user", "assistant", "user"]
        )
        self.assertEqual(body["messages"][2]["content"].strip(), first.strip())
        numbers = page.locator(".numbers").last.inner_text()
        for name in ["prompt", "first token", "speed", "between tokens", "ended by"]:
            self.assertIn(name, numbers)

    def test_tokens_come_before_the_answer_is_complete_and_stop_ends_it(self):
        page = self.open()
        page.get_by_label("Go on past the end-of-text token").check()
        page.get_by_label("Most tokens").fill("1900")
        # In the page, because the answer may be complete before a click from here arrives.
        page.evaluate("""() => new MutationObserver((_, observer) => {
            if (document.querySelectorAll('.running .token').length <= 5) return;
            observer.disconnect();
            document.getElementById('stop').click();
        }).observe(document.getElementById('turns'), { childList: true, subtree: true })""")
        self.say(page, "Tell me a story.")
        expect(page.locator(".numbers").last).to_contain_text(re.compile(r"ended by\s*you"))
        expect(page.locator(".running")).to_have_count(0)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        self.assertLess(page.locator(".token").count(), 1900)

    def test_pointing_at_a_token_shows_what_it_could_have_been(self):
        page = self.open()
        self.say(page, "What is the capital of France?")
        self.finished(page)
        token = page.locator(".token").nth(1)
        token.hover()
        tip = page.get_by_role("tooltip")
        expect(tip).to_be_visible()
        expect(tip).to_contain_text("log-probability")
        expect(tip.locator(".rivals li")).to_have_count(5)
        expect(tip.locator(".chosen")).to_have_count(1)
        self.shot(page, "token")
        page.get_by_role("heading", name="Lockstep").hover()
        expect(tip).to_be_hidden()

    def test_the_keyboard_reaches_every_token(self):
        page = self.open()
        self.say(page, "What is the capital of France?")
        flow = self.finished(page)
        flow.locator(".token").first.focus()
        tip = page.get_by_role("tooltip")
        expect(tip).to_be_visible()
        page.keyboard.press("ArrowRight")
        expect(flow.locator(".token").nth(1)).to_be_focused()
        page.keyboard.press("End")
        expect(flow.locator(".token").last).to_be_focused()
        page.keyboard.press("Escape")
        expect(tip).to_be_hidden()
        self.assertEqual(flow.locator(".token[tabindex='0']").count(), 1)

    def test_a_message_is_edited_and_an_answer_tried_again(self):
        page = self.open()
        self.say(page, "What is the capital of France?")
        self.finished(page)
        page.get_by_role("button", name="Retry").click()
        expect(page.locator(".running")).to_have_count(0)
        expect(page.locator(".turn")).to_have_count(2)
        page.get_by_role("button", name="Edit").click()
        self.shot(page, "edit")
        page.get_by_label("Edit message").fill("Who are you?")
        page.get_by_role("button", name="Send again").click()
        expect(page.locator(".turn.user .body")).to_have_text("Who are you?")
        expect(page.locator(".turn")).to_have_count(2)
        expect(page.locator(".running")).to_have_count(0)

    def test_raw_text_is_continued_and_the_answer_added(self):
        page = self.open()
        page.get_by_text("Complete", exact=True).click()
        page.get_by_label("Text to continue").fill("Once upon a time")
        page.get_by_label("Most tokens").fill("40")
        page.get_by_label("Temperature").fill("0.8")
        page.get_by_label("Seed", exact=True).fill("18446744073709551615")
        page.get_by_role("button", name="Continue").click()
        answer = self.finished(page).inner_text()
        expect(page.locator(".numbers")).to_contain_text(re.compile(r"seed\s*18446744073709551615"))
        self.shot(page, "complete")
        page.get_by_role("button", name="Add to the text").click()
        text = page.get_by_label("Text to continue").input_value()
        self.assertTrue(
            text.startswith("Once upon a time") and len(text) > len("Once upon a time") + 10, answer
        )

    def test_an_answer_that_comes_whole_looks_the_same(self):
        page = self.open()
        page.get_by_text("Request", exact=True).click()
        page.get_by_label("Stream", exact=True).uncheck()
        self.say(page, "What is the capital of France?")
        flow = self.finished(page)
        self.assertGreater(flow.locator(".token").count(), 2)
        expect(page.locator(".numbers")).to_contain_text("whole answer")

    def test_an_error_is_said_in_plain_words(self):
        page = self.open()
        page.get_by_label("Top p").fill("3")
        self.say(page, "Hello")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("The server refused the request. It says: `top_p`")
        self.shot(page, "error")
        expect(page.locator(".turn")).to_have_count(1)
        page.get_by_label("Top p").fill("")
        page.get_by_role("button", name="Send").click()
        self.finished(page)
        expect(alert).to_be_hidden()

    def test_a_setting_that_cannot_be_read_is_named(self):
        page = self.open()
        page.get_by_label("Temperature").fill("warm")
        self.say(page, "Hello")
        expect(page.get_by_role("alert")).to_have_text("Temperature: not a number")
        expect(page.get_by_label("Temperature")).to_be_focused()

    def test_a_server_that_asks_for_a_key_is_told_one(self):
        page = self.open()

        def guard(route):
            if route.request.headers.get("authorization") == "Bearer secret":
                return route.continue_()
            refusal = {"error": {"message": "Unauthorized"}, "error_type": "authentication"}
            return route.fulfill(status=401, json=refusal)

        for path in ["**/info", "**/v1/**"]:
            page.route(path, guard)
        self.say(page, "Hello")
        expect(page.get_by_role("alert")).to_contain_text("asks for an API key")
        expect(page.get_by_label("API key")).to_be_focused()
        page.get_by_label("API key").fill("secret")
        page.get_by_label("API key").press("Tab")
        page.get_by_role("button", name="Send").click()
        self.finished(page)
        command = page.locator("#curl").text_content()
        self.assertIn('"authorization: Bearer $API_KEY"', command)
        self.assertNotIn("secret", command)

    def test_a_connection_that_breaks_is_said(self):
        page = self.open()
        half = 'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"},"finish_reason":null}]}\n\n'
        page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(status=200, content_type="text/event-stream", body=half),
        )
        self.say(page, "Hello")
        expect(page.get_by_role("alert")).to_contain_text("broke before the answer was complete")
        expect(page.locator(".turn.assistant .body")).to_have_text("Hel")
        page.route("**/v1/chat/completions", lambda route: route.abort())
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached")

    def test_the_curl_command_gives_the_same_answer(self):
        page = self.open()
        page.get_by_text("Complete", exact=True).click()
        page.get_by_label("Text to continue").fill("It's")
        page.get_by_label("Most tokens").fill("8")
        page.get_by_text("Request as curl").click()
        command = page.locator("#curl").inner_text()
        self.shot(page, "curl")
        page.get_by_role("button", name="Continue").click()
        shown = self.finished(page).locator(".token:not(.special)").all_text_contents()
        out = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout
        tokens = [json.loads(line[6:])["token"] for line in out.splitlines() if line.startswith("data: ")]
        self.assertEqual("".join(shown), "".join(token["text"] for token in tokens if not token["special"]))

    def test_every_control_has_a_name(self):
        page = self.open()
        nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, select, textarea')]
            .filter((one) => !(one.labels?.length || one.getAttribute('aria-label') || one.textContent.trim()))
            .map((one) => one.outerHTML)""")
        self.assertEqual(nameless, [])

    def test_nothing_is_cut_off_on_a_narrow_dark_screen(self):
        page = self.open(viewport={"width": 375, "height": 720}, color_scheme="dark", has_touch=True)
        self.say(page, "What is the capital of France?")
        self.finished(page)
        page.locator(".token").nth(1).tap()
        expect(page.get_by_role("tooltip")).to_be_visible()
        self.shot(page, "narrow")
        width = page.evaluate("document.documentElement.scrollWidth")
        self.assertLessEqual(width, 375)
        page.get_by_role("button", name="Settings").click()
        expect(page.get_by_label("Temperature")).to_be_visible()
        self.shot(page, "narrow-settings")

    def test_dark_is_dark(self):
        page = self.open(color_scheme="dark")
        self.say(page, "Tell me a story.")
        self.finished(page)
        self.shot(page, "dark")
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        self.assertLess(max(int(part) for part in re.findall(r"\d+", colour)[:3]), 64)


if __name__ == "__main__":
    unittest.main()
