"""Snapshots: Caffe's .caffemodel and .solverstate, the run state beside them, finding and restoring them."""
