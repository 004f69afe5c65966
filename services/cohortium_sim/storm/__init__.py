"""Thousands of whole federations in one process, each the exact history of one seed, with faults at every step.

In the manner of FoundationDB's simulation and TigerBeetle's: the services and connectors are the real ones, from their
`App` down to the masks. Under them lie a loop whose clock jumps from one event to the next (`loop`), SQLite without a
thread (`sqlite`), the in-memory broker behind a line that delays, repeats and loses (`line`), and a training process
that runs in place (`parts`). `operations` draws the faults, `observer` and `checks` hold what must never happen,
`shrink` finds the shortest list of operations that still shows it.

What is not the same from one run of a seed to the next: the bytes of keys, masks and signatures, which come from the
operating system. No decision depends on them, so the history (who says what to whom, when) is the same; its digest is
compared in the tests.
"""
