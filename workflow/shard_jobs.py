"""Data jobs with one shard as unit of work, run by Apache Beam or by processes of this machine.

A job turns shard i into its own files, atomically, and nothing else. So a retry, or the run after a
SIGKILL, may do a shard twice, and the result is the same. When the files of a finished shard are in
place, a JSON file in a progress directory notes the shard's result. A shard with a note is not done
again. The driver reads the notes, so no data flows back through Beam. Any runner will do, if its
workers see the same file system.

A worker leaves an InputError in the progress directory too, rather than raise it. Runners retry
what raises, in vain here, and wrap it beyond recognition.

Beam's own `multi_processing` waits for ever for a worker that was killed. So these options start
processes of Python's own pool, which notices at once. The job then ends with one line and exit code
75, and the same command finishes the missing shards. The processes share out the GPUs (`share`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import importlib
import inspect
import io
import logging as standard_logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from absl import logging

from cli import app, buckets
from cli.errors import InputError
from cli.files import remove_temporaries
from cli.json_files import read_json, write_json
from training.workers import LOST

# On import, Beam warns that its Google Cloud extra is missing. It also logs its internals as INFO.
standard_logging.disable(standard_logging.WARNING)
import apache_beam as beam  # noqa: E402
from apache_beam.options.pipeline_options import (  # noqa: E402
    DirectOptions,
    PipelineOptions,
    StandardOptions,
)

standard_logging.disable(standard_logging.NOTSET)
standard_logging.getLogger("apache_beam").setLevel(standard_logging.WARNING)


DASK_RUNNER = "apache_beam.runners.dask.dask_runner.DaskRunner"
"""The one runner that Beam does not know by its short name."""


class Job(Protocol):
    """The work on each shard.

    A job is pickled to the workers before `setup`: a dataclass of paths and numbers is best.
    """

    def setup(self) -> None:
        """Loads what all shards need; called once per worker."""

    def outputs(self, shard: int) -> list[str]:
        """Returns the paths of the files that `run` makes."""

    def run(self, shard: int) -> dict[str, Any]:
        """Makes the files of a shard, each atomically.

        Returns:
          What the driver must know, as JSON.

        Raises:
          InputError: the shard cannot be used.
        """


@dataclasses.dataclass(frozen=True)
class Notes:
    """The progress directory of one job."""

    directory: Path

    def path(self, shard: int) -> Path:
        """Returns the path of the note of a finished shard."""
        return self.directory / f"{shard:05d}.json"

    def error_path(self, shard: int) -> Path:
        """Returns the path of the note of a shard that failed."""
        return self.directory / f"{shard:05d}.error.json"

    def errors(self) -> list[Path]:
        """Returns the notes of failed shards that are there, in the shards' order."""
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
      at_once: number of shards that threads of this process work on side by side, where no other
        engine was asked for. With more than 1 the job has a method `close`, which ends them early.

    Returns:
      What `job.run` returned for each shard, in order, in this run or in an earlier one.

    Raises:
      InputError: an unknown Beam option, a damaged note, or the error of the first failed shard.
      KeyboardInterrupt: Ctrl-C interrupted the job.
      SystemExit: a worker process was killed; the exit code is `LOST`.
    """
    options = pipeline_options(beam_options)
    notes = Notes(progress)
    notes.directory.mkdir(parents=True, exist_ok=True)
    # Errors of an earlier run: the cause may have been mended since.
    for path in notes.errors():
        buckets.remove(path)
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
    buckets.remove_tree(progress)


def _is_done(job: Job, notes: Notes, shard: int) -> bool:
    """Tells whether the shard has a note, and its files have the sizes noted.

    Somebody may have deleted or cut a file.
    """
    if not notes.path(shard).exists():
        return False
    return read_json(notes.path(shard), {"bytes": list})["bytes"] == _sizes(job.outputs(shard))


def _sizes(paths: list[str]) -> list[int | None]:
    return [buckets.size(path) for path in paths]


def unknown_options(flags: Sequence[str]) -> list[str]:
    """Returns the names of the `flags` that are not options of Beam.

    Raises:
      InputError: the value of an option is wrong.
    """
    if "--runner=DaskRunner" in flags:
        try:
            # Imported here, since no stage needs Dask. Beam knows its options only then.
            importlib.import_module(DASK_RUNNER.rpartition(".")[0])
        except ImportError as error:
            raise InputError(
                "--runner=DaskRunner needs Dask; docs/installation.md says how to add it"
            ) from error
        if not dask_works():
            raise InputError(
                f"--runner=DaskRunner fails with Apache Beam {beam.__version__}, the last one for"
                " Python 3.9; take Python 3.10 or later, or another runner"
            )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            known = PipelineOptions([]).get_all_options()
            everything = PipelineOptions(list(flags)).get_all_options(retain_unknown_options=True)
    # This is how argparse refuses options, after its usage and a line on stderr.
    except SystemExit as error:
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise InputError(f"Beam does not take {' '.join(flags)} ({reason})") from error
    return [f"--{name}" for name in everything if name not in known]


def dask_works() -> bool:
    """Tells whether Beam's DaskRunner gives Dask's client no options that are not its own."""
    return "current_only" in inspect.signature(PipelineOptions.get_all_options).parameters


def pipeline_options(flags: Sequence[str]) -> PipelineOptions:
    """Parses Beam's options from the words that are not flags of the stage.

    Raises:
      InputError: a word is not an option of Beam either.
    """
    unknown = unknown_options(flags)
    if unknown:
        raise InputError(
            f"{', '.join(unknown)}: neither a flag of this stage nor an option of Apache Beam"
        )
    options = PipelineOptions(list(flags))
    standard = options.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        # DirectRunner would choose this runner, but only after it tried to fetch and start another.
        standard.runner = "FnApiRunner"
    elif standard.runner == "DaskRunner":
        standard.runner = DASK_RUNNER
    return options


class _Work:
    """Does a worker's part: loads what the job needs, then makes the files of shard after shard."""

    def __init__(self, job: Job, notes: Notes, num_shards: int) -> None:
        self._job, self._notes, self._num_shards = job, notes, num_shards
        self._setup_error: BaseException | None = None

    def setup(self) -> None:
        """Sets up the job; called once per worker."""
        try:
            self._job.setup()
        except (InputError, KeyboardInterrupt) as error:
            self._setup_error = error

    def close(self) -> None:
        """Ends the work of other threads."""
        self._job.close()  # type: ignore[attr-defined]

    def do(self, shard: int) -> str:
        """Returns what to log of the shard; "" where there is nothing to say."""
        if self._notes.errors():
            return ""  # the job has failed: more work would only delay the error
        started = time.monotonic()
        try:
            if self._setup_error is not None:
                raise self._setup_error
            result = self._job.run(shard)
        except InputError as error:
            write_json(self._notes.error_path(shard), {"error": str(error)})
            return ""
        # It reaches workers in this process only. Beam would turn it into a RuntimeError.
        except KeyboardInterrupt:
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
    """Runs one shard by its number; the effect is the shard's files and its note."""

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
    """Returns (worker processes on this machine, this one's number from 0); (1, 0) outside them."""
    return _share


_share = (1, 0)


def _processes(options: PipelineOptions) -> int:
    """Returns how many worker processes Beam's options ask for; 0: Beam itself runs the job."""
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
            "a worker process of this job is gone, perhaps killed because memory ran out; run the "
            "same command again to finish the missing shards (a smaller --direct_num_workers "
            "takes less memory)",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(LOST) from error
    except BaseException:
        # They may be in the middle of a long shard.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _importing_nothing_of_the_callers() -> Iterator[None]:
    """Starts processes in the checkout.

    Elsewhere, a new process would first import modules of the caller's directory.
    """
    here = os.getcwd()
    os.chdir(app.ROOT)
    try:
        yield
    finally:
        os.chdir(here)


_work: _Work | None = None
"""The work of this worker process; None in other processes."""


def _start_worker(work: _Work, directory: str, processes: int, started: Any) -> None:
    global _work, _share
    with started.get_lock():
        _share, started.value = (processes, started.value), started.value + 1
    os.chdir(directory)  # relative paths are the caller's
    # Ctrl-C goes to the whole group, and the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    work.setup()
    _work = work


def _leave_with_parent() -> None:
    """Ends a worker after its parent was killed and could not end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do_in_worker(shard: int) -> str:
    assert _work is not None
    return _work.do(shard)
