"""``caffe.proto``: the messages, in :mod:`caffetools.pycaffe.proto.caffe_pb2`."""
