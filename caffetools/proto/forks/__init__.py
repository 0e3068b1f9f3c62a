"""The schemas of Caffe's forks: field tables, dialects and renumbering of conflicting field numbers."""
