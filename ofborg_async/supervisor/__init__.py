"""Keeps identities at work: lifecycle, backoff, budgets, lanes, and the daemon that wires the rooms together."""
