"""The dashboard as a person finds it: by what stands on it. And what the browser saw meanwhile."""

import json
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from .driver import until
from .puppet import TOKEN, Puppet


class Page:
    """One tab on a puppet's dashboard."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, puppet: Puppet) -> None:
        self.visit(puppet.url)

    def visit(self, url: str) -> None:
        """As for the first time: nothing is kept of another test's."""
        self.driver.get(url + "healthz")  # same origin, no page
        self.run("sessionStorage.clear(); localStorage.clear()")
        self.driver.get(url)
        self.wait_live()

    def wait_live(self) -> None:
        until(lambda: self.feed() == "Live" and self.text("#role"), "the first state")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    # What stands there

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)"
        return list(self.run(script, selector))

    def feed(self) -> str:
        return self.text("#feed-text")

    def names(self) -> list[str]:
        """Of the rows that are drawn, from the top."""
        return self.texts("#proxies-rows .name")

    def row(self, name: str) -> str:
        """All the text of one proxy's row, empty if it is not drawn."""
        script = """
            const rows = [...document.querySelectorAll("#proxies-rows .proxy-row")];
            return rows.find((row) => row.querySelector(".name").textContent === arguments[0])?.innerText ?? "";
        """
        return str(self.run(script, name))

    def wait_row(self, name: str, *words: str) -> str:
        return until(lambda: all(word in self.row(name) for word in words) and self.row(name), f"{name}: {words}")

    def focused(self) -> str:
        script = "const a = document.activeElement; return a.getAttribute('aria-label') || a.id || a.textContent"
        return str(self.run(script))

    # What a person does

    def press(self, *keys: str) -> None:
        for key in keys:
            webdriver.ActionChains(self.driver).send_keys(key).perform()

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def button(self, label: str) -> WebElement:
        script = "return [...document.querySelectorAll('button')].find((each) => each.ariaLabel === arguments[0])"
        return until(lambda: self.run(script, label), f"the button {label}")

    def unlock(self, token: str = TOKEN) -> None:
        field = until(lambda: self.find("#token-dialog[open] #token"), "the question for the token")
        field.clear()
        field.send_keys(token, Keys.ENTER)

    # What the browser saw

    def log(self) -> list[str]:
        """What the console says since the last call, but for answers that are refusals, and a puppet's end."""
        entries = self.driver.get_log("browser")
        return [str(entry["message"]) for entry in entries if "Failed to load resource" not in entry["message"]]

    def hosts_asked(self) -> set[str]:
        """Of all requests since the last call."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                url = message["params"].get("request", message["params"])["url"]
                found.add(urlsplit(url).hostname if url.startswith("http") else url.partition(":")[0])
        return found
