"""What both drivers do, written once: procedures that ask for effects, and the core that they work on.

A procedure is a generator that yields an `Effect` and gets back what it gave. The sync driver carries effects out by
calling, the async one by awaiting; neither decides anything.
"""
