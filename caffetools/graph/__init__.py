"""A net as a graph: producers and consumers of blobs, shapes, summaries, differences, rewrite passes."""
