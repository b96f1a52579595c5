"""The status page in a real browser: what it shows, how it is laid out, who can use it, what it refuses.

Screenshots of the layouts are left in ADAPTERD_SCREENSHOTS_DIR (default: build/status_page) for people.
"""
import json
import os
import sys
import unittest
from pathlib import Path

from adapters import SMALL, config_of, tensors_of, write_adapter, write_files
from browser import Browser
from harness import TOOLS, ServerTest, apply_request, until, without
from stubs import SOURCE_DIR
from tensors import array
from adapterd.v1 import adapter_service_pb2

TOY = SOURCE_DIR / "examples/adapters/toy"
TOY_MODULE = "model.layers.0.self_attn.q_proj"
SCREENSHOTS = Path(os.environ.get("ADAPTERD_SCREENSHOTS_DIR", SOURCE_DIR / "build/status_page"))
# To load, whatever the number of adapters; a machine that does other things besides gets more time.
MOST_MS = 200 if os.environ.get("ADAPTERD_IDLE_MACHINE") == "1" else 4000
ROWS = 100     # on a page of the table
SIZES = {"desktop": (1280, 900, False), "phone": (360, 740, True)}
AXE = TOOLS / "axe/axe.min.js"

# Runs when any of it is taken for markup.
MARKUP = "<img src=x onerror=\"window.owned=1\"><script>window.owned=1</script>'\"&amp;"

CELLS = """[...document.querySelectorAll("#rows tr")].map(row =>
  [...row.children].map(cell => cell.textContent))"""


class StatusPageTest(ServerTest):
    def open(self, server, size="desktop", browser=None):
        browser = browser or Browser(self)
        browser.resize(*SIZES[size])
        browser.open(f"http://{server.admin}/")
        browser.until("document.body.dataset.loaded")
        return browser

    def start_with(self, count):
        """A server with so many adapters of equal content."""
        server = self.start(f"--adapter-root={TOY.parent}", "--log-level=warning")
        for first in range(0, count, 500):  # sanitizers take their time
            server.client.reconcile([
                adapter_service_pb2.AdapterSpec(name=f"adapter-{i:05}", source="toy")
                for i in range(first, min(first + 500, count))])
        self.assertEqual(server.client.list(page_size=1).total_size, count)
        return server

    def cells(self, browser):
        return browser.run(CELLS)

    def test_it_shows_adapters_memory_requests_and_events(self):
        folder = self.folder()
        for name in ("sql", "chat"):
            write_adapter(folder / name, base_model_name_or_path="some/base")
        (folder / "broken").mkdir()
        (folder / "broken/adapter_config.json").write_text("{")
        server = self.start(f"--watch-adapters={folder}")
        server.client.update("chat", enabled=False, pinned=True)
        x = array([[1.0] * 8]).proto()
        for _ in range(3):
            server.client.apply(apply_request("sql", TOY_MODULE, x))
        browser = self.open(server)
        rows = {row[0]: row for row in self.cells(browser)}
        self.assertEqual(sorted(rows), ["broken", "chat", "sql"])
        self.assertEqual(rows["chat"][1], "ready disabled pinned")
        self.assertEqual(rows["sql"][1], "ready")
        self.assertEqual(rows["sql"][3], "3")
        self.assertIn("some/base", rows["sql"])
        self.assertEqual(rows["sql"][-1], server.client.get("sql").revision[:12])
        self.assertRegex(rows["broken"][1], r"^failed: folder \"broken\" holds no weights")
        memory = browser.run('document.getElementById("memory").textContent')
        self.assertIn("2 ready", memory)
        self.assertIn("1 failed", memory)
        methods = browser.run('document.getElementById("methods").innerText')
        self.assertRegex(methods, r"ProjectionService/ApplyProjection\s+3\s+0\s")
        events = browser.run('document.getElementById("events").innerText')
        for text in ("loaded", "failed", "updated", "chat"):
            self.assertIn(text, events)
        self.assertEqual(browser.errors, [])

    def test_rates_and_latencies_follow_what_happens(self):
        server = self.start_with(1)
        browser = self.open(server)
        self.assertEqual(self.cells(browser)[0][3:5], ["0", "–"])
        request = apply_request("adapter-00000", TOY_MODULE, array([[1.0, 2, 3, 4]]).proto())
        for _ in range(50):
            server.client.apply(request)
        browser.until('document.querySelector("#rows tr").children[3].textContent === "50"')
        self.assertGreater(float(self.cells(browser)[0][4]), 0)
        browser.until('document.querySelector("#methods polyline").getAttribute("points")')
        self.assertRegex(browser.run('document.querySelector("#methods svg").getAttribute("aria-label")'),
                         r"^p99 of the last \d+ s, at most ")

    def test_the_layout_holds_with_any_number_of_adapters(self):
        for count in (0, 3, 10_000):
            server = self.start_with(count)
            for size, (width, _, _) in SIZES.items():
                with self.subTest(count=count, size=size):
                    browser = Browser(self)
                    times = []
                    for _ in range(5):  # the machine may be busy with something else
                        self.open(server, size, browser)
                        times.append(float(browser.run("document.body.dataset.loaded")))
                    self.assertLess(min(times), MOST_MS, times)
                    self.assert_laid_out(browser, width)
                    shown = self.cells(browser)
                    if count == 0:
                        self.assertEqual(shown, [["None yet."]])
                    else:
                        self.assertEqual([row[0] for row in shown],
                                         [f"adapter-{i:05}" for i in range(min(count, ROWS))])
                    browser.screenshot(SCREENSHOTS / f"{size}-{count}.png")
                    self.assertEqual(browser.errors, [])
                    browser.close()

    def assert_laid_out(self, browser, width):
        """Nothing sticks out of the page, nothing covers anything else, and text can be read."""
        self.assertLessEqual(browser.run("document.documentElement.scrollWidth"), width)
        boxes = json.loads(browser.run("""JSON.stringify(
          [...document.querySelectorAll("header, h2, .bar, #memory, .controls, .scroll")].map(each => {
            const box = each.getBoundingClientRect();
            return [each.tagName + "." + each.className, box.left, box.top, box.right, box.bottom]; }))"""))
        self.assertEqual(len(boxes), 11)
        for name, left, top, right, bottom in boxes:
            self.assertTrue(0 <= left < right <= width and top < bottom, name)
        for (above, _, _, _, end), (below, _, begin, _, _) in zip(boxes, boxes[1:]):
            self.assertLessEqual(end, begin, f"{above} reaches into {below}")
        sizes = browser.run("""[...document.querySelectorAll("td, th, button, input, select, p")]
          .map(each => parseFloat(getComputedStyle(each).fontSize))""")
        self.assertGreaterEqual(min(sizes), 12)
        targets = browser.run("""[...document.querySelectorAll("button, input, select")]
          .map(each => each.getBoundingClientRect().height)""")
        self.assertGreaterEqual(min(targets), 24, "WCAG 2.5.8")

    def test_it_is_used_by_keyboard_alone(self):
        browser = self.open(self.start_with(250))
        focused = 'document.activeElement.id || document.activeElement.className || ' \
                  'document.activeElement.getAttribute("aria-label") || ""'
        order = []
        for _ in range(10):
            browser.press("Tab")
            order.append(browser.run(focused))
        self.assertEqual(order, ["skip", "pause", "scroll", "filter", "state", "order", "next",
                                 "scroll", "scroll", ""])  # Back is disabled on the first page
        browser.run('document.getElementById("pause").focus()')
        browser.press(" ", "Space", " ")
        self.assertEqual(browser.run('document.getElementById("pause").ariaPressed'), "true")
        browser.run('document.getElementById("next").focus()')
        browser.press("Enter", text="\r")
        browser.until('document.querySelector("#rows th").textContent === "adapter-00100"')
        self.assertEqual(browser.run('document.getElementById("shown").textContent'), "101–200 of 250")
        browser.run('document.getElementById("filter").focus()')
        browser.type("r-0024")
        browser.until('document.getElementById("shown").textContent === "1–10 of 10"')
        self.assertEqual([row[0] for row in self.cells(browser)],
                         [f"adapter-0024{i}" for i in range(10)])

    def test_what_owners_write_is_text(self):
        folder = self.folder()
        write_adapter(folder / "named", base_model_name_or_path=MARKUP)
        odd = "source<img src=x onerror=window.owned=1>"
        write_adapter(folder / odd)
        server = self.start(f"--adapter-root={folder}", "--public-id-template={name}")
        server.client.load("named", "named")
        server.client.load("odd", odd)
        watched = self.folder()
        write_files(watched / "bad", config_of(SMALL, lora_alpha=MARKUP), tensors_of(SMALL))
        failing = self.start(f"--watch-adapters={watched}")
        browser = self.open(server)
        shown = sum(self.cells(browser), [])
        self.assertIn(odd, shown)
        self.assertIn(MARKUP[:40], "".join(shown))
        self.assert_no_markup(browser)
        self.open(failing, browser=browser)
        self.assertIn("failed", self.cells(browser)[0][1])
        self.assert_no_markup(browser)

    def assert_no_markup(self, browser):
        self.assertEqual(browser.run('typeof window.owned + document.querySelectorAll("img").length + '
                                     'document.querySelectorAll("script").length'), "undefined01")
        self.assertEqual(browser.errors, [])

    def test_the_policy_stops_what_escaping_would_miss(self):
        browser = self.open(self.start_with(0))
        for way in ("document.body.innerHTML = '<img src=x onerror=window.owned=1>'",
                    "eval('window.owned=1')"):
            with self.subTest(way=way):
                with self.assertRaisesRegex(AssertionError, "Trusted|EvalError"):
                    browser.run(f"(() => {{ {way} }})()")
        browser.run("""new Promise(done => { const added = document.createElement("img");
          added.onerror = () => done(); added.src = "http://127.0.0.1:9/x.png"; document.body.append(added); })""")
        until(lambda: browser.run("1") and browser.errors, "a refused image")
        self.assertRegex(browser.errors[-1], "Content Security Policy")
        self.assertEqual(browser.run("typeof window.owned"), "undefined")

    def test_it_says_when_the_server_is_gone(self):
        server = self.start_with(1)
        browser = self.open(server)
        server.terminate()
        server.wait()
        browser.until('document.getElementById("trouble").textContent.startsWith("No answer")')

    def test_it_is_accessible(self):
        if not AXE.exists():
            without(self, f"{AXE} is missing")
        folder = self.folder()
        write_adapter(folder / "good")
        write_files(folder / "bad", config_of(SMALL, lora_alpha="nine"), tensors_of(SMALL))
        filled = self.start(f"--watch-adapters={folder}")
        filled.client.apply(apply_request("good", TOY_MODULE, array([[1.0] * 8]).proto()))
        for server in (filled, self.start_with(0)):
            for size in SIZES:
                for scheme in ("light", "dark"):
                    with self.subTest(size=size, scheme=scheme):
                        browser = Browser(self)
                        browser.ignore_policy()
                        browser.prefer(scheme)
                        self.open(server, size, browser)
                        browser.run(AXE.read_text() + ";0")
                        found = json.loads(browser.run("axe.run().then(result => JSON.stringify(result))"))
                        self.assertGreater(len(found["passes"]), 20, "axe has looked at something")
                        problems = [(rule["id"], [node["html"][:120] for node in rule["nodes"]])
                                    for rule in found["violations"]]
                        self.assertEqual(problems, [])
                        browser.close()


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
