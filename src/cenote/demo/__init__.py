"""`cenote demo`: a swarm whose state survives, on real servers and real input, with a verdict at the end.

The modules of the Python standard library are tasks. Worker processes take them, one agent for each module; they write
down as state how far they are, count what they find in one map and one set, and end each task in one transaction with
the messages and the facts that belong to it. On the way a worker, nats-server and PostgreSQL are killed with SIGKILL.
In the end PostgreSQL, read without cenote, is compared with the workers' journals, and knowledge is asked a question.

`stage` and `conductor` run it; `worker`, `telling`, `shared`, `careful`, `audience` and `pool` are what a program of
yours would look like; `survey` is the work; `journal`, `verify` and `rooms` are the judge, and ask the store nothing.
"""


def run(
    *,
    modules: int | None = None,
    workers: int = 4,
    faults: bool = True,
    as_json: bool = False,
    data_dir: str | None = None,
) -> int:
    """Run the demo and show its result.

    Args:
        modules: how many modules of the standard library to survey; None: 180.
        workers: how many processes survey them.
        faults: whether to kill a worker and both servers on the way.
        as_json: print one JSON object instead of progress and table.
        data_dir: where the servers keep their data; None: a temporary directory that is removed at the end.

    Returns:
        The exit code: 0 nothing was lost; 1 something was, or did not happen; 2 it could not start; 64 bad arguments.
    """
    from cenote.demo.stage import play  # workers import this package too, and need none of it

    return play(modules=modules, workers=workers, faults=faults, as_json=as_json, data_dir=data_dir)
