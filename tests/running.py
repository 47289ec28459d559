"""Runs in one call, as the tests like them, and an executor that needs no second process."""

from dataclasses import fields

from flurka_bench.bench import loop
from flurka_bench.bench.executor import Answer, place_of
from flurka_bench.bench.kind import RunOptions
from flurka_bench.bench.protocol import merge
from flurka_bench.kinds.timing.kind import TimingPlan


class Inline:
    """Measures in this process, so that a test can lay hands on what a worker does."""

    def __init__(self, kind, options, **_):
        self.options, self.bench = options, kind.open(options.device)

    def open(self):
        return place_of(self.options, self.bench.hello)

    def submit(self, group, *, timeout_s, hear):
        answer = Answer()

        def say(message):
            known = {"partial": answer.partial, "outcome": answer.outcomes}.get(message["say"])
            if known is not None:
                merge(known.setdefault(message["index"], {}), message)
            if message["say"] != "partial":
                hear(message)

        self.bench.run(group, say, lambda index: None)
        answer.calls_s = self.bench.calls_s
        return answer

    def close(self, *, at_once):
        pass


def run_suite(suite, *, on_event=None, **options):
    """``options`` are those of ``RunOptions`` and of ``TimingPlan``."""
    own = {each.name for each in fields(RunOptions)} & options.keys()
    plan = TimingPlan(suite=suite, **{key: options[key] for key in options.keys() - own})
    return loop.run(plan, RunOptions(**{key: options[key] for key in own}), on_event=on_event)


def run_errors(suite, folder, *, on_event=None):
    """An error suite measured in this process."""
    from flurka_bench.kinds.error.kind import ErrorPlan

    plan, options = ErrorPlan(suite=suite), RunOptions(out=folder)
    return loop.run(plan, options, on_event=on_event, executor=Inline)
