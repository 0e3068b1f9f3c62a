"""caffetools: Caffe models keep training, converting and shipping, with the numbers that Caffe itself gives."""

__version__ = "0.1.0"
