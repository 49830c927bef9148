"""A campaign of faults: random jobs on several identities, random faults at random moments, invariants at the end.

``python -m ofborg_async.lab.chaos --seed N`` repeats a schedule; what the machine makes of it differs a little each
time.
"""
