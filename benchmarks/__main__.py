"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import (
    accuracy,
    cases,
    coverage,
    files,
    hooks,
    identification,
    machine,
    measures,
    multiplicity,
    report,
    wide,
)


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__import__("benchmarks").__doc__)
    known = (
        *("covariance", "truncation", "svcca", "files", "accuracy", "hooks", "identification", "wide"),
        *("measures", "coverage", "multiplicity", "cuda", "readme"),
    )
    parser.add_argument("which", nargs="+", choices=known, metavar="WHICH", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="small shapes: to see that it runs, not how fast")
    parser.add_argument("--rounds", type=_count, help="rounds of a race (odd is best; 9, quick 3, files 3)")
    parser.add_argument("--only", default="", help="only the cases whose name has this in it, such as '2048 float32'")
    parser.add_argument(
        "--folder", type=Path, help="where to keep the rows meanwhile (16 GiB for 'files', 30 for 'wide')"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all times to FILE")
    return parser


def _results(which: str, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    if which == "files":
        size = {"repeats": 4, "width": 64, "block_rows": 4000} if args.quick else {"repeats": 32, "width": 1024}
        results = [files.run_files(folder, rounds=args.rounds or (1 if args.quick else 3), **size)]
        print(files.format_files(results[0], bars=not args.quick), flush=True)
        return results
    if which == "accuracy":
        widths = (96,) if args.quick else (512, 4096)
        rounds = args.rounds or (1 if args.quick else 9)
        return [r for width in widths for r in accuracy.run_accuracy(1024 if args.quick else 8192, width, rounds)]
    if which == "hooks":
        result = hooks.run_hooks(
            8 if args.quick else 256, 32 if args.quick else 64, args.rounds or (3 if args.quick else 31)
        )
        print(hooks.format_hooks(result), flush=True)
        return [result]
    if which == "identification":
        size = {"nets": 2, "depth": 3, "epochs": 1} if args.quick else {}
        results = identification.run_identification(**size)
        print("\n".join(report.identification_markdown([{"benchmark": which, **r} for r in results])), flush=True)
        return results
    if which == "wide":
        sizes = [{"rows": 300, "width": 5000}, {"rows": 200_000}] if args.quick else [{}, {}]
        results = [wide.run_wide(folder=folder, **sizes[0]), wide.run_long(**sizes[1])]
        print("\n".join(map(wide.format_wide, results)), flush=True)
        return results
    if which == "coverage":
        return coverage.run_coverage(repetitions=args.rounds or (5 if args.quick else 500))
    if which == "multiplicity":
        models, images = (8, 100) if args.quick else (40, 1000)
        results = [multiplicity.run_multiplicity(models, images, rounds=args.rounds or 1, folder=folder)]
        print("\n".join(map(multiplicity.format_multiplicity, results)), flush=True)
        return results
    if which == "cuda":
        from benchmarks import cuda  # torch, which the others import late

        results = []
        for result in cuda.run_cuda(args.quick, args.rounds or (1 if args.quick else 9)):
            results.append(result)
            print(cuda.format_cuda(result), flush=True)
        return results
    if which == "measures":
        small = {"rows": 2000, "width": 24}
        results = [
            measures.run_grid(
                rounds=args.rounds or (1 if args.quick else 3), **(small | {"layers": 2} if args.quick else {})
            ),
            measures.run_intervals(
                width=24 if args.quick else 512,
                rows=2000 if args.quick else 200_000,
                rounds=args.rounds or (1 if args.quick else 5),
            ),
        ]
        if not args.quick:  # what an interval adds is the same for any number of rows
            results.append(measures.run_intervals(rows=1_000_000, rounds=args.rounds or 3, methods=["jackknife"]))
        print("\n".join(map(measures.format_measures, results)), flush=True)
        return results
    chosen = [case for case in cases.cases(which, args.quick) if args.only in case.name]
    if not chosen:
        raise SystemExit(f"--only: no case of {which} has {args.only!r} in its name")
    results = []
    for case in chosen:
        results.append(cases.run_case(case, folder, args.rounds or (3 if args.quick else 9)))
        print(report.format_case(results[-1]) + "\n", flush=True)
    return results


def main() -> None:
    """Run some benchmarks, or draw README's picture and print its tables from the committed results."""
    args = _parser().parse_args()
    if args.json and not args.json.resolve().parent.is_dir():
        raise SystemExit(f"--json: there is no folder {args.json.resolve().parent}")
    if "readme" in args.which:
        results = report.committed()
        print("\n".join(report.markdown(results)))
        report.draw(results, report.PICTURE)
        report.draw_routes(report.ROUTES_PICTURE)
        return
    about = machine.describe()
    print(report.format_machine(about) + "\n", flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="streamcca-bench-") as folder:
        results = [{"benchmark": w, **r} for w in args.which for r in _results(w, args, Path(folder))]
    print(report.format_bars(results))
    if args.json:
        paths = ("--json", str(args.json), "--folder", str(args.folder))
        given = [a for a in sys.argv[1:] if a not in paths]
        command = shlex.join(["python", "-m", "benchmarks", *given])
        report.write_json(args.json, {"machine": about, "command": command, "results": results})


if __name__ == "__main__":
    main()
