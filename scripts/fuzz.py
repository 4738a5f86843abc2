"""Try hostile files and command lines on vqtok.

    python scripts/fuzz.py [--seconds 120] [--seed 0] [--target NAME] [--case N] [--out FOLDER]

Damages clips, playlists, token files, tokenizers, sounds and runs, and makes up command lines.
A case is determined by target, number and seed: `--target tokens --case 17` tries one again. Finds
exceptions, hangs, crashes, much memory, unclean messages, files left behind, inputs that changed
and playlists that were followed; shows one case of each, with the mutations that matter alone, and
keeps it in FOLDER. Exits with 1 if there is any. Linux only, as bench_memory.py.
"""

import itertools
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from fuzzing import inputs
from fuzzing.case import Case, Target, build
from fuzzing.judge import Finding
from fuzzing.targets import TARGETS
from fuzzing.worker import Worker

MAX_SHOWN = 600  # characters of a part of a report


def schedule(targets: Mapping[str, Target], rounds: int | None) -> Iterator[tuple[str, int]]:
    """Yield (name, number) of cases, all targets taking turns."""
    for i in range(rounds) if rounds is not None else itertools.count():
        for name, target in targets.items():
            yield from ((name, i * target.weight + j) for j in range(target.weight))


def minimize(
    worker: Worker, target: Target, name: str, number: int, seed: int, found: Finding
) -> tuple[list[int], Finding]:
    """Leave out mutations as long as the finding stays; return those that are left."""
    kept = list(range(len(build(target, name, number, seed)[1])))
    for i in list(kept):
        fewer = [k for k in kept if k != i]
        again = worker.try_case(name, number, fewer)
        if again and (again.kind, again.where) == (found.kind, found.where):
            kept, found = fewer, again
    return kept, found


def describe(report: Mapping[str, object]) -> str:
    """Return the report for people; long values are cut."""
    return "\n".join(f"{key:10}{str(value)[:MAX_SHOWN]}" for key, value in report.items()) + "\n"


def keep(folder: Path, case: Case, report: Mapping[str, object]) -> None:
    """Write the files of a case, and the report on it."""
    for name, data in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "finding.json").write_text(json.dumps(report, indent=2))


def fuzz(
    targets: Mapping[str, Target],
    cases: Iterator[tuple[str, int]],
    seed: int,
    limit: float,
    out: Path | None = None,
) -> tuple[list[dict[str, object]], Mapping[str, Counter[str]]]:
    """Try cases; return a report on each finding, and cases, findings and seconds of each target.

    limit: seconds that a case may take.
    """
    reports: dict[tuple[str, str], dict[str, object]] = {}
    counts = {name: Counter[str]() for name in targets}
    with Worker(targets, seed, limit) as worker:
        for name, number in cases:
            start = time.perf_counter()
            found = worker.try_case(name, number)
            counts[name] += Counter(cases=1, findings=found is not None)
            counts[name]["milliseconds"] += round(1000 * (time.perf_counter() - start))
            if found is None or (found.kind, found.where) in reports:
                continue
            kept, found = minimize(worker, targets[name], name, number, seed, found)
            case, mutations = build(targets[name], name, number, seed, kept)
            report = {
                **vars(found),
                "command": shlex.join(["vqtok", *case.args]),
                "mutations": mutations,
                "again": f"python scripts/fuzz.py --seed {seed} --target {name} --case {number}",
            }
            reports[found.kind, found.where] = report
            print(describe(report), flush=True)
            if out is not None:
                keep(out / f"{name}-{number}", case, report)
    return list(reports.values()), counts


def until(deadline: float, cases: Iterator[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    return itertools.takewhile(lambda _: time.monotonic() < deadline, cases)


def main(
    seconds: float = 120,
    rounds: Annotated[int | None, typer.Option(help="Instead of a time: the work to do.")] = None,
    seed: int = 0,
    target: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    case: Annotated[int | None, typer.Option(help="Only this case of each target.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds that a case may take.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Folder for the files of findings.")] = None,
) -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # arguments may be no text
    targets = {name: TARGETS[name] for name in target or TARGETS}
    inputs.prepare()
    cases = schedule(targets, rounds)
    if case is not None:
        cases = ((name, case) for name in targets)
    elif rounds is None:
        cases = until(time.monotonic() + seconds, cases)
    reports, counts = fuzz(targets, cases, seed, limit, out)
    print(f"{'target':12}{'cases':>8}{'cases/s':>10}{'findings':>10}")
    for name, count in counts.items():
        rate = 1000 * count["cases"] / max(1, count["milliseconds"])
        print(f"{name:12}{count['cases']:8}{rate:10.1f}{count['findings']:10}")
    print(f"{len(reports)} different findings")
    raise typer.Exit(len(reports) > 0)


if __name__ == "__main__":
    typer.run(main)
