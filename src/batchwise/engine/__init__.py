"""The work of both drivers, written once: procedures that await effects, and the core that they work on.

A procedure is an `async def` that awaits effects (see `effects`). The driver of threads carries effects out by calling,
the driver of tasks by awaiting; neither decides anything.
"""
