"""The chat page in headless Chromium: asking, stopping, settings, errors, and a phone's width."""

import os
import sys

from playwright.sync_api import Page, expect, sync_playwright

URL = os.environ["SERVER_URL"]


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def main() -> None:
    with sync_playwright() as playwright:
        chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 700})
        problems: list[str] = []
        page.on(
            "console", lambda said: problems.append(said.text) if said.type == "error" else None
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(URL)
        expect(page.locator("#state")).to_have_text("phi3: ready")

        page.get_by_text("Settings").click()
        page.get_by_label("Most tokens of an answer").fill("40")
        page.get_by_label("System message").fill("You are a helpful assistant.")
        page.get_by_text("Settings").click()
        ask(page, "What is the capital of France?")
        answer = page.locator("article.assistant").first
        expect(answer.locator("footer")).to_contain_text("tokens/s", timeout=60_000)
        assert answer.locator("p").inner_text()
        assert "40 out" in answer.inner_text() or "stop" in answer.inner_text()
        expect(page.locator("#spoken")).to_contain_text("Answer: ")
        expect(page.get_by_label("Message", exact=True)).to_be_focused()

        ask(page, "And of Italy?")
        expect(page.locator("article.assistant").nth(1).locator("footer")).to_contain_text(
            "tokens/s", timeout=60_000
        )
        page.screenshot(path=sys.argv[1])

        page.get_by_text("Settings").click()
        page.get_by_label("Most tokens of an answer").fill("2000")
        page.get_by_text("Settings").click()
        ask(page, "Tell me a long story.")
        third = page.locator("article.assistant").nth(2)
        expect(third.locator("p")).not_to_have_text("", timeout=60_000)
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
        page.get_by_role("button", name="Stop").click()
        expect(third.locator("footer")).to_contain_text("stopped")
        expect(page.get_by_role("button", name="Send")).to_be_enabled()

        page.get_by_text("Settings").click()
        page.get_by_label("Most tokens of an answer").fill("999999")
        page.get_by_text("Settings").click()
        ask(page, "Too long")
        expect(page.locator("article.error")).to_contain_text("context")
        expect(page.get_by_label("Message", exact=True)).to_have_value("Too long")

        page.set_viewport_size({"width": 360, "height": 640})
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, f"{width} pixels wide on a phone"
        for name in ("Send", "Stop", "New chat"):
            box = page.get_by_role("button", name=name).bounding_box()
            assert box is not None
            assert box["height"] >= 40, name
        page.screenshot(path=sys.argv[2])
        page.get_by_role("button", name="New chat").click()
        expect(page.locator("article")).to_have_count(0)
        assert all(url.startswith((URL, "data:")) for url in requested), requested
        unexpected = [text for text in problems if "400" not in text]  # the refused request
        assert not unexpected, unexpected
        browser.close()
    print("page: ok")


if __name__ == "__main__":
    main()
