"""Strict sessions: many sums of one roster, step by step, each over all n sites or over none (section 3 of the
protocol).

`steps`: kinds of steps, the chain of results, sizes. `masks`: a site's masks, and opening a sum. `frames`: what
travels. `collector`: the aggregator's side. `session`: a site's side. `exact`: real numbers as ring words.
"""
