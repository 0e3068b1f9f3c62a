"""Datasets of other tools to Caffe's databases and back: one reader and one writer a format, with plain examples between them."""
