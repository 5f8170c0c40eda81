"""What a person does in ComfyUI's page: real clicks, keys, drags and dropped files, which are counted and timed."""

import time
from pathlib import Path

from browser import Browser, as_json
from canvas import ended

KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Escape": 27, "F2": 113, "Tab": 9}
KEYS |= {letter: ord(letter.upper()) for letter in "abrsyz"}
CONTROL = 2  # of the DevTools protocol's modifiers
TEMPLATES, RUN, CANCEL = "[aria-label=Templates]", "[data-testid=queue-button]", "[aria-label='Cancel current run']"
PACK = "([...document.querySelectorAll('[role=dialog] *')].find((e) => e.innerText === 'latent-directions'))"
# Where an element can be clicked, once it has stopped moving and nothing lies over it.
PLACE = """(async () => {
  const element = %s;
  element.scrollIntoView({ block: "nearest" });
  const box = () => element.getBoundingClientRect();
  const before = box();
  await new Promise((done) => setTimeout(done, 150));
  const { left, top, width, height } = box(), x = left + width / 2, y = top + height / 2;
  if (!width || left !== before.left || top !== before.top) return null;
  const inside = (root, at) => {
    const found = root.elementFromPoint(...at), inner = found?.shadowRoot;
    return inner?.contains(element) ? inside(inner, at) : found;
  };
  const seen = inside(document, [x, y]);
  return seen && (element.contains(seen) || seen.contains(element)) && [x, y];
})()"""


def press(page: Browser, key: str, modifiers: int = 0) -> None:
    """Press a key and let it go."""
    code = {"key": key, "code": key if len(key) > 1 else f"Key{key.upper()}", "windowsVirtualKeyCode": KEYS[key]}
    text = {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, modifiers=modifiers, **code, **text)


class Hand:
    """A hand on mouse and keyboard of a page.

    Attributes:
        clicks: how often a button of the mouse was pressed; a drag and a dropped file count too.
        texts: how many texts were typed.
        steps: what was done, with the seconds since the first step.
    """

    def __init__(self, page: Browser):
        self.page, self.clicks, self.texts, self.steps, self.began = page, 0, 0, [], time.monotonic()

    def note(self, what: str) -> None:
        self.steps.append((round(time.monotonic() - self.began, 1), self.clicks, self.texts, what))

    def mouse(self, kind: str, x: float, y: float, **more) -> None:
        self.page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def place(self, element: str, timeout: float = 30) -> tuple[float, float]:
        """Where the element of a JavaScript expression can be clicked."""
        return tuple(self.page.wait_for(PLACE % element, timeout))

    def click(self, element: str, times: int = 1) -> None:
        """Click an element: a selector, or a JavaScript expression in round brackets."""
        x, y = self.place(element if element.startswith("(") else f"document.querySelector({as_json(element)})")
        self.mouse("mouseMoved", x, y)
        for number in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.mouse(kind, x, y, button="left", clickCount=number)
        self.clicks += 1

    def press(self, key: str, modifiers: int = 0) -> None:
        press(self.page, key, modifiers)

    def type(self, text: str) -> None:
        """Type in place of what the field holds that has the focus."""
        self.press("a", CONTROL)
        self.page.call("Input.insertText", text=text)
        self.press("Enter")
        self.texts += 1

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start, button="left", clickCount=1)
        for share in (0.3, 0.7, 1.0):
            x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
            self.mouse("mouseMoved", x, y, button="left", buttons=1)
        self.mouse("mouseReleased", *end, button="left", clickCount=1)
        self.clicks += 1

    def drop(self, file: Path, at: tuple[float, float]) -> None:
        """Drop a file from the desktop."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.page.call("Input.dispatchDragEvent", type=kind, x=at[0], y=at[1], data=data)
        self.clicks += 1

    def open_template(self, name: str) -> None:
        """Open one of the pack's templates as the page offers them."""
        self.page.evaluate("app.extensionManager.toast.removeAll(); test.ended = null")
        self.click(TEMPLATES)
        self.click(PACK)
        self.click(f"[data-testid='template-workflow-{name}']")
        self.page.wait_for("!document.querySelector('[data-testid=template-workflows-content]')", 30)
        self.page.wait_for("app.graph.nodes.length > 5", 30)

    def run(self, expected: str = "execution_success") -> dict:
        """Press the page's own button and wait for the end."""
        self.page.evaluate("test.ended = null")
        self.click(RUN)
        return ended(self.page, expected, 300)
