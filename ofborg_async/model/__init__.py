"""Frozen values that every room speaks: jobs, results, identities, snapshots. No input or output here."""
