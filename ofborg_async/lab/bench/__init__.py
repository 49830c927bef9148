"""The benchmarks: every figure of the performance document, measured on this machine. ``make bench`` runs them.

``python -m ofborg_async.lab.bench --against PATH`` does the same work through processes of another builder too, one
for each identity (an executable that takes one JSON configuration of the original's form), in turns with ours. Only
such ratios mean something: machines differ and are shared.

Written are tables on the screen, ``benchmarks.json``, and in ``benchmarks/`` the plots and the table for a page.
"""
