"""Finished runs -> one honest table: what can be compared, the numbers, and every form they are written in."""
