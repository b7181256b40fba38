"""Receiving a base backup in a process of its own.

Reading 2 GB/s of messages takes Python's lock so often that the threads which compress would wait for it: received in the
same process, a backup takes a sixth longer on two processors. So a child reads the walsender, cuts its tar archives into
cells, and lays them into slots of shared memory (memfd_create(2)); frames over a socket say what lies where, and the number
of a slot comes back when it is free again.

The child dies with its parent, whatever kills that (PR_SET_PDEATHSIG, prctl(2)), and the server then ends the backup.
"""

from __future__ import annotations
