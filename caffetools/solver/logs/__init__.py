"""What a run says of itself: log lines in Caffe's words, the same as JSON lines, and reading both back."""
