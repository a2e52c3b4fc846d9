"""The commands that find what is odd: fit a detector to normal recordings, score others."""

from __future__ import annotations

__all__ = ["Detect", "Score", "detect", "score"]

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from sance_audio.cli.live import score_stdin


@dataclass(frozen=True)
class Detect:
    """Fit a detector to normal recordings, nothing else needed; `score` reads it."""

    normals: Positional[list[Path]]
    """Audio files or folders, of nothing but normal sounds."""
    run: Path
    """Folder to write detector.safetensors into."""
    recording: Literal["file", "folder"] = "file"
    """What stays together: each file is a recording of its own, or those of one folder (a
    machine, a session) are one."""
    alpha: float = 0.05
    """False-alarm rate; lower ones need more recordings."""
    calibration: float | None = None
    """Share of the recordings that calibrate. 0: none, for scores without p-values."""
    preset: Literal["smoke", "cpu", "gpu"] = "cpu"
    """How long energies are learnt; smoke is for seeing that all works."""
    window: float | None = None
    """Seconds that are judged at once, of longer recordings and of streams; a tenth more than the
    longest normal when left out, between 2.5 and 10."""
    seed: int = 0
    """Of everything random."""


@dataclass(frozen=True)
class Score:
    """Score files or folders: a row a file; --page: to hear and see. Ended early, it goes on."""

    run: Positional[str]
    """Run folder, with a detector, and its model if it has one."""
    paths: Positional[list[Path]] = field(default_factory=list)
    """Audio files or folders."""
    out: Path = Path("scores.csv")
    """File to write, .csv or .parquet; until the end, finished rows stand in OUT.part. Ended
    early, the same command goes on after them: rows are known by path, and stay as they were when
    the file was scored; files that are new are scored, rows of files that are not asked for any
    more left out. To score all anew, delete OUT.part."""
    workers: int = 1
    """Processes that score, a core each; 1: this one. Rows are the same; from several processes,
    a file that kills the one that scores it costs one row."""
    page: Path | None = None
    """HTML file to write: ranking, histogram, players, spectrograms with odd regions outlined.
    One file, sounds and pictures in it; none when left out."""
    show: int = 6
    """Oddest, and most ordinary, recordings to hear on the page."""
    stdin: bool = False
    """Instead of files, score raw samples from standard input as they come: one line of JSON a
    window, on standard output."""
    rate: int | None = None
    """Of standard input, in Hz."""
    channels: int = 1
    """Of standard input, interleaved; mixed down."""
    encoding: Literal["s16", "s32", "f32"] = "s16"
    """Of the samples of standard input, little-endian."""


def detect(args: Detect) -> None:
    from sance_audio.audio import find_audio
    from sance_audio.detection import EnergyDetector

    file = args.run / "detector.safetensors"
    if file.exists():
        raise ValueError(f"--run {args.run}: holds a detector; name another folder, or delete it")
    paths = _usable(find_audio(list(args.normals)))
    groups = [str(p.parent) for p in paths] if args.recording == "folder" else None
    detector = EnergyDetector(
        preset=args.preset,
        seed=args.seed,
        alpha=args.alpha,
        calibration=args.calibration,
        window=args.window,
    )
    detector.fit(paths, groups=groups)
    detector.save_pretrained(args.run)
    print(
        f"{len(paths)} normal files at {detector.sample_rate_} Hz; what is longer than "
        f"{detector.window_:g} s is judged in windows of it"
    )
    if detector.calibration_ is None:
        print("no calibration: scores without p-values")
    else:
        print(
            f"{detector.calibration_.recordings} recordings calibrate; odd at alpha = "
            f"{args.alpha:g}: scores above {detector.threshold():.2f}"
        )
        fitted = len(detector.normal_scores_)
        if fitted < len(detector.calibration_.scores):
            print(
                f"only {fitted} files are left to fit, since alpha = {args.alpha:g} needs "
                f"{detector.calibration_.recordings} recordings that calibrate: with a larger "
                f"--alpha, or more recordings, more is found"
            )
    print(f"detector in {file}; next: sance-audio score {args.run} PATH --page page.html")


def _usable(paths: list[Path]) -> list[Path]:
    """Those that can be decoded and are not silent; the others are named on standard error."""
    from sance_audio.audio import AudioError
    from sance_audio.decoding import shown
    from sance_audio.streams import listen

    usable, problems = [], []
    for path in paths:
        try:
            sound = listen(path, 16000, 160000)
        except AudioError as error:
            problems.append(str(error))
            continue
        if sound.silent or sound.constant:
            problems.append(f"{shown(path)}: silent")
        else:
            usable.append(path)
    if not usable:
        raise ValueError(f"none of {len(paths)} files could be used; the first: {problems[0]}")
    for problem in problems[:10]:
        print(f"left out: {problem}", file=sys.stderr)
    if problems:
        print(f"{len(problems)} of {len(paths)} normal files left out", file=sys.stderr)
    return usable


def score(args: Score) -> None:
    from sance_audio.audio import find_audio
    from sance_audio.detection import EnergyDetector
    from sance_audio.resumed import ResumedRows
    from sance_audio.scoring import COLUMNS, NUMBERS, Scored, check_output, identity

    if args.stdin:
        return score_stdin(args)
    check_output(args.out)
    _check_page(args)
    _check_work(args)
    detector = EnergyDetector.from_pretrained(args.run)
    paths, about, every = find_audio(list(args.paths)), identity(args.run, detector), Scored()
    rows = ResumedRows(args.out, COLUMNS, NUMBERS, about | _folder_of(paths), paths)
    told: list[dict[str, Any]] = []
    try:
        with _termination(), rows:
            every.count(rows.read())
            _tell_resumed(rows)
            scored = _scored(args, detector, rows, about)
            every.count_in(scored)
            if every.failed == every.files:
                rows.discard()
            elif args.page is not None:
                told += rows.read()
    except KeyboardInterrupt as error:
        print(f"sance-audio: interrupted; {rows.kept()}", file=sys.stderr)
        raise SystemExit(143 if isinstance(error, _Terminated) else 130) from None
    if every.failed == every.files:
        raise ValueError(
            f"none of {every.files} files could be scored; the first: {every.problem}"
        )
    print(
        f"{every.files - every.failed} files scored, {every.failed} could not be read; "
        f"rows in {args.out}\n{scored.speed()}"
    )
    if args.page is not None:
        _write_page(detector, told, args, args.page)


def _scored(args: Score, detector: Any, rows: Any, about: dict[str, Any]) -> Any:
    """Score what has no row yet, here or in workers; what was done."""
    from tqdm import tqdm

    from sance_audio.scoring import keep_all, scored_groups
    from sance_audio.workers import TASK, scored_by_workers

    left, wait = len(rows.files) - rows.count, 0.1 if sys.stderr.isatty() else 60.0
    bar = tqdm(
        desc="score",
        unit="file",
        total=len(rows.files),
        initial=rows.count,
        mininterval=wait,
        miniters=1,
        delay=wait if wait > 1 else 0,
    )

    def tell(words: str) -> None:
        bar.write(f"sance-audio: {words}", file=sys.stderr)

    def keep(group: list[dict[str, Any]]) -> None:
        rows.append(group)
        bar.update(len(group))

    if args.workers > 1 and left:
        workers = min(args.workers, -(-left // TASK))
        groups = scored_by_workers(args.run, about, rows.left(), workers, tell)
    else:
        groups = scored_groups(detector, rows.left())
    with bar, closing(groups):
        return keep_all(groups, keep)


def _folder_of(paths: list[Path]) -> dict[str, str]:
    """What relative paths are relative to, where there are any."""
    relative = not all(path.is_absolute() for path in paths)
    return {"folder of relative paths": str(Path.cwd())} if relative else {}


def _tell_resumed(rows: Any) -> None:
    """Say what was found of an earlier run."""
    if rows.earlier == 0:
        return
    words = [f"going on after {rows.count} finished rows in {rows.part}"]
    if rows.gone:
        words.append(f"{rows.gone} rows left out, of files that are not asked for any more")
    if rows.cut:
        words.append(f"{rows.cut} bytes behind the last whole row cut off")
    print(f"sance-audio: {'; '.join(words)}", file=sys.stderr)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends the work as Ctrl-C does."""


@contextmanager
def _termination() -> Iterator[None]:
    """SIGTERM as an exception, so that workers end and rows are whole."""

    def end(number: int, frame: Any) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_work(args: Score) -> None:
    if args.rate is not None:
        raise ValueError("--rate is of --stdin; files say theirs themselves: leave it out")
    if not args.paths:
        raise ValueError("no PATH was given: name audio files, or folders of them, to score")
    if args.workers < 1:
        raise ValueError(f"--workers must be at least 1, found {args.workers}")


def _check_page(args: Score) -> None:
    """Raise ValueError, before any work is done, where no page could be written."""
    if args.show < 1:
        raise ValueError(f"--show must be at least 1, found {args.show}")
    if args.page is None:
        return
    if args.page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--page {args.page}: expected a name ending in .html")
    if args.page.is_dir():
        raise ValueError(f"--page {args.page}: a folder stands there; name a file")


def _write_page(detector: Any, rows: list[dict[str, Any]], args: Score, page: Path) -> None:
    from sance_audio import scored_page

    found = [
        scored_page.Scored(
            row["path"], row["anomaly_score"], row.get("p_value"), row["path"], row["notes"]
        )
        for row in rows
        if "anomaly_score" in row
    ]
    refused = [row["notes"] for row in rows if "anomaly_score" not in row]
    part = scored_page.section(detector, found, scored_page.embedded, show=args.show)
    title = f"{len(found)} recordings, scored by {args.run}"
    print(f"look: {scored_page.write(page, title, [part], refused=refused).resolve()}")
