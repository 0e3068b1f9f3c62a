"""A run's log: lines in Caffe's format, the same as JSON lines, and reading both back."""
