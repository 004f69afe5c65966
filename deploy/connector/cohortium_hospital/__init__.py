"""The hospital's command, `cohortium-connector`: the connector's processes, and what a person decides here.

It is a part of the hospital's wheel only. The operator's `cohortium site` has the same commands, for simulations.
"""
