"""The same shards, made by Apache Beam's workers instead of local processes.

Each element of the pipeline is one shard: `shard_jobs.write` does what it does in a
local process, so the bytes are the same. Workers need the package, and the directories
of the source, of the hand model and of the result under the same paths (a shared file
system). Apache Beam is the extra `beam`.
"""

from collections.abc import Iterator, Sequence

from data_pipelines import shard_jobs
from data_pipelines.shard_jobs import Job, Part, Task


def run(
    job: Job, tasks: Sequence[Task], runner: str, options: Sequence[str] = ()
) -> Iterator[Part]:
    """Make shards; yields what is in each, once all of them are there.

    Args:
        job: what is made.
        tasks: shards that are missing.
        runner: of Beam, e.g. "DirectRunner", "FlinkRunner", "SparkRunner".
        options: of the pipeline, as on Beam's command lines.

    Raises:
        ValueError: Beam is not installed, or does not know the runner or an option.
        RuntimeError: A shard failed; the message is that of the worker.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError(
            "--beam needs Apache Beam: pip install 'handjax[beam]'. Without it, "
            "--workers uses the processes of this machine."
        ) from error
    flags = [f"--runner={runner}", *options]
    with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create([(job, task) for task in tasks])
            | "spread" >> beam.Reshuffle()
            | "write" >> beam.MapTuple(_write)
        )
    for task in tasks:
        part = shard_jobs.finished(job, task)
        if part is None:
            raise RuntimeError(
                f"Beam's {runner} finished without {task.path(job)}: its workers have "
                "to see the same directories as this process."
            )
        yield part


def _write(job: Job, task: Task) -> int:
    """Write a shard; returns its number of records, since a shard itself is a file."""
    return shard_jobs.write(job, task).records
