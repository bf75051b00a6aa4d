"""Data jobs whose unit of work is one shard, run by Apache Beam, or by processes of this machine.

A job turns shard i into files of its own, atomically, and nothing else; so a shard may be done
twice, by a retry or by the run after a SIGKILL, and comes out the same. What a finished shard had
to report is noted in a small JSON file beside the others in a progress directory, after the shard's
files are in place; a shard with a note is not done again. The driver reads the notes, so no data
flows back through Beam, and any runner will do whose workers see the same file system.

A worker leaves an InputError in the progress directory too, rather than raise it: runners retry
what raises, in vain here, and wrap it beyond recognition.

Beam's own `multi_processing` waits for ever for a worker that was killed. So these options start
processes of Python's own pool, which notices at once: the job ends with one line and exit code 75,
and the same command finishes the shards that are missing. They share out the GPUs (`share`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import importlib
import io
import logging as standard_logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from absl import logging

from cli import app
from cli.errors import InputError
from cli.files import remove_temporaries
from cli.json_files import read_json, write_json
from training.workers import LOST

# Without its Google Cloud extra Beam warns on import that it is not there, and it reports its inner
# life as INFO.
standard_logging.disable(standard_logging.WARNING)
import apache_beam as beam  # noqa: E402
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
)  # noqa: E402

standard_logging.disable(standard_logging.NOTSET)
standard_logging.getLogger("apache_beam").setLevel(standard_logging.WARNING)


DASK_RUNNER = "apache_beam.runners.dask.dask_runner.DaskRunner"
"""The one runner that Beam does not know by its short name."""


class Job(Protocol):
    """What is done to each shard. Pickled to the workers before `setup`; a dataclass of paths and numbers is best."""

    def setup(self) -> None:
        """Once per worker: load what all shards need."""

    def outputs(self, shard: int) -> list[str]:
        """Paths of the files that `run` makes."""

    def run(self, shard: int) -> dict[str, Any]:
        """Makes them, each atomically; returns what the driver must know, as JSON.

        Raises:
          InputError: the shard cannot be used.
        """


@dataclasses.dataclass(frozen=True)
class Notes:
    """The progress directory of one job."""

    directory: Path

    def path(self, shard: int) -> Path:
        """Note of a finished shard."""
        return self.directory / f"{shard:05d}.json"

    def error_path(self, shard: int) -> Path:
        """Note of a shard that failed."""
        return self.directory / f"{shard:05d}.error.json"

    def errors(self) -> list[Path]:
        """Those that are there, in the shards' order."""
        return sorted(self.directory.glob("*.error.json"))


def run(
    job: Job,
    num_shards: int,
    progress: Path,
    beam_options: Sequence[str] = (),
    result: Any = dict,
    at_once: int = 1,
) -> list[dict[str, Any]]:
    """Runs `job` on the shards that are not done yet.

    Args:
      job: what to do.
      num_shards: shards are numbered from 0.
      progress: the job's own progress directory.
      beam_options: Beam's command-line options, `--name=value`.
      result: what the notes of the shards must hold, as a schema of `cli.json_files.read_json`.
      at_once: shards that threads of this process work on side by side, where no other engine was
        asked for. With more than 1 the job has a method `close`, which ends them early.

    Returns:
      What `job.run` returned for each shard, in order, in this run or in an earlier one.

    Raises:
      InputError: an unknown Beam option, a damaged note, or the first shard's that had one.
      KeyboardInterrupt: there was one.
      SystemExit: a worker process was killed; the exit code is `LOST`.
    """
    options = pipeline_options(beam_options)
    notes = Notes(progress)
    notes.directory.mkdir(parents=True, exist_ok=True)
    for path in notes.errors():  # an earlier run's; what was wrong may have been mended since
        path.unlink()
    for directory in {notes.directory, *(Path(path).parent for path in job.outputs(0))}:
        remove_temporaries(directory)
    pending = [shard for shard in range(num_shards) if not _is_done(job, notes, shard)]
    if len(pending) < num_shards:
        logging.info("%d of %d shards are done already", num_shards - len(pending), num_shards)
    work, processes = _Work(job, notes, num_shards), _processes(options)
    if pending and processes:
        _run_in_processes(work, pending, processes)
    elif pending and at_once > 1 and _here(options):
        _run_in_threads(work, pending, at_once)
    elif pending:
        with beam.Pipeline(options=options) as pipeline:
            _ = pipeline | beam.Create(pending) | beam.Reshuffle() | beam.ParDo(_RunShard(work))
    errors = notes.errors()
    if errors:
        message = read_json(errors[0], {"error": (str, None)})["error"]
        if message is None:
            raise KeyboardInterrupt
        raise InputError(message)
    return [
        read_json(notes.path(shard), {"result": result})["result"] for shard in range(num_shards)
    ]


def forget(progress: Path) -> None:
    """Removes a progress directory, when the stage's summary has taken its place."""
    shutil.rmtree(progress, ignore_errors=True)


def _is_done(job: Job, notes: Notes, shard: int) -> bool:
    """Whether the shard has a note and its files have the sizes noted (somebody may have deleted or cut one)."""
    if not notes.path(shard).exists():
        return False
    return read_json(notes.path(shard), {"bytes": list})["bytes"] == _sizes(job.outputs(shard))


def _sizes(paths: list[str]) -> list[int | None]:
    return [Path(path).stat().st_size if Path(path).exists() else None for path in paths]


def unknown_options(flags: Sequence[str]) -> list[str]:
    """Returns the names of those `flags` that are no options of Beam.

    Raises:
      InputError: the value of an option is wrong.
    """
    if "--runner=DaskRunner" in flags:
        try:
            importlib.import_module(
                DASK_RUNNER.rpartition(".")[0]
            )  # here, since no stage needs Dask; Beam knows its options only then
        except ImportError as error:
            raise InputError(
                "--runner=DaskRunner needs Dask; docs/installation.md says how to add it"
            ) from error
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            known = PipelineOptions([]).get_all_options()
            everything = PipelineOptions(list(flags)).get_all_options(retain_unknown_options=True)
    except SystemExit as error:  # argparse's way of saying so, after its usage and a line on stderr
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise InputError(f"Beam does not take {' '.join(flags)} ({reason})") from error
    return [f"--{name}" for name in everything if name not in known]


def pipeline_options(flags: Sequence[str]) -> PipelineOptions:
    """Beam's options of the words that are no flags of the stage. Raises InputError where they are no options of Beam either."""
    unknown = unknown_options(flags)
    if unknown:
        raise InputError(
            f"{', '.join(unknown)}: neither a flag of this stage nor an option of Apache Beam"
        )
    options = PipelineOptions(list(flags))
    standard = options.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        # What DirectRunner comes to for such a pipeline, without its first trying to fetch and
        # start another runner.
        standard.runner = "FnApiRunner"
    elif standard.runner == "DaskRunner":
        standard.runner = DASK_RUNNER
    return options


class _Work:
    """What a worker does: it loads what the job needs, then makes one shard's files after another."""

    def __init__(self, job: Job, notes: Notes, num_shards: int) -> None:
        self._job, self._notes, self._num_shards = job, notes, num_shards
        self._setup_error: BaseException | None = None

    def setup(self) -> None:
        """Once per worker."""
        try:
            self._job.setup()
        except (InputError, KeyboardInterrupt) as error:
            self._setup_error = error

    def close(self) -> None:
        """Ends what other threads do."""
        self._job.close()  # type: ignore[attr-defined]

    def do(self, shard: int) -> str:
        """Returns what to log of the shard; "" where there is nothing to say."""
        if self._notes.errors():
            return ""  # the job has failed; what is done now would only delay saying so
        started = time.monotonic()
        try:
            if self._setup_error is not None:
                raise self._setup_error
            result = self._job.run(shard)
        except InputError as error:
            write_json(self._notes.error_path(shard), {"error": str(error)})
            return ""
        except (
            KeyboardInterrupt
        ):  # it reaches workers in this process only, and Beam would turn it into a RuntimeError
            write_json(self._notes.error_path(shard), {"error": None})
            return ""
        write_json(
            self._notes.path(shard), {"bytes": _sizes(self._job.outputs(shard)), "result": result}
        )
        rate = result["images"] / max(time.monotonic() - started, 1e-6)
        return (
            f"shard {shard + 1} of {self._num_shards}: {result['images']} images,"
            f" {rate:.0f} images/s"
        )


class _RunShard(beam.DoFn):
    """Shard number -> nothing; the effect is the shard's files and its note."""

    def __init__(self, work: _Work) -> None:
        super().__init__()
        self._work = work

    def setup(self) -> None:
        self._work.setup()

    def process(self, shard: int) -> None:
        if line := self._work.do(shard):
            logging.info("%s", line)


# Threads of this process


def _here(options: PipelineOptions) -> bool:
    """Tells whether Beam would run the job in this process, on one thread."""
    return (
        options.view_as(StandardOptions).runner == "FnApiRunner"
        and options.view_as(DirectOptions).direct_running_mode == "in_memory"
    )


def _run_in_threads(work: _Work, shards: Sequence[int], threads: int) -> None:
    """Does the shards with one job, several at a time."""
    work.setup()
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        futures = [pool.submit(work.do, shard) for shard in shards]
        for future in concurrent.futures.as_completed(futures):
            if line := future.result():
                logging.info("%s", line)
    except BaseException:
        work.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


# Processes of this machine


def share() -> tuple[int, int]:
    """Returns (worker processes on this machine, number of this one from 0); (1, 0) outside of them."""
    return _share


_share = (1, 0)


def _processes(options: PipelineOptions) -> int:
    """Number of worker processes that Beam's options ask for; 0: Beam itself is to run the job."""
    direct = options.view_as(DirectOptions)
    if (
        options.view_as(StandardOptions).runner != "FnApiRunner"
        or direct.direct_running_mode != "multi_processing"
    ):
        return 0
    return direct.direct_num_workers or os.cpu_count() or 1  # 0 stands for all cores


def _run_in_processes(work: _Work, shards: Sequence[int], processes: int) -> None:
    """Does the shards in worker processes. Raises SystemExit, after one line, if one is lost."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    processes = min(processes, len(shards))
    arguments = (work, os.getcwd(), processes, context.Value("i", 0))
    pool = concurrent.futures.ProcessPoolExecutor(processes, context, _start_worker, arguments)
    try:
        with _importing_nothing_of_the_callers():
            futures = [pool.submit(_do_in_worker, shard) for shard in shards]
        for future in concurrent.futures.as_completed(futures):
            if line := future.result():
                logging.info("%s", line)
    except BrokenProcessPool as error:
        print(
            "a worker process of this job is gone, killed perhaps for want of memory; run the same"
            " command again to finish the missing shards (a smaller --direct_num_workers takes less"
            " memory)",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(LOST) from error
    except BaseException:
        for process in (
            set(multiprocessing.active_children()) - others
        ):  # they may be in the middle of a long shard
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _importing_nothing_of_the_callers() -> Iterator[None]:
    """Starts processes in the checkout: a new one would import modules of the caller's directory first."""
    here = os.getcwd()
    os.chdir(app.ROOT)
    try:
        yield
    finally:
        os.chdir(here)


_work: _Work | None = None
"""In a worker process: what it does."""


def _start_worker(work: _Work, directory: str, processes: int, started: Any) -> None:
    global _work, _share
    with started.get_lock():
        _share, started.value = (processes, started.value), started.value + 1
    os.chdir(directory)  # relative paths are the caller's
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to the whole group, and the parent ends its workers
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    work.setup()
    _work = work


def _leave_with_parent() -> None:
    """Ends a worker whose parent was killed and could not end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do_in_worker(shard: int) -> str:
    assert _work is not None
    return _work.do(shard)
