"""Snapshots: Caffe's .caffemodel and .solverstate, the run state next to them, finding and restoring them."""
