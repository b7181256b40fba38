"""Restores that prove: what was restored, to which moment, what was checked, how fast."""
