"""The trial before a hospital's first study: line, broker, clock, machine, training, data. `trial` carries it out.

It runs while the connector stands still, changes nothing, reads no record, and tells the platform codes and numbers of
the machine and the line only; names, paths and addresses stay in the hospital's own report.
"""
