"""Write small.prototxt with NetSpec, as in Caffe, and count what it costs."""

import caffetools as ct

ct.install_as_caffe()  # import caffe is caffetools from here on

import caffe  # noqa: E402
from caffe import layers as L  # noqa: E402
from caffe import params as P  # noqa: E402

n = caffe.NetSpec()
n.data = L.Input(shape={"dim": [1, 3, 32, 32]})
n.conv1 = L.Convolution(n.data, num_output=16, kernel_size=3, pad=1, weight_filler={"type": "msra"})
n.relu1 = L.ReLU(n.conv1, in_place=True)
n.pool1 = L.Pooling(n.relu1, pool=P.Pooling.AVE, global_pooling=True)
n.fc = L.InnerProduct(n.pool1, num_output=10, weight_filler={"type": "xavier"})
n.prob = L.Softmax(n.fc)
with open("small.prototxt", "w") as stream:  # noqa: PTH123
    stream.write(str(n.to_proto()))
summary = ct.inspect("small.prototxt")
print(f"{summary.parameters} parameters, {summary.macs} multiply–accumulates")
