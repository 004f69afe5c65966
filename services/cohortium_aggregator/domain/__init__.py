"""The aggregator's side of one secure sum, from the fixed roster to its end (protocol section 1.9).

Two rules. Everything that decides the course of a window is in `advance`: handlers load, advance and save. And it is
pure: the time comes in as an argument, and signatures and digests are checked before a command is made of a message.
"""
