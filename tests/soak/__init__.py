"""A soak of the sensor: strangers of many kinds, faults at random moments, and at the end each byte accounted for.

`make soak`, or `python -m tests.soak --help`. It is no part of the test suite: it takes minutes to hours.
"""
