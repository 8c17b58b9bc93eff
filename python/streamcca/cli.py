"""The `streamcca` command: data on stdout, progress and complaints on stderr.

Exit codes: 0 fine, 1 a self-check failed, 2 usage, 3 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcca.errors import InputError, StreamCCAError, StreamCCAWarning
from streamcca.pairing import CORRELATIONS

if TYPE_CHECKING:
    from streamcca.moments import Moments

FINE, FAILED, USAGE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 3, 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamcca", description="SVCCA and its family on activations larger than memory."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    compare = commands.add_parser("compare", help="compare two .npy files of rows, of any size")
    compare.add_argument("x", metavar="A.npy", help="rows of the first view, (n, d) float16, float32 or float64")
    compare.add_argument("y", metavar="B.npy", help="rows of the second view, in the same order")
    compare.add_argument(
        "--measure",
        default="svcca",
        metavar="NAME",
        help="svcca (the default), cca, pwcca, any other of streamcca.MEASURES such as cka, or all of them",
    )
    compare.add_argument("--interval", action="store_true", help="estimate the population's number, with its interval")
    compare.add_argument("--groups", type=_count, metavar="N", help="rows in a row that belong together (--interval)")
    rule = compare.add_mutually_exclusive_group()
    rule.add_argument("--variance", type=_share, metavar="SHARE", help="share of the variance to keep (svcca: 0.99)")
    rule.add_argument("--nuclear", type=_share, metavar="SHARE", help="share of the sum of singular values to keep")
    rule.add_argument("--rank", type=_ranks, metavar="K", help="directions to keep: K, or KX,KY for each side")
    compare.add_argument("--side", choices=("x", "y"), help="whose neurons weigh the mean (pwcca; x)")
    compare.add_argument("--ridge", type=_size, default=0.0, help="in units of the mean variance of a neuron")
    compare.add_argument("--precision", choices=("auto", "float32", "float64"), default="auto")
    compare.add_argument("--nonfinite", choices=("raise", "skip"), default="raise", help="rows with NaN or infinity")
    compare.add_argument("--threads", type=_count)
    compare.add_argument(
        "--strategy",
        choices=("auto", "covariance", "gram", "sketch", "qr"),
        default="auto",
        help="gram: layers of any width, few rows; sketch: of any width, many rows; qr: ill-conditioned layers",
    )
    compare.add_argument(
        "--folder", metavar="DIR", help="where a killed job goes on (svcca, cca, pwcca; all with --strategy gram)"
    )
    compare.add_argument("--directions", type=_count, metavar="L", help="directions of each sketch (svcca)")
    compare.add_argument("--power", type=_count, default=0, metavar="STEPS", help="power steps of a sketch (svcca; 0)")
    compare.add_argument("--plot", metavar="OUT.png", help="draw the correlations (needs matplotlib)")
    compare.add_argument("--allow-underdetermined", action="store_true")
    compare.add_argument("--allow-inaccurate", action="store_true")
    _common(compare)

    merge = commands.add_parser("merge", help="add up files of Moments.save, such as those of an array job")
    merge.add_argument("out", metavar="OUT", help="the file to write")
    merge.add_argument("files", metavar="IN", nargs="+", help="files to add, in this order")
    merge.add_argument("--force", action="store_true", help="replace OUT if it exists")
    merge.add_argument("--threads", type=_count)
    _common(merge)

    demo = commands.add_parser("demo", help="train two small convnets on digits and compare all their layers")
    demo.add_argument(
        "--out",
        default="streamcca-demo",
        metavar="FOLDER",
        help="where the pictures go (default %(default)s)",
    )
    demo.add_argument("--epochs", type=_count, default=8)
    _common(demo)

    study = commands.add_parser("study", help="train many models, and compare their insides and their answers")
    study.add_argument("config", metavar="CONFIG.toml", nargs="?", help="settings; --example shows some")
    study.add_argument("--example", action="store_true", help="print commented settings and exit")
    study.add_argument("--folder", metavar="DIR", help="where results go, and where an interrupted study goes on")
    study.add_argument(
        "--jobs", type=_count, default=os.cpu_count(), metavar="N", help="processes (default: all cores)"
    )
    _common(study)

    doctor = commands.add_parser("doctor", help="versions, kernels, threads, BLAS, CUDA and a one-second self-check")
    _common(doctor)
    return parser


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a share above 0 and at most 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number of at least 1")
    return value


def _ranks(text: str) -> int | tuple[int, int]:
    ranks = [_count(part) for part in text.split(",")]
    if len(ranks) > 2:
        raise argparse.ArgumentTypeError(f"got {text}, expected K or KX,KY")
    return ranks[0] if len(ranks) == 1 else (ranks[0], ranks[1])


def _size(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}, expected a number of at least 0")
    return value


# What argparse calls them in its own messages.
_share.__name__, _count.__name__, _ranks.__name__, _size.__name__ = "share", "count", "rank", "number"


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _progress(args: argparse.Namespace) -> Any:
    return False if args.quiet else "auto"


def _print(args: argparse.Namespace, data: Any, text: str) -> None:
    print(json.dumps(data, indent=2) if args.json else text)


def _compare(args: argparse.Namespace) -> int:
    from streamcca import cca, pwcca, svcca

    if args.interval or args.measure not in CORRELATIONS:
        return _by_name(args)
    if args.plot:
        _check_picture(args.plot)
    options: dict[str, Any] = {"side": args.side or "x"} if args.measure == "pwcca" else {}
    if args.measure == "svcca":
        options = {"directions": args.directions, "power": args.power}
    result = {"svcca": svcca, "cca": cca, "pwcca": pwcca}[args.measure](
        args.x,
        args.y,
        variance=args.variance,
        nuclear=args.nuclear,
        rank=args.rank,
        ridge=args.ridge,
        precision=args.precision,
        nonfinite=args.nonfinite,
        threads=args.threads,
        progress=_progress(args),
        strategy=args.strategy,
        folder=args.folder,
        allow_underdetermined=args.allow_underdetermined,
        allow_inaccurate=args.allow_inaccurate,
        **options,
    )
    _print(args, result.to_dict(), repr(result))
    if args.plot:
        from streamcca.plots import save_figure

        save_figure(result.plot()[0], args.plot)
    return FINE


def _by_name(args: argparse.Namespace) -> int:
    """Form measures by name, or an interval."""
    from streamcca import interval, similarities, similarity

    counting = {"precision": args.precision, "nonfinite": args.nonfinite, "threads": args.threads}
    options = {key: getattr(args, key) for key in ("variance", "nuclear", "rank")}
    options |= counting | {"progress": _progress(args)}
    if args.interval:
        estimate = interval(args.measure, args.x, args.y, groups=args.groups, **options)
        _print(args, estimate.to_dict(), repr(estimate))
        return FINE
    options |= {key: getattr(args, key) for key in ("strategy", "folder", "allow_underdetermined", "allow_inaccurate")}
    if args.measure == "all":
        found = similarities(args.x, args.y, **options)
        _print(args, found.to_dict(), found.table())
    else:
        one = similarity(args.measure, args.x, args.y, ridge=args.ridge, **options)
        _print(args, one.to_dict(), repr(one))
    return FINE


def _check_picture(path: str) -> None:
    """Find out what would prevent a picture before hours are spent on the rows."""
    from streamcca.plots import require_matplotlib

    require_matplotlib()
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise InputError(f"--plot: there is no folder {folder}; make it first")
    if Path(path).is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--plot: {path} cannot be written; choose another name")


def _merge(args: argparse.Namespace) -> int:
    from streamcca.moments import Moments
    from streamcca.sources import progress_bar

    _check_merge(args.out, args.files, args.force)
    first, *others = args.files
    with progress_bar(_progress(args), len(args.files), "file", "merge") as bar:
        total = Moments.load(first, threads=args.threads)
        bar.update(1)
        for path in others:
            part = Moments.load(path, threads=args.threads)
            _check_same(path, part, first, total)
            total.merge(part)
            bar.update(1)
    total.save(args.out)
    data = {
        "out": args.out,
        "files": len(args.files),
        "n": total.n,
        "rows": total.rows,
        "skipped": total.skipped,
        "views": total.views,
        "precision": total.precision,
    }
    _print(args, data, f"{args.out}: {total!r} from {len(args.files)} files")
    return FINE


def _check_merge(out: str, files: Sequence[str], force: bool) -> None:
    """Find out what would go wrong at the end, or count rows twice, before files are read."""
    seen: set[Path] = set()
    for path in files:
        if Path(path).resolve() in seen:
            raise InputError(f"merge: {path} is given twice; its rows would count twice, so name each file once")
        seen.add(Path(path).resolve())
    if Path(out).resolve() in seen:
        raise InputError(
            f"merge: {out} is both the file to write and one to read; its rows would count again the next time, so "
            "choose another name"
        )
    if not Path(out).resolve().parent.is_dir():
        raise InputError(f"merge: there is no folder {Path(out).resolve().parent}; make it first")
    if Path(out).exists() and not force:
        raise InputError(f"merge: {out} exists; choose another name, or pass --force to replace it")


def _check_same(path: str, part: Moments, first: str, total: Moments) -> None:
    from streamcca.views import excerpts

    for what, got, expected in (("views", part.views, total.views), ("pairs", part.pairs, total.pairs)):
        if str(got) != str(expected):  # in the same order, too
            got_text, expected_text = excerpts(str(got), str(expected))
            raise InputError(
                f"{path}: has {what} {got_text}, expected {expected_text} as in {first}; merge files that were "
                "accumulated alike"
            )


def _demo(args: argparse.Namespace) -> int:
    from streamcca.demo import format_demo, run_demo

    result = run_demo(args.out, epochs=args.epochs, progress=_progress(args))
    _print(args, result.to_dict(), format_demo(result))
    return FINE


def _study(args: argparse.Namespace) -> int:
    from streamcca.multiplicity.study.config import example
    from streamcca.multiplicity.study.run import run_study

    if args.example:
        print(example(), end="")
        return FINE
    study = run_study(args.config, folder=args.folder, jobs=args.jobs, progress=_progress(args))
    _print(args, study.to_dict(), study.table())
    return FINE


def _doctor(args: argparse.Namespace) -> int:
    from streamcca.doctor import format_report, report

    result = report()
    _print(args, result, format_report(result))
    return FINE if result["self_check"]["passed"] else FAILED


def _check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check what argparse cannot say; a complaint exits with the usage and code 2."""
    if getattr(args, "side", None) is not None and args.measure != "pwcca":
        parser.error(f"--side goes with --measure pwcca, not with {args.measure}")
    for name in ("directions", "power"):
        if getattr(args, name, None) and args.measure != "svcca":
            parser.error(f"--{name} goes with --measure svcca, not with {args.measure}")
    if args.command == "compare":
        _check_measure(parser, args)
    if args.command == "study" and (args.config is None) != args.example:
        parser.error("study: give CONFIG.toml, or --example to see one")
    if getattr(args, "plot", None) is not None and Path(args.plot).suffix.lower() != ".png":
        parser.error(f"--plot: got {args.plot}, expected a name that ends in .png")


def _check_measure(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.measure not in (*CORRELATIONS, "all"):
        from streamcca.similarity.form import check_measure

        try:
            check_measure(args.measure)
        except InputError as error:
            parser.error(f"--measure: {error}")
    if args.interval and args.measure == "all":
        parser.error("--interval is for one measure, not for all")
    if args.groups is not None and not args.interval:
        parser.error("--groups goes with --interval")
    if args.plot and (args.interval or args.measure not in CORRELATIONS):
        parser.error("--plot draws the correlations of svcca, cca or pwcca, without --interval")
    if args.interval:
        for name, usual in (("strategy", "auto"), ("folder", None), ("ridge", 0.0)):
            if getattr(args, name) != usual:
                parser.error(f"--{name} does not go with --interval")


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"streamcca: warning: {message}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check_usage(parser, args)
    if args.version:
        from streamcca._backend import VERSION

        print(VERSION)
        return FINE
    if args.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    command = {"compare": _compare, "merge": _merge, "demo": _demo, "doctor": _doctor, "study": _study}[args.command]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", StreamCCAWarning)
            warnings.showwarning = _show_warning
            return command(args)
    except ImportError as error:
        print(f"streamcca: {error}", file=sys.stderr)
        return USAGE
    except (StreamCCAError, OSError, MemoryError) as error:
        own = isinstance(error, OSError) and isinstance(error, StreamCCAError)
        print(f"streamcca: {getattr(error, 'strerror', error) if own else error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("streamcca: interrupted", file=sys.stderr)
        return INTERRUPTED
