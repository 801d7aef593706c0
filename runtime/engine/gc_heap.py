"""What Python's garbage collector looks at."""

import gc


def freeze_heap() -> None:
    """Takes all objects that are alive now out of its sight, for a process that serves from here on.

    Those of an engine live as long as it does, and a full collection looks at each, some 90 ms in which no step can
    start. What comes later is collected as ever.
    """
    gc.collect()
    gc.freeze()
