"""The demonstration's load in loops for a long time: what a daemon holds on to must not grow.

``python -m ofborg_async.lab.soak --minutes 40`` prints figures and a verdict for each, and exits with 1 when one grows.
"""
