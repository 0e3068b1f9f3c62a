"""The layers, one class a type, one file a family; :mod:`caffetools.layers.registry` finds them by their Caffe type."""
