"""Python layers used by the golden cases."""

import numpy as np

import caffe


class ScaledSquare(caffe.Layer):
    """top = factor * bottom ** 2; factor is read from param_str."""

    def setup(self, bottom, top):
        self.factor = float(self.param_str) if self.param_str else 1.0

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.factor * bottom[0].data ** 2

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = 2 * self.factor * bottom[0].data * top[0].diff


class LearnedShift(caffe.Layer):
    """top = bottom + blob; the blob (one value per channel) is a parameter."""

    def setup(self, bottom, top):
        self.blobs.add_blob(bottom[0].shape[1])
        self.blobs[0].data[...] = 0.5

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data + self.blobs[0].data[None, :]

    def backward(self, top, propagate_down, bottom):
        self.blobs[0].diff[...] += top[0].diff.sum(axis=0)
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff


class PhaseProbe(caffe.Layer):
    """top = 1 in TEST, 0 in TRAIN."""

    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape(1)

    def forward(self, bottom, top):
        top[0].data[0] = self.phase

    def backward(self, top, propagate_down, bottom):
        pass
