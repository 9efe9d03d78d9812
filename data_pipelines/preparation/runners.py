"""Make shards in this process, in others of this machine, or in Apache Beam's workers.

All call `one_shard.write`, so the bytes are the same. Beam's workers need the package,
and the directories of the source, of the hand model and of the result under the same
paths (a shared file system). Apache Beam is the extra `beam`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_pipelines.preparation import one_shard
from data_pipelines.preparation.one_shard import Job, Part, Task
from data_pipelines.storage.workers import Workers
from handjax.errors import UserError


class Runner(NamedTuple):
    """Choice of who makes the shards."""

    workers: int = 1
    """Number of processes; 1 runs in this one."""
    beam: str = ""
    """Runner of Beam to use instead, e.g. "DirectRunner", "FlinkRunner"."""
    beam_options: Sequence[str] = ()
    """Options of Beam's pipeline, as on its command lines."""

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Part]:
        """Make shards; yield the content of each (with Beam, once all exist).

        Raises:
            UserError: Beam is not installed, or does not know the runner or an option.
            SourceError: A downloaded file is missing or damaged.
            RuntimeError: A worker failed; the message comes from it.
        """
        if self.beam:
            yield from self._by_beam(job, tasks)
        elif self.workers == 1:
            yield from (one_shard.write(job, task) for task in tasks)
        else:
            with Workers(min(self.workers, len(tasks)), _start) as pool:
                yield from pool.run(one_shard.write, [(job, task) for task in tasks])

    def _by_beam(self, job: Job, tasks: Sequence[Task]) -> Iterator[Part]:
        try:
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise UserError(
                "--beam needs Apache Beam: pip install 'handjax[beam]'. Without it, "
                "--workers uses the processes of this machine."
            ) from error
        options = PipelineOptions([f"--runner={self.beam}", *self.beam_options])
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "shards" >> beam.Create([(job, task) for task in tasks])
                | "spread" >> beam.Reshuffle()
                | "write" >> beam.MapTuple(_write)
            )
        for task in tasks:
            part = one_shard.finished(job, task)
            if part is None:
                raise UserError(
                    f"Beam's {self.beam} finished without {task.path(job)}: its "
                    "workers have to see the same directories as this process."
                )
            yield part


def _start() -> None:
    """Set up a worker process: the cores are shared out already."""
    import cv2

    cv2.setNumThreads(1)


def _write(job: Job, task: Task) -> int:
    """Write a shard; return its number of records."""
    return one_shard.write(job, task).records
