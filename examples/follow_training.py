"""Train solver.prototxt, print what happens, and stop when the loss is below 0.5; start it again and it resumes."""

import caffetools as ct
from caffetools import events

token = ct.CancelToken()


def follow(event: events.Event) -> None:
    """Print losses and snapshots; stop a run whose loss is low."""
    if isinstance(event, events.Metrics):
        print(f"iteration {event.iteration}: loss {event.loss:.3f}")
        if event.loss < 0.5:
            token.cancel()
    elif isinstance(event, events.CheckpointWritten):
        print("wrote", event.weights)


ct.train("solver.prototxt", resume=True, device="cpu", events=follow, cancel=token)
