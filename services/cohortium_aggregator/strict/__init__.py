"""Strict sessions while they step: everything here is in memory, and may be lost at any moment.

`session`: one session, without input or output. `agreements`: what its sites agree to. `courier`: results on their way.
`engine`: frames in, sessions taken, kept and given up. Only finished boosting rounds are on record; a session whose
process dies ends PAUSED and goes on, as another session, from the last of them.
"""
