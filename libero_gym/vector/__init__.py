"""Many environments in worker processes, with shared memory between."""
