"""The dashboard in a real, headless Chromium: `puppet` stands for a server or client, `driver` is the browser.

`python -m tests.browser.screenshot OUT.png` makes the picture of the README.
"""
