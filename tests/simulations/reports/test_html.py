"""The page of a report: its numbers are those of the files, it holds all tables and figures, and it needs no network."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.image import imread

from simulations.report import main
from tests.simulations.reports.folders import write_generator_run, write_run, write_whole_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """The content of a page: tables by their id (rows of texts, and of attributes), images, links, facts, and all that it would load."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.cells: dict[str, list[list[dict[str, str]]]] = {}
        self.images: list[dict[str, str]] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.loaded: list[str] = []
        self.facts: dict[str, str] = {}
        self.section, self.inside, self.name, self.part = "", False, "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given["id"]} if "id" in given else set()
        self.loaded += [given[key] for key in ("src", "srcset", "data", "action") if key in given]
        self.loaded += [given["href"]] if tag == "link" else []
        assert tag not in ("script", "iframe", "object", "embed"), tag
        if tag == "section":
            self.section = given["id"]
            self.tables[self.section], self.cells[self.section] = [], []
        elif tag == "tr":
            self.tables[self.section].append([])
            self.cells[self.section].append([])
        elif tag in ("td", "th"):
            self.tables[self.section][-1].append("")
            self.cells[self.section][-1].append(given)
            self.inside = True
        elif tag in ("dt", "dd"):
            self.part = tag
        elif tag == "img":
            self.images.append(given)
        elif tag == "a":
            self.links.append(given["href"])

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")
        self.part = "" if tag in ("dt", "dd") else self.part

    def handle_data(self, data):
        if self.inside:
            self.tables[self.section][-1][-1] += data
        elif self.part == "dt":
            self.name = data
        elif self.part == "dd":
            self.facts[self.name] = data


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Runs of three strategies on two settings, one name of which would be markup; and their report with figures."""
    folder = tmp_path_factory.mktemp("page")
    for alpha in (0.1, 1.0):
        for number, (strategy, gain) in enumerate((("fedavg", 0.0), ("fedgen", 0.05 * alpha), ("<b>&x", 0.01))):
            for seed in range(2):
                write_whole_run(folder / f"{number}-{alpha}-{seed}", strategy, seed, gain, alpha=alpha)
    write_run(folder / "unfinished", seed=5, finished=False)
    assert main([str(folder), "--target", "0.7"]) == 0
    return folder / "report"


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page((report / "report.html").read_text(encoding="utf-8"))


def test_every_table_of_the_report_is_on_the_page_with_the_numbers_of_its_file(report, page):
    names = {path.stem for path in report.glob("*.tex")}
    assert {"headlines", "times", "differences", "clients", "classes", "phases", "excluded_runs"} <= names
    assert set(page.tables) == {name if name == "excluded_runs" else f"results-{name}" for name in names}
    compared = 0
    for id, shown in page.tables.items():
        frame = pd.read_csv(report / f"{id.removeprefix('results-')}.csv", dtype=object, keep_default_na=False)
        header, *body = shown
        assert len(body) == len(frame)
        for place, title in enumerate(header):
            for row, (texts, given) in enumerate(zip(body, page.cells[id][1:], strict=True)):
                held, cell = frame[title][row], given[place]
                if "data-value" not in cell:
                    assert texts[place] == held or held in ("", "nan"), (id, title)
                    continue
                assert float(held) == float(cell["data-value"])
                number = re.match(r"[+-]?[\d,.]+", texts[place].removeprefix("> "))
                decimals = len(number[0].partition(".")[2])
                assert float(number[0].replace(",", "")) == pytest.approx(float(held), rel=5e-4, abs=0.51 * 10**-decimals)
                for end in ("low", "high"):
                    if f"data-{end}" in cell:
                        assert float(frame[f"{title}: {end}"][row]) == float(cell[f"data-{end}"])
                compared += 1
    assert compared > 200


def test_every_figure_is_within_the_page_and_links_to_its_vectors(report, page):
    drawn = sorted(report.glob("*.png"))
    assert len(drawn) > 15 and len(page.images) == len(drawn)
    held = {base64.b64decode(one["src"].removeprefix("data:image/png;base64,")) for one in page.images}
    assert held == {path.read_bytes() for path in drawn} and all(one["alt"] for one in page.images)
    files = [link for link in page.links if not link.startswith("#")]
    assert sorted(files) == sorted(path.with_suffix(".pdf").name for path in drawn)
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} <= page.ids


def test_captions_are_short(page):
    assert all(len(one["alt"]) <= 60 for one in page.images), [one["alt"] for one in page.images]


def test_nothing_is_loaded_and_names_are_not_markup(report, page):
    assert page.loaded and all(source.startswith("data:image/png;base64,") for source in page.loaded)
    text = (report / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "@import" not in text and "url(" not in text and "://" not in text
    assert "&lt;b&gt;&amp;x" in text and any("<b>&x" in row[0] for row in page.tables["results-headlines"])


def test_excluded_runs_are_listed(page):
    (row,) = page.tables["excluded_runs"][1:]
    assert row[0].endswith("unfinished") and "1 of 2 rounds" in row[1]
    assert page.facts["Excluded runs"] == "1"


def test_the_page_says_first_what_was_run(report, page):
    text = (report / "report.html").read_text(encoding="utf-8")
    assert text.index("<dl>") < text.index("<table>")
    facts = {"Model": "mlp", "Rounds": "12", "Clients": "2", "Local training": "20 steps per round", "Batch size": "32"}
    assert facts.items() <= page.facts.items() and page.facts["Baseline"] == "FedAvg" and page.facts["Target"] == "70 %"
    assert page.facts["Partition"] == "varies: dirichlet alpha=0.1; dirichlet alpha=1.0"
    assert (report / "results.md").read_text().startswith("- Federated runs: 12 in 6 rows\n- Data: digits\n- Model: mlp\n")


def test_best_and_second_are_marked_as_in_the_other_tables(report, page):
    marked: dict[str, list[str]] = {"best": [], "second": []}
    for row, cells in zip(page.tables["results-headlines"], page.cells["results-headlines"], strict=True):
        for text, cell in zip(row, cells, strict=True):
            for kind in marked:
                marked[kind] += [text] if kind in cell.get("class", "") else []
    text = (report / "results.md").read_text(encoding="utf-8").partition("All results:")[2].partition("Accuracy in %")[0]
    assert sorted(marked["best"]) == sorted(re.findall(r"\*\*(.+?)\*\*", text)) and marked["best"]
    assert sorted(marked["second"]) == sorted(re.findall(r" _(\S.*?)_ ", text)) and marked["second"]


def test_without_figures_there_are_none(tmp_path):
    write_run(tmp_path / "a")
    assert main([str(tmp_path), "--no-figures"]) == 0
    alone = Page((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    assert not alone.images and alone.tables["results-headlines"][1][0] == "FedAvg"


def test_generators_are_on_the_page(tmp_path):
    write_generator_run(tmp_path / "a")
    assert main([str(tmp_path)]) == 0
    alone = Page((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    titles = {one["alt"] for one in alone.images}
    assert {"Label accuracy of generated examples", "Diversity of generated examples", "Generated and real embeddings"} <= titles


def browsed(url: str, folder: Path, *words: str) -> tuple[str, set[str]]:
    """The output of a browser for a page, and the hosts that the page asked for; requests of the browser itself are left out."""
    log = folder / "net.json"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
               f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", *words, url]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    hosts = set(re.findall(r'"url":"(?:https?|wss?)://([^/":]+)', log.read_text(encoding="utf-8")))
    return done.stdout, {host for host in hosts if not re.fullmatch(r"(.+\.)?(google|googleapis|gvt1|gstatic)\.com", host)}


@pytest.mark.skipif(BROWSER is None, reason="no headless browser is installed")
def test_a_real_browser_shows_the_page_and_asks_no_network(report, page, tmp_path):
    """The log shows a request where a page makes one."""
    url, pixels = (report / "report.html").as_uri(), tmp_path / "page.png"
    text, hosts = browsed(url, tmp_path, "--dump-dom")
    seen = Page(text)
    assert seen.tables == page.tables and len(seen.images) == len(page.images) and not hosts
    _, hosts = browsed(url, tmp_path, f"--screenshot={pixels}", "--window-size=1200,2000")
    shown = imread(pixels)[..., :3]
    assert shown.shape[:2] == (2000, 1200) and 0.01 < (shown < 0.5).mean() < 0.5 and not hosts, "dark text on a light page"
    (tmp_path / "asks.html").write_text('<img src="http://page.invalid/x.png">')
    assert browsed((tmp_path / "asks.html").as_uri(), tmp_path, "--dump-dom")[1] == {"page.invalid"}
