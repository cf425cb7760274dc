"""Put the records of speed into the page "Speed" of the documentation and into the README, and draw the figures.

    python benchmarks/speed_page.py

Between the marks ``<!-- record: NAME -->`` and ``<!-- end -->`` of the two stands what the records say:
benchmarks/records/speed-*.json (``deepzero bench all``), peers.json, gpu-check.json, gpu-bound.json,
scaling.json and startup.json. A
test compares pages and records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepzero.measure.bench_report import times
from deepzero.measure.gpu_bound import PASSES, REST
from deepzero.report import Table, markdown
from deepzero.report.speed_figures import growth_figure, speed_figure, speed_tables
from deepzero.report.svg import draw

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "speed.md", ROOT / "README.md")
FIGURES = ROOT / "docs" / "figures"
RECORDS = ROOT / "benchmarks" / "records"
MARKED = re.compile(r"(<!-- record: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
NONE_YET = "Not recorded yet.\n"


def filled(page: str) -> str:
    """The page with the content of its records between the marks."""
    return MARKED.sub(lambda found: f"{found[1]}\n{SECTIONS[found[2]]()}\n{found[3]}", page)


def read(name: str) -> dict[str, Any] | None:
    """A record, if there is one."""
    path = RECORDS / f"{name}.json"
    content: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return content


def speeds() -> list[dict[str, Any]]:
    """The records of ``deepzero bench all``, on one thread first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in RECORDS.glob("speed-*-thread*.json")]
    return sorted(found, key=lambda content: content["environment"]["threads"])


def circumstances(content: dict[str, Any]) -> str:
    """Command, date and machine of a record, in a line."""
    environment = content["environment"]
    load = environment["load_average_before"]
    machine = f"{environment['gpu'] or environment['cpu']}, torch {environment['versions']['torch']}"
    busy = "" if load is None else f", load before {load[0]:.1f} on {environment['cores']} cores"
    return f"Recorded by `{content['command']}`, {content['date'][:10]}, {machine}{busy}.\n"


def speed_section() -> str:
    """Speed on one thread and on several, and the figure."""
    contents = speeds()
    parts = [f"{circumstances(content)}\n{markdown(next(speed_tables(content)))}" for content in contents]
    return "\n".join([*parts, f"![{speed_figure(contents).title}](figures/speed.svg)\n"]) if parts else NONE_YET


def short_section() -> str:
    """For the README: ratios by case and number of threads."""
    contents = speeds()
    if not contents:
        return NONE_YET
    found = {(c["case"], content["environment"]["threads"]): c for content in contents for c in content["cases"]}
    threads = sorted({count for _, count in found})
    words = {count: "1 thread" if count == 1 else f"{count} threads" for count in threads}
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        ratios = [found[name, count]["ratios"] if (name, count) in found else {} for count in threads]
        last = next(found[name, count] for count in reversed(threads) if (name, count) in found)
        plain = [times(one["deepzero/naive"]) if one else "-" for one in ratios]
        reuse = last["ratios"].get("deepzero/block_reuse")
        error = last.get("errors", {}).get("rounding")
        errors = f"{error['deepzero']:.0e}, {error['naive']:.0e}" if error else "-"
        rows.append((name, f"{last['queries']:,}", *plain, times(reuse) if reuse else "-", errors))
    columns = ("case", "queries", *words.values(), "over block reuse", "error of the slopes: deepzero, plain loop")
    dates = ", ".join(sorted({content["date"][:10] for content in contents}))
    machines = ", ".join(sorted({content["environment"]["cpu"] for content in contents}))
    table = Table(title="Queries a second over the best plain loop", columns=columns, rows=rows)
    where = f"Recorded on {dates}, {machines}; [the page on speed](docs/speed.md) has more, and says how."
    return f"{markdown(table)}\n{where}\n"


def slower_section() -> str:
    """Cases that are slower than their best plain loop."""
    if not speeds():
        return NONE_YET
    slow = [
        f"{case['case']} ({content['environment']['threads']} threads): {times(case['ratios']['deepzero/naive'])}"
        for content in speeds()
        for case in content["cases"]
        if case["ratios"]["deepzero/naive"]["median"] < 1
    ]
    return f"Slower than the best plain loop in float32: {'; '.join(slow) or 'none of these cases'}.\n"


def floor_section() -> str:
    """Floors and profiles, of the record on the fewest threads."""
    contents = speeds()
    return markdown(list(speed_tables(contents[0]))[1]) if contents else NONE_YET


def growth_section() -> str:
    """Growth, of the record that has it."""
    content = with_growth()
    if content is None:
        return NONE_YET
    table = list(speed_tables(content))[2]
    return f"{markdown(table)}\n![{growth_figure(content['growth']).title}](figures/speed-growth.svg)\n"


def with_growth() -> dict[str, Any] | None:
    """The record of speeds on the most threads that has points of curves."""
    return next((content for content in reversed(speeds()) if content["growth"]), None)


def processes_section() -> str:
    """Two processes, and how long a start takes."""
    scaling, startup = read("scaling"), read("startup")
    lines = []
    if scaling is not None:
        rounds = [one["speed_up"] for one in scaling["rounds"]]
        spread = {"median": scaling["speed_up"], "min": min(rounds), "max": max(rounds)}
        lines.append(f"- {scaling['processes']} processes of one thread over one, ResNet-20: {times(spread)}.")
    if startup is not None:
        for name, words in (("first_step_cold", "of a fresh installation"), ("first_step_warm", "of a later start")):
            seconds = startup["seconds"][name]["clock"]
            lines.append(
                f"- First step {words}: {seconds['median']:.1f} s ({seconds['least']:.1f} to {seconds['most']:.1f})."
            )
    return "\n".join(lines) + "\n" if lines else NONE_YET


def peers_section() -> str:
    """The same gradient by other tools."""
    content = read("peers")
    if content is None:
        return NONE_YET
    rows = [
        (
            name,
            f"{side['package']} {side['version']}",
            f"{side['queries_per_second']['median']:,.0f}",
            times(side["deepzero_over_it"]),
            "none" if side["error"] is None else f"{side['error']:.0e}",
        )
        for name, side in sorted(content["sides"].items(), key=lambda item: -item[1]["queries_per_second"]["median"])
    ]
    columns = ("side", "version", "queries/s", "deepzero over it", "error of the gradient")
    missing = f" Not installed: {', '.join(content['not_installed'])}." if content["not_installed"] else ""
    return f"{circumstances(content).rstrip()}{missing}\n\n{markdown(Table(title='Peers', columns=columns, rows=rows))}"


def gpu_section() -> str:
    """Speed on a GPU, from the stages of ``gpu_check.sh``."""
    content = read("gpu-check")
    if content is None:
        return NONE_YET
    rows = []
    for name, stage in content["stages"].items():
        if not name.startswith("speed-") or "plain_forwards_per_second" not in stage:
            continue
        plain = stage["plain_forwards_per_second"]
        sides = {storage: stage[storage] for storage in ("float32", "float16") if storage in stage}
        for storage, side in (sides or {"float32": stage}).items():
            errors = side["gradient_error"]["by_step_size"]
            rows.append(
                (
                    stage["case"],
                    storage,
                    str(stage["batch"][0]),
                    f"{side['queries_per_second']['median']:,.0f}",
                    f"{plain['median']:,.0f} ({plain['loop']})",
                    times(side["effective_ratio"]),
                    ", ".join(f"{error:.0e} at {step}" for step, error in errors.items()),
                    f"{side['memory']['growth'] / (1 << 20):,.0f} MiB",
                    stage["commit"],
                )
            )
    loop = "best plain loop, forwards/s"
    columns = ("case", "storage", "batch", "queries/s", loop, "effective ratio", "error", "memory", "commit")
    gpu = content["environment"]["hardware"]["gpu"]
    return markdown(Table(title=f"Speed on {gpu}", columns=columns, rows=rows))


def gpu_bound_section() -> str:
    """The count of a query's passes on an H100, and how many queries a second it allows."""
    content = read("gpu-bound")
    if content is None:
        return NONE_YET
    settings, names = content["settings"], sorted(content["ways"], key=lambda name: (name == "float16", name))
    ways = [content["ways"][name] for name in names]

    def cell(passes: list[dict[str, float]]) -> str:
        launches, moved, seconds = (sum(one[key] for one in passes) for key in ("launches", "bytes", "seconds"))
        return f"{launches:.1f}; {moved / 1e6:,.1f} MB; {1e6 * seconds:.1f} µs" if launches else "-"

    def launching(way: dict[str, Any]) -> str:
        seconds = way["seconds_of_launches"]
        return f"{1e6 * seconds:.1f} µs ({seconds * way['queries_per_second']:.1%})"

    rows = [(kind, *(cell([way["passes"][kind]]) for way in ways)) for kind in (*PASSES.values(), REST)]
    rows.append(("all", *(cell(list(way["passes"].values())) for way in ways)))
    rows.append(("queries/s at most", *(f"{way['queries_per_second']:,.0f}" for way in ways)))
    rows.append(("launching, on the host", *map(launching, ways)))
    title = f"Count of {settings['name']}, batch {settings['batch']}, on an H100"
    return markdown(Table(title=title, columns=("pass: launches a chunk; a query's share", *names), rows=rows))


SECTIONS: dict[str, Callable[[], str]] = {
    "short": short_section,
    "speed": speed_section,
    "slower": slower_section,
    "floor": floor_section,
    "growth": growth_section,
    "processes": processes_section,
    "peers": peers_section,
    "gpu": gpu_section,
    "gpu-bound": gpu_bound_section,
}


def draw_figures() -> None:
    """The figures of the page, as SVG files beside it."""
    if contents := speeds():
        (FIGURES / "speed.svg").write_text(draw(speed_figure(contents), name="speed"), encoding="utf-8")
    if content := with_growth():
        drawn = draw(growth_figure(content["growth"]), name="speed-growth")
        (FIGURES / "speed-growth.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    draw_figures()
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
